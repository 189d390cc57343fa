//! What parent and child say to each other: one byte and a descriptor, over a pair of sockets; and the socket on which an
//! init waits for `start`.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use super::record::{Directory, START_SOCKET};
use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::init;

/// A message of the child.
pub(super) enum Message {
    Namespaces,
    Console(OwnedFd),
    /// The listener of the seccomp filter.
    Listener(OwnedFd),
    Created,
    /// The child's end is closed: it executed its program, or died.
    Closed,
}

/// One word to the child: [`init::GO`] or [`init::START`]. If it is dead, the next receive says so.
pub(super) fn say(socket: &OwnedFd, word: u8) {
    let _ = rustix::net::send(socket, &[word], SendFlags::NOSIGNAL);
}

/// Wait for the child's next message; its failure is our error.
pub(super) fn receive(socket: &OwnedFd) -> Result<Message> {
    let mut bytes = [0; 2048];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            // Reset: the child died without reading our last word. What it said before comes next.
            Err(Errno::INTR | Errno::CONNRESET) => (),
            other => break other.map_err(|e| Error::os("hear from the container's init", e))?.bytes,
        }
    };
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let message = &bytes[..length];
    if let Some(error) = Fault::decode(message) {
        return Err(error);
    }
    Ok(match (message.first(), fd) {
        (Some(&init::NAMESPACES), _) => Message::Namespaces,
        (Some(&init::CREATED), _) => Message::Created,
        (Some(&init::CONSOLE), Some(fd)) => Message::Console(fd),
        (Some(&init::LISTENER), Some(fd)) => Message::Listener(fd),
        _ => Message::Closed,
    })
}

/// The conversation's two ends: ours and the child's.
pub(super) fn socket_pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| Error::os("socketpair", e))
}

/// The socket on which the init waits for `start`.
pub(super) fn listen(directory: &Directory) -> Result<OwnedFd> {
    let what = || format!("listen on {}", directory.path().join(START_SOCKET).display());
    let listen = || {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let dir = rustix::fs::open(directory.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        rustix::net::bind(&socket, &start_address(&dir)?)?;
        rustix::net::listen(&socket, 1)?;
        Ok(socket)
    };
    listen().map_err(|e: Errno| Error::os(what(), e))
}

/// Through /proc/self/fd, because a socket's path may have 107 bytes at most.
pub(super) fn start_address(directory: &OwnedFd) -> std::result::Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{START_SOCKET}", directory.as_raw_fd()))
}
