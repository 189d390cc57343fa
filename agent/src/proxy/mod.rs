//! The service proxy's user-space half: it decides, the kernel looks up.
//!
//! [`compute`] turns the cluster's services into [`Tables`]; [`Proxy::apply`] writes what differs into maps that are
//! pinned on bpffs together with the links of the programs, so that services work while no agent runs.
//! Invariants: a service in the maps always has its complete set of backends; nothing is ever flushed; a restarted
//! agent finds in the maps what its predecessor wrote. All calls block briefly: keep them off the async threads.

mod bpffs;
mod compute;
mod destroy;
mod diff;
mod error;
mod load;
mod maps;
mod sys;
mod tables;

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use hull_ebpf_types as bpf;

pub(crate) use compute::by_service;
pub use compute::{DnsRedirect, NodeView, compute};
pub use error::{Error, Rejected};
pub use load::unload;
pub use tables::{Balanced, Frontend, Protocol, Tables};

use destroy::Gone;
use diff::{Change, Installed, Op};
use maps::Maps;
use tables::endpoint_to_bpf;

/// What the proxy of one node is made from.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where maps and links are pinned; bpffs is mounted there when it is missing.
    pub bpf_dir: PathBuf,
    /// The cgroup whose processes are balanced, all below included: the cgroup2 root for pods and host alike.
    pub cgroup: PathBuf,
    /// Holds the pods' pinned network namespaces as `<netns_dir>/<pod>/net`: where UDP sockets of vanished backends
    /// are looked for.
    pub netns_dir: PathBuf,
    /// How much the maps can hold.
    pub limits: Limits,
    /// Map layout; anything but the default is for trying an upgrade.
    pub layout: u32,
}

impl ProxyConfig {
    /// The usual limits and layout.
    pub fn new(bpf_dir: &Path, cgroup: &Path, netns_dir: &Path) -> ProxyConfig {
        ProxyConfig {
            bpf_dir: bpf_dir.to_owned(),
            cgroup: cgroup.to_owned(),
            netns_dir: netns_dir.to_owned(),
            limits: Limits::default(),
            layout: hull_ebpf_types::LAYOUT,
        }
    }
}

/// Capacities of the maps, fixed when they are made. Unused room costs a few bytes an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Service addresses times ports.
    pub services: u32,
    /// Backends, counted once for each service port that has them.
    pub backends: u32,
    /// Clients with session affinity, times their services, and as many connected UDP sockets; the least recently used
    /// are forgotten.
    pub clients: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            services: 65_536,
            backends: 262_144,
            clients: 16_384,
        }
    }
}

/// What an [`Proxy::apply`] did.
#[derive(Debug, Default)]
pub struct Report {
    /// Services that were added, changed or removed.
    pub changed: usize,
    /// Services that did not fit; everything else is in force.
    pub rejected: Vec<Rejected>,
    /// UDP sockets that were connected to a backend that is gone.
    pub destroyed: usize,
}

/// What has happened to a service's clients since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connects and unconnected datagrams that were sent to a backend.
    pub translated: u64,
    /// Clients refused because there was no backend.
    pub refused: u64,
}

/// The proxy of this node: the pinned maps, and a mirror of what is in them. Dropping it leaves everything in force.
pub struct Proxy {
    config: ProxyConfig,
    maps: Maps,
    installed: Installed,
    strays: Vec<Op>,
    /// Programs of a new map layout wait here until their maps are filled.
    waiting: Option<Ebpf>,
}

impl Proxy {
    /// Loads the programs, adopts pinned maps and links of the same layout, attaches what is missing. With maps of
    /// another layout in place, these stay in force until the first [`Proxy::apply`] has filled the new ones.
    pub fn load(config: ProxyConfig) -> Result<Proxy, Error> {
        bpffs::ensure(&config.bpf_dir)?;
        let mut ebpf = load::load(&config)?;
        let maps = Maps::take(&mut ebpf)?;
        load::give_memory_back();
        let (installed, strays) = Installed::rebuild(&maps.read()?);
        let waiting = if load::other_layouts(&config.bpf_dir, config.layout)?.is_empty() {
            load::attach(&config, &mut ebpf)?;
            None
        } else {
            Some(ebpf)
        };
        Ok(Proxy {
            config,
            maps,
            installed,
            strays,
            waiting,
        })
    }

    /// Brings the maps to `desired` by writing what differs. Call it with complete tables only, that is after the
    /// first full list of services **and** endpoint slices: what is missing from them is removed.
    pub fn apply(&mut self, desired: &Tables) -> Result<Report, Error> {
        let mut report = Report::default();
        for op in self.strays.drain(..) {
            self.maps.execute(&op)?;
        }
        let mut gone = Gone::new();
        for change in self.installed.plan(desired) {
            match carry_out(&mut self.maps, &change) {
                Ok(()) => {
                    report.changed += 1;
                    gone.extend(left(&change));
                    self.installed.done(change);
                }
                Err(error) => {
                    report.rejected.push(Rejected {
                        frontend: change.frontend,
                        reason: error.to_string(),
                    });
                }
            }
        }
        if let Some(mut ebpf) = self.waiting.take() {
            load::attach(&self.config, &mut ebpf)?;
            load::remove(&load::other_layouts(&self.config.bpf_dir, self.config.layout)?)?;
        }
        if !gone.is_empty() {
            report.destroyed = destroy::destroy(&gone, &self.config.netns_dir, self.maps.flows())?;
        }
        Ok(report)
    }

    /// The services in force.
    pub fn services(&self) -> impl Iterator<Item = (&Frontend, &[SocketAddrV4])> {
        self.installed
            .services
            .iter()
            .map(|(frontend, entry)| (frontend, entry.backends.as_slice()))
    }

    /// The counters of a service in force.
    pub fn counters(&self, frontend: &Frontend) -> Result<Option<Counters>, Error> {
        let Some(entry) = self.installed.services.get(frontend) else {
            return Ok(None);
        };
        let counters = self.maps.counters(entry.service.id)?;
        Ok(Some(Counters {
            translated: counters.translated,
            refused: counters.refused,
        }))
    }
}

/// Prepares, commits, cleans up. What was prepared is taken back when the service cannot be committed; a failed
/// clean-up only leaves entries nobody reads, which the next start removes.
fn carry_out(maps: &mut Maps, change: &Change) -> Result<(), Error> {
    for (done, op) in change.prepare.iter().chain([&change.commit]).enumerate() {
        if let Err(error) = maps.execute(op) {
            for op in change.prepare.iter().take(done).filter_map(Op::inverse) {
                let _ = maps.execute(&op);
            }
            return Err(error);
        }
    }
    for op in &change.cleanup {
        if let Err(error) = maps.execute(op) {
            tracing::warn!(service = %change.frontend, %error, "could not remove what a service no longer uses");
        }
    }
    Ok(())
}

/// What connected UDP sockets may remember of the backends that are gone.
fn left(change: &Change) -> impl Iterator<Item = bpf::Origin> {
    let udp = change.frontend.protocol == Protocol::Udp;
    let frontend = change.frontend.to_bpf();
    let endpoints = change
        .gone
        .iter()
        .filter(move |_| udp)
        .map(|address| endpoint_to_bpf(*address));
    endpoints.map(move |endpoint| bpf::Origin { frontend, endpoint })
}
