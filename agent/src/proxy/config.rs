//! What the proxy of a node is made from, and how large its maps may become.

use std::path::{Path, PathBuf};

use hull_ebpf_types as bpf;

use crate::network::Cidr;

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
    /// The ranges of cluster addresses, at most one of each family: clients of what nobody serves there are refused.
    pub service_cidrs: Vec<Cidr>,
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
            service_cidrs: Vec::new(),
            limits: Limits::default(),
            layout: bpf::LAYOUT,
        }
    }
}

/// What the maps can grow to. Elements take memory when they come; room for them costs the kernel 16 bytes each, and there is
/// at most twice as much as is needed, a thousand at first. `weighed` and `clients` (1 and 2 MB) are allocated when the
/// first service needs them; always allocated are the places of connected sockets ([`bpf::ORIGINS`], 1.7 MB), whose number
/// does not depend on these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Addresses times ports that lead to services.
    pub services: u32,
    /// Backends, counted for each port, once more while a set is exchanged, and as often as their weights ask.
    pub backends: u32,
    /// Backends of services with affinity or UDP.
    pub members: u32,
    /// Backends with connections, of services that choose by how busy they are.
    pub weighed: u32,
    /// Look-up tables, in pieces of [`bpf::CHUNK`] places.
    pub chunks: u32,
    /// Addresses of the node.
    pub addresses: u32,
    /// Clients with session affinity, times their services; the least recently used are forgotten.
    pub clients: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            services: 1 << 20,
            backends: 1 << 22,
            members: 1 << 22,
            weighed: 1 << 16,
            chunks: 1 << 20,
            addresses: 1 << 16,
            clients: 1 << 14,
        }
    }
}
