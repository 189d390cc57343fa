//! Joining and making namespaces, in the order that rights demand: namespaces(7), user_namespaces(7).

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{BORN_INTO, Init, write_proc};
use crate::fault::{Explain, Shown, Step};
use crate::plan::namespaces::kind_name;
use crate::plan::process::ProcessPlan;
use crate::syscall::{self, Fork};

pub(super) fn enter_namespaces(init: &Init) -> Step {
    let namespaces = &init.plan.namespaces;
    // Its owner is the host's root, whom nobody can be any more in a user namespace.
    if namespaces.time_offsets.is_some() && namespaces.has(libc::CLONE_NEWUSER) {
        let path = c"self/timens_offsets";
        let clocks = rustix::fs::openat(&init.proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .explain(format_args!("open /proc/self/timens_offsets"))?;
        init.clocks.set(Some(clocks));
    }
    if !init.in_user_namespace.get() {
        join_the_hosts(init);
    }
    for (join, fd) in namespaces.join.iter().zip(&init.join) {
        // The parent was in it when it called clone3.
        if join.kind == libc::CLONE_NEWPID
            || join.kind == libc::CLONE_NEWUSER && init.in_user_namespace.get()
            || join.kind & init.joined.get() != 0
        {
            continue;
        }
        syscall::setns(fd.as_fd(), join.kind).explain(format_args!(
            "join the {} namespace {}",
            kind_name(join.kind),
            Shown(&join.path)
        ))?;
        if join.kind == libc::CLONE_NEWUSER {
            become_root(&init.plan.process)?;
        }
    }
    if namespaces.makes(libc::CLONE_NEWUSER) {
        become_root(&init.plan.process)?;
    }
    let mut own = namespaces.new & !BORN_INTO & !libc::CLONE_NEWCGROUP & !libc::CLONE_NEWTIME;
    if init.network {
        own &= !libc::CLONE_NEWNET;
    }
    if own != 0 {
        syscall::unshare(own).explain(format_args!("unshare namespaces {own:#x}"))?;
    }
    Ok(())
}

/// A namespace may belong to another user namespace than the one that is joined: then only who is not in that yet may enter.
/// What may be entered only from there comes later. A mount namespace does, too: it brings another root directory.
fn join_the_hosts(init: &Init) {
    let join = &init.plan.namespaces.join;
    if !join.iter().any(|join| join.kind == libc::CLONE_NEWUSER) {
        return;
    }
    const LATER: i32 = libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    for (join, fd) in join.iter().zip(&init.join).filter(|(join, _)| join.kind & LATER == 0) {
        if syscall::setns(fd.as_fd(), join.kind).is_ok() {
            init.joined.set(init.joined.get() | join.kind);
        }
    }
}

/// A cgroup namespace is rooted at the group the process is in: only now is it certain to be the container's.
pub(super) fn enter_late_namespaces(init: &Init) -> Step {
    let namespaces = &init.plan.namespaces;
    if namespaces.makes(libc::CLONE_NEWCGROUP) {
        syscall::unshare(libc::CLONE_NEWCGROUP).explain(format_args!("unshare the cgroup namespace"))?;
    }
    if namespaces.makes(libc::CLONE_NEWTIME) {
        syscall::unshare(libc::CLONE_NEWTIME).explain(format_args!("unshare the time namespace"))?;
        if let Some(offsets) = &namespaces.time_offsets {
            let (text, proc) = (offsets.to_bytes(), init.proc.as_fd());
            match init.clocks.take() {
                Some(clocks) => rustix::io::write(&clocks, text).map(drop),
                None => write_proc(proc, c"self/timens_offsets", text, ResolveFlags::BENEATH),
            }
            .explain(format_args!("set the clocks of the time namespace"))?;
        }
        // Unshared for children only: kernels before 6.3 do not let execve enter it either.
        let children = rustix::fs::openat(
            &init.proc,
            c"thread-self/ns/time_for_children",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .explain(format_args!("open the new time namespace"))?;
        syscall::setns(children.as_fd(), libc::CLONE_NEWTIME).explain(format_args!("enter the new time namespace"))?;
    }
    Ok(())
}

/// In a process between the parent and the init: enter the user namespace and make the init there, a child of the parent.
/// Its pid comes back, or nothing in the init itself.
pub(crate) fn be_born(init: &Init, user: BorrowedFd, flags: u64) -> Result<Option<i32>, Errno> {
    let _ = syscall::prctl(libc::PR_SET_DUMPABLE, 0, 0);
    join_the_hosts(init);
    syscall::setns(user, libc::CLONE_NEWUSER)?;
    become_root(&init.plan.process).map_err(|_| Errno::PERM)?;
    init.in_user_namespace.set(true);
    // SAFETY: the child makes only system calls.
    match unsafe { syscall::clone3(flags | libc::CLONE_PARENT as u64, None) }? {
        Fork::Child => Ok(None),
        Fork::Parent { pid, .. } => Ok(Some(pid)),
    }
}

/// The ids of the caller are not mapped inside a user namespace: take those of its root, or those of the `process` if it
/// has none. Either way the namespace's capabilities stay.
pub(crate) fn become_root(process: &ProcessPlan) -> Step {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let group = |gid| set_thread_res_gid(gid, gid, gid);
    match group(Gid::ROOT) {
        Err(Errno::INVAL) => group(Gid::from_raw(process.gid)),
        other => other,
    }
    .explain(format_args!("become group 0 or {} of the user namespace", process.gid))?;
    match set_thread_groups(&[]) {
        Ok(()) | Err(Errno::PERM) => (),
        other => other.explain(format_args!("drop supplementary groups"))?,
    }
    let user = |uid| set_thread_res_uid(uid, uid, uid);
    match user(Uid::ROOT) {
        Err(Errno::INVAL) => user(Uid::from_raw(process.uid)),
        other => other,
    }
    .explain(format_args!("become user 0 or {} of the user namespace", process.uid))?;
    // Changing ids made the process dumpable as the system is set up; make sure.
    syscall::prctl(libc::PR_SET_DUMPABLE, 0, 0)
        .explain(format_args!("PR_SET_DUMPABLE"))
        .map(drop)
}
