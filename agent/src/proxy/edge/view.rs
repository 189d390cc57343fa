//! From what is known of the node and its cluster to the contents of the edge's maps: pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use hull_ebpf_types::edge::{Local, Node, OVERLAY, Uplink};

use super::interfaces::Interface;
use crate::network::{Cidr, NodeRoute, is_pod_interface};

/// Tunnels between nodes are named with this.
const OVERLAY_PREFIX: &str = "hull.vxlan";
/// Destinations that see a pod's own address whatever the cluster's ranges are: those that no router passes on.
const NEVER_MASQUERADED: [&str; 7] = [
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];
/// With these a search for a free port hardly ever fails.
const PORTS_ENOUGH: u32 = 4096;
/// Fewer ports than these are no use.
const PORTS_MIN: u32 = 1024;
const PORT_FIRST: u32 = 1024;
const PORT_END: u32 = 65_536;

/// What the edge depends on besides the services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeView {
    /// The node's own addresses in its pod ranges.
    pub gateways: Vec<IpAddr>,
    /// Destinations that see the pods' own addresses: the cluster's pod ranges, the nodes, and what the operator says.
    pub cluster: Vec<Cidr>,
    /// Every other node is reached directly, so that direct server return is possible.
    pub neighbours: bool,
    /// Ports that flows may be given; see [`free_ports`].
    pub ports: PortRange,
}

impl EdgeView {
    /// What follows from the other nodes of the cluster and this machine's interfaces. Behind a tunnel the network knows no
    /// pod's address: then other nodes see pods as they see the world's, by this node's address.
    pub(super) fn with_nodes(&self, nodes: &[NodeRoute], interfaces: &BTreeMap<u32, Interface>) -> EdgeView {
        let tunnel = interfaces
            .values()
            .any(|interface| interface.name.starts_with(OVERLAY_PREFIX));
        let mut view = self.clone();
        view.neighbours = !tunnel;
        for node in nodes {
            view.cluster.extend(&node.pod_cidrs);
            if !tunnel {
                view.cluster
                    .extend(node.addresses.iter().map(|address| Cidr::host(*address)));
            }
        }
        view
    }
}

/// A range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first one.
    pub first: u16,
    /// How many, at least one.
    pub count: u16,
}

impl Default for PortRange {
    fn default() -> PortRange {
        PortRange {
            first: 61_000,
            count: 4_536,
        }
    }
}

/// Ports of which neither the kernel takes one for the node's own sockets (`ip_local_port_range`) nor a service as its
/// node port, both with their ends: the highest range that is large enough, else the largest.
pub fn free_ports(local: (u16, u16), node_ports: (u16, u16)) -> PortRange {
    let mut taken = [local, node_ports].map(|(first, last)| (u32::from(first), u32::from(last)));
    taken.sort_unstable();
    let (mut gaps, mut next) = (Vec::new(), PORT_FIRST);
    for (first, last) in taken.into_iter().chain([(PORT_END, PORT_END)]) {
        if first > next {
            gaps.push((next, first - next));
        }
        next = next.max(last + 1);
    }
    let enough = gaps.iter().rev().find(|gap| gap.1 >= PORTS_ENOUGH);
    match enough.or_else(|| gaps.iter().max_by_key(|gap| gap.1)) {
        Some(&(first, count)) if count >= PORTS_MIN => PortRange {
            first: first as u16,
            count: count as u16,
        },
        _ => PortRange::default(),
    }
}

/// An address as the maps have it.
pub(super) fn words(address: IpAddr) -> [u32; 4] {
    let octets = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let word = |index: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&octets[4 * index..4 * index + 4]);
        u32::from_ne_bytes(bytes)
    };
    [word(0), word(1), word(2), word(3)]
}

/// A network as a key of an LPM map: prefix length over 128 bits, address.
pub(super) fn prefix(cidr: &Cidr) -> (u32, [u32; 4]) {
    let length = u32::from(cidr.prefix()) + if cidr.is_ipv4() { 96 } else { 0 };
    (length, words(cidr.base()))
}

/// The one value of the map `edge_node`.
pub(super) fn node(view: &EdgeView) -> Node {
    let gateway = |ipv4| {
        view.gateways
            .iter()
            .find(|ip| ip.is_ipv4() == ipv4)
            .map(|ip| words(*ip))
    };
    Node {
        gateway4: gateway(true).unwrap_or_default(),
        gateway6: gateway(false).unwrap_or_default(),
        first_port: view.ports.first.into(),
        ports: u32::from(view.ports.count).max(1),
        neighbours: view.neighbours.into(),
    }
}

/// The keys of the map `edge_ranges`.
pub(super) fn ranges(view: &EdgeView) -> BTreeSet<(u32, [u32; 4])> {
    let always = NEVER_MASQUERADED.iter().filter_map(|text| text.parse::<Cidr>().ok());
    view.cluster
        .iter()
        .copied()
        .chain(always)
        .map(|cidr| prefix(&cidr))
        .collect()
}

/// The interfaces that lead out of the node: every Ethernet interface with an address that others can reach, and the
/// tunnels to other nodes; not those of pods.
pub(super) fn uplinks(interfaces: &BTreeMap<u32, Interface>, view: &EdgeView) -> BTreeMap<u32, Uplink> {
    let leads_out = |interface: &&Interface| {
        interface.up && interface.ethernet && !interface.loopback && !is_pod_interface(&interface.name)
    };
    let of = |interface: &Interface| {
        if interface.name.starts_with(OVERLAY_PREFIX) {
            // Replies must come back through the tunnel: only the pods' gateway is routed there.
            let node = node(view);
            return Some(Uplink {
                v4: node.gateway4,
                v6: node.gateway6,
                flags: OVERLAY,
            });
        }
        let first = |ipv4| {
            let reachable = interface.addresses.iter().filter(|ip| is_reachable(**ip));
            reachable.copied().find(|ip| ip.is_ipv4() == ipv4).map(words)
        };
        let (v4, v6) = (first(true), first(false));
        (v4.is_some() || v6.is_some()).then(|| Uplink {
            v4: v4.unwrap_or_default(),
            v6: v6.unwrap_or_default(),
            flags: 0,
        })
    };
    let out = interfaces.iter().filter(|(_, interface)| leads_out(interface));
    out.filter_map(|(index, interface)| Some((*index, of(interface)?)))
        .collect()
}

/// The node's own addresses, as entries of the map `edge_local`.
pub(super) fn own_addresses(interfaces: &BTreeMap<u32, Interface>) -> BTreeMap<[u32; 4], Local> {
    let all = interfaces.values().flat_map(|interface| &interface.addresses);
    all.filter(|ip| !is_loopback(**ip))
        .map(|ip| (words(*ip), Local::default()))
        .collect()
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.is_loopback() || matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn is_reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && ip != Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        Interface {
            name: name.to_owned(),
            up: true,
            ethernet: true,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ..Interface::default()
        }
    }

    #[test]
    fn uplinks_are_what_others_reach_the_node_by() {
        let view = EdgeView {
            gateways: vec!["10.244.1.1".parse().unwrap()],
            ..EdgeView::default()
        };
        let lo = Interface {
            loopback: true,
            ethernet: false,
            ..interface("lo", &["127.0.0.1", "10.244.1.1"])
        };
        let down = Interface {
            up: false,
            ..interface("eth2", &["192.0.2.9"])
        };
        let interfaces = BTreeMap::from([
            (1, lo),
            (2, interface("eth0", &["192.0.2.1", "2001:db8::1", "fe80::1"])),
            (3, interface("eth1", &["fe80::2"])),
            (4, down),
            (5, interface("hull0123456789a", &["192.0.2.8"])),
            (6, interface("hull.vxlan4", &[])),
        ]);
        let uplinks = uplinks(&interfaces, &view);
        assert_eq!(uplinks.keys().copied().collect::<Vec<_>>(), [2, 6]);
        assert_eq!(uplinks[&2].v4, words("192.0.2.1".parse().unwrap()));
        assert_eq!(uplinks[&2].v6, words("2001:db8::1".parse().unwrap()));
        assert_eq!(
            (uplinks[&6].v4, uplinks[&6].flags),
            (words("10.244.1.1".parse().unwrap()), OVERLAY)
        );
        let own = own_addresses(&interfaces);
        assert!(own.contains_key(&words("10.244.1.1".parse().unwrap())));
        assert!(!own.contains_key(&words("127.0.0.1".parse().unwrap())));
    }

    #[test]
    fn other_nodes_see_pods_unless_a_tunnel_is_between() {
        let node = NodeRoute {
            name: "two".to_owned(),
            addresses: vec!["192.0.2.2".parse().unwrap()],
            pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
        };
        let view = EdgeView::default();
        let direct = view.with_nodes(std::slice::from_ref(&node), &BTreeMap::new());
        assert!(direct.neighbours);
        assert_eq!(
            direct.cluster,
            ["10.244.2.0/24", "192.0.2.2/32"].map(|text| text.parse().unwrap())
        );
        let tunnel = BTreeMap::from([(6, interface("hull.vxlan4", &[]))]);
        let tunnelled = view.with_nodes(&[node], &tunnel);
        assert!(!tunnelled.neighbours);
        assert_eq!(tunnelled.cluster, ["10.244.2.0/24"].map(|text| text.parse().unwrap()));
    }

    #[test]
    fn networks_become_prefixes_of_128_bits() {
        let (length, address) = prefix(&"10.244.0.0/16".parse().unwrap());
        assert_eq!((length, address[2].to_ne_bytes()), (112, [0, 0, 0xff, 0xff]));
        assert_eq!(address[3].to_ne_bytes(), [10, 244, 0, 0]);
        assert_eq!(prefix(&"fd00::/48".parse().unwrap()).0, 48);
        let all = ranges(&EdgeView::default());
        assert_eq!(all.len(), NEVER_MASQUERADED.len(), "each of them is a network");
    }

    #[test]
    fn ports_are_taken_where_nobody_else_takes_them() {
        let range = |first, count| PortRange { first, count };
        assert_eq!(free_ports((32_768, 60_999), (30_000, 32_767)), range(61_000, 4_536));
        assert_eq!(free_ports((1_024, 65_535), (30_000, 32_767)), PortRange::default());
        assert_eq!(free_ports((10_000, 65_000), (30_000, 32_767)), range(1_024, 8_976));
    }
}
