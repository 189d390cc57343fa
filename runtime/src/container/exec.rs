//! `exec`: another process inside a running container, born in its cgroup and pid namespace, a child of the caller.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::birth::{keyring, set_limits};
use super::clone::{end, in_pid_namespace};
use super::conversation::{Message, receive, say, socket_pair};
use super::engine::{connect, write_pid_file};
use super::process_stat::start_time;
use super::record::{Directory, Record};
use super::{Created, ExecOptions, Status, Stdio};
use crate::cgroup::{Cgroup, Hierarchy};
use crate::error::{Error, Kind, Result};
use crate::init::{self, Console};
use crate::plan::placement::{Mask, MemoryPolicy};
use crate::plan::process::ProcessPlan;
use crate::plan::{self};
use crate::spec;
use crate::syscall::{self, Fork};

/// What the child of `exec` needs.
pub(crate) struct Entry {
    pub process: ProcessPlan,
    pub sync: OwnedFd,
    pub parents: Vec<RawFd>,
    pub target: OwnedFd,
    /// The host's /proc, verified.
    pub proc: OwnedFd,
    /// CLONE_NEW flags to enter, without the pid namespace.
    pub namespaces: i32,
    /// The container's root, where it has no mount namespace of its own.
    pub root: Option<OwnedFd>,
    pub stdio: Option<Stdio>,
    pub console: Console,
    /// The container's session keyring.
    pub keyring: Option<CString>,
    pub preserve_fds: u32,
}

/// Run another process in the container. It is a child of the caller, already running its program.
pub fn exec(root: &Path, id: &str, mut options: ExecOptions) -> Result<Created> {
    let directory = Directory::new(root, id)?;
    let record = directory.load()?;
    let target = target(&directory, &record, options.ignore_paused)?;
    if options.process.capabilities().is_none() {
        options.process.set_capabilities(record.process.capabilities().clone());
    }
    let process = plan(&options.process, &directory, &record)?;
    super::rootless::follow(target.as_fd(), record.namespaces, &process)?;
    let pid_file = options.pid_file;
    let chosen = options.cgroup.is_some();
    let cgroup = match options.cgroup {
        Some(below) => Cgroup::at(record.cgroup.join(below)),
        None => Cgroup::at(&record.cgroup),
    };
    let (ours, theirs) = socket_pair()?;
    let console = console(&mut options)?;
    let entry = Entry {
        process,
        sync: theirs,
        parents: vec![ours.as_raw_fd()],
        namespaces: namespaces_to_enter(&record),
        root: container_root(&record)?,
        target,
        proc: super::prepare::proc()?,
        stdio: options.stdio,
        console,
        keyring: keyring(&record.id, record.no_new_keyring)?,
        preserve_fds: options.preserve_fds,
    };
    let within = (record.namespaces & libc::CLONE_NEWPID != 0).then_some(entry.target.as_fd());
    let born = || {
        on_cpus(entry.process.affinity.initial.as_ref(), || {
            clone_into(&record, &cgroup, chosen)
        })
    };
    let (pid, pidfd) = match in_pid_namespace(within, born)? {
        Fork::Child => init::enter::run(entry),
        Fork::Parent { pid, pidfd } => (pid, pidfd),
    };
    let Entry { process, sync, .. } = entry;
    drop(sync);
    let agent = |listener: OwnedFd| match &record.inherited.agent {
        Some(agent) => agent.hand_over(listener.as_fd(), pid, &directory.state(&record)),
        None => Ok(()),
    };
    accompany(&ours, pid, pidfd, &process, pid_file, &agent)
}

/// The process, with what the container gives to all of its processes.
fn plan(process: &spec::Process, directory: &Directory, record: &Record) -> Result<ProcessPlan> {
    let inherited = &record.inherited;
    let mut plan = ProcessPlan::new(process, directory.load_filter()?)?;
    plan.personality = inherited.personality.as_ref().map(plan::personality).transpose()?;
    plan.memory_policy = inherited.memory_policy.as_ref().map(MemoryPolicy::new).transpose()?;
    plan.keep_groups = plan::keeps_groups(record.annotations.get(plan::KEEP_GROUPS));
    super::lsm::check_process(&mut plan)?;
    Ok(plan)
}

/// Run `clone` on the CPUs where its child is to begin.
fn on_cpus(cpus: Option<&Mask>, clone: impl FnOnce() -> Result<Fork>) -> Result<Fork> {
    let Some(cpus) = cpus else { return clone() };
    let mut own = [0; 1024];
    let words = syscall::sched_getaffinity(&mut own).map_err(|e| Error::os("sched_getaffinity", e))?;
    syscall::sched_setaffinity(cpus.words()).map_err(|e| Error::os("set process.execCPUAffinity.initial", e))?;
    let result = clone();
    if !matches!(result, Ok(Fork::Child)) {
        syscall::sched_setaffinity(&own[..words]).map_err(|e| Error::os("return to the own CPUs", e))?;
    }
    result
}

fn accompany(
    socket: &OwnedFd,
    pid: i32,
    pidfd: OwnedFd,
    process: &ProcessPlan,
    pid_file: Option<&Path>,
    agent: &dyn Fn(OwnedFd) -> Result<()>,
) -> Result<Created> {
    let raise = || {
        let start_time = start_time(pid)?;
        set_limits(pid, process)?;
        if let Some(path) = pid_file {
            write_pid_file(path, pid)?;
        }
        say(socket, init::GO);
        let mut console = None;
        loop {
            match receive(socket)? {
                Message::Console(master) => console = Some(master),
                Message::Listener(listener) => agent(listener)?,
                Message::Closed => return Ok((start_time, console)),
                Message::Created | Message::Namespaces => (),
            }
        }
    };
    match raise() {
        Ok((start_time, console)) => Ok(Created {
            pid,
            pidfd,
            start_time,
            console,
            notify: None,
        }),
        Err(error) => {
            end(pidfd.as_fd());
            Err(error)
        }
    }
}

/// The init's pidfd, if the container is in a state to run something.
fn target(directory: &Directory, record: &Record, ignore_paused: bool) -> Result<OwnedFd> {
    let refuse = |what: &str| {
        Err(Error::new(
            Kind::WrongState,
            format!("cannot exec in a {what} container: {}", record.id),
        ))
    };
    match directory.status(record) {
        Status::Running | Status::Created => (),
        Status::Paused if ignore_paused => (),
        Status::Paused => return refuse("paused"),
        Status::Stopped | Status::Creating => return refuse("stopped"),
    }
    match record.pidfd() {
        Some(pidfd) => Ok(pidfd),
        None => refuse("stopped"),
    }
}

fn console(options: &mut ExecOptions) -> Result<Console> {
    let terminal = options.process.terminal().unwrap_or(false);
    Ok(match (terminal, options.console.take(), options.console_socket) {
        (false, None, None) => Console::None,
        (false, ..) => return Err(Error::invalid("a console is given, but the process has no terminal")),
        (true, Some(slave), _) => Console::Slave(slave),
        (true, None, Some(path)) => Console::New {
            socket: Some(connect(path)?),
        },
        (true, None, None) => Console::New { socket: None },
    })
}

/// The container's namespaces but the pid namespace, and but a user namespace that is our own already: joining that fails.
fn namespaces_to_enter(record: &Record) -> i32 {
    let mut flags = record.namespaces & !libc::CLONE_NEWPID;
    let identity = |pid: &str| {
        let stat = rustix::fs::stat(format!("/proc/{pid}/ns/user")).ok()?;
        Some((stat.st_dev, stat.st_ino))
    };
    if flags & libc::CLONE_NEWUSER != 0 && identity("self") == identity(&record.pid.to_string()) {
        flags &= !libc::CLONE_NEWUSER;
    }
    flags
}

fn container_root(record: &Record) -> Result<Option<OwnedFd>> {
    if record.namespaces & libc::CLONE_NEWNS != 0 {
        return Ok(None);
    }
    let path = format!("/proc/{}/root", record.pid);
    rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map(Some)
        .map_err(|e| Error::os(format!("open {path}"), e))
}

/// Born in the container's group; where that has been divided by the container itself, in the one its init is in, unless
/// somebody chose the group.
fn clone_into(record: &Record, cgroup: &Cgroup, chosen: bool) -> Result<Fork> {
    let attempt = |group: &Cgroup| {
        let group = group.open()?;
        clone(Some(group.as_fd()))
    };
    match attempt(cgroup) {
        Err(error) if !chosen && matches!(error.errno(), Some(libc::EBUSY | libc::EOPNOTSUPP)) => {
            attempt(&group_of(record)?)
        }
        // A user's container that has no group of its own.
        Err(error) if error.errno() == Some(libc::ENOENT) && !Cgroup::at(&record.cgroup).exists() => clone(None),
        other => other,
    }
}

fn clone(group: Option<BorrowedFd>) -> Result<Fork> {
    // SAFETY: the callers of the container API are single-threaded, and the child makes only system calls.
    unsafe { syscall::clone3(0, group) }.map_err(|e: Errno| Error::os("clone3 into the container's cgroup", e))
}

fn group_of(record: &Record) -> Result<Cgroup> {
    let path = format!("/proc/{}/cgroup", record.pid);
    let groups = std::fs::read_to_string(&path).map_err(|e| Error::os(format!("read {path}"), e))?;
    let inner = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    Ok(Cgroup::at(Hierarchy::find()?.mount().join(inner)))
}

/// The container's own process (environment, user, capabilities, working directory): the base of an `exec`.
pub fn base_process(root: &Path, id: &str) -> Result<spec::Process> {
    Ok(Directory::new(root, id)?.load()?.process)
}
