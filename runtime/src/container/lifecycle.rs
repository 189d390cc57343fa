//! Everything after `create`: start, state, list, kill, pause, update, delete.
//! Invariant: a process is only ever signalled through a pidfd proven by its start time, or through its cgroup.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::process::Signal;

use super::conversation::{Message, receive, start_address};
use super::record::{Directory, Record, START_SOCKET};
use super::{State, Status};
use crate::cgroup::Cgroup;
use crate::error::{Error, Kind, Result};
use crate::fault::Fault;
use crate::hooks::{self, HookState};
use crate::init;
use crate::spec;

/// How long a killed init may take to disappear.
const DEATH: Duration = Duration::from_secs(10);

fn wrong_state(message: String) -> Error {
    Error::new(Kind::WrongState, message)
}

/// Let the container's init execute the user's program; returns when it does, or with the reason why not.
pub fn start(root: &Path, id: &str) -> Result<()> {
    let directory = Directory::new(root, id)?;
    let record = directory.load()?;
    match directory.status(&record) {
        Status::Created => (),
        Status::Stopped => return Err(wrong_state(format!("cannot start a container that has stopped: {id}"))),
        status => {
            return Err(wrong_state(format!(
                "cannot start container {id} in the {} state",
                name(status)
            )));
        }
    }
    let socket = reach_init(&directory)?;
    std::fs::remove_file(directory.path().join(START_SOCKET))
        .map_err(|e| Error::os(format!("remove the start socket of {id}"), e))?;
    release(&socket, &directory, &record)?;
    started(&directory, &record).inspect_err(|_| {
        if let Err(error) = remove(&directory, &record) {
            crate::error::warn(&error.to_string());
        }
    })
}

/// Tell the init at the other end of `socket` to execute the user's program, and see that it does.
pub(super) fn release(socket: &OwnedFd, directory: &Directory, record: &Record) -> Result<()> {
    rustix::net::send(socket, &[init::START], SendFlags::NOSIGNAL)
        .map_err(|e| Error::os(format!("tell the init of {} to start", record.id), e))?;
    executed(socket, directory, record)
}

/// See that the init at the other end of `socket`, which may start, executes the user's program.
pub(super) fn executed(socket: &OwnedFd, directory: &Directory, record: &Record) -> Result<()> {
    let id = &record.id;
    loop {
        match receive(socket)? {
            Message::Closed => return Ok(()),
            Message::Listener(listener) => hand_over(&listener, directory, record)?,
            _ => {
                return Err(Error::system(format!(
                    "the init of {id} gave an answer nobody asked for"
                )));
            }
        }
    }
}

/// The listener goes to the seccomp agent; without it the container could never do what it has to ask for.
fn hand_over(listener: &OwnedFd, directory: &Directory, record: &Record) -> Result<()> {
    let Some(agent) = &record.inherited.agent else {
        return Ok(());
    };
    let state = directory.created_state(record);
    agent.hand_over(listener.as_fd(), record.pid, &state).inspect_err(|_| {
        let _ = Cgroup::at(&record.cgroup).kill();
    })
}

/// What follows the start: poststart hooks, whose failure is the container's end. Specifications before 1.2 wanted no
/// more than a warning, but no runtime ever heeded that.
pub(super) fn started(directory: &Directory, record: &Record) -> Result<()> {
    let run = || match planned("poststart", &record.poststart, || directory.started_state(record))? {
        Some((hooks, state)) => hooks::run("poststart", &hooks, &state, record.pid).map_err(Fault::into_error),
        None => Ok(()),
    };
    run().inspect_err(|_| {
        let _ = Cgroup::at(&record.cgroup).kill();
    })
}

/// The last: poststop hooks, none of which stops the others, or anything else.
pub(super) fn stopped(directory: &Directory, record: &Record) {
    match planned("poststop", &record.poststop, || directory.state(record)) {
        Ok(Some((hooks, state))) => hooks::run_all("poststop", &hooks, &state, 0),
        Ok(None) => (),
        Err(error) => crate::error::warn(&error.to_string()),
    }
}

fn reach_init(directory: &Directory) -> Result<OwnedFd> {
    let connect = || {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let dir = rustix::fs::open(directory.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        rustix::net::connect(&socket, &start_address(&dir)?)?;
        Ok(socket)
    };
    let path = directory.path().join(START_SOCKET);
    connect().map_err(|e: Errno| Error::os(format!("reach the container's init through {}", path.display()), e))
}

fn name(status: Status) -> &'static str {
    match status {
        Status::Creating => "creating",
        Status::Created => "created",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Stopped => "stopped",
    }
}

/// The state, recomputed from the kernel.
pub fn state(root: &Path, id: &str) -> Result<State> {
    let directory = Directory::new(root, id)?;
    Ok(directory.state(&directory.load()?))
}

/// All containers below `root`, in the order of their ids.
pub fn list(root: &Path) -> Result<Vec<State>> {
    let entries = match std::fs::read_dir(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::os(format!("read state root {}", root.display()), e))?,
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    // A container may go while we look.
    let mut states: Vec<State> = names.filter_map(|id| state(root, &id).ok()).collect();
    states.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(states)
}

/// Send a signal to the init, or with `all` to every process of the container.
pub fn kill(root: &Path, id: &str, signal: i32, all: bool) -> Result<()> {
    let directory = Directory::new(root, id)?;
    let record = directory.load()?;
    if all || signal == libc::SIGKILL && outlives_init(&record) {
        return kill_all(&record, signal);
    }
    let pidfd = record
        .pidfd()
        .ok_or_else(|| wrong_state(format!("container not running: {id}")))?;
    match send(&pidfd, signal) {
        Err(Errno::SRCH) => Err(wrong_state(format!("container not running: {id}"))),
        other => other.map_err(|e| Error::os(format!("send signal {signal} to the init of {id}"), e)),
    }
}

/// Where the init is not that of a pid namespace, the others go on without it: to kill such a container is to kill all.
fn outlives_init(record: &Record) -> bool {
    let cgroup = Cgroup::at(&record.cgroup);
    record.namespaces & libc::CLONE_NEWPID == 0 && cgroup.is_populated()
}

/// Send a signal; 0 is none, and whoever holds a proven pidfd knows the answer to it.
fn send(pidfd: &OwnedFd, signal: i32) -> std::result::Result<(), Errno> {
    if signal == 0 {
        return Ok(());
    }
    // SAFETY: not 0; the kernel checks the number; every signal it accepts may be sent to another process.
    let signal = unsafe { Signal::from_raw_unchecked(signal) };
    rustix::process::pidfd_send_signal(pidfd, signal)
}

fn kill_all(record: &Record, signal: i32) -> Result<()> {
    let cgroup = Cgroup::at(&record.cgroup);
    if !cgroup.exists() {
        // A user's container without a group: its init takes the others of its pid namespace along.
        let pidfd = record.pidfd().filter(|pidfd| send(pidfd, signal).is_ok());
        return pidfd
            .map(drop)
            .ok_or_else(|| wrong_state(format!("container not running: {}", record.id)));
    }
    if signal == libc::SIGKILL {
        return cgroup.kill();
    }
    for pid in cgroup.processes()? {
        let Some(pid) = rustix::process::Pid::from_raw(pid) else {
            continue;
        };
        let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
            continue;
        };
        // The pid may have gone to another process since it was listed: look again, now that the pidfd holds it.
        if cgroup.processes()?.contains(&pid.as_raw_nonzero().get()) {
            let _ = send(&pidfd, signal);
        }
    }
    Ok(())
}

/// Remove a stopped container: cgroup, state, poststop hooks. With `force` kill it first; then a missing container is
/// no error.
pub fn delete(root: &Path, id: &str, force: bool) -> Result<()> {
    let directory = Directory::new(root, id)?;
    let record = match directory.load() {
        Ok(record) => record,
        // `create` died before it wrote a record: nothing but the directory was made.
        Err(error) if error.kind() == Kind::NotFound && directory.exists() && force => return directory.remove(),
        Err(error) if error.kind() == Kind::NotFound && force => return Ok(()),
        Err(error) => return Err(error),
    };
    match directory.status(&record) {
        Status::Stopped | Status::Created => (),
        status if !force => {
            return Err(wrong_state(format!(
                "cannot delete container {id} that is not stopped: {}",
                name(status)
            )));
        }
        _ => (),
    }
    remove(&directory, &record)
}

/// Kill what is left of a container, and remove all of it.
pub(super) fn remove(directory: &Directory, record: &Record) -> Result<()> {
    let cgroup = Cgroup::at(&record.cgroup);
    let pidfd = record.pidfd();
    // An empty group, the usual case, goes at once.
    let removed = cgroup.remove_empty();
    if !removed {
        cgroup.kill()?;
        // A frozen group dies too, since Linux 5.14; thaw it for what waits on its death.
        if cgroup.is_frozen() {
            let _ = cgroup.freeze(false);
        }
    }
    if let Some(pidfd) = pidfd {
        let _ = send(&pidfd, libc::SIGKILL);
        await_death(&pidfd, &record.id)?;
    }
    if !removed {
        cgroup.remove()?;
    }
    if let Some(scope) = &record.scope {
        scope.stop();
    }
    if record.resctrl {
        super::rdt::remove(directory.load_resctrl());
    }
    stopped(directory, record);
    directory.remove()
}

/// A pidfd becomes readable when the process is dead, reaped or not.
fn await_death(pidfd: &OwnedFd, id: &str) -> Result<()> {
    let timeout = Timespec {
        tv_sec: DEATH.as_secs() as i64,
        tv_nsec: 0,
    };
    loop {
        match rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Err(Errno::INTR) => (),
            Ok(0) => {
                return Err(Error::system(format!(
                    "the init of {id} is still there {} s after SIGKILL; it may hang in the kernel (state D)",
                    DEATH.as_secs()
                )));
            }
            other => return other.map(drop).map_err(|e| Error::os("wait for the init's death", e)),
        }
    }
}

/// Hooks of a stage that comes after `create`, with the state they get; `None` if there are none.
fn planned(
    stage: &str,
    hooks: &Option<Vec<spec::Hook>>,
    state: impl FnOnce() -> State,
) -> Result<Option<(Vec<hooks::Hook>, HookState)>> {
    if hooks.as_ref().is_none_or(Vec::is_empty) {
        return Ok(None);
    }
    Ok(Some((hooks::stage(stage, hooks)?, HookState::new(&state())?)))
}

/// The container's group, for statistics and events.
pub fn cgroup(root: &Path, id: &str) -> Result<Cgroup> {
    Ok(Cgroup::at(Directory::new(root, id)?.load()?.cgroup))
}

/// Freeze the container.
pub fn pause(root: &Path, id: &str) -> Result<()> {
    freeze(root, id, true)
}

/// Thaw the container.
pub fn resume(root: &Path, id: &str) -> Result<()> {
    freeze(root, id, false)
}

fn freeze(root: &Path, id: &str, frozen: bool) -> Result<()> {
    let directory = Directory::new(root, id)?;
    let record = directory.load()?;
    if !Cgroup::at(&record.cgroup).exists() && record.is_alive() {
        return Err(Error::system(format!(
            "container {id} has no cgroup, which pause and resume need: delegate one to this user"
        )));
    }
    match (directory.status(&record), frozen) {
        (Status::Running | Status::Created, true) | (Status::Paused, false) => {
            Cgroup::at(&record.cgroup).freeze(frozen)
        }
        (Status::Created, false) if Cgroup::at(&record.cgroup).is_frozen() => Cgroup::at(&record.cgroup).freeze(false),
        (_, true) => Err(wrong_state(format!("container not running: {id}"))),
        (_, false) => Err(wrong_state(format!("container not paused: {id}"))),
    }
}

/// Change the limits of a container; what `resources` leaves out stays.
pub fn update(root: &Path, id: &str, resources: &spec::LinuxResources) -> Result<()> {
    let directory = Directory::new(root, id)?;
    let record = directory.load()?;
    if directory.status(&record) == Status::Stopped {
        return Err(wrong_state(format!("container not running: {id}")));
    }
    let limits = crate::cgroup::update(&Cgroup::at(&record.cgroup), resources)?;
    match &record.scope {
        Some(scope) => scope.set(&limits),
        None => Ok(()),
    }
}

/// Processes in the container's cgroup, as host pids.
pub fn processes(root: &Path, id: &str) -> Result<Vec<i32>> {
    let record = Directory::new(root, id)?.load()?;
    let cgroup = Cgroup::at(&record.cgroup);
    match cgroup.exists() {
        true => cgroup.processes(),
        false if record.is_alive() => Ok(vec![record.pid]),
        false => Ok(Vec::new()),
    }
}
