//! clone3(2): the container's init is born into its cgroup and, where the kernel lets one only be born there, into its
//! pid and user namespaces.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::error::{Error, Result};
use crate::init::{self, Init};
use crate::syscall::{self, Fork};

/// Which side of clone3 this is.
pub(super) enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd, in_group: bool },
}

pub(super) fn clone(init: &Init, group: Option<BorrowedFd>) -> Result<Cloned> {
    let namespaces = &init.plan.namespaces;
    let flags = (namespaces.new & init::BORN_INTO) as u64;
    let joined = |kind| namespaces.join.iter().position(|join| join.kind == kind);
    if let Some(user) = joined(libc::CLONE_NEWUSER).filter(|_| namespaces.makes(libc::CLONE_NEWPID)) {
        return clone_in_user_namespace(init, init.join[user].as_fd(), flags, group);
    }
    let within = joined(libc::CLONE_NEWPID).map(|index| init.join[index].as_fd());
    in_pid_namespace(within, || clone_into(flags, group))
}

/// The new pid namespace must belong to a user namespace that we cannot enter and leave again: a process between us goes
/// there and makes the init, which becomes our own child.
fn clone_in_user_namespace(init: &Init, user: BorrowedFd, flags: u64, group: Option<BorrowedFd>) -> Result<Cloned> {
    let what = "make the container's init in a joined user namespace";
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| Error::os(what, e))?;
    let (between, in_group) = match clone_into(0, group)? {
        Cloned::Parent { pidfd, in_group, .. } => (pidfd, in_group),
        Cloned::Child => {
            let answer = match init::namespaces::be_born(init, user, flags) {
                Ok(None) => return Ok(Cloned::Child),
                Ok(Some(pid)) => pid,
                Err(errno) => -errno.raw_os_error(),
            };
            let _ = rustix::io::write(&write, &answer.to_ne_bytes());
            syscall::exit(0)
        }
    };
    drop(write);
    let mut answer = [0; 4];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut answer));
    end(between.as_fd());
    let pid = match (length, i32::from_ne_bytes(answer)) {
        (Ok(4), pid @ 1..) => pid,
        (Ok(4), error) => return Err(Error::os(what, Errno::from_raw_os_error(-error))),
        _ => return Err(Error::system(format!("{what}: the process between died"))),
    };
    // Our child, and not reaped: the number is still its own.
    let open = |pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    let pidfd = rustix::process::Pid::from_raw(pid)
        .ok_or(Errno::SRCH)
        .and_then(open)
        .map_err(|e| Error::os(what, e))?;
    Ok(Cloned::Parent { pid, pidfd, in_group })
}

/// A child, in `group` if there is one and the kernel lets it be born there.
fn clone_into(flags: u64, group: Option<BorrowedFd>) -> Result<Cloned> {
    // SAFETY: the callers of the container API are single-threaded, and the child makes only system calls.
    let mut result = unsafe { syscall::clone3(flags, group) };
    let in_group = group.is_some() && !matches!(result, Err(Errno::OPNOTSUPP | Errno::BUSY | Errno::TOOBIG));
    if group.is_some() && !in_group {
        // SAFETY: as above.
        result = unsafe { syscall::clone3(flags, None) };
    }
    match result {
        Ok(Fork::Child) => Ok(Cloned::Child),
        Ok(Fork::Parent { pid, pidfd }) => Ok(Cloned::Parent { pid, pidfd, in_group }),
        Err(e) => Err(Error::os(format!("clone3 with namespaces {flags:#x}"), e)),
    }
}

/// Run `clone` while new children of this process are born in a joined pid namespace.
pub(super) fn in_pid_namespace<T>(namespace: Option<BorrowedFd>, clone: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(namespace) = namespace else {
        return clone();
    };
    let own = rustix::fs::open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::os("open /proc/self/ns/pid", e))?;
    syscall::setns(namespace, libc::CLONE_NEWPID).map_err(|e| Error::os("join the pid namespace", e))?;
    let own_pid = std::process::id();
    let result = clone();
    if std::process::id() == own_pid {
        match syscall::setns(own.as_fd(), libc::CLONE_NEWPID) {
            // A user cannot return to where only root may go; this process makes no other child.
            Err(Errno::PERM) if crate::cgroup::in_user_namespace() => (),
            other => other.map_err(|e| Error::os("return to the own pid namespace", e))?,
        }
    }
    result
}

/// Kill the child and reap it.
pub(super) fn end(pidfd: BorrowedFd) {
    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    reap(pidfd);
}

/// Wait for the child's end.
pub(super) fn reap(pidfd: BorrowedFd) {
    while matches!(
        rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED),
        Err(Errno::INTR)
    ) {}
}
