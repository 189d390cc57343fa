//! A caller without CAP_SYS_ADMIN: the runtime itself enters the container's user namespace before it prepares anything,
//! and is root there. Everything else then works as for a privileged caller, with the rights of that namespace.
//! user_namespaces(7); ranges of ids go through newuidmap(1) and newgidmap(1), which know what /etc/subuid allows.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use crate::caps;
use crate::error::{Error, Result};
use crate::fault::Shown;
use crate::plan::namespaces::Namespaces;
use crate::plan::process::ProcessPlan;
use crate::syscall::{self, Fork};

/// This process may do what the kernel asks CAP_SYS_ADMIN for, in the user namespace it is in.
pub(super) fn is_privileged() -> bool {
    syscall::capget().is_ok_and(|(effective, ..)| effective & caps::SYS_ADMIN != 0)
}

/// Enter the user namespace of the plan, new or joined; nothing for a privileged caller.
pub(super) fn enter(namespaces: &mut Namespaces, process: &ProcessPlan) -> Result<()> {
    if is_privileged() {
        return Ok(());
    }
    if let Some(place) = namespaces.join.iter().position(|join| join.kind == libc::CLONE_NEWUSER) {
        let path = namespaces.join.remove(place).path;
        let what = || format!("join the user namespace {}", Shown(&path));
        let fd = rustix::fs::open(path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::os(what(), e))?;
        syscall::setns(fd.as_fd(), libc::CLONE_NEWUSER).map_err(|e| Error::os(what(), e))?;
    } else if let Some((uids, gids)) = namespaces.id_maps.take() {
        make(&uids, &gids)?;
        namespaces.new &= !libc::CLONE_NEWUSER;
    } else {
        return Err(Error::system(
            "this needs root, or a user namespace in linux.namespaces with uidMappings and gidMappings",
        ));
    }
    namespaces.held = libc::CLONE_NEWUSER;
    become_root(process)?;
    // Mounts can be copied only in a mount namespace that belongs to our user namespace.
    syscall::unshare(libc::CLONE_NEWNS).map_err(|e| Error::os("unshare the mount namespace", e))
}

/// Enter the user namespace of a running container, so that `exec` may enter the others; nothing for a privileged caller.
pub(super) fn follow(target: BorrowedFd, namespaces: i32, process: &ProcessPlan) -> Result<()> {
    if namespaces & libc::CLONE_NEWUSER == 0 || is_privileged() {
        return Ok(());
    }
    syscall::setns(target, libc::CLONE_NEWUSER).map_err(|e| Error::os("enter the container's user namespace", e))?;
    become_root(process)
}

fn become_root(process: &ProcessPlan) -> Result<()> {
    crate::init::namespaces::become_root(process).map_err(crate::fault::Fault::into_error)
}

/// A new user namespace for this process, mapped by itself where it may, else by the helpers of the system.
fn make(uids: &str, gids: &str) -> Result<()> {
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (single_uid, single_gid) = (is_own(uids, own.0), is_own(gids, own.1));
    let helper = match single_uid && single_gid {
        true => None,
        false => Some(Helper::new(
            (!single_uid).then_some(uids),
            (!single_gid).then_some(gids),
        )?),
    };
    syscall::unshare(libc::CLONE_NEWUSER)
        .map_err(|e| Error::os("make a user namespace (does this system allow it to users?)", e))?;
    if let Some(helper) = helper {
        helper.map()?;
    }
    let write = |file: &str, text: &str| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|e| Error::os(format!("write /proc/self/{file} {:?}", text.trim_end()), e))
    };
    if single_uid {
        write("uid_map", uids)?;
    }
    if single_gid {
        // Whoever maps his own group must first give up the right to drop groups.
        write("setgroups", "deny")?;
        write("gid_map", gids)?;
    }
    Ok(())
}

/// The kernel lets a user map exactly one id himself: his own.
fn is_own(map: &str, id: u32) -> bool {
    let fields: Vec<&str> = map.split_whitespace().collect();
    fields.len() == 3 && fields[1] == id.to_string() && fields[2] == "1"
}

/// A process that stays outside and calls newuidmap and newgidmap for its parent, once that is inside.
struct Helper {
    pidfd: OwnedFd,
    go: OwnedFd,
    answer: OwnedFd,
}

impl Helper {
    fn new(uids: Option<&str>, gids: Option<&str>) -> Result<Helper> {
        let fail = |e| Error::os("start the process that maps ids", e);
        let (wait, go) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(fail)?;
        let (answer, say) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(fail)?;
        let parent = std::process::id().to_string();
        // SAFETY: the callers of the container API are single-threaded, so the child may do anything.
        match unsafe { syscall::clone3(0, None) }.map_err(fail)? {
            Fork::Parent { pidfd, .. } => Ok(Helper { pidfd, go, answer }),
            Fork::Child => {
                drop(go);
                // Without a word the parent is dead.
                if rustix::io::read(&wait, &mut [0; 1]) == Ok(1) {
                    let maps = [("newuidmap", uids), ("newgidmap", gids)];
                    let failed = maps.iter().find_map(|&(program, map)| call(program, &parent, map?));
                    let _ = rustix::io::write(&say, failed.unwrap_or_default().as_bytes());
                }
                syscall::exit(0)
            }
        }
    }

    fn map(self) -> Result<()> {
        let fail = |e| Error::os("hear from the process that maps ids", e);
        rustix::io::write(&self.go, b"G").map_err(fail)?;
        // Its end of this pipe is closed when it ends; ours never was a writing one.
        let mut text = [0; 512];
        super::clone::reap(self.pidfd.as_fd());
        let flags = rustix::fs::fcntl_getfl(&self.answer).map_err(fail)? | OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&self.answer, flags).map_err(fail)?;
        match rustix::io::read(&self.answer, &mut text) {
            Ok(length @ 1..) => Err(Error::system(String::from_utf8_lossy(&text[..length]).into_owned())),
            _ => Ok(()),
        }
    }
}

/// What went wrong, if something did.
fn call(program: &str, pid: &str, map: &str) -> Option<String> {
    let arguments = map.split_whitespace();
    match Command::new(program).arg(pid).args(arguments).output() {
        Err(e) => Some(format!(
            "run {program} to map {:?}: {e} (Debian: package uidmap)",
            map.trim_end()
        )),
        Ok(output) if !output.status.success() => {
            Some(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_may_map_only_himself() {
        assert!(is_own("0 1000 1\n", 1000));
        for map in ["0 1000 2\n", "0 1001 1\n", "0 1000 1\n1 100000 65536\n", ""] {
            assert!(!is_own(map, 1000), "{map:?}");
        }
    }
}
