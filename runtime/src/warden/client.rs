//! The warden's blocking client: one short request and its reply at a time, for use from `spawn_blocking` or a plain thread.
//!
//! It reconnects by itself after the warden was restarted, but never repeats a request: the caller decides that.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;

use super::error::{Context, Error};
use super::protocol::{ContainerInfo, CreateRequest, Event, ExecRequest, Exit, HeldKinds, Reply, Request};
use super::{socket_path, wire};

/// Longest wait for a reply; create runs the bundle's hooks inside it.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);

/// Duplicates of what the warden holds of a container. While somebody holds them, a container that ends with no warden alive
/// keeps its exit status (pidfd), the output nobody read yet (logs) and its terminal (console).
#[derive(Debug)]
pub struct Held {
    /// The container's init. Readable when it ended.
    pub pidfd: Option<OwnedFd>,
    /// The master side of its terminal.
    pub console: Option<OwnedFd>,
    /// The read ends of its output pipes. Never read from them: the warden does.
    pub logs: Vec<OwnedFd>,
}

impl Held {
    fn kinds(&self) -> HeldKinds {
        HeldKinds {
            pidfd: self.pidfd.is_some(),
            console: self.console.is_some(),
            logs: self.logs.len(),
        }
    }

    fn take(kinds: HeldKinds, fds: &mut VecDeque<OwnedFd>) -> Result<Self, Error> {
        Ok(Self {
            pidfd: take(kinds.pidfd, fds)?,
            console: take(kinds.console, fds)?,
            logs: (0..kinds.logs).map(|_| need(fds)).collect::<Result<_, _>>()?,
        })
    }
}

/// A created container.
#[derive(Debug)]
pub struct Created {
    /// Its init.
    pub pid: i32,
    /// /proc/<pid>/stat field 22.
    pub start_time: u64,
    /// To keep, and to hand to [`Client::adopt`] after the warden was restarted.
    pub held: Held,
}

/// A process started in a container, with the caller's ends of its streams.
#[derive(Debug)]
pub struct ExecStarted {
    /// The process.
    pub pid: i32,
    /// /proc/<pid>/stat field 22.
    pub start_time: u64,
    /// Readable when it ended; then ask [`Client::exec_exit`], or [`super::exit_of`] when the warden is gone.
    pub pidfd: OwnedFd,
    /// Write end of its stdin, if asked for.
    pub stdin: Option<OwnedFd>,
    /// Read end of its stdout, unless it has a terminal.
    pub stdout: Option<OwnedFd>,
    /// Read end of its stderr, unless it has a terminal.
    pub stderr: Option<OwnedFd>,
    /// The master side of its terminal, if it has one.
    pub console: Option<OwnedFd>,
}

/// A connection to the warden.
#[derive(Debug)]
pub struct Client {
    dir: PathBuf,
    connection: Mutex<Option<UnixStream>>,
}

impl Client {
    /// Connects to the warden of this directory.
    pub fn connect(dir: &Path) -> Result<Self, Error> {
        let stream = open(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            connection: Mutex::new(Some(stream)),
        })
    }

    /// The warden's own pid.
    pub fn warden_pid(&self) -> Result<i32, Error> {
        let stream = open(&self.dir)?;
        let peer = socket_peercred(&stream).context(|| "asking who answers for the warden".into())?;
        Ok(peer.pid.as_raw_nonzero().get())
    }

    /// Creates a container; its init waits for [`Client::start`].
    pub fn create(&self, request: CreateRequest) -> Result<Created, Error> {
        match self.call(Request::Create(request), &[])? {
            (Reply::Created { pid, start_time, held }, mut fds) => Ok(Created {
                pid,
                start_time,
                held: Held::take(held, &mut fds)?,
            }),
            other => Err(unexpected(&other.0)),
        }
    }

    /// Lets a created container's program run.
    pub fn start(&self, id: &str) -> Result<(), Error> {
        self.done(Request::Start { id: id.into() }, &[])
    }

    /// Sends a signal to a container's init, or to all its processes.
    pub fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), Error> {
        self.done(
            Request::Kill {
                id: id.into(),
                signal,
                all,
            },
            &[],
        )
    }

    /// Removes an ended container, its cgroup and its state; with `force` kills it first, and one that is gone is no error.
    pub fn delete(&self, id: &str, force: bool) -> Result<(), Error> {
        self.done(Request::Delete { id: id.into(), force }, &[])
    }

    /// Runs a process in a container.
    pub fn exec(&self, request: ExecRequest) -> Result<ExecStarted, Error> {
        match self.call(Request::Exec(Box::new(request)), &[])? {
            (
                Reply::ExecStarted {
                    pid,
                    start_time,
                    streams,
                },
                mut fds,
            ) => Ok(ExecStarted {
                pid,
                start_time,
                pidfd: need(&mut fds)?,
                stdin: take(streams.stdin, &mut fds)?,
                stdout: take(streams.stdout, &mut fds)?,
                stderr: take(streams.stderr, &mut fds)?,
                console: take(streams.console, &mut fds)?,
            }),
            other => Err(unexpected(&other.0)),
        }
    }

    /// Sends a signal to an exec's process.
    pub fn kill_exec(&self, id: &str, exec_id: &str, signal: i32) -> Result<(), Error> {
        self.done(
            Request::KillExec {
                id: id.into(),
                exec_id: exec_id.into(),
                signal,
            },
            &[],
        )
    }

    /// How an exec ended; None while it runs. Certain to be known once its pidfd is readable. It is forgotten when read.
    pub fn exec_exit(&self, id: &str, exec_id: &str) -> Result<Option<Exit>, Error> {
        match self.call(
            Request::ExecExit {
                id: id.into(),
                exec_id: exec_id.into(),
            },
            &[],
        )? {
            (Reply::ExecExit(exit), _) => Ok(exit),
            other => Err(unexpected(&other.0)),
        }
    }

    /// Every container, with the exits not yet deleted.
    pub fn list(&self) -> Result<Vec<ContainerInfo>, Error> {
        match self.call(Request::List, &[])? {
            (Reply::Containers(containers), _) => Ok(containers),
            other => Err(unexpected(&other.0)),
        }
    }

    /// Opens the log file anew, after somebody moved it away.
    pub fn reopen_log(&self, id: &str) -> Result<(), Error> {
        self.done(Request::ReopenLog { id: id.into() }, &[])
    }

    /// Duplicates of a container's descriptors, for an agent that was restarted.
    pub fn hold(&self, id: &str) -> Result<Held, Error> {
        match self.call(Request::Hold { id: id.into() }, &[])? {
            (Reply::Held(kinds), mut fds) => Held::take(kinds, &mut fds),
            other => Err(unexpected(&other.0)),
        }
    }

    /// Hands the descriptors back to a warden that was restarted, so that it learns how the container ended and reads what
    /// it wrote meanwhile. Call it for every container after connecting, before [`Client::list`].
    pub fn adopt(&self, id: &str, held: &Held) -> Result<(), Error> {
        let fds: Vec<BorrowedFd<'_>> = held
            .pidfd
            .iter()
            .chain(&held.console)
            .chain(&held.logs)
            .map(AsFd::as_fd)
            .collect();
        self.done(
            Request::Adopt {
                id: id.into(),
                held: held.kinds(),
            },
            &fds,
        )
    }

    /// Opens a second connection that delivers every event from now on. To miss none: subscribe, then adopt, then list.
    pub fn subscribe(&self) -> Result<EventStream, Error> {
        let stream = open(&self.dir)?;
        wire::send(&stream, &Request::Subscribe, &[])?;
        let mut decoder = wire::Decoder::default();
        match wire::receive_with::<Reply>(&stream, &mut decoder)?.0 {
            Reply::Done => {}
            other => return Err(unexpected(&other)),
        }
        stream
            .set_read_timeout(None)
            .context(|| "preparing the event stream".into())?;
        Ok(EventStream {
            stream,
            decoder,
            ended: false,
        })
    }

    /// Ends the warden and returns when it is gone; with `kill` it kills and deletes every container first, without they run
    /// on and await the next warden.
    pub fn shutdown(&self, kill: bool) -> Result<(), Error> {
        self.done(Request::Shutdown { kill }, &[])?;
        let ended = self.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Its end of the connection closes with the process.
        match ended.map(|stream| wire::receive::<Reply>(&stream)) {
            Some(Ok((reply, _))) => Err(unexpected(&reply)),
            _ => Ok(()),
        }
    }

    fn done(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match self.call(request, fds)? {
            (Reply::Done, _) => Ok(()),
            other => Err(unexpected(&other.0)),
        }
    }

    fn call(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, VecDeque<OwnedFd>), Error> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = match connection.take() {
            Some(stream) if wire::is_open(&stream) => stream,
            _ => open(&self.dir)?,
        };
        wire::send(&stream, &request, fds)?;
        let (reply, fds) = wire::receive::<Reply>(&stream)?;
        *connection = Some(stream);
        match reply {
            Reply::Refused { kind, message } => Err(Error::refused(kind, message)),
            reply => Ok((reply, fds)),
        }
    }
}

/// Events as they happen: a blocking iterator whose last item is an error, when the warden ended.
#[derive(Debug)]
pub struct EventStream {
    stream: UnixStream,
    decoder: wire::Decoder,
    ended: bool,
}

impl EventStream {
    /// A handle whose [`Stop::stop`] ends the iteration from another thread.
    pub fn stopper(&self) -> Result<Stop, Error> {
        let stream = self
            .stream
            .try_clone()
            .context(|| "duplicating the event stream".into())?;
        Ok(Stop { stream })
    }
}

impl Iterator for EventStream {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let event = wire::receive_with::<Event>(&self.stream, &mut self.decoder).map(|(event, _)| event);
        self.ended = event.is_err();
        Some(event)
    }
}

/// Ends an [`EventStream`] from outside.
#[derive(Debug)]
pub struct Stop {
    stream: UnixStream,
}

impl Stop {
    /// Makes the blocked iterator return an error now.
    pub fn stop(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn open(dir: &Path) -> Result<UnixStream, Error> {
    let socket = socket_path(dir);
    let stream = UnixStream::connect(&socket).map_err(|source| Error::NotRunning { socket, source })?;
    stream
        .set_read_timeout(Some(REPLY_TIMEOUT))
        .and_then(|()| stream.set_write_timeout(Some(REPLY_TIMEOUT)))
        .context(|| "setting the time-out of the warden's socket".into())?;
    Ok(stream)
}

fn need(fds: &mut VecDeque<OwnedFd>) -> Result<OwnedFd, Error> {
    fds.pop_front()
        .ok_or_else(|| Error::Protocol("a descriptor that the reply announces is missing".into()))
}

fn take(announced: bool, fds: &mut VecDeque<OwnedFd>) -> Result<Option<OwnedFd>, Error> {
    if announced { need(fds).map(Some) } else { Ok(None) }
}

fn unexpected(reply: &Reply) -> Error {
    Error::Protocol(format!("the reply does not fit the request: {reply:?}"))
}
