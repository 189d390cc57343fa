//! The last steps before the user's program, shared by the container's init and by `exec`: streams, working
//! directory, the search for the program, identity, capabilities, seccomp, execve.
//! Invariant: the seccomp filter is the last thing but execve, except without no_new_privs, which needs CAP_SYS_ADMIN.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::caps::Sets;
use crate::fault::{Explain, Fault, Shown, Step};
use crate::plan::process::ProcessPlan;
use crate::seccomp::Filter;
use crate::syscall;

/// Make the three descriptors 0, 1 and 2, whatever numbers they have now.
pub(crate) fn wire(stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd) -> Step {
    let above = |fd: &OwnedFd| {
        rustix::io::fcntl_dupfd_cloexec(fd, 3).explain(format_args!("duplicate stream {}", fd.as_raw_fd()))
    };
    let streams = [above(stdin)?, above(stdout)?, above(stderr)?];
    for (number, stream) in streams.iter().enumerate() {
        // SAFETY: 0 to 2 are the streams of this process and belong to no object.
        if unsafe { libc::dup2(stream.as_raw_fd(), number as i32) } < 0 {
            return Err(Fault::plain(format_args!("dup2 to {number} failed")));
        }
    }
    Ok(())
}

/// Make `slave` the controlling terminal and the three streams. The process leads a session already.
pub(crate) fn take_terminal(slave: &OwnedFd, size: Option<(u16, u16)>) -> Step {
    if let Some((rows, columns)) = size {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the size lives through the call. A terminal that refuses it keeps its own.
        unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    }
    // SAFETY: plain integers.
    if unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        return Err(Fault::new(
            Errno::from_raw_os_error(errno),
            format_args!("make the pty the controlling terminal"),
        ));
    }
    wire(slave, slave, slave)
}

/// chdir, then make sure that it led inside the root: a descriptor of the host in /proc/self/fd would not (CVE-2024-21626).
pub(crate) fn change_directory(cwd: &CStr) -> Step {
    rustix::process::chdir(cwd).explain(format_args!("chdir to cwd ({}) set in config.json failed", Shown(cwd)))?;
    let mut buffer = [0; libc::PATH_MAX as usize];
    let length = syscall::getcwd(&mut buffer).explain(format_args!("getcwd after chdir to {}", Shown(cwd)))?;
    match buffer[..length].first() {
        Some(b'/') => Ok(()),
        _ => Err(Fault::plain(format_args!(
            "current working directory is outside of container mount namespace root: cwd {} leads out of it",
            Shown(cwd)
        ))),
    }
}

/// Index of the first candidate that can be executed; the texts are those engines look for.
pub(crate) fn find_program(plan: &ProcessPlan) -> Step<usize> {
    let name = plan
        .argv
        .strings()
        .first()
        .map(|name| name.as_c_str())
        .unwrap_or_default();
    let mut denied = false;
    for (index, candidate) in plan.candidates.iter().enumerate() {
        match executable(candidate) {
            Ok(()) => return Ok(index),
            Err(Errno::ACCESS | Errno::ISDIR) => denied = true,
            Err(_) => (),
        }
    }
    match (plan.by_path, denied) {
        (true, false) => Err(Fault::plain(format_args!(
            "exec: \"{}\": executable file not found in $PATH",
            Shown(name)
        ))),
        (false, false) => Err(Fault::new(
            Errno::NOENT,
            format_args!("exec: \"{}\": stat {}", Shown(name), Shown(name)),
        )),
        (_, true) => Err(Fault::new(Errno::ACCESS, format_args!("exec: \"{}\"", Shown(name)))),
    }
}

fn executable(path: &CStr) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// Become the process of the plan. Comes back only with a failure.
/// A listener of the seccomp filter goes to whoever is at the other end of `report`.
pub(crate) fn execute(
    plan: &mut ProcessPlan,
    program: usize,
    proc: BorrowedFd,
    report: BorrowedFd,
    preserve_fds: u32,
) -> Fault {
    let mut home = [0; HOME_ROOM];
    if plan.needs_home {
        plan.envp.push(home_of(plan.uid, &mut home));
    }
    own_streams(plan.uid);
    if let Err(fault) = confine(plan, proc, report, preserve_fds) {
        return fault;
    }
    let path = &plan.candidates[program];
    // SAFETY: CArray keeps NULL-terminated arrays; `home` lives until the process is replaced.
    let errno = unsafe { syscall::execve(path, plan.argv.as_ptr(), plan.envp.as_ptr()) };
    Fault::new(errno, format_args!("exec {}", Shown(path)))
}

/// Give up everything that the plan does not grant: the next program that is executed has no more.
pub(crate) fn confine(plan: &ProcessPlan, proc: BorrowedFd, report: BorrowedFd, preserve_fds: u32) -> Step {
    label(plan, proc)?;
    restrict(plan, report, preserve_fds)
}

/// The labels that execve will switch to, written through the host's verified /proc.
fn label(plan: &ProcessPlan, proc: BorrowedFd) -> Step {
    let write = |path, label: &CStr| super::write_proc(proc, path, label.to_bytes(), ResolveFlags::empty());
    if let Some(profile) = &plan.apparmor {
        match write(c"thread-self/attr/apparmor/exec", profile) {
            Err(Errno::NOENT) => write(c"thread-self/attr/exec", profile),
            other => other,
        }
        .explain(format_args!("apply the AppArmor profile ({})", Shown(profile)))?;
    }
    match &plan.selinux {
        Some(label) => {
            write(c"thread-self/attr/exec", label).explain(format_args!("apply the SELinux label {}", Shown(label)))
        }
        None => Ok(()),
    }
}

fn restrict(plan: &ProcessPlan, report: BorrowedFd, preserve_fds: u32) -> Step {
    refuse_directories(3 + preserve_fds)?;
    if let Some(scheduler) = &plan.scheduler {
        syscall::sched_setattr(scheduler).explain(format_args!("set the scheduler"))?;
    }
    if let Some(priority) = plan.io_priority {
        syscall::ioprio_set(priority).explain(format_args!("set the io priority"))?;
    }
    if let Some(persona) = plan.personality {
        syscall::personality(persona).explain(format_args!("set the personality"))?;
    }
    if let Some(policy) = &plan.memory_policy {
        let nodes = policy.nodes.as_ref().map_or(&[][..], |nodes| nodes.words());
        syscall::set_mempolicy(policy.mode, nodes).explain(format_args!("set linux.memoryPolicy"))?;
    }
    syscall::cloexec_from(3 + preserve_fds).explain(format_args!("close_range"))?;
    if let Some(filter) = plan.seccomp.as_ref().filter(|_| !plan.no_new_privileges) {
        load(filter, report)?;
    }
    identity(plan)?;
    rustix::process::umask(Mode::from_raw_mode(plan.umask));
    if plan.no_new_privileges {
        syscall::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).explain(format_args!("PR_SET_NO_NEW_PRIVS"))?;
    }
    match plan.seccomp.as_ref().filter(|_| plan.no_new_privileges) {
        Some(filter) => load(filter, report),
        None => Ok(()),
    }
}

fn load(filter: &Filter, report: BorrowedFd) -> Step {
    let listener = syscall::seccomp_load(&filter.program, filter.flags).explain(format_args!(
        "load the seccomp filter ({} instructions)",
        filter.program.len()
    ))?;
    if !filter.has_listener() {
        return Ok(());
    }
    // SAFETY: the kernel just made this descriptor; it is open until execve, which closes it.
    let listener = unsafe { BorrowedFd::borrow_raw(listener) };
    super::console::send_descriptor(report, &[super::LISTENER], listener)
        .explain(format_args!("pass the listener of the seccomp filter"))
}

/// Bounding set, groups, ids, then the other sets: in this order each step still has the privilege it needs.
fn identity(plan: &ProcessPlan) -> Step {
    let sets = plan.capabilities.unwrap_or_default();
    drop_bounding(sets.bounding)?;
    syscall::prctl(libc::PR_SET_KEEPCAPS, 1, 0).explain(format_args!("PR_SET_KEEPCAPS"))?;
    if !plan.keep_groups {
        set_groups(&plan.groups)?;
    }
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).explain(format_args!("setgid {}", plan.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).explain(format_args!("setuid {}", plan.uid))?;
    let _ = syscall::prctl(libc::PR_SET_DUMPABLE, 0, 0);
    set_capabilities(&sets)
}

fn drop_bounding(keep: u64) -> Step {
    for capability in 0..64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        match syscall::prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Ok(_) => (),
            Err(Errno::INVAL) => break, // Beyond the last one this kernel knows.
            Err(errno) => {
                return Err(Fault::new(
                    errno,
                    format_args!("drop capability {capability} from the bounding set"),
                ));
            }
        }
    }
    Ok(())
}

fn set_groups(groups: &[u32]) -> Step {
    // SAFETY: Gid is a transparent wrapper of the raw number.
    let gids = unsafe { std::slice::from_raw_parts(groups.as_ptr().cast::<Gid>(), groups.len()) };
    match rustix::thread::set_thread_groups(gids) {
        // A user namespace may forbid it; there is nothing to drop then.
        Err(Errno::PERM) if groups.is_empty() => Ok(()),
        other => other.explain(format_args!("set {} supplementary groups", groups.len())),
    }
}

/// What the caller does not have itself it cannot give; like runc we give the rest.
fn set_capabilities(sets: &Sets) -> Step {
    let (_, available, _) = syscall::capget().explain(format_args!("capget"))?;
    let permitted = sets.permitted & available;
    let inheritable = sets.inheritable & available;
    syscall::capset(sets.effective & permitted, permitted, inheritable).explain(format_args!("capset"))?;
    let _ = syscall::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0);
    for capability in 0..64u64 {
        if sets.ambient & permitted & inheritable & (1 << capability) != 0 {
            syscall::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability)
                .explain(format_args!("raise ambient capability {capability}"))?;
        }
    }
    Ok(())
}

/// Give the streams to the process's user, so that it can reopen /dev/stdout; where that is refused it cannot, no more.
/// Their group stays: that of a terminal is the one devpts gave it (`gid=5`, tty).
fn own_streams(uid: u32) {
    for number in 0..3 {
        // SAFETY: 0 to 2 are open for the whole life of this process.
        let stream = unsafe { BorrowedFd::borrow_raw(number) };
        let Ok(stat) = rustix::fs::fstat(stream) else { continue };
        let null =
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == libc::makedev(1, 3);
        if stat.st_uid != uid && !null {
            let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None);
        }
    }
}

/// A directory of the host leads everywhere by way of `..`: none is handed to the program, not even on purpose.
fn refuse_directories(count: u32) -> Step {
    for number in 0..count as i32 {
        // SAFETY: only asked about; a number that is not open gives EBADF.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let is_directory =
            rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if is_directory {
            return Err(Fault::plain(format_args!(
                "descriptor {number} is a directory outside of the container and would be passed to it: \
                 close it, or bind mount the directory instead"
            )));
        }
    }
    Ok(())
}

/// Bytes for [`home_of`].
pub(super) const HOME_ROOM: usize = 512;

/// "HOME=…" from the container's /etc/passwd, or "HOME=/", written into `buffer`.
pub(super) fn home_of(uid: u32, buffer: &mut [u8; HOME_ROOM]) -> *const libc::c_char {
    const NAME: &[u8] = b"HOME=";
    buffer[..NAME.len()].copy_from_slice(NAME);
    let room = buffer.len() - NAME.len() - 1;
    let mut passwd = [0; 16 * 1024];
    let length = rustix::fs::openat2(
        rustix::fs::CWD,
        c"/etc/passwd",
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )
    .and_then(|file| rustix::io::read(&file, &mut passwd))
    .unwrap_or(0);
    let home = passwd_home(&passwd[..length], uid)
        .filter(|home| home.len() <= room)
        .unwrap_or(b"/");
    buffer[NAME.len()..NAME.len() + home.len()].copy_from_slice(home);
    buffer[NAME.len() + home.len()] = 0;
    buffer.as_ptr().cast()
}

/// Field 6 of the line whose field 3 is `uid`. passwd(5).
fn passwd_home(passwd: &[u8], uid: u32) -> Option<&[u8]> {
    passwd.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let number: u32 = std::str::from_utf8(fields.nth(2)?).ok()?.parse().ok()?;
        let home = fields.nth(2)?;
        (number == uid && home.starts_with(b"/")).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:1000:1000::/srv/web:/bin/false\nodd:x:7:7::relative:\n";

    #[test]
    fn home_comes_from_passwd() {
        assert_eq!(passwd_home(PASSWD, 0), Some(&b"/root"[..]));
        assert_eq!(passwd_home(PASSWD, 1000), Some(&b"/srv/web"[..]));
        assert_eq!(passwd_home(PASSWD, 7), None);
        assert_eq!(passwd_home(PASSWD, 5), None);
        assert_eq!(passwd_home(b"", 0), None);
    }
}
