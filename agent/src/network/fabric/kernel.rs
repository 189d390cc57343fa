//! What the kernel has of the fabric, and the difference to what must be there.
//!
//! New entries are written before old ones go, and a route that changes is replaced in place: no packet in between finds
//! no way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::plan::{Plan, Way, plan};
use super::{FabricConfig, NodeRoute, Transport, vxlan_overhead};
use crate::network::host::write_sysctl;
use crate::network::netlink::{
    self, Forwarding, Link, Local, Neighbour, Netlink, Protocol, Request, Route, Vxlan, VxlanInfo,
};
use crate::network::{Cidr, Error};

/// Brings the kernel to the plan; returns it with how many entries were written and removed.
pub(super) fn reconcile(
    config: &FabricConfig,
    others: &[NodeRoute],
    netlink: &mut Netlink,
) -> Result<(Plan, usize, usize), Error> {
    let links = netlink.links()?;
    let usable: BTreeSet<u32> = links
        .iter()
        .filter(|link| link.up && !link.loopback)
        .map(|link| link.index)
        .collect();
    let mut locals = netlink.addresses()?;
    locals.retain(|local| usable.contains(&local.interface));
    let mut plan = plan(config, others, &locals);
    let mut difference = Difference::default();
    let widths = widths(config, &links, &locals);
    let narrow = narrow(&plan, &widths);
    plan.problems.extend(narrow);
    let tunnels = tunnels(config, &plan, &links, &widths, netlink, &mut difference)?;
    entries(&plan, &tunnels, netlink, &mut difference)?;
    routes(config, &plan, &tunnels, &links, netlink, &mut difference)?;
    for outer_ipv4 in [true, false] {
        let exists = links.iter().any(|link| link.name == name(outer_ipv4));
        if exists && !tunnels.contains_key(&outer_ipv4) {
            difference.old.push(netlink::delete(name(outer_ipv4)));
        }
    }
    let (put, removed) = (difference.made + difference.new.len(), difference.old.len());
    let written = netlink.run(difference.new);
    netlink.run(difference.old)?;
    written?;
    Ok((plan, put, removed))
}

/// Requests that bring new entries, and those that take old ones away.
#[derive(Default)]
struct Difference {
    /// Interfaces made already: their indices are needed.
    made: usize,
    new: Vec<Request>,
    old: Vec<Request>,
}

const IPV6_MIN_MTU: u32 = 1280;

/// The VXLAN interface of an outer family.
fn name(outer_ipv4: bool) -> &'static str {
    if outer_ipv4 { "hull.vxlan4" } else { "hull.vxlan6" }
}

/// Makes the VXLAN interfaces that the plan needs; their indices by outer family.
fn tunnels(
    config: &FabricConfig,
    plan: &Plan,
    links: &[Link],
    widths: &BTreeMap<bool, u32>,
    netlink: &mut Netlink,
    difference: &mut Difference,
) -> Result<BTreeMap<bool, u32>, Error> {
    let mut indices = BTreeMap::new();
    for outer_ipv4 in [true, false] {
        let Some(local) = config.node.address(outer_ipv4) else {
            continue;
        };
        if plan.peers(outer_ipv4).is_empty() {
            continue;
        }
        let wanted = Vxlan {
            name: name(outer_ipv4),
            id: config.vni,
            port: config.port,
            local,
            mac: config.node.mac(),
            mtu: widths.get(&outer_ipv4).copied().unwrap_or(config.mtu),
        };
        let existing = links.iter().find(|link| link.name == wanted.name);
        let index = match existing {
            Some(link) if matches(link, &wanted) => {
                if link.mtu != wanted.mtu {
                    difference.new.push(netlink::set_mtu(link.index, wanted.mtu));
                }
                if !link.up {
                    difference.new.push(netlink::set_up(link.index));
                }
                link.index
            }
            other => {
                difference.made += 1;
                make(&wanted, other.is_some(), netlink)?
            }
        };
        indices.insert(outer_ipv4, index);
    }
    Ok(indices)
}

/// What fits into one packet of a tunnel, by outer family: what the interface with the node's address leaves, and no more
/// than pods send.
fn widths(config: &FabricConfig, links: &[Link], locals: &[Local]) -> BTreeMap<bool, u32> {
    let width = |outer_ipv4| {
        let address = config.node.address(outer_ipv4)?;
        let overhead = vxlan_overhead(outer_ipv4);
        let local = locals.iter().find(|local| local.address == address);
        let link = local.and_then(|local| links.iter().find(|link| link.index == local.interface));
        let outside = match (link, config.transport) {
            (Some(link), _) => link.mtu,
            // The address is a translated one: pods' MTU was made from the interface that leads out.
            (None, Transport::Vxlan) => config.mtu.saturating_add(overhead),
            (None, _) => config.mtu,
        };
        Some((outer_ipv4, config.mtu.min(outside.saturating_sub(overhead))))
    };
    [true, false].into_iter().filter_map(width).collect()
}

/// IPv6 needs packets of 1280 bytes (RFC 8200): the kernel switches it off on narrower interfaces.
fn narrow(plan: &Plan, widths: &BTreeMap<bool, u32>) -> Option<String> {
    let outer = |gateway: &IpAddr, outer_ipv4| gateway.is_ipv6().then(|| widths.get(&outer_ipv4).copied()).flatten();
    let mut carried = plan
        .gateways
        .iter()
        .filter_map(|(gateway, peer)| outer(gateway, peer.outer_ipv4));
    let width = carried.find(|width| *width < IPV6_MIN_MTU)?;
    Some(format!(
        "the interface with the node's address leaves {width} bytes for a packet in VXLAN, and IPv6 needs {IPV6_MIN_MTU}: \
         IPv6 pods of nodes on other networks cannot be reached; give the interface a larger MTU"
    ))
}

fn matches(link: &Link, wanted: &Vxlan) -> bool {
    let info = VxlanInfo {
        id: wanted.id,
        port: wanted.port,
        local: Some(wanted.local),
    };
    link.vxlan == Some(info) && link.mac == wanted.mac
}

fn make(wanted: &Vxlan, replace: bool, netlink: &mut Netlink) -> Result<u32, Error> {
    if replace {
        netlink.run(vec![netlink::delete(wanted.name)])?;
    }
    netlink.run(vec![wanted.create()])?;
    // Loose: nodes may disagree for a moment on which way leads to a pod.
    write_sysctl(&format!("ipv4/conf/{}/rp_filter", wanted.name), "2")?;
    write_sysctl(&format!("ipv6/conf/{}/disable_ipv6", wanted.name), "0")?;
    write_sysctl(&format!("ipv6/conf/{}/accept_ra", wanted.name), "0")?;
    let index = netlink.link(wanted.name)?.index;
    netlink.run(vec![netlink::no_link_local(index), netlink::set_up(index)])?;
    Ok(index)
}

/// Neighbours and forwarding entries in the tunnels.
fn entries(
    plan: &Plan,
    tunnels: &BTreeMap<bool, u32>,
    netlink: &mut Netlink,
    difference: &mut Difference,
) -> Result<(), Error> {
    for (outer_ipv4, interface) in tunnels {
        let interface = *interface;
        let behind = plan.gateways.iter().filter(|(_, peer)| peer.outer_ipv4 == *outer_ipv4);
        let neighbours: BTreeSet<Neighbour> = behind
            .map(|(gateway, peer)| Neighbour {
                interface,
                address: *gateway,
                mac: peer.mac,
            })
            .collect();
        let forwardings: BTreeSet<Forwarding> = plan
            .peers(*outer_ipv4)
            .into_iter()
            .map(|peer| Forwarding {
                interface,
                mac: peer.mac,
                remote: peer.remote,
            })
            .collect();
        let had: BTreeSet<Forwarding> = netlink.forwardings(interface)?.into_iter().collect();
        difference.new.extend(forwardings.difference(&had).map(Forwarding::put));
        let kept: BTreeSet<[u8; 6]> = forwardings.iter().map(|entry| entry.mac).collect();
        // An entry whose link-layer address stays was replaced by the new one.
        let gone = had.difference(&forwardings).filter(|entry| !kept.contains(&entry.mac));
        difference.old.extend(gone.map(Forwarding::remove));

        let had: BTreeSet<Neighbour> = netlink.neighbours(interface)?.into_iter().collect();
        difference.new.extend(neighbours.difference(&had).map(Neighbour::put));
        let kept: BTreeSet<IpAddr> = neighbours.iter().map(|entry| entry.address).collect();
        let gone = had
            .difference(&neighbours)
            .filter(|entry| !kept.contains(&entry.address));
        difference.old.extend(gone.map(Neighbour::remove));
    }
    Ok(())
}

fn routes(
    config: &FabricConfig,
    plan: &Plan,
    tunnels: &BTreeMap<bool, u32>,
    links: &[Link],
    netlink: &mut Netlink,
    difference: &mut Difference,
) -> Result<(), Error> {
    let mut wanted: BTreeMap<Cidr, Route> = BTreeMap::new();
    for (cidr, way) in &plan.ways {
        if let Some(route) = route(config, *cidr, *way, tunnels, links) {
            wanted.insert(*cidr, route);
        }
    }
    let had = owned(&config.node, netlink)?;
    let had: BTreeMap<Cidr, Route> = had.into_iter().map(|route| (route.destination, route)).collect();
    let new = wanted.iter().filter(|(cidr, route)| had.get(*cidr) != Some(*route));
    difference.new.extend(new.map(|(_, route)| route.put()));
    let gone = had.iter().filter(|(cidr, _)| !wanted.contains_key(*cidr));
    difference.old.extend(gone.map(|(_, route)| route.remove()));
    Ok(())
}

fn route(config: &FabricConfig, cidr: Cidr, way: Way, tunnels: &BTreeMap<bool, u32>, links: &[Link]) -> Option<Route> {
    let mut route = Route {
        destination: cidr,
        gateway: None,
        interface: None,
        source: config.node.pod_address(cidr.is_ipv4()),
        mtu: None,
        protocol: Protocol::Fabric,
    };
    match way {
        Way::Own => route.source = None,
        Way::Direct { gateway, interface } => {
            let link = links.iter().find(|link| link.index == interface)?;
            route.gateway = Some(gateway);
            route.interface = Some(interface);
            route.mtu = Some(config.mtu.min(link.mtu));
        }
        Way::Tunnel { gateway, outer_ipv4 } => {
            route.gateway = Some(gateway);
            route.interface = Some(*tunnels.get(&outer_ipv4)?);
        }
    }
    Some(route)
}

/// The routes that this node's fabric made, now or in an earlier run.
fn owned(node: &NodeRoute, netlink: &mut Netlink) -> Result<Vec<Route>, Error> {
    let own = |address: IpAddr| node.pod_cidrs.iter().any(|cidr| cidr.nth(1) == Some(address));
    let mut routes = netlink.routes(Protocol::Fabric)?;
    routes.retain(|route| route.source.is_some_and(own) || node.pod_cidrs.contains(&route.destination));
    Ok(routes)
}

/// Removes everything of the fabric of a node whose own addresses in its pod ranges are `addresses`.
pub(in crate::network) fn clear(addresses: &[IpAddr], with_tunnels: bool, netlink: &mut Netlink) -> Result<(), Error> {
    let ours = |route: &Route| match (route.source, route.interface) {
        (Some(source), _) => addresses.contains(&source),
        (None, None) => addresses.iter().any(|address| route.destination.contains(*address)),
        (None, Some(_)) => false,
    };
    let routes = netlink.routes(Protocol::Fabric)?;
    let mut requests: Vec<Request> = routes.iter().filter(|route| ours(route)).map(Route::remove).collect();
    if with_tunnels {
        requests.extend([true, false].map(|outer_ipv4| netlink::delete(name(outer_ipv4))));
    }
    netlink.run(requests).map(drop)
}
