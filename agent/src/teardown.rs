//! Takes everything of this node away: containers, mounts, namespaces, interfaces, cgroups, BPF pins, the warden.
//!
//! Works from what is on the machine, without a running agent and without the API server, and can be repeated: each
//! step finds nothing to do where an earlier run has done it. A step that fails does not keep the others from being
//! tried.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use hull_runtime::warden::{self, Client, ContainerState, Held};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::config::AgentConfig;
use crate::image::ImageStore;
use crate::network::namespaces::Pinned;
use crate::pod::record;
use crate::volume::directory::{remove_tree, unmount_below};
use crate::{dns, network, node, observe, proxy};

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Pods that had records.
    pub pods: usize,
    /// Containers that the warden knew.
    pub containers: usize,
    /// Containers that had to be killed when their time was up.
    pub killed: usize,
}

/// What could not be taken away.
#[derive(Debug, thiserror::Error)]
#[error("hull is not completely gone from this machine; run it again after solving: {}", .problems.join("; "))]
pub struct Error {
    /// One sentence each.
    pub problems: Vec<String>,
}

#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn note<T, E: std::fmt::Display>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(format!("{what}: {error}"));
                None
            }
        }
    }
}

/// Takes everything away. Containers get `grace` between SIGTERM and SIGKILL.
pub fn teardown(config: &AgentConfig, grace: Duration) -> Result<Report, Error> {
    let mut problems = Problems::default();
    let mut report = Report::default();
    let uids = record::uids(&config.records_dir());
    report.pods = uids.len();
    if config.warden_dir().exists() {
        let stopped = stop_containers(config, grace, &mut report);
        problems.note("stopping the containers", stopped);
    }
    unmount_roots(config, &mut problems);
    problems.note("removing the pod network", network::teardown(&config.run_dir));
    for uid in pinned(config) {
        problems.note(
            "removing namespaces",
            Pinned::open(&config.netns_dir().join(uid)).remove(),
        );
    }
    problems.note("removing the observer of services", observe::unload(&config.bpf_dir));
    problems.note("removing the packet programs", proxy::edge::unload(&config.bpf_dir));
    problems.note("removing the service proxy", proxy::unload(&config.bpf_dir));
    for address in config.dns_addresses() {
        problems.note("removing the DNS server's address", dns::release(address.ip()));
    }
    problems.note("removing cgroups", remove_cgroups(config));
    for directory in [config.records_dir(), config.memory_dir(), config.volumes_dir()] {
        problems.note("unmounting volumes", unmount_below(&directory));
        problems.note("removing pods", remove_tree(&directory));
    }
    for directory in [
        config.log_dir(),
        config.netns_dir(),
        config.run_dir.join("network"),
        config.warden_dir(),
    ] {
        problems.note("removing runtime state", remove_tree(&directory));
    }
    if problems.0.is_empty() {
        Ok(report)
    } else {
        Err(Error { problems: problems.0 })
    }
}

/// SIGTERM for all, SIGKILL for those that are left, then the warden deletes them and ends itself.
fn stop_containers(config: &AgentConfig, grace: Duration, report: &mut Report) -> Result<(), warden::Error> {
    let dir = config.warden_dir();
    warden::spawn(&config.runtime_binary, &dir)?;
    let client = Client::connect(&dir)?;
    let containers = client.list()?;
    report.containers = containers.len();
    let running = containers
        .iter()
        .filter(|container| container.state == ContainerState::Running);
    let mut held: Vec<Held> = Vec::new();
    for container in running {
        if client.kill(&container.id, Signal::TERM.as_raw(), false).is_ok()
            && let Ok(descriptors) = client.hold(&container.id)
        {
            held.push(descriptors);
        }
    }
    report.killed = wait_for_ends(&held, grace);
    // All at once, so that deleting them one after the other finds them dead already. What ended by itself is no error.
    for container in &containers {
        let _ = client.kill(&container.id, Signal::KILL.as_raw(), true);
    }
    for container in &containers {
        client.delete(&container.id, true)?;
    }
    client.shutdown(true)
}

/// Waits until every pidfd says that its process ended. Returns how many have not.
fn wait_for_ends(held: &[Held], grace: Duration) -> usize {
    let deadline = Instant::now() + grace;
    let mut left: Vec<_> = held.iter().filter_map(|held| held.pidfd.as_ref()).collect();
    while !left.is_empty() {
        let time = deadline.saturating_duration_since(Instant::now());
        if time.is_zero() {
            break;
        }
        let timeout = Timespec {
            tv_sec: time.as_secs().cast_signed(),
            tv_nsec: time.subsec_nanos().into(),
        };
        let mut fds: Vec<PollFd<'_>> = left.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
        let ended: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ended = ended.into_iter();
        left.retain(|_| !ended.next().unwrap_or(false));
    }
    left.len()
}

fn unmount_roots(config: &AgentConfig, problems: &mut Problems) {
    if !config.image_dir().exists() {
        return;
    }
    let Some(store) = problems.note("opening the image store", ImageStore::open(&config.image_dir())) else {
        return;
    };
    for id in problems
        .note("listing root file systems", store.containers())
        .unwrap_or_default()
    {
        problems.note("unmounting a root file system", store.unmount(&id));
    }
}

fn pinned(config: &AgentConfig) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(config.netns_dir()).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

fn remove_cgroups(config: &AgentConfig) -> io::Result<()> {
    match node::cgroup_mount() {
        Some(mount) => remove_cgroup(&mount.join(config.pods_cgroup())),
        None => Ok(()),
    }
}

/// A cgroup goes after its children (cgroups(7)); the files in it go with it.
fn remove_cgroup(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
