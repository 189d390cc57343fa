//! The network namespace takes the kernel as long as all the rest of a container: the parent makes it, while the child makes
//! the mounts, and passes it.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::init;
use crate::plan::Plan;
use crate::syscall;

/// The network namespace takes the kernel as long as all the rest: made here, while the child makes the mounts. Not where
/// it must belong to the child's user namespace, nor where hooks must find it made before the mounts.
pub(super) fn makes_network(plan: &Plan) -> bool {
    let namespaces = &plan.namespaces;
    // In a user namespace there would be no way back: the own network namespace belongs to another.
    let returns = || !crate::cgroup::in_user_namespace();
    namespaces.makes(libc::CLONE_NEWNET) && !namespaces.has(libc::CLONE_NEWUSER) && !plan.meets() && returns()
}

/// Make the network namespace, set it up, and say `GO` with it.
pub(super) fn pass_network(socket: &OwnedFd, proc: BorrowedFd) -> Result<()> {
    let current = || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(proc, c"thread-self/ns/net", flags, Mode::empty())
            .map_err(|e| Error::os("open /proc/thread-self/ns/net", e))
    };
    let own = current()?;
    syscall::unshare(libc::CLONE_NEWNET).map_err(|e| Error::os("unshare the network namespace", e))?;
    let made = init::raise_loopback()
        .map_err(Fault::into_error)
        .and_then(|()| current())
        .and_then(|made| send_network(socket, made.as_fd()));
    syscall::setns(own.as_fd(), libc::CLONE_NEWNET).map_err(|e| Error::os("return to the own network namespace", e))?;
    made
}

/// `GO`, with the network namespace. If the child is dead, the next receive says so.
fn send_network(socket: &OwnedFd, network: BorrowedFd) -> Result<()> {
    let fds = [network];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let parts = [std::io::IoSlice::new(&[init::GO])];
    match rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL) {
        Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
        Err(e) => Err(Error::os("pass the network namespace to the container's init", e)),
    }
}
