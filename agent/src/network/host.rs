//! What the pod network needs of the host itself: forwarding, node-local addresses on `lo`, per-interface settings.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use super::Error;
use super::netlink::Netlink;

/// Puts a node-local address (as the DNS server's) on `lo`; it may be there already.
pub fn add_local_address(address: Ipv4Addr) -> Result<(), Error> {
    add_address(&mut Netlink::open()?, address)
}

/// Takes a node-local address off `lo`; it may be gone already.
pub fn remove_local_address(address: Ipv4Addr) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let lo = netlink.index_of("lo")?;
    netlink.remove_address(lo, address)
}

pub(super) fn add_address(netlink: &mut Netlink, address: Ipv4Addr) -> Result<(), Error> {
    let lo = netlink.index_of("lo")?;
    netlink.add_address(lo, address)
}

/// Forwarding is switched on, never off: others on the machine may need it, too.
pub(super) fn enable_forwarding() -> Result<(), Error> {
    let current = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default();
    if current.trim() == "1" {
        return Ok(());
    }
    write_sysctl("ipv4/ip_forward", "1")
}

/// The host side of a pod accepts only the pod's own source address (strict reverse path, RFC 3704).
pub(super) fn restrict_interface(name: &str) -> Result<(), Error> {
    write_sysctl(&format!("ipv4/conf/{name}/rp_filter"), "1")?;
    write_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1")
}

/// The MTU of the interface that the default route uses.
pub(super) fn default_mtu(netlink: &mut Netlink) -> Result<Option<u32>, Error> {
    let table = fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    match default_interface(&table) {
        Some(name) => netlink.mtu_of(name),
        None => Ok(None),
    }
}

fn default_interface(table: &str) -> Option<&str> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields.as_slice() {
            [name, "00000000", _, _, _, _, _, "00000000", ..] => Some(*name),
            _ => None,
        }
    })
}

/// Writes under /proc/sys/net, in the network namespace of the calling thread. A kernel without IPv6 has no such files.
pub(super) fn write_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys/net").join(name);
    if name.starts_with("ipv6/") && !path.exists() {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| Error::file("write", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_interface_of_the_default_route() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth1\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(default_interface(table), Some("eth0"));
        assert_eq!(default_interface(table.lines().next().unwrap()), None);
    }
}
