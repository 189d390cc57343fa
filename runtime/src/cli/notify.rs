//! Readiness of a service in the container, for systemd: the container gets a socket of its own, what it says there goes to
//! the caller's NOTIFY_SOCKET. sd_notify(3).
//! Invariant: only READY and the pid are passed on; a container cannot make the service manager do anything else.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use hull_runtime::container;
use hull_runtime::error::{Error, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

const VARIABLE: &str = "NOTIFY_SOCKET";

/// The caller wants to know when the container is ready.
pub(super) fn wanted() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|socket| !socket.is_empty())
}

/// The container's end.
pub(super) struct Proxy(pub UnixDatagram);

impl Proxy {
    /// Listen for container `id`, before it runs; `None` unless it was created for a caller who wants to know.
    pub fn new(root: &Path, id: &str) -> Result<Option<Proxy>> {
        match wanted() {
            true => Ok(container::listen_for(root, id)?.map(Proxy)),
            false => Ok(None),
        }
    }

    /// Readable when the container has said something.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Hear it; true if that was all there is to wait for.
    pub fn hear(&self, pid: i32) -> Result<bool> {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).unwrap_or(0);
        let ready = is_ready(&buffer[..length]);
        if ready {
            forward(pid)?;
        }
        Ok(ready)
    }

    /// Stay until the container says that it is ready, or its process `pid` ends.
    pub fn until_ready(self, pid: i32) -> Result<()> {
        let Some(process) = rustix::process::Pid::from_raw(pid) else {
            return Ok(());
        };
        let Ok(pidfd) = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()) else {
            return Ok(());
        };
        loop {
            let mut polled = [
                PollFd::new(&self.0, PollFlags::IN),
                PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
            ];
            match rustix::event::poll(&mut polled, None) {
                Err(Errno::INTR) => continue,
                other => other.map_err(|e| Error::os("poll", e))?,
            };
            let (said, ended) = (!polled[0].revents().is_empty(), !polled[1].revents().is_empty());
            if said {
                if self.hear(pid)? {
                    return Ok(());
                }
            } else if ended {
                return Ok(());
            }
        }
    }
}

fn is_ready(message: &[u8]) -> bool {
    message.split(|&byte| byte == b'\n').any(|line| line == b"READY=1")
}

fn forward(pid: i32) -> Result<()> {
    let name = std::env::var_os(VARIABLE).unwrap_or_default();
    let send = || {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(Path::new(&name))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.send_to_addr(format!("READY=1\nMAINPID={pid}").as_bytes(), &address)
    };
    send()
        .map(drop)
        .map_err(|e| Error::os(format!("tell {} that the container is ready", name.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_line_says_ready() {
        assert!(is_ready(b"READY=1"));
        assert!(is_ready(b"STATUS=up\nREADY=1\n"));
        assert!(!is_ready(b"READY=0"));
        assert!(!is_ready(b"STATUS=READY=1"));
    }
}
