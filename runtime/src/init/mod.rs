//! The child side of clone3: executes a [`Plan`] step by step until execve of the user's program.
//! Everything was resolved and allocated by the parent; the child makes system calls and reports over a socket.
//! Invariant: no allocation between clone3 and execve; no path below the container's /proc is ever opened.

mod console;
mod dev;
pub(crate) mod enter;
mod masks;
pub(crate) mod namespaces;
pub(crate) mod path;
pub(crate) mod process;
pub(crate) mod rootfs;

use std::cell::Cell;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags};

use crate::container::Stdio;
use crate::fault::{Explain, Fault, Shown, Step};
use crate::hooks::{self, HookState};
use crate::plan::Plan;
use crate::syscall;

/// Namespaces that a process can only be born into: made by clone3. The others are made by the child, while the parent
/// does its own part.
pub(crate) const BORN_INTO: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWUSER;
/// Parent to child: go on.
pub(crate) const GO: u8 = b'G';
/// Child to parent: the namespaces are there, hooks may run.
pub(crate) const NAMESPACES: u8 = b'N';
/// Child to parent, with a descriptor: the master of the terminal.
pub(crate) const CONSOLE: u8 = b'C';
/// Child to `start`, with a descriptor: the listener of the seccomp filter.
pub(crate) const LISTENER: u8 = b'L';
/// Child to parent: the container is created.
pub(crate) const CREATED: u8 = b'O';
/// `start` to child: execute the program.
pub(crate) const START: u8 = b'S';

/// The terminal of the process.
#[derive(Debug)]
pub(crate) enum Console {
    /// None: three streams.
    None,
    /// A slave that is already open.
    Slave(OwnedFd),
    /// A new pty of the container; its master goes over this socket, or to the parent.
    New { socket: Option<OwnedFd> },
}

/// Everything the child needs, besides the plan: descriptors opened by the parent.
pub(crate) struct Init {
    pub plan: Plan,
    pub sync: OwnedFd,
    /// Descriptors of the parent alone, closed first: while they are open here, the parent's death goes unnoticed.
    pub parents: Vec<RawFd>,
    /// Listens for `start`; `None` when the parent itself will say it over `sync`.
    pub start: Option<OwnedFd>,
    /// Detached copy of the root file system's mount.
    pub rootfs: OwnedFd,
    /// Detached bind sources, in the order of `plan.mounts`; a directory or not.
    pub binds: Vec<Option<(OwnedFd, bool)>>,
    /// In a user namespace, where nodes cannot be made: detached mounts of the host's, in the order of `plan.devices`.
    pub devices: Vec<OwnedFd>,
    /// Namespaces to join, in the order of `plan.namespaces.join`.
    pub join: Vec<OwnedFd>,
    /// The host's /proc, verified.
    pub proc: OwnedFd,
    pub stdio: Option<Stdio>,
    pub console: Console,
    pub keyring: Option<CString>,
    /// For hooks.
    pub created: HookState,
    pub preserve_fds: u32,
    pub no_pivot: bool,
    /// Without pivot_root: where the host has its procfs and sysfs.
    pub views: Vec<CString>,
    /// The parent makes the network namespace, while the child makes mounts, and passes it with `GO`.
    pub network: bool,
    /// `GO` was heard.
    pub met: Cell<bool>,
    /// The joined user namespace was entered before birth.
    pub in_user_namespace: Cell<bool>,
    /// Namespaces that were joined while the host's rights were still there: kinds.
    pub joined: Cell<i32>,
    /// Where the offsets of a time namespace are written, opened while this process may.
    pub clocks: Cell<Option<OwnedFd>>,
}

/// The child: create, wait for start, execute.
pub(crate) fn run(mut init: Init) -> ! {
    let program = match create(&init) {
        Ok(program) => program,
        Err(fault) => {
            fault.send(init.sync.as_fd());
            syscall::exit(1)
        }
    };
    // Without its maker it would be a container that nobody has a record of.
    if rustix::net::send(&init.sync, &[CREATED], SendFlags::NOSIGNAL).is_err() {
        syscall::exit(1);
    }
    let starter = init.start.as_ref().map(|listener| {
        close_all_but([listener.as_fd(), init.proc.as_fd()], init.preserve_fds);
        await_start(listener.as_fd())
    });
    if starter.is_none() {
        await_message(init.sync.as_fd(), START);
    }
    let fault = execute(&mut init, program, starter.as_ref());
    fault.send(starter.as_ref().unwrap_or(&init.sync).as_fd());
    syscall::exit(1)
}

fn create(init: &Init) -> Step<usize> {
    for &fd in &init.parents {
        // SAFETY: these descriptors belong to the parent's half of the code, which does not run here.
        unsafe { libc::close(fd) };
    }
    let _ = syscall::prctl(libc::PR_SET_DUMPABLE, 0, 0);
    reset_signals();
    rustix::process::umask(Mode::empty());
    if let Some(stdio) = &init.stdio {
        process::wire(&stdio.stdin, &stdio.stdout, &stdio.stderr)?;
    }
    // The ids of a new user namespace must be mapped before anything is made in it.
    let unmapped = init.plan.namespaces.makes(libc::CLONE_NEWUSER);
    if unmapped {
        await_message(init.sync.as_fd(), GO);
        init.met.set(true);
    }
    namespaces::enter_namespaces(init)?;
    if unmapped {
        namespaces::enter_late_namespaces(init)?;
    } else if init.plan.meets() {
        meet_parent(init)?;
    }
    rustix::process::setsid().explain(format_args!("setsid"))?;
    if let Some(keyring) = &init.keyring {
        // A kernel without keyrings, or a full quota, is no reason not to run.
        let _ = syscall::join_session_keyring(keyring);
    }
    if init.plan.meets() {
        rustix::net::send(&init.sync, &[NAMESPACES], SendFlags::NOSIGNAL).explain(format_args!("tell the parent"))?;
        await_message(init.sync.as_fd(), GO);
    }
    set_names(&init.plan)?;
    if init.plan.namespaces.makes(libc::CLONE_NEWNET) && !init.network {
        raise_loopback()?;
    }
    rootfs::make(init)?;
    process::change_directory(&init.plan.process.cwd)?;
    process::find_program(&init.plan.process)
}

/// After `start`: the last hooks, then the program. Comes back only with a failure.
fn execute(init: &mut Init, program: usize, starter: Option<&OwnedFd>) -> Fault {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let report = starter.unwrap_or(&init.sync).as_fd();
    let mut home = [0; process::HOME_ROOM];
    if init.plan.process.needs_home && !init.plan.hooks.start_container.is_empty() {
        let home = process::home_of(init.plan.process.uid, &mut home);
        for hook in &mut init.plan.hooks.start_container {
            hook.inherit(home);
        }
    }
    let confine = || process::confine(&init.plan.process, init.proc.as_fd(), report, 0);
    let hooks = &init.plan.hooks.start_container;
    if let Err(fault) = hooks::run_confined("startContainer", hooks, &init.created, pid, &confine) {
        return fault;
    }
    process::execute(
        &mut init.plan.process,
        program,
        init.proc.as_fd(),
        report,
        init.preserve_fds,
    )
}

/// Before anything that depends on the network or on the cgroup: wait until the parent has done its part of them.
pub(crate) fn meet_parent(init: &Init) -> Step {
    if init.met.replace(true) {
        return Ok(());
    }
    let network = receive_go(init.sync.as_fd());
    if init.network {
        let network = network.ok_or_else(|| Fault::plain(format_args!("the parent passed no network namespace")))?;
        syscall::setns(network.as_fd(), libc::CLONE_NEWNET).explain(format_args!("enter the new network namespace"))?;
    }
    namespaces::enter_late_namespaces(init)
}

/// `GO`, and the descriptor that came with it. If the parent is gone, nobody will ever start this container.
fn receive_go(sync: BorrowedFd) -> Option<OwnedFd> {
    let mut message = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [std::io::IoSliceMut::new(&mut message)];
    match rustix::net::recvmsg(sync, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(received) if received.bytes == 1 && message[0] == GO => control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        }),
        _ => syscall::exit(1),
    }
}

/// Wait for the parent's word. If it is gone, nobody will ever start this container.
fn await_message(sync: BorrowedFd, expected: u8) {
    let mut message = [0; 1];
    match rustix::net::recv(sync, &mut message, RecvFlags::empty()) {
        Ok((1, _)) if message[0] == expected => (),
        _ => syscall::exit(1),
    }
}

/// Close what a created container does not need, however long it waits: the runtime's own descriptors, and what its
/// caller left open. Who may look into the init (/proc/PID/fd) finds no way to the host there.
fn close_all_but(needed: [BorrowedFd; 2], preserve_fds: u32) {
    let mut needed = needed.map(|fd| fd.as_raw_fd() as u32);
    needed.sort_unstable();
    let mut first = 3 + preserve_fds;
    for fd in needed.into_iter().filter(|&fd| fd >= 3 + preserve_fds) {
        if fd > first {
            let _ = syscall::close_between(first, fd - 1);
        }
        first = fd + 1;
    }
    let _ = syscall::close_between(first, u32::MAX);
}

/// Block until `start` connects and says so.
fn await_start(listener: BorrowedFd) -> OwnedFd {
    loop {
        let Ok(connection) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) else {
            continue;
        };
        let mut message = [0; 1];
        if rustix::net::recv(&connection, &mut message, RecvFlags::empty()).is_ok_and(|(length, _)| length == 1)
            && message[0] == START
        {
            return connection;
        }
    }
}

fn set_names(plan: &Plan) -> Step {
    if let Some(name) = &plan.hostname {
        syscall::set_uts_name(libc::SYS_sethostname, name).explain(format_args!("set hostname {}", Shown(name)))?;
    }
    if let Some(name) = &plan.domainname {
        syscall::set_uts_name(libc::SYS_setdomainname, name).explain(format_args!("set domainname {}", Shown(name)))?;
    }
    Ok(())
}

/// A new network namespace has `lo`, but down.
pub(crate) fn raise_loopback() -> Step {
    // SAFETY: plain integers; the descriptor is closed below.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the request lives through the call.
    let done = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) };
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    // SAFETY: nobody else knows this descriptor.
    unsafe { libc::close(socket) };
    match done {
        0 => Ok(()),
        _ => Err(Fault::new(
            Errno::from_raw_os_error(errno),
            format_args!("bring up the loopback interface"),
        )),
    }
}

/// Write below the verified /proc of the host.
pub(crate) fn write_proc(
    proc: BorrowedFd,
    path: &std::ffi::CStr,
    value: &[u8],
    resolve: ResolveFlags,
) -> Result<(), Errno> {
    let resolve = resolve | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let file = rustix::fs::openat2(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    rustix::io::write(&file, value).map(drop)
}

/// Undo what the caller ignores or blocks: dispositions and masks survive execve.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // KILL and STOP are refused, harmlessly.
        let _ = syscall::default_action(signal);
    }
    // SAFETY: all-zero is the empty set.
    let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set lives through the call.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut()) };
}
