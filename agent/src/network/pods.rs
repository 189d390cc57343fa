//! Pods on this node: their addresses, their veth pairs, the host's routes to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::allocator::Allocator;
use super::netlink::{self, Neighbour, Netlink, Protocol, Request, Route, Veth};
use super::{Cidr, Error, NetworkConfig, PodAddress, host, namespaces, state};

/// Where every pod sends what is not its own: answered by no one, reached through neighbour entries.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The host side's link-layer address, the same on every veth: links are point to point, so nothing can mix them up.
const HOST_MAC: [u8; 6] = [0x0e, 0x68, 0x75, 0x6c, 0x6c, 0x01];
/// Used when no interface tells the machine's own MTU.
const DEFAULT_MTU: u32 = 1500;
/// IPv6 does not work below (RFC 8200).
const MIN_MTU: u32 = 1280;
/// Host sides are named with this and hex digits, up to the kernel's limit of 15 characters (IFNAMSIZ).
const PREFIX: &str = "hull";
const DIGITS: usize = 11;

/// The pod network of this node; one per agent.
pub struct PodNetwork {
    run_dir: PathBuf,
    node_addresses: Vec<IpAddr>,
    mtu: u32,
    allocator: Mutex<Allocator>,
    netlink: Mutex<Netlink>,
}

impl PodNetwork {
    /// Prepares the host (forwarding, the node's own addresses) and re-learns the allocations of an earlier run.
    pub fn new(config: &NetworkConfig) -> Result<PodNetwork, Error> {
        let first = |cidr: &Cidr| cidr.nth(1).ok_or(Error::RangeTooSmall(*cidr));
        let node_addresses: Vec<IpAddr> = config.pod_cidrs.iter().map(first).collect::<Result<_, _>>()?;
        let allocator = Allocator::open(&state::allocations(&config.run_dir), &config.pod_cidrs)?;
        let mut netlink = Netlink::open()?;
        let mut stale = state::node_addresses(&config.run_dir)?;
        stale.retain(|address| !node_addresses.contains(address));
        state::note_node_addresses(&config.run_dir, &node_addresses)?;
        if !stale.is_empty() {
            host::retire_addresses(&mut netlink, &stale)?;
        }
        let has = |ipv4| config.pod_cidrs.iter().any(|cidr| cidr.is_ipv4() == ipv4);
        host::enable_forwarding(has(true), has(false))?;
        host::add_addresses(&mut netlink, &node_addresses)?;
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => pod_mtu(config, &mut netlink)?,
        };
        if mtu < MIN_MTU && has(false) {
            return Err(Error::MtuTooSmall(mtu));
        }
        Ok(PodNetwork {
            run_dir: config.run_dir.clone(),
            node_addresses,
            mtu,
            allocator: Mutex::new(allocator),
            netlink: Mutex::new(netlink),
        })
    }

    /// Connects the network namespace at `netns` and gives it the pod's addresses; the same ones when repeated.
    pub fn setup(&self, pod_uid: &str, netns: &Path) -> Result<PodAddress, Error> {
        let ips = self.allocator.lock().allocate(pod_uid)?;
        let address = self.describe(pod_uid, ips);
        let namespace = namespaces::open(netns)?;
        self.connect_host(&address, &namespace)?;
        namespaces::within(&namespace, || configure_pod_side(&address.ips))?;
        Ok(address)
    }

    /// Removes the pod's interface and frees its addresses. A pod never set up, or torn down already, is fine.
    pub fn teardown(&self, pod_uid: &str) -> Result<(), Error> {
        // The kernel waits for tens of milliseconds here: not while holding up the pods that start.
        Netlink::open()?.run(vec![netlink::delete(&interface_name(pod_uid))])?;
        self.allocator.lock().free(pod_uid)
    }

    /// How the pod is reached, if it has an address.
    pub fn address(&self, pod_uid: &str) -> Option<PodAddress> {
        let ips = self.allocator.lock().get(pod_uid)?.to_vec();
        Some(self.describe(pod_uid, ips))
    }

    /// The uids of all pods that hold an address: what a restarted agent compares with the pods it should have.
    pub fn pods(&self) -> Vec<String> {
        self.allocator.lock().pods()
    }

    /// Takes everything away: see [`super::teardown`].
    pub fn shutdown(&self) -> Result<(), Error> {
        super::teardown(&self.run_dir)
    }

    /// The node's own addresses in its pod ranges.
    pub fn node_addresses(&self) -> &[IpAddr] {
        &self.node_addresses
    }

    /// The pods' MTU, in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    fn describe(&self, pod_uid: &str, ips: Vec<IpAddr>) -> PodAddress {
        PodAddress {
            ips,
            node_addresses: self.node_addresses.clone(),
            host_interface: interface_name(pod_uid),
        }
    }

    fn connect_host(&self, address: &PodAddress, namespace: &impl AsFd) -> Result<(), Error> {
        let name = address.host_interface.as_str();
        let mac = pod_mac(&address.ips);
        let veth = Veth {
            host_name: name,
            host_mac: HOST_MAC,
            pod_name: "eth0",
            pod_mac: mac,
            pod_namespace: namespace.as_fd(),
            mtu: self.mtu,
        };
        let mut netlink = self.netlink.lock();
        let index = match netlink.run(vec![veth.create(), netlink::find(name)]) {
            Ok(answers) => netlink::found(&answers),
            // Left by an agent that ended in the middle.
            Err(error) if error.is_exists() => {
                netlink.run(vec![netlink::delete(name)])?;
                netlink::found(&netlink.run(vec![veth.create(), netlink::find(name)])?)
            }
            Err(error) => return Err(error),
        };
        let index = match index {
            Some(link) => link.index,
            None => netlink.link(name)?.index,
        };
        let ipv6 = address.ips.iter().any(IpAddr::is_ipv6);
        host::restrict_interface(name, ipv6)?;
        let mut requests = Vec::new();
        if ipv6 {
            requests.push(netlink::no_link_local(index));
        }
        requests.push(netlink::set_up(index));
        for ip in &address.ips {
            requests.push(permanent(index, *ip, mac));
            requests.push(pod_route(Cidr::host(*ip), None, index, self.source(*ip)));
        }
        netlink.run(requests).map(drop)
    }

    /// With which address the host speaks to a pod's.
    fn source(&self, ip: IpAddr) -> Option<IpAddr> {
        let own = self.node_addresses.iter().copied();
        own.into_iter().find(|own| own.is_ipv4() == ip.is_ipv4())
    }
}

fn pod_mtu(config: &NetworkConfig, netlink: &mut Netlink) -> Result<u32, Error> {
    let uplink = host::uplink_mtu(netlink, config.node_ip)?.unwrap_or(DEFAULT_MTU);
    let outer_ipv4 = config.node_ip.is_none_or(|ip| ip.is_ipv4());
    Ok(uplink.saturating_sub(config.transport.overhead(outer_ipv4)))
}

/// Runs inside the pod's network namespace.
fn configure_pod_side(ips: &[IpAddr]) -> Result<(), Error> {
    let ipv6 = ips.iter().any(IpAddr::is_ipv6);
    if ipv6 {
        // No detection of duplicates and no advertisements on a link of two: the address works at once.
        host::write_sysctl("ipv6/conf/eth0/accept_dad", "0")?;
        host::write_sysctl("ipv6/conf/eth0/accept_ra", "0")?;
        host::write_sysctl("ipv6/conf/eth0/disable_ipv6", "0")?;
    }
    let mut netlink = Netlink::open()?;
    let index = netlink.link("eth0")?.index;
    let mut requests = vec![netlink::set_up(index)];
    requests.extend(ips.iter().map(|ip| netlink::add_address(index, *ip)));
    let gateways = [(true, IpAddr::V4(GATEWAY)), (false, IpAddr::V6(GATEWAY6))];
    for (ipv4, gateway) in gateways {
        if let Some(all) = ips
            .iter()
            .find(|ip| ip.is_ipv4() == ipv4)
            .and_then(|ip| everything(*ip))
        {
            requests.push(permanent(index, gateway, HOST_MAC));
            requests.push(pod_route(all, Some(gateway), index, None));
        }
    }
    netlink.run(requests).map(drop)
}

/// All addresses of the family of `ip`.
fn everything(ip: IpAddr) -> Option<Cidr> {
    Cidr::new(ip, 0)
}

fn permanent(interface: u32, address: IpAddr, mac: [u8; 6]) -> Request {
    Neighbour {
        interface,
        address,
        mac,
    }
    .put()
}

fn pod_route(destination: Cidr, gateway: Option<IpAddr>, interface: u32, source: Option<IpAddr>) -> Request {
    Route {
        destination,
        gateway,
        interface: Some(interface),
        source,
        mtu: None,
        protocol: Protocol::Pod,
    }
    .put()
}

/// The name of the host side of a pod's veth pair.
pub(super) fn interface_name(pod_uid: &str) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(pod_uid.as_bytes());
    let hash = digest
        .iter()
        .take(6)
        .fold(0u64, |hash, byte| hash << 8 | u64::from(*byte));
    format!("{PREFIX}{:0DIGITS$x}", hash >> 4)
}

/// Whether an interface of this name is the host side of a pod's veth pair.
#[must_use]
pub fn is_pod_interface(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|hash| hash.len() == DIGITS && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl PodAddress {
    /// The link-layer address of the pod's side.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        pod_mac(&self.ips)
    }
}

/// A locally administered link-layer address that names the pod's first address.
fn pod_mac(ips: &[IpAddr]) -> [u8; 6] {
    let [a, b, c, d] = match ips.first() {
        Some(IpAddr::V4(ip)) => ip.octets(),
        Some(IpAddr::V6(ip)) => std::array::from_fn(|place| ip.octets()[12 + place]),
        None => [0; 4],
    };
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
        assert!(is_pod_interface(&one));
        assert!(!is_pod_interface("hull.vxlan4") && !is_pod_interface("eth0"));
    }
}
