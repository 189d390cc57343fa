//! What engines ask for beside the container: a pid file, a pidfd or a console over their own sockets.

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::error::{Error, Result};

/// An annotation of crun's: a socket to which the pidfd of the container's init is sent.
pub(crate) const PIDFD_RECEIVER: &str = "run.oci.pidfd_receiver";

/// Connect to an engine's socket: for a console, or a pidfd.
pub(super) fn connect(path: &Path) -> Result<OwnedFd> {
    let connect = || {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    };
    connect().map_err(|e: Errno| Error::os(format!("connect to {}", path.display()), e))
}

/// Send a pidfd to whoever listens at `path`.
pub(super) fn send_pidfd(path: &Path, pidfd: BorrowedFd) -> Result<()> {
    let socket = connect(path)?;
    let fds = [pidfd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let parts = [std::io::IoSlice::new(b"pidfd")];
    rustix::net::sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(|e| Error::os(format!("send the pidfd to {}", path.display()), e))
}

/// Write a pid file in one step, as engines expect it: no newline.
pub(super) fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&temporary, pid.to_string())
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|e| Error::os(format!("write pid file {}", path.display()), e))
}
