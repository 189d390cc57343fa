//! The node's own addresses, on which node ports are served: getifaddrs(3) lists them, rtnetlink(7) tells of changes.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::network::Cidr;

/// RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR of linux/rtnetlink.h.
const GROUPS: [u32; 2] = [5, 9];

/// The addresses of the calling thread's network namespace, in order.
pub(super) fn list() -> io::Result<BTreeSet<IpAddr>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the pointer is valid; the list is freed below.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = BTreeSet::new();
    let mut next = first;
    while !next.is_null() {
        // SAFETY: a node of the list, which is valid until it is freed.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        // SAFETY: the address, where there is one, is of the type that its family says.
        found.extend(unsafe { address(entry.ifa_addr) });
    }
    // SAFETY: the list came from getifaddrs and is not used any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

/// Whether node ports are served on an address: one of these ranges, or any; not one that has a meaning on one link only.
pub(super) fn serves(address: IpAddr, ranges: &[Cidr]) -> bool {
    let of_link = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !of_link && (ranges.is_empty() || ranges.iter().any(|range| range.contains(address)))
}

/// # Safety
/// Null, or an address of the type that its family says.
unsafe fn address(pointer: *const libc::sockaddr) -> Option<IpAddr> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    unsafe {
        match i32::from((*pointer).sa_family) {
            libc::AF_INET => {
                let inet = pointer.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from(inet.sin_addr.s_addr.to_ne_bytes()).into())
            }
            libc::AF_INET6 => {
                let inet = pointer.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(inet.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

/// Tells when addresses come or go.
pub(super) struct Changes(AsyncFd<Socket>);

impl Changes {
    /// Starts to listen.
    pub(super) fn listen() -> io::Result<Changes> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor, always gives the same one, and is dropped with the `AsyncFd`.
        let fd = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        fd.map(Changes).map_err(|error| error.into_parts().1)
    }

    /// Waits until something may have changed.
    pub(super) async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        while let Ok(received) = ready.try_io(|socket| socket.get_ref().recv_from_full()) {
            match received {
                // More came than the socket holds.
                Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_one_of_the_nodes_own() {
        let all = list().unwrap();
        assert!(all.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{all:?}");
        let served = |address: &str, ranges: &[Cidr]| serves(address.parse().unwrap(), ranges);
        assert!(served("192.0.2.1", &[]) && !served("fe80::1", &[]));
        let range = ["198.51.100.0/24".parse().unwrap()];
        assert!(served("198.51.100.7", &range) && !served("192.0.2.1", &range));
    }
}
