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

use std::path::{Path, PathBuf};

pub use compute::{DnsRedirect, NodeView, compute};
pub use error::Error;
pub use load::unload;
pub use tables::{Balanced, Frontend, Protocol, Tables};

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
    /// Clients with session affinity, times their services; the least recently used are forgotten.
    pub clients: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { services: 65_536, backends: 262_144, clients: 16_384 }
    }
}
