//! The pod network: one veth pair and one routed /32 address per pod, no bridge, no packet filter.
//!
//! The host side is `hull<hash of the pod uid>`, the pod side `eth0`. A pod sends everything to 169.254.1.1, an
//! address nobody owns: a permanent neighbour entry leads it to the host side, from where the host routes.
//! Invariant: an address is handed out again only after the interface of its last owner is gone.
//! All calls block for the milliseconds the kernel takes: call them off the async threads (`spawn_blocking`).

mod allocator;
mod cidr;
mod error;
mod host;
pub mod namespaces;
mod netlink;

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

pub use cidr::{Cidr, InvalidCidr};
pub use error::Error;
pub use host::{add_local_address, remove_local_address};

use allocator::Allocator;
use netlink::Netlink;

/// Where every pod sends what is not its own: answered by no one, reached through a neighbour entry.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The host side's link-layer address, the same on every veth: links are point to point, so nothing can mix them up.
const HOST_MAC: [u8; 6] = [0x0e, 0x68, 0x75, 0x6c, 0x6c, 0x01];
/// Used when no default route tells the machine's own MTU.
const DEFAULT_MTU: u32 = 1500;

/// What the pod network of one node is made from.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The node's range of pod addresses; its first usable one is the node's own.
    pub pod_cidr: Cidr,
    /// Runtime state: allocations are kept under `<run_dir>/network`.
    pub run_dir: PathBuf,
    /// The pods' MTU; `None` takes that of the interface of the default route, else 1500.
    pub mtu: Option<u32>,
}

/// How a pod is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAddress {
    /// The pod's address.
    pub ip: Ipv4Addr,
    /// The node's own address in the pod range: the source of host-to-pod traffic.
    pub gateway: Ipv4Addr,
    /// The host side of the pod's veth pair.
    pub host_interface: String,
}

/// The pod network of this node; one per agent.
pub struct PodNetwork {
    node_address: Ipv4Addr,
    mtu: u32,
    allocator: Mutex<Allocator>,
    netlink: Mutex<Netlink>,
}

impl PodNetwork {
    /// Prepares the host (forwarding, the node's own address) and re-learns the allocations of an earlier run.
    pub fn new(config: &NetworkConfig) -> Result<PodNetwork, Error> {
        let node_address = config.pod_cidr.nth(1).ok_or(Error::RangeTooSmall(config.pod_cidr))?;
        let allocator = Allocator::open(&config.run_dir.join("network"), config.pod_cidr)?;
        let mut netlink = Netlink::open()?;
        host::enable_forwarding()?;
        host::add_address(&mut netlink, node_address)?;
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => host::default_mtu(&mut netlink)?.unwrap_or(DEFAULT_MTU),
        };
        Ok(PodNetwork {
            node_address,
            mtu,
            allocator: Mutex::new(allocator),
            netlink: Mutex::new(netlink),
        })
    }

    /// Connects the network namespace at `netns` and gives it the pod's address; the same address when repeated.
    pub fn setup(&self, pod_uid: &str, netns: &Path) -> Result<PodAddress, Error> {
        let ip = self.allocator.lock().allocate(pod_uid)?;
        let address = self.describe(pod_uid, ip);
        let namespace = namespaces::open(netns)?;
        self.connect_host(&address, &namespace)?;
        namespaces::within(&namespace, || configure_pod_side(ip))?;
        Ok(address)
    }

    /// Removes the pod's interface and frees its address. A pod never set up, or torn down already, is fine.
    pub fn teardown(&self, pod_uid: &str) -> Result<(), Error> {
        // The kernel waits for tens of milliseconds here: not while holding up the pods that start.
        Netlink::open()?.delete_link(&interface_name(pod_uid))?;
        self.allocator.lock().free(pod_uid)
    }

    /// The pod's address, if it has one.
    pub fn address(&self, pod_uid: &str) -> Option<PodAddress> {
        let ip = self.allocator.lock().get(pod_uid)?;
        Some(self.describe(pod_uid, ip))
    }

    /// The uids of all pods that hold an address: what a restarted agent compares with the pods it should have.
    pub fn pods(&self) -> Vec<String> {
        self.allocator.lock().pods()
    }

    /// Tears down every pod and takes the node's own address back; for `hull down`.
    pub fn shutdown(&self) -> Result<(), Error> {
        for pod in self.pods() {
            self.teardown(&pod)?;
        }
        remove_local_address(self.node_address)
    }

    /// The node's own address in the pod range.
    pub fn node_address(&self) -> Ipv4Addr {
        self.node_address
    }

    fn describe(&self, pod_uid: &str, ip: Ipv4Addr) -> PodAddress {
        PodAddress {
            ip,
            gateway: self.node_address,
            host_interface: interface_name(pod_uid),
        }
    }

    fn connect_host(&self, address: &PodAddress, namespace: &impl AsFd) -> Result<(), Error> {
        let mut netlink = self.netlink.lock();
        netlink.delete_link(&address.host_interface)?;
        netlink.create_veth(&netlink::Veth {
            host_name: &address.host_interface,
            host_mac: HOST_MAC,
            pod_name: "eth0",
            pod_mac: pod_mac(address.ip),
            pod_namespace: namespace.as_fd(),
            mtu: self.mtu,
        })?;
        host::restrict_interface(&address.host_interface)?;
        let index = netlink.index_of(&address.host_interface)?;
        netlink.set_up(index)?;
        netlink.add_neighbour(index, address.ip, pod_mac(address.ip))?;
        netlink.add_route(&netlink::Route {
            destination: address.ip,
            prefix: 32,
            gateway: None,
            interface: index,
            source: Some(self.node_address),
        })
    }
}

/// Runs inside the pod's network namespace.
fn configure_pod_side(ip: Ipv4Addr) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let index = netlink.index_of("eth0")?;
    netlink.set_up(index)?;
    netlink.add_address(index, ip)?;
    netlink.add_neighbour(index, GATEWAY, HOST_MAC)?;
    netlink.add_route(&netlink::Route {
        destination: Ipv4Addr::UNSPECIFIED,
        prefix: 0,
        gateway: Some(GATEWAY),
        interface: index,
        source: None,
    })
}

/// The name of the host side: `hull` and 11 hex digits, within the kernel's limit of 15 characters (IFNAMSIZ).
fn interface_name(pod_uid: &str) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(pod_uid.as_bytes());
    let hash = digest
        .iter()
        .take(6)
        .fold(0u64, |hash, byte| hash << 8 | u64::from(*byte));
    format!("hull{:011x}", hash >> 4)
}

/// A locally administered link-layer address that names the pod's address.
fn pod_mac(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_and_differ() {
        let one = interface_name("6f9c7a3e-0000-4000-8000-000000000001");
        let two = interface_name("6f9c7a3e-0000-4000-8000-000000000002");
        assert_eq!(one.len(), 15);
        assert_ne!(one, two);
        assert_eq!(one, interface_name("6f9c7a3e-0000-4000-8000-000000000001"));
    }
}
