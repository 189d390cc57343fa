//! The machine's interfaces and addresses, as getifaddrs(3) lists them: one call, one consistent picture.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Error;

/// An interface of the calling thread's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) loopback: bool,
    /// Frames have an Ethernet header.
    pub(super) ethernet: bool,
    pub(super) mac: [u8; 6],
    pub(super) addresses: Vec<IpAddr>,
}

/// All interfaces by their indexes.
pub(super) fn list() -> Result<BTreeMap<u32, Interface>, Error> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the pointer is valid; the list is freed below.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(Error::Interfaces {
            action: "list the machine's interfaces",
            source: io::Error::last_os_error(),
        });
    }
    let (mut found, mut addresses) = (BTreeMap::new(), Vec::new());
    let mut next = first;
    while !next.is_null() {
        // SAFETY: a node of the list, which is valid until it is freed.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        // SAFETY: the name is a C string.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
        if entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: the address is of the type that its family says.
        match i32::from(unsafe { (*entry.ifa_addr).sa_family }) {
            libc::AF_PACKET => {
                // SAFETY: as above.
                let link = unsafe { entry.ifa_addr.cast::<libc::sockaddr_ll>().read_unaligned() };
                found.insert(link.sll_ifindex as u32, describe(name, entry.ifa_flags, &link));
            }
            libc::AF_INET => {
                // SAFETY: as above.
                let inet = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned() };
                let address = Ipv4Addr::from(inet.sin_addr.s_addr.to_ne_bytes());
                addresses.push((name, IpAddr::V4(address)));
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let inet = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
                addresses.push((name, IpAddr::V6(Ipv6Addr::from(inet.sin6_addr.s6_addr))));
            }
            _ => {}
        }
    }
    // SAFETY: the list came from getifaddrs and is not used any more.
    unsafe { libc::freeifaddrs(first) };
    for (name, address) in addresses {
        // The kernel names an alias "eth0:1"; it is the interface's address all the same.
        let name = name.split(':').next().unwrap_or_default();
        if let Some(interface) = found
            .values_mut()
            .find(|interface: &&mut Interface| interface.name == name)
        {
            interface.addresses.push(address);
        }
    }
    Ok(found)
}

fn describe(name: String, flags: u32, link: &libc::sockaddr_ll) -> Interface {
    let mut mac = [0; 6];
    mac.copy_from_slice(&link.sll_addr[..6]);
    Interface {
        name,
        up: flags & libc::IFF_UP as u32 != 0,
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        ethernet: link.sll_hatype == libc::ARPHRD_ETHER,
        mac,
        addresses: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_the_loopback_interface() {
        let interfaces = list().unwrap();
        let lo = interfaces.values().find(|interface| interface.loopback).unwrap();
        assert_eq!(lo.name, "lo");
        assert!(!lo.ethernet);
    }
}
