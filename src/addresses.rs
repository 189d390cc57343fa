//! This machine's own addresses, found by asking the routing table, and ranges as operators write them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};

use anyhow::{Result, ensure};
use hull_agent::network::Cidr;

/// One range, or one of each family with a comma between; never empty.
pub fn ranges(text: &str) -> Result<Vec<Cidr>> {
    let parsed: Vec<Cidr> = text
        .split(',')
        .map(|part| part.trim().parse())
        .collect::<Result<_, _>>()?;
    if let [first, second] = parsed[..] {
        ensure!(
            first.is_ipv4() != second.is_ipv4(),
            "{text:?}: two ranges of one family"
        );
    }
    ensure!(parsed.len() <= 2, "{text:?}: more than one range of each family");
    for range in &parsed {
        let largest = if range.is_ipv4() { 30 } else { 126 };
        ensure!(range.prefix() <= largest, "{range}: too small");
    }
    Ok(parsed)
}

/// Our address on the way to a server. Connecting a UDP socket sends nothing; it only asks the routing table.
pub fn towards(url: &str) -> Option<IpAddr> {
    let authority = url.strip_prefix("https://")?.split('/').next()?;
    let with_port = authority.to_socket_addrs().ok().and_then(|mut found| found.next());
    let target = with_port.or_else(|| format!("{authority}:443").to_socket_addrs().ok()?.next())?;
    source_address(target)
}

/// The source address of the default route, IPv4 first.
pub fn default() -> Option<IpAddr> {
    [true, false].into_iter().find_map(default_of)
}

/// The source address of the default route of a family.
pub fn default_of(ipv4: bool) -> Option<IpAddr> {
    let anywhere: IpAddr = if ipv4 {
        Ipv4Addr::new(192, 0, 2, 1).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into()
    };
    source_address(SocketAddr::new(anywhere, 9))
}

/// Whether a socket on [::] takes clients of both families (ipv6(7)).
pub fn is_dual_stack() -> bool {
    let only = fs::read_to_string("/proc/sys/net/ipv6/bindv6only");
    only.is_ok_and(|only| only.trim() == "0")
}

fn source_address(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if target.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        for good in [
            "10.96.0.0/16",
            "fd00::/112",
            "10.96.0.0/16,fd00::/112",
            "fd00::/112, 10.0.0.0/8",
        ] {
            assert!(ranges(good).is_ok(), "{good}");
        }
        for wrong in [
            "",
            "10.96.0.0",
            "10.96.0.1/16",
            "10.96.0.0/33",
            "x/8",
            "10.96.0.0/31",
            "10.0.0.0/8,11.0.0.0/8",
        ] {
            assert!(ranges(wrong).is_err(), "{wrong}");
        }
    }
}
