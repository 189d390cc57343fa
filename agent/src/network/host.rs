//! What the pod network needs of the host itself: forwarding, node-local addresses on `lo`, per-interface settings.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::Error;
use super::netlink::{self, Netlink, Protocol, Route};

/// Puts a node-local address (as the DNS server's) on `lo`; it may be there already.
pub fn add_local_address(address: impl Into<IpAddr>) -> Result<(), Error> {
    add_addresses(&mut Netlink::open()?, &[address.into()])
}

/// Takes a node-local address off `lo`; it may be gone already.
pub fn remove_local_address(address: impl Into<IpAddr>) -> Result<(), Error> {
    remove_addresses(&mut Netlink::open()?, &[address.into()])
}

pub(super) fn add_addresses(netlink: &mut Netlink, addresses: &[IpAddr]) -> Result<(), Error> {
    let lo = netlink.link("lo")?.index;
    let requests = addresses.iter().map(|address| netlink::add_address(lo, *address));
    netlink.run(requests.collect()).map(drop)
}

pub(super) fn remove_addresses(netlink: &mut Netlink, addresses: &[IpAddr]) -> Result<(), Error> {
    let lo = netlink.link("lo")?.index;
    let requests = addresses.iter().map(|address| netlink::remove_address(lo, *address));
    netlink.run(requests.collect()).map(drop)
}

/// Forwarding is switched on, never off: others on the machine may need it, too.
pub(super) fn enable_forwarding(ipv4: bool, ipv6: bool) -> Result<(), Error> {
    if ipv4 && !is_on("ipv4/ip_forward") {
        write_sysctl("ipv4/ip_forward", "1")?;
    }
    if ipv6 && is_on("ipv6/conf/lo/disable_ipv6") {
        // The node's own address is there.
        write_sysctl("ipv6/conf/lo/disable_ipv6", "0")?;
    }
    if ipv6 && !is_on("ipv6/conf/all/forwarding") {
        keep_router_advertisements();
        write_sysctl("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

fn is_on(sysctl: &str) -> bool {
    let path = Path::new("/proc/sys/net").join(sysctl);
    fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
}

/// A machine that forwards ignores router advertisements, and would lose its own address and default route, unless told
/// that it is both (`accept_ra` 2; ip-sysctl of the kernel's documentation).
fn keep_router_advertisements() {
    let interfaces = fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    for interface in interfaces {
        let name = interface.file_name();
        let accept = interface.path().join("accept_ra");
        let concerned = name != "all" && name != "default" && name != "lo";
        if concerned && fs::read_to_string(&accept).is_ok_and(|value| value.trim() == "1") {
            // An interface may vanish in between.
            let _ = fs::write(&accept, "2");
        }
    }
}

/// The host side of a pod: IPv4 only from the pod's own source address (strict reverse path, RFC 3704), no router
/// advertisements from pods, and no IPv6 at all for a pod that has none.
pub(super) fn restrict_interface(name: &str, ipv6: bool) -> Result<(), Error> {
    write_sysctl(&format!("ipv4/conf/{name}/rp_filter"), "1")?;
    if ipv6 {
        write_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    }
    write_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), if ipv6 { "0" } else { "1" })
}

/// The MTU of the interface that leads to other machines: the one that has the node's address, else that of the default
/// route.
pub(super) fn uplink_mtu(netlink: &mut Netlink, node: Option<IpAddr>) -> Result<Option<u32>, Error> {
    let links = netlink.links()?;
    let locals = netlink.addresses()?;
    let of_node = locals.iter().find(|local| Some(local.address) == node);
    let index = match of_node {
        Some(local) => Some(local.interface),
        None => netlink.default_interface()?,
    };
    let uplink = links.iter().find(|link| Some(link.index) == index && !link.loopback);
    Ok(uplink.map(|link| link.mtu))
}

/// Takes addresses off that were the node's own in earlier pod ranges. The kernel would take the routes that have one of
/// them as source along: pods that still have an address of that range keep their way.
pub(super) fn retire_addresses(netlink: &mut Netlink, addresses: &[IpAddr]) -> Result<(), Error> {
    super::fabric::clear(addresses, false, netlink)?;
    let mut routes = netlink.routes(Protocol::Pod)?;
    routes.retain(|route| route.source.is_some_and(|source| addresses.contains(&source)));
    let kept = routes.into_iter().map(|route| Route { source: None, ..route });
    netlink.run(kept.map(|route| route.put()).collect())?;
    remove_addresses(netlink, addresses)
}

/// Writes under /proc/sys/net, in the network namespace of the calling thread. A kernel without IPv6 has no such files.
pub(super) fn write_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys/net").join(name);
    if name.starts_with("ipv6/") && !path.exists() {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| Error::file("write", path, source))
}
