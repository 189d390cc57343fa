//! The pod network: one veth pair and one routed address of each family per pod, no bridge, no packet filter; and the
//! fabric, which leads to the pods of other nodes.
//!
//! The host side is `hull<hash of the pod uid>`, the pod side `eth0`. A pod sends everything to 169.254.1.1 or fe80::1,
//! addresses nobody owns: a permanent neighbour entry leads them to the host side, from where the host routes.
//! Invariant: an address is handed out again only after the interface of its last owner is gone.
//! All calls block for the milliseconds the kernel takes: call them off the async threads (`spawn_blocking`).

mod allocator;
mod cidr;
mod error;
pub(crate) mod events;
pub mod fabric;
mod host;
pub mod namespaces;
mod netlink;
mod pods;
mod state;

use std::net::IpAddr;
use std::path::PathBuf;

pub use cidr::{Cidr, InvalidCidr};
pub use error::Error;
pub use fabric::{Fabric, FabricConfig, NodeRoute, Transport};
pub use host::{add_local_address, remove_local_address};
pub use pods::{PodNetwork, is_pod_interface};
pub use state::teardown;

/// What the pod network of one node is made from.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The node's ranges of pod addresses, at most one of each family; pods get addresses in this order. The first usable
    /// one of each is the node's own.
    pub pod_cidrs: Vec<Cidr>,
    /// Runtime state: allocations are kept under `<run_dir>/network`.
    pub run_dir: PathBuf,
    /// The pods' MTU; `None` takes that of the interface with `node_ip`, else of the default route, else 1500, less what
    /// `transport` needs for every packet.
    pub mtu: Option<u32>,
    /// The node's address as other nodes see it.
    pub node_ip: Option<IpAddr>,
    /// How packets get to the pods of other nodes.
    pub transport: Transport,
}

/// How a pod is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAddress {
    /// The pod's addresses, in the order of the node's ranges.
    pub ips: Vec<IpAddr>,
    /// The node's own addresses in its ranges: the sources of host-to-pod traffic.
    pub node_addresses: Vec<IpAddr>,
    /// The host side of the pod's veth pair.
    pub host_interface: String,
}
