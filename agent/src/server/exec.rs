//! exec over WebSocket: the remote-command protocol `v5.channel.k8s.io` and `v4.channel.k8s.io`.
//!
//! Each binary frame begins with its channel: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize; in v5 `[255, channel]`
//! closes a channel. The error channel carries one `Status` at the end, with the exit code as a cause. See
//! `k8s.io/apimachinery/pkg/util/remotecommand` and KEP-4006.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hull_runtime::warden::{ExecRequest, ExecStarted};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Signal, pidfd_send_signal};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use super::query::Query;
use super::{Body, text};
use crate::pod::exec::{kill_tree, next_exec_id, process_like};
use crate::pod::fd;
use crate::pod::host::Host;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Protocols in the order of preference.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// The largest frame a client may send.
const FRAME_MAX: usize = 1 << 20;
/// How much output is read at a time.
const CHUNK: usize = 16 << 10;
/// Output is still read this long after the program ended: something it started may hold the pipe.
const DRAIN: Duration = Duration::from_millis(250);
/// How long the client has to close the connection in its turn.
const FAREWELL: Duration = Duration::from_secs(2);

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What to run, and which streams the client wants.
struct Wanted {
    id: String,
    config: std::path::PathBuf,
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    terminal: bool,
}

/// Answers the request: switches to the protocol and runs the program, or says why not.
pub fn answer(
    host: &Arc<Host>,
    namespace: &str,
    pod: &str,
    container: &str,
    mut request: Request<Incoming>,
    permit: OwnedSemaphorePermit,
) -> Response<Body> {
    let query = Query::of(request.uri());
    let wanted = match wanted(host, namespace, pod, container, &query) {
        Ok(wanted) => wanted,
        Err((status, message)) => return text(status, message),
    };
    let Some(key) = websocket_key(request.headers()) else {
        return text(
            StatusCode::BAD_REQUEST,
            "exec needs a WebSocket: send Connection: Upgrade and Upgrade: websocket",
        );
    };
    let Some(protocol) = protocol(request.headers()) else {
        return text(
            StatusCode::FORBIDDEN,
            format!("no common protocol: this node speaks {}", PROTOCOLS.join(", ")),
        );
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let host = Arc::clone(host);
    tokio::spawn(async move {
        let _permit = permit;
        match upgrade.await {
            Ok(upgraded) => {
                let limits = WebSocketConfig::default()
                    .max_message_size(Some(FRAME_MAX))
                    .max_frame_size(Some(FRAME_MAX));
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(limits)).await;
                Session { host, wanted }.serve(socket).await;
            }
            Err(error) => tracing::debug!(%error, "an exec's connection was not upgraded"),
        }
    });
    let mut response = Response::new(Empty::new().boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

fn wanted(
    host: &Host,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Result<Wanted, (StatusCode, String)> {
    let view = host
        .views
        .find(namespace, pod)
        .ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found")))?;
    let known = view.containers.get(container);
    let known = known.ok_or_else(|| (StatusCode::NOT_FOUND, format!("container not found ({container:?})")))?;
    let id = known.id.clone().filter(|_| known.running);
    let id = id.ok_or_else(|| {
        (
            StatusCode::BAD_REQUEST,
            format!("container {container:?} of pod {pod:?} is not running"),
        )
    })?;
    let command = query.all("command");
    if command.is_empty() {
        return Err((
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 command for the exec".to_owned(),
        ));
    }
    let uid = view.pod.metadata.uid.as_deref().unwrap_or_default();
    let either = |one: &str, other: &str| query.flag(one) || query.flag(other);
    let terminal = query.flag("tty");
    let wanted = Wanted {
        config: host.records(uid).bundle(&id).join("config.json"),
        id,
        command,
        stdin: either("stdin", "input"),
        stdout: either("stdout", "output"),
        stderr: either("stderr", "error") && !terminal,
        terminal,
    };
    if wanted.stdin || wanted.stdout || wanted.stderr {
        Ok(wanted)
    } else {
        Err((
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 of stdin, stdout, stderr".to_owned(),
        ))
    }
}

fn websocket_key(headers: &HeaderMap) -> Option<String> {
    let has = |name, token: &str| {
        headers.get_all(name).iter().any(|value| {
            value
                .to_str()
                .is_ok_and(|text| text.to_ascii_lowercase().contains(token))
        })
    };
    let asked = has(CONNECTION, "upgrade") && has(UPGRADE, "websocket");
    headers
        .get(SEC_WEBSOCKET_KEY)
        .filter(|_| asked)?
        .to_str()
        .ok()
        .map(str::to_owned)
}

fn protocol(headers: &HeaderMap) -> Option<&'static str> {
    let offered: Vec<&str> = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .collect();
    PROTOCOLS.into_iter().find(|protocol| offered.contains(protocol))
}

/// One exec.
struct Session {
    host: Arc<Host>,
    wanted: Wanted,
}

impl Session {
    async fn serve(self, socket: Socket) {
        let (mut sink, stream) = socket.split();
        let (channels, incoming) = oneshot::channel();
        let (present, gone) = mpsc::channel(1);
        let mut input = tokio::spawn(receive(stream, incoming, present));
        let exec_id = next_exec_id();
        let status = match self.start(&exec_id).await {
            Ok(started) => self.attend(&exec_id, started, &mut sink, channels, gone).await,
            Err(message) => Some(failure(&message)),
        };
        if let Some(status) = status {
            let _ = sink.send(frame(ERROR, status.to_string().as_bytes())).await;
            let farewell = CloseFrame {
                code: CloseCode::Normal,
                reason: Utf8Bytes::default(),
            };
            let _ = sink.send(Message::Close(Some(farewell))).await;
            // The client closes in its turn; until then the connection must stay, or what was sent may be lost.
            let _ = tokio::time::timeout(FAREWELL, &mut input).await;
        }
        input.abort();
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
        sink: &mut SplitSink<Socket, Message>,
        channels: oneshot::Sender<Channels>,
        mut gone: mpsc::Receiver<()>,
    ) -> Option<Value> {
        let pid = started.pid;
        let pidfd = match fd::watch(started.pidfd) {
            Ok(pidfd) => pidfd,
            Err(error) => return Some(failure(&format!("waiting for the exec: {error}"))),
        };
        // An empty frame tells the client that the streams are up.
        let first = if self.wanted.stdout {
            STDOUT
        } else if self.wanted.stderr {
            STDERR
        } else {
            ERROR
        };
        sink.send(frame(first, &[])).await.ok()?;
        let console = started.console.and_then(|fd| Stream::new(fd).ok()).map(Arc::new);
        let (sender, mut output) = mpsc::channel(4);
        let stdin = match &console {
            Some(console) => {
                tokio::spawn(read(Arc::clone(console), STDOUT, sender));
                Some(Arc::clone(console))
            }
            None => {
                for (fd, channel) in [(started.stdout, STDOUT), (started.stderr, STDERR)] {
                    if let Some(stream) = fd.and_then(|fd| Stream::new(fd).ok()) {
                        tokio::spawn(read(Arc::new(stream), channel, sender.clone()));
                    }
                }
                drop(sender);
                started.stdin.and_then(|fd| Stream::new(fd).ok()).map(Arc::new)
            }
        };
        let _ = channels.send(Channels { stdin, console });
        let mut ended = false;
        let mut open = true;
        let deadline = tokio::time::sleep(Duration::from_secs(u64::from(u32::MAX)));
        tokio::pin!(deadline);
        let left = loop {
            tokio::select! {
                chunk = output.recv(), if open => match chunk {
                    Some((channel, bytes)) => {
                        let wanted = if channel == STDOUT { self.wanted.stdout } else { self.wanted.stderr };
                        if wanted && sink.send(frame(channel, &bytes)).await.is_err() {
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
                _ = gone.recv(), if !ended => break true,
            }
        };
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

/// Where what the client sends goes.
struct Channels {
    stdin: Option<Arc<Stream>>,
    console: Option<Arc<Stream>>,
}

/// Takes frames from the client: input, terminal sizes, half-closes. Ends when the client is gone.
async fn receive(mut stream: SplitStream<Socket>, incoming: oneshot::Receiver<Channels>, _present: mpsc::Sender<()>) {
    let Ok(Channels { mut stdin, console }) = incoming.await else {
        // Nothing was started: only the client's close is of interest.
        while let Some(Ok(_)) = stream.next().await {}
        return;
    };
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => continue,
        };
        match bytes.split_first() {
            Some((&STDIN, input)) => {
                let failed = match &stdin {
                    Some(stdin) => stdin.write_all(input).await.is_err(),
                    None => false,
                };
                if failed {
                    stdin = None;
                }
            }
            Some((&RESIZE, size)) => {
                if let (Some(console), Some(size)) = (&console, window_size(size)) {
                    let _ = tcsetwinsize(console.fd.get_ref(), size);
                }
            }
            Some((&CLOSE, [STDIN])) => match &console {
                // A terminal has no half-close: end-of-transmission says the same.
                Some(console) => drop(console.write_all(&[4]).await),
                None => stdin = None,
            },
            _ => {}
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
async fn read(stream: Arc<Stream>, channel: u8, sender: mpsc::Sender<(u8, Vec<u8>)>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        if sender.send((channel, buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

/// A pipe or terminal without blocking.
struct Stream {
    fd: AsyncFd<OwnedFd>,
}

impl Stream {
    fn new(fd: OwnedFd) -> std::io::Result<Self> {
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Stream { fd: fd::watch(fd)? })
    }

    async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(result) = ready.try_io(|fd| rustix::io::read(fd.as_fd(), &mut *buffer).map_err(Into::into)) {
                return result;
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            if let Ok(result) = ready.try_io(|fd| rustix::io::write(fd.as_fd(), bytes).map_err(Into::into)) {
                bytes = &bytes[result?..];
            }
        }
        Ok(())
    }
}

fn frame(channel: u8, bytes: &[u8]) -> Message {
    let mut payload = Vec::with_capacity(bytes.len() + 1);
    payload.push(channel);
    payload.extend_from_slice(bytes);
    Message::Binary(Bytes::from(payload))
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
    fn the_best_common_protocol_is_taken() {
        let offered = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(text));
            protocol(&headers)
        };
        assert_eq!(
            offered("v4.channel.k8s.io, v5.channel.k8s.io"),
            Some("v5.channel.k8s.io")
        );
        assert_eq!(offered("v4.channel.k8s.io"), Some("v4.channel.k8s.io"));
        assert_eq!(offered("channel.k8s.io"), None);
    }

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
