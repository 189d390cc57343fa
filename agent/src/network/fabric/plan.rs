//! Which routes and VXLAN entries lead to the other nodes' pods. Pure: nodes and interfaces in, what must be there out.
//!
//! A peer that is on the link of an interface is reached directly, any other through VXLAN, unless one of the two is
//! demanded. The gateway in the tunnel is the peer's own address in its pod range.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{FabricConfig, NodeRoute, Transport};
use crate::network::Cidr;
use crate::network::netlink::Local;

/// How a range of pods is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// The peer is on the link of this interface.
    Direct { gateway: IpAddr, interface: u32 },
    /// Through the VXLAN interface of the outer family.
    Tunnel { gateway: IpAddr, outer_ipv4: bool },
    /// This node's own range: what no pod has is unreachable, and never sent away.
    Own,
}

/// A peer behind a VXLAN interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peer {
    /// The peer's link-layer address in the tunnel.
    pub(super) mac: [u8; 6],
    /// Its address outside.
    pub(super) remote: IpAddr,
    /// The outer family.
    pub(super) outer_ipv4: bool,
}

/// Everything that must be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) ways: BTreeMap<Cidr, Way>,
    /// Gateways in the tunnel, and whose they are.
    pub(super) gateways: BTreeMap<IpAddr, Peer>,
    /// Sentences for the operator: peers that cannot be reached, and why.
    pub(super) problems: BTreeSet<String>,
}

impl Plan {
    /// The peers behind the VXLAN interface of an outer family.
    pub(super) fn peers(&self, outer_ipv4: bool) -> BTreeSet<Peer> {
        let peers = self.gateways.values().copied();
        peers.filter(|peer| peer.outer_ipv4 == outer_ipv4).collect()
    }
}

/// Plans the ways from `config.node` to `others`, given the machine's addresses on its interfaces.
pub(super) fn plan(config: &FabricConfig, others: &[NodeRoute], locals: &[Local]) -> Plan {
    let own = &config.node;
    let mut plan = Plan::default();
    plan.ways.extend(own.pod_cidrs.iter().map(|cidr| (*cidr, Way::Own)));
    let sorted: BTreeSet<&NodeRoute> = others.iter().filter(|other| other.name != own.name).collect();
    for other in sorted {
        // Two agents on one machine route to each other's pods by themselves.
        if other.addresses.iter().any(|address| own.addresses.contains(address)) {
            continue;
        }
        for cidr in &other.pod_cidrs {
            if own.pod_address(cidr.is_ipv4()).is_none() {
                continue;
            }
            if let Some(taken) = overlapping(&plan.ways, *cidr) {
                plan.problems.insert(format!(
                    "the pod range {cidr} of node {} overlaps {taken} of another node: it gets no route",
                    other.name
                ));
                continue;
            }
            add(&mut plan, config, other, *cidr, locals);
        }
    }
    plan
}

fn add(plan: &mut Plan, config: &FabricConfig, other: &NodeRoute, cidr: Cidr, locals: &[Local]) {
    let direct = || on_link(other, cidr.is_ipv4(), locals);
    let way = match config.transport {
        Transport::Direct => direct(),
        Transport::Vxlan => None,
        Transport::Auto => direct(),
    };
    if let Some(way) = way {
        plan.ways.insert(cidr, way);
        return;
    }
    if config.transport == Transport::Direct {
        plan.problems.insert(format!(
            "node {} is on no network of this machine and VXLAN is switched off: its pods in {cidr} are reached only if \
             the machine's other routes lead there",
            other.name
        ));
        return;
    }
    let Some(outer_ipv4) = outer_family(&config.node, other) else {
        plan.problems.insert(format!(
            "node {} has no InternalIP of a family that this node has, too: its pods in {cidr} cannot be reached",
            other.name
        ));
        return;
    };
    if let (Some(gateway), Some(remote)) = (cidr.nth(1), other.address(outer_ipv4)) {
        let peer = Peer {
            mac: other.mac(),
            remote,
            outer_ipv4,
        };
        plan.gateways.insert(gateway, peer);
        plan.ways.insert(cidr, Way::Tunnel { gateway, outer_ipv4 });
    }
}

/// The first family of this node's addresses in which the other has one, too.
fn outer_family(own: &NodeRoute, other: &NodeRoute) -> Option<bool> {
    let families = own.addresses.iter().map(IpAddr::is_ipv4);
    families.into_iter().find(|ipv4| other.address(*ipv4).is_some())
}

/// The way to a peer that shares a link with this machine. IPv4 pods are reached over an IPv6 link, too (RFC 8950).
fn on_link(other: &NodeRoute, ipv4: bool, locals: &[Local]) -> Option<Way> {
    let same = other.addresses.iter().filter(|address| address.is_ipv4() == ipv4);
    let ipv6 = other.addresses.iter().filter(|address| ipv4 && address.is_ipv6());
    let narrowest = |gateway: &IpAddr| {
        let inside = locals.iter().filter(|local| holds(local, *gateway));
        inside.max_by_key(|local| local.prefix).map(|local| local.interface)
    };
    same.chain(ipv6).find_map(|gateway| {
        Some(Way::Direct {
            gateway: *gateway,
            interface: narrowest(gateway)?,
        })
    })
}

fn holds(local: &Local, address: IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    !link_local && Cidr::new(local.address, local.prefix).is_some_and(|network| network.contains(address))
}

/// A range planned already that shares addresses with `cidr`. Ranges planned share none, so it is the one before or the
/// one behind it.
fn overlapping(ways: &BTreeMap<Cidr, Way>, cidr: Cidr) -> Option<Cidr> {
    let before = ways.range(..=cidr).next_back().map(|(taken, _)| *taken);
    let behind = ways.range(cidr..).next().map(|(taken, _)| *taken);
    before
        .filter(|taken| taken.contains(cidr.base()))
        .or(behind.filter(|taken| cidr.contains(taken.base())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> NodeRoute {
        NodeRoute {
            name: name.to_owned(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            pod_cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn local(interface: u32, text: &str) -> Local {
        let (address, prefix) = text.split_once('/').unwrap();
        Local {
            interface,
            address: address.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
        }
    }

    fn ways(transport: Transport, own: NodeRoute, others: &[NodeRoute], locals: &[Local]) -> Vec<String> {
        let config = FabricConfig::new(own, transport, 1450);
        let plan = plan(&config, others, locals);
        let way = |(cidr, way): (&Cidr, &Way)| match way {
            Way::Direct { gateway, interface } => format!("{cidr} via {gateway} on {interface}"),
            Way::Tunnel { gateway, outer_ipv4 } => {
                let peer = plan.gateways[gateway];
                assert_eq!(peer.outer_ipv4, *outer_ipv4);
                format!("{cidr} via {gateway} to {}", peer.remote)
            }
            Way::Own => format!("{cidr} own"),
        };
        plan.ways.iter().map(way).chain(plan.problems.clone()).collect()
    }

    fn dual(number: u8) -> NodeRoute {
        node(
            &format!("n{number}"),
            &[&format!("192.0.2.{number}"), &format!("2001:db8::{number}")],
            &[&format!("10.244.{number}.0/24"), &format!("fd00:{number}::/64")],
        )
    }

    #[test]
    fn peers_on_the_link_are_reached_directly_and_others_through_the_tunnel() {
        let far = node(
            "far",
            &["198.51.100.9", "2001:db8:9::9"],
            &["10.244.9.0/24", "fd00:9::/64"],
        );
        let locals = [local(2, "192.0.2.1/24"), local(2, "2001:db8::1/64")];
        assert_eq!(
            ways(Transport::Auto, dual(1), &[dual(1), dual(2), far], &locals),
            [
                "10.244.1.0/24 own",
                "10.244.2.0/24 via 192.0.2.2 on 2",
                "10.244.9.0/24 via 10.244.9.1 to 198.51.100.9",
                "fd00:1::/64 own",
                "fd00:2::/64 via 2001:db8::2 on 2",
                "fd00:9::/64 via fd00:9::1 to 198.51.100.9",
            ]
        );
    }

    #[test]
    fn either_way_can_be_demanded() {
        let locals = [local(2, "192.0.2.1/24")];
        let others = [
            dual(2),
            node("far", &["198.51.100.9"], &["10.244.9.0/24", "fd00:9::/64"]),
        ];
        let direct = ways(Transport::Direct, dual(1), &others, &locals);
        assert_eq!(direct[1], "10.244.2.0/24 via 192.0.2.2 on 2");
        assert_eq!(direct.len(), 6, "{direct:?}");
        assert!(
            direct[3].starts_with("node far is on no network of this machine"),
            "{direct:?}"
        );
        let vxlan = ways(Transport::Vxlan, dual(1), &others, &locals);
        assert_eq!(vxlan[1], "10.244.2.0/24 via 10.244.2.1 to 192.0.2.2");
    }

    #[test]
    fn families_may_differ_outside_and_inside() {
        let own = node("a", &["2001:db8::1"], &["10.244.1.0/24"]);
        let near = node("b", &["2001:db8::2"], &["10.244.2.0/24", "fd00:2::/64"]);
        let far = node("c", &["2001:db8:1::3"], &["10.244.3.0/24"]);
        let other = node("d", &["192.0.2.4"], &["10.244.4.0/24"]);
        let locals = [local(7, "2001:db8::1/64")];
        assert_eq!(
            ways(Transport::Auto, own, &[near, far, other], &locals),
            [
                "10.244.1.0/24 own",
                "10.244.2.0/24 via 2001:db8::2 on 7",
                "10.244.3.0/24 via 10.244.3.1 to 2001:db8:1::3",
                "node d has no InternalIP of a family that this node has, too: its pods in 10.244.4.0/24 cannot be reached",
            ]
        );
    }

    #[test]
    fn the_narrowest_network_wins_and_ranges_never_overlap() {
        let locals = [
            local(2, "192.0.0.1/16"),
            local(3, "192.0.2.1/24"),
            local(4, "192.0.2.2/32"),
        ];
        let clash = node("n3", &["192.0.2.3"], &["10.244.0.0/16"]);
        let twin = node("n4", &["192.0.2.1"], &["10.244.4.0/24"]);
        let got = ways(Transport::Auto, dual(1), &[dual(2), clash, twin], &locals[..2]);
        assert_eq!(got[1], "10.244.2.0/24 via 192.0.2.2 on 3");
        assert!(
            got.last()
                .unwrap()
                .contains("10.244.0.0/16 of node n3 overlaps 10.244.1.0/24"),
            "{got:?}"
        );
        assert!(!got.iter().any(|way| way.contains("10.244.4.0")), "{got:?}");
    }
}
