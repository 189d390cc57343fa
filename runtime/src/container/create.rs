//! `create`: plan, cgroup, clone3, and the parent's half of the conversation with the child.
//! What exists so far is written down before the next thing is made, so that `delete --force` finds it after a crash.

use std::cell::Cell;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::record::{self, Directory, Inherited, Record, RecordFile, START_SOCKET};
use super::{CreateOptions, Created, notify, prepare};
use crate::cgroup::systemd::Scope;
use crate::cgroup::{Cgroup, Hierarchy};
use crate::error::{Error, Kind, Result};
use crate::fault::Fault;
use crate::hooks::{self, HookState};
use crate::init::{self, Console, Init};
use crate::plan::Plan;
use crate::plan::process::ProcessPlan;
use crate::seccomp::cache::Entry;
use crate::spec::{self, Config};
use crate::syscall::{self, Fork};

/// Create the container: afterwards its init waits in `created` for [`start`](super::start).
pub fn create(options: CreateOptions) -> Result<Created> {
    make(options, false).map(|(created, ..)| created)
}

/// Create and start the container in one go: there is no moment in which another could start it.
pub fn run(options: CreateOptions) -> Result<Running> {
    let (created, directory, record) = make(options, true)?;
    Ok(Running {
        created,
        directory,
        record,
    })
}

/// A container that [`run`] started.
pub struct Running {
    /// Its init.
    pub created: Created,
    directory: Directory,
    record: Record,
}

impl Running {
    /// Remove the container, as [`delete`](super::delete) with force.
    pub fn delete(self) -> Result<()> {
        super::lifecycle::remove(&self.directory, &self.record)
    }
}

fn make(options: CreateOptions, start: bool) -> Result<(Created, Directory, Record)> {
    let bundle = std::path::absolute(options.bundle)
        .map_err(|e| Error::os(format!("bundle {}", options.bundle.display()), e))?;
    record::check_id(options.id)?;
    let (spec, mut plan, filter) = plan(&bundle, &options)?;
    super::lsm::check(&mut plan)?;
    check_terminal(&plan.process, &options)?;
    super::rootless::enter(&mut plan.namespaces)?;
    let hierarchy = Hierarchy::find()?;
    let cgroups_path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let scope = match options.systemd_cgroup {
        true => Some(Scope::new(cgroups_path, options.id)?),
        false => None,
    };
    let cgroup = match &scope {
        Some(scope) => Cgroup::at(scope.dir(&hierarchy)?),
        None => hierarchy.container(cgroups_path, options.id)?,
    };
    let (directory, lock) = Directory::make(options.root, options.id)?;
    let mut unfinished = Unfinished {
        directory: Some(&directory),
        cgroup: None,
    };
    if options.notify {
        notify::prepare(options.root, options.id)?;
    }
    // systemd makes it otherwise, around the init.
    let ours = scope.is_none() || !plan.namespaces.has(libc::CLONE_NEWCGROUP);
    let mut record = new_record(spec, &plan, &options, bundle, &cgroup);
    record.scope = scope;
    let file = directory.save(&record)?;
    if ours {
        create_group(&cgroup, &hierarchy, &plan)?;
    }
    unfinished.cgroup = Some(&cgroup);
    // A container that fails on its way is destroyed like any other: its poststop hooks run.
    let failed = record.poststop.is_some().then(|| record.clone());
    let container = Container {
        directory: &directory,
        cgroup: &cgroup,
        record,
        file,
        lock: Some(lock),
        filter,
    };
    let (created, record) = match birth(plan, container, options, start) {
        Ok(born) => born,
        Err(error) => {
            drop(unfinished);
            if let Some(record) = failed {
                super::lifecycle::stopped(&directory, &record);
            }
            return Err(error);
        }
    };
    unfinished.directory = None;
    unfinished.cgroup = None;
    drop(unfinished);
    Ok((created, directory, record))
}

/// A user without a group of his own to divide can run containers all the same, unless they ask for limits.
fn create_group(cgroup: &Cgroup, hierarchy: &Hierarchy, plan: &Plan) -> Result<()> {
    match cgroup.create(hierarchy) {
        Err(error) if matches!(error.errno(), Some(libc::EACCES | libc::EPERM | libc::EROFS)) => {
            let dispensable = plan.limits.settings().iter().all(|setting| setting.dispensable);
            match dispensable && crate::cgroup::in_user_namespace() {
                true => Ok(()),
                false => Err(error.context("limits need a cgroup that is delegated to this user")),
            }
        }
        other => other,
    }
}

/// What exists of a container before its init does.
struct Container<'a> {
    directory: &'a Directory,
    cgroup: &'a Cgroup,
    record: Record,
    file: RecordFile,
    /// Says that `create` is under way.
    lock: Option<OwnedFd>,
    /// Where the compiled filter is kept, too.
    filter: Option<Entry>,
}

/// Configuration and plan; the filter of a profile that was met before is taken as it was compiled then.
fn plan(bundle: &Path, options: &CreateOptions) -> Result<(spec::Spec, Plan, Option<Entry>)> {
    let config = Config::read(bundle)?;
    let Some(profile) = config.seccomp() else {
        let spec = extended(config.parse()?, options);
        let plan = Plan::new(&spec, bundle)?;
        return Ok((spec, plan, None));
    };
    let entry = Entry::new(options.root, profile);
    if let Some(filter) = entry.load() {
        let spec = extended(config.parse_without(profile)?, options);
        let mut plan = Plan::new(&spec, bundle)?;
        plan.process.seccomp = Some(filter);
        return Ok((spec, plan, Some(entry)));
    }
    let spec = extended(config.parse()?, options);
    let plan = Plan::new(&spec, bundle)?;
    let stored = plan.process.seccomp.as_ref().map(|filter| entry.store(filter));
    Ok((spec, plan, stored.is_some_and(|stored| stored.is_ok()).then_some(entry)))
}

/// The configuration with what the caller adds to it.
fn extended(mut spec: spec::Spec, options: &CreateOptions) -> spec::Spec {
    if options.environment.is_empty() && !options.notify {
        return spec;
    }
    let mut environment = options.environment.clone();
    if options.notify {
        let (mount, variable) = notify::announce(options.root, options.id);
        spec.mounts_mut().get_or_insert_default().push(mount);
        environment.push(variable);
    }
    if let Some(process) = spec.process_mut() {
        process.env_mut().get_or_insert_default().extend(environment);
    }
    spec
}

/// Undoes an unfinished `create`.
struct Unfinished<'a> {
    directory: Option<&'a Directory>,
    cgroup: Option<&'a Cgroup>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(cgroup) = self.cgroup {
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        }
        if let Some(directory) = self.directory {
            super::rdt::remove(directory.load_resctrl());
            let _ = directory.remove();
        }
    }
}

fn check_terminal(process: &ProcessPlan, options: &CreateOptions) -> Result<()> {
    if !process.terminal && (options.console_socket.is_some() || options.console.is_some()) {
        return Err(Error::invalid("a console is given, but process.terminal is false"));
    }
    Ok(())
}

fn new_record(mut spec: spec::Spec, plan: &Plan, options: &CreateOptions, bundle: PathBuf, cgroup: &Cgroup) -> Record {
    let hooks = spec.hooks().as_ref();
    Record {
        oci_version: spec.version().clone(),
        id: options.id.to_owned(),
        bundle,
        rootfs: plan.rootfs.clone(),
        no_new_keyring: options.no_new_keyring,
        created: record::now(),
        annotations: spec
            .annotations()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        inherited: spec.linux().as_ref().map(Inherited::new).unwrap_or_default(),
        resctrl: plan.rdt.is_some(),
        scope: None,
        pid: 0,
        start_time: 0,
        cgroup: cgroup.dir().to_path_buf(),
        namespaces: plan.namespaces.all(),
        poststart: hooks.and_then(|hooks| hooks.poststart().clone()),
        poststop: hooks.and_then(|hooks| hooks.poststop().clone()),
        process: spec.process_mut().take().unwrap_or_default(),
    }
}

/// Make the child and bring it to `created`, or with `start` to its program.
fn birth(plan: Plan, mut container: Container, options: CreateOptions, start: bool) -> Result<(Created, Record)> {
    let (ours, theirs) = socket_pair()?;
    let (directory, cgroup) = (container.directory, container.cgroup);
    let state = directory.new_state(&container.record);
    let hook_state = |status| match plan.hooks.is_empty() {
        true => HookState::default(),
        false => HookState::new(&super::State {
            status,
            ..state.clone()
        }),
    };
    let (creating, created) = (hook_state(super::Status::Creating), hook_state(super::Status::Created));
    let console = match (plan.process.terminal, options.console, options.console_socket) {
        (false, ..) => Console::None,
        (true, Some(slave), _) => Console::Slave(slave),
        (true, None, Some(path)) => Console::New {
            socket: Some(connect(path)?),
        },
        (true, None, None) => Console::New { socket: None },
    };
    let rootfs = prepare::root(&plan)?;
    let init = Init {
        sync: theirs,
        parents: [Some(&ours), container.lock.as_ref()]
            .into_iter()
            .flatten()
            .map(AsRawFd::as_raw_fd)
            .collect(),
        start: (!start).then(|| listen(directory)).transpose()?,
        binds: prepare::binds(&plan, cgroup, rootfs.as_fd())?,
        rootfs,
        devices: prepare::devices(&plan)?,
        join: prepare::namespaces(&plan)?,
        proc: prepare::proc()?,
        stdio: options.stdio,
        console,
        keyring: keyring(&container.record.id, options.no_new_keyring)?,
        creating,
        created,
        preserve_fds: options.preserve_fds,
        no_pivot: options.no_pivot,
        network: makes_network(&plan),
        met: Cell::new(false),
        in_user_namespace: Cell::new(false),
        plan,
    };
    let group = match container.record.scope {
        None => match cgroup.open() {
            // Only a user without a group of his own goes without.
            Err(error) if error.errno() == Some(libc::ENOENT) && crate::cgroup::in_user_namespace() => None,
            other => Some(other?),
        },
        Some(_) => None,
    };
    let child = clone(&init, group.as_ref().map(AsFd::as_fd))?;
    let (pid, pidfd, in_group) = match child {
        Cloned::Child => init::run(init),
        Cloned::Parent { pid, pidfd, in_group } => (pid, pidfd, in_group),
    };
    let Init {
        plan,
        creating,
        sync,
        proc,
        network,
        ..
    } = init;
    drop(sync);
    let mut said = None;
    let mut raise = || {
        match &container.record.scope {
            Some(scope) => scope.start(
                &container.record.id,
                pid,
                &plan.limits,
                container.record.annotations.iter(),
            )?,
            None if !in_group && group.is_some() => cgroup.add(pid)?,
            None => (),
        }
        let network = network.then_some(proc.as_fd());
        let console = accompany(&ours, pid, &plan, &creating, &mut container, network)?;
        // Only now: a record with a pid is that of a complete container.
        container.file.set_init(pid, container.record.start_time)?;
        if let Some(path) = options.pid_file {
            write_pid_file(path, pid)?;
        }
        if start {
            if options.notify {
                said = notify::listen_for(options.root, options.id)?;
            }
            super::lifecycle::release(&ours, container.directory, &container.record)?;
            drop(container.lock.take());
            super::lifecycle::started(container.directory, &container.record)?;
        }
        Ok(console)
    };
    match raise() {
        Ok(console) => {
            let created = Created {
                pid,
                pidfd,
                start_time: container.record.start_time,
                console,
                notify: said,
            };
            Ok((created, container.record))
        }
        Err(error) => {
            end(pidfd.as_fd());
            Err(error)
        }
    }
}

/// Talk the child through its creation; its terminal's master comes back. What the child does not need yet is done while
/// it makes its namespaces and mounts on another processor; it does not go on to `created` unless all of that succeeded.
fn accompany(
    socket: &OwnedFd,
    pid: i32,
    plan: &Plan,
    state: &HookState,
    container: &mut Container,
    network: Option<BorrowedFd>,
) -> Result<Option<OwnedFd>> {
    if let Some((uids, gids)) = &plan.namespaces.id_maps {
        prepare::write_maps(pid, uids, gids)?;
    }
    let hooked = !plan.hooks.create_container.is_empty() || plan.meets();
    if hooked {
        furnish(pid, plan, container)?;
    }
    match network {
        Some(proc) => pass_network(socket, proc)?,
        None => go(socket),
    }
    if !hooked {
        furnish(pid, plan, container)?;
    }
    let mut console = None;
    loop {
        match receive(socket)? {
            Message::Created => return Ok(console),
            Message::Console(master) => console = Some(master),
            Message::Listener(_) => return Err(Error::system("the container's init loaded its filter too early")),
            Message::Namespaces => {
                super::net_devices::move_in(pid, &plan.net_devices)?;
                hooks::run("prestart", &plan.hooks.prestart, state, pid).map_err(Fault::into_error)?;
                hooks::run("createRuntime", &plan.hooks.create_runtime, state, pid).map_err(Fault::into_error)?;
                go(socket);
            }
            Message::Closed => {
                return Err(Error::system(
                    "the container's init died before the container was created (killed, or out of memory?)",
                ));
            }
        }
    }
}

/// The network namespace takes the kernel as long as all the rest: made here, while the child makes the mounts. Not where
/// it must belong to the child's user namespace, nor where hooks must find it made before the mounts.
fn makes_network(plan: &Plan) -> bool {
    let namespaces = &plan.namespaces;
    // In a user namespace there would be no way back: the own network namespace belongs to another.
    let returns = || !crate::cgroup::in_user_namespace();
    namespaces.makes(libc::CLONE_NEWNET) && !namespaces.has(libc::CLONE_NEWUSER) && !plan.meets() && returns()
}

/// Make the network namespace, say `GO` with it, and set it up while the child goes on.
fn pass_network(socket: &OwnedFd, proc: BorrowedFd) -> Result<()> {
    let current = || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(proc, c"thread-self/ns/net", flags, Mode::empty())
            .map_err(|e| Error::os("open /proc/thread-self/ns/net", e))
    };
    let own = current()?;
    syscall::unshare(libc::CLONE_NEWNET).map_err(|e| Error::os("unshare the network namespace", e))?;
    let made = current()
        .and_then(|made| send_network(socket, made.as_fd()))
        .and_then(|()| init::raise_loopback().map_err(Fault::into_error));
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

/// Everything about the container that is not made by its init: limits, devices, what `state` and `exec` will read.
fn furnish(pid: i32, plan: &Plan, container: &mut Container) -> Result<()> {
    container.cgroup.apply(&plan.limits)?;
    match container.cgroup.attach_devices(&plan.limits) {
        // Nodes can neither be made nor opened with the rights of a user namespace: there is nothing to deny.
        Err(_) if crate::cgroup::in_user_namespace() => (),
        other => other?,
    }
    if let Some(owner) = plan.cgroup_owner {
        container.cgroup.give_to(owner)?;
    }
    if let Some(rdt) = &plan.rdt
        && let Some(made) = super::rdt::join(rdt, &container.record.id, pid)?
    {
        container.directory.save_resctrl(&made)?;
    }
    set_limits(pid, &plan.process)?;
    if let Some(filter) = &plan.process.seccomp {
        container.directory.save_filter(filter, container.filter.as_ref())?;
    }
    container.record.pid = pid;
    container.record.start_time = start_time(pid)?;
    Ok(())
}

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

/// The child may go on. If it is dead, the next receive says so.
pub(super) fn go(socket: &OwnedFd) {
    let _ = rustix::net::send(socket, &[init::GO], SendFlags::NOSIGNAL);
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

/// Which side of clone3 this is.
enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd, in_group: bool },
}

fn clone(init: &Init, group: Option<BorrowedFd>) -> Result<Cloned> {
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
            let answer = match init::be_born(init, user, flags) {
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

/// Resource limits and the score for the out-of-memory killer, set with the caller's privilege.
pub(super) fn set_limits(pid: i32, process: &ProcessPlan) -> Result<()> {
    for (resource, limit) in &process.rlimits {
        syscall::prlimit(pid, *resource, limit).map_err(|e| {
            Error::os(
                format!(
                    "set resource limit {resource} to {}:{} (raising it needs CAP_SYS_RESOURCE)",
                    limit.rlim_cur, limit.rlim_max
                ),
                e,
            )
        })?;
    }
    let Some(score) = process.oom_score_adj else {
        return Ok(());
    };
    match std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) && !may_lower_score() => {
            crate::error::warn(&format!("oom_score_adj stays as it is: {score} needs CAP_SYS_RESOURCE"));
            Ok(())
        }
        other => other.map_err(|e| Error::os(format!("set oom_score_adj to {score}"), e)),
    }
}

fn may_lower_score() -> bool {
    syscall::capget().is_ok_and(|(effective, ..)| effective & crate::caps::SYS_RESOURCE != 0)
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

/// Start time of a process that is our child and not reaped yet.
pub(super) fn start_time(pid: i32) -> Result<u64> {
    record::process_stat(pid)
        .map(|stat| stat.start_time)
        .ok_or_else(|| Error::system(format!("read /proc/{pid}/stat: no start time in it")))
}

/// The conversation's two ends: ours and the child's.
pub(super) fn socket_pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| Error::os("socketpair", e))
}

/// The socket on which the init waits for `start`.
fn listen(directory: &Directory) -> Result<OwnedFd> {
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

/// Connect to an engine's socket: for a console, or a pidfd.
pub(super) fn connect(path: &Path) -> Result<OwnedFd> {
    let connect = || {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    };
    connect().map_err(|e: Errno| Error::os(format!("connect to {}", path.display()), e))
}

pub(super) fn keyring(id: &str, keep: bool) -> Result<Option<CString>> {
    match keep {
        true => Ok(None),
        false => CString::new(format!("_ses.{id}"))
            .map(Some)
            .map_err(|_| Error::new(Kind::Invalid, "id contains NUL")),
    }
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
