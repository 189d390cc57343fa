//! The parent's half of a container's creation: the child is made, and talked through to `created` or to its program.
//! What the child does not need yet is done while it makes its namespaces and mounts on another processor.

use std::cell::Cell;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::clone::{Cloned, clone, end};
use super::conversation::{Message, listen, receive, say, socket_pair};
use super::engine::{PIDFD_RECEIVER, connect, write_pid_file};
use super::network::{makes_network, pass_network};
use super::process_stat::start_time;
use super::record::{Directory, Record, RecordFile};
use super::{CreateOptions, Created, notify, prepare};
use crate::cgroup::Cgroup;
use crate::error::{Error, Kind, Result};
use crate::fault::Fault;
use crate::hooks::{self, HookState};
use crate::init::{self, Console, Init};
use crate::plan::Plan;
use crate::plan::process::ProcessPlan;
use crate::seccomp::cache::Entry;
use crate::syscall;

/// What exists of a container before its init does.
pub(super) struct Container<'a> {
    pub(super) directory: &'a Directory,
    pub(super) cgroup: &'a Cgroup,
    pub(super) record: Record,
    pub(super) file: RecordFile,
    /// Says that `create` is under way.
    pub(super) lock: Option<OwnedFd>,
    /// Where the compiled filter is kept, too.
    pub(super) filter: Option<Entry>,
}

/// Make the child and bring it to `created`, or with `start` to its program.
pub(super) fn birth(
    plan: Plan,
    mut container: Container,
    options: CreateOptions,
    start: bool,
) -> Result<(Created, Record)> {
    let (ours, theirs) = socket_pair()?;
    let (directory, cgroup) = (container.directory, container.cgroup);
    // Hooks run after the step that makes the container (runtime.md, "Lifecycle"): for them it is `created`.
    let created = match plan.hooks.is_empty() {
        true => HookState::default(),
        false => HookState::new(&directory.created_state(&container.record))?,
    };
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
        created,
        preserve_fds: options.preserve_fds,
        no_pivot: options.no_pivot,
        views: match options.no_pivot {
            true => prepare::views()?,
            false => Vec::new(),
        },
        network: makes_network(&plan),
        met: Cell::new(false),
        in_user_namespace: Cell::new(false),
        joined: Cell::new(0),
        clocks: Cell::new(None),
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
        created,
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
        // Told early, the child need not be woken for it. Not where it waits for other words, nor if we must listen first.
        let early = start && !options.notify && !plan.meets();
        let console = accompany(&ours, pid, &plan, &created, &mut container, network, early)?;
        // Only now: a record with a pid is that of a complete container.
        container.file.set_init(pid, container.record.start_time)?;
        if let Some(path) = options.pid_file {
            write_pid_file(path, pid)?;
        }
        if let Some(path) = container.record.annotations.get(PIDFD_RECEIVER) {
            super::send_pidfd(Path::new(path), pidfd.as_fd())?;
        }
        if start {
            if options.notify {
                said = notify::listen_for(options.root, options.id)?;
            }
            let follow = match early {
                true => super::lifecycle::executed,
                false => super::lifecycle::release,
            };
            follow(&ours, container.directory, &container.record)?;
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
    start: bool,
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
        None => say(socket, init::GO),
    }
    if !hooked {
        furnish(pid, plan, container)?;
    }
    if start {
        say(socket, init::START);
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
                say(socket, init::GO);
            }
            Message::Closed => {
                return Err(Error::system(
                    "the container's init died before the container was created (killed, or out of memory?)",
                ));
            }
        }
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

pub(super) fn keyring(id: &str, keep: bool) -> Result<Option<CString>> {
    match keep {
        true => Ok(None),
        false => CString::new(format!("_ses.{id}"))
            .map(Some)
            .map_err(|_| Error::new(Kind::Invalid, "id contains NUL")),
    }
}
