//! One exec, whatever the protocol: starts the program, moves bytes, reports how it ended.
//!
//! A transport turns what its client sends into [`Incoming`] and sends what it gets as [`Outgoing`]. When it drops its end
//! of either, the client is gone, and the program is killed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hull_runtime::warden::{ExecRequest, ExecStarted};
use rustix::process::{Signal, pidfd_send_signal};
use rustix::termios::Winsize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Wanted;
use super::pipe::Pipe;
use crate::pod::exec::{kill_tree, next_exec_id, process_like};
use crate::pod::fd;
use crate::pod::host::Host;

/// How much output is read at a time.
const CHUNK: usize = 16 << 10;
/// Output is still read this long after the program ended: something it started may hold the pipe.
const DRAIN: Duration = Duration::from_millis(250);

/// The streams of an exec; the numbers are those of the WebSocket protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Error = 3,
    Resize = 4,
}

/// What the client sent.
pub enum Incoming {
    /// Bytes of a channel.
    Data(Channel, Bytes),
    /// No more bytes on it.
    Closed(Channel),
}

/// What the client is to get.
pub enum Outgoing {
    /// The streams are up.
    Started,
    /// Bytes of a channel.
    Data(Channel, Bytes),
    /// The end: a `Status`.
    Ended(Value),
}

/// One exec.
pub struct Session {
    pub host: Arc<Host>,
    pub wanted: Wanted,
}

impl Session {
    /// Runs the program to its end, or until the client is gone.
    pub async fn run(self, input: mpsc::Receiver<Incoming>, output: mpsc::Sender<Outgoing>) {
        let exec_id = next_exec_id();
        let status = match self.start(&exec_id).await {
            Ok(started) => self.attend(&exec_id, started, input, &output).await,
            Err(message) => Some(failure(&message)),
        };
        if let Some(status) = status {
            // A client that has gone needs no answer.
            let _ = output.send(Outgoing::Ended(status)).await;
        }
    }

    async fn start(&self, exec_id: &str) -> Result<ExecStarted, String> {
        let process = process_like(&self.wanted.config, &self.wanted.command, self.wanted.terminal)?;
        let request = ExecRequest {
            id: self.wanted.id.clone(),
            exec_id: exec_id.to_owned(),
            process,
            terminal: self.wanted.terminal,
            stdin: self.wanted.stdin,
        };
        self.host.warden.exec(request).await.map_err(|error| error.to_string())
    }

    /// Moves bytes until the program has ended. `None` when the client went away first.
    async fn attend(
        &self,
        exec_id: &str,
        started: ExecStarted,
        input: mpsc::Receiver<Incoming>,
        client: &mpsc::Sender<Outgoing>,
    ) -> Option<Value> {
        let pid = started.pid;
        let pidfd = match fd::watch(started.pidfd) {
            Ok(pidfd) => pidfd,
            Err(error) => return Some(failure(&format!("waiting for the exec: {error}"))),
        };
        client.send(Outgoing::Started).await.ok()?;
        let console = started.console.and_then(|fd| Pipe::new(fd).ok()).map(Arc::new);
        let (sender, mut output) = mpsc::channel(4);
        let stdin = match &console {
            Some(console) => {
                tokio::spawn(read(Arc::clone(console), Channel::Stdout, sender));
                Some(Arc::clone(console))
            }
            None => {
                for (fd, channel) in [(started.stdout, Channel::Stdout), (started.stderr, Channel::Stderr)] {
                    if let Some(pipe) = fd.and_then(|fd| Pipe::new(fd).ok()) {
                        tokio::spawn(read(Arc::new(pipe), channel, sender.clone()));
                    }
                }
                drop(sender);
                started.stdin.and_then(|fd| Pipe::new(fd).ok()).map(Arc::new)
            }
        };
        let mut gone = tokio::spawn(feed(input, stdin, console));
        let mut ended = false;
        let mut open = true;
        let deadline = tokio::time::sleep(Duration::from_secs(u64::from(u32::MAX)));
        tokio::pin!(deadline);
        let left = loop {
            tokio::select! {
                chunk = output.recv(), if open => match chunk {
                    Some((channel, bytes)) => {
                        let wanted = if channel == Channel::Stdout { self.wanted.stdout } else { self.wanted.stderr };
                        if wanted && client.send(Outgoing::Data(channel, bytes)).await.is_err() {
                            break true;
                        }
                    }
                    None => {
                        open = false;
                        if ended {
                            break false;
                        }
                    }
                },
                _ = pidfd.readable(), if !ended => {
                    ended = true;
                    if !open {
                        break false;
                    }
                    deadline.as_mut().reset(tokio::time::Instant::now() + DRAIN);
                }
                () = &mut deadline, if ended => break false,
                _ = &mut gone, if !ended => break true,
            }
        };
        gone.abort();
        if left {
            kill_tree(pid);
            let _ = pidfd_send_signal(pidfd.get_ref(), Signal::KILL);
            let _ = pidfd.readable().await;
        }
        let exit = self.host.warden.exec_exit(&self.wanted.id, exec_id).await;
        if left {
            return None;
        }
        Some(match exit {
            Ok(exit) => exit_status(exit.and_then(|exit| exit.status())),
            Err(error) => failure(&error.to_string()),
        })
    }
}

/// Passes on what the client sends: input, terminal sizes, half-closes. Ends when the client is gone.
async fn feed(mut input: mpsc::Receiver<Incoming>, mut stdin: Option<Arc<Pipe>>, console: Option<Arc<Pipe>>) {
    while let Some(incoming) = input.recv().await {
        match incoming {
            Incoming::Data(Channel::Stdin, bytes) => {
                let failed = match &stdin {
                    Some(stdin) => stdin.write_all(&bytes).await.is_err(),
                    None => false,
                };
                if failed {
                    stdin = None;
                }
            }
            Incoming::Data(Channel::Resize, size) => {
                if let (Some(console), Some(size)) = (&console, window_size(&size)) {
                    console.resize(size);
                }
            }
            Incoming::Closed(Channel::Stdin) => match &console {
                // A terminal has no half-close: end-of-transmission says the same.
                Some(console) => drop(console.write_all(&[4]).await),
                None => stdin = None,
            },
            Incoming::Data(..) | Incoming::Closed(_) => {}
        }
    }
}

fn window_size(bytes: &[u8]) -> Option<Winsize> {
    let size: Value = serde_json::from_slice(bytes).ok()?;
    let number = |name: &str| size[name].as_u64().and_then(|number| u16::try_from(number).ok());
    Some(Winsize {
        ws_row: number("Height")?,
        ws_col: number("Width")?,
        ws_xpixel: 0,
        ws_ypixel: 0,
    })
}

/// Reads until the end and passes everything on.
async fn read(pipe: Arc<Pipe>, channel: Channel, sender: mpsc::Sender<(Channel, Bytes)>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        if sender
            .send((channel, Bytes::copy_from_slice(&buffer[..read])))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// The `Status` for an exit code.
fn exit_status(code: Option<i32>) -> Value {
    match code {
        Some(0) => json!({"metadata": {}, "status": "Success"}),
        Some(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        None => failure("how the command ended is not known"),
    }
}

fn failure(message: &str) -> Value {
    let message = format!("Internal error occurred: error executing command in container: {message}");
    json!({"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_causes() {
        assert_eq!(exit_status(Some(0))["status"], "Success");
        let status = exit_status(Some(3));
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(
            status["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "3"})
        );
    }

    #[test]
    fn terminal_sizes_are_read_strictly() {
        let size = window_size(br#"{"Width":80,"Height":24}"#).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (80, 24));
        assert!(window_size(br#"{"Width":800000,"Height":24}"#).is_none() && window_size(b"x").is_none());
    }
}
