//! IPv4 networks in CIDR notation (RFC 4632), as pod and service ranges are configured.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network; the host bits of the address are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    base: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// The network of `prefix` bits that holds `address`; `None` when `prefix` is above 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Cidr> {
        if prefix > 32 {
            return None;
        }
        let base = Ipv4Addr::from_bits(address.to_bits() & mask(prefix));
        Some(Cidr { base, prefix })
    }

    /// The network's first address.
    pub fn base(&self) -> Ipv4Addr {
        self.base
    }

    /// The number of leading bits that all addresses of the network share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` is inside.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.base.to_bits()
    }

    /// The number of addresses.
    pub fn size(&self) -> u64 {
        1 << (32 - self.prefix)
    }

    /// The address `offset` places after the base; `None` outside of the network.
    pub fn nth(&self, offset: u64) -> Option<Ipv4Addr> {
        if offset >= self.size() {
            return None;
        }
        let offset = u32::try_from(offset).ok()?;
        Some(Ipv4Addr::from_bits(self.base.to_bits() | offset))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// Text that is not an IPv4 network.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an IPv4 network in CIDR notation (as 10.244.0.0/24) with zero host bits")]
pub struct InvalidCidr(String);

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Cidr, InvalidCidr> {
        let invalid = || InvalidCidr(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
        let prefix = prefix.parse().map_err(|_| invalid())?;
        let cidr = Cidr::new(address, prefix).ok_or_else(invalid)?;
        if cidr.base != address {
            return Err(invalid());
        }
        Ok(cidr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_contains_and_counts() {
        let cidr: Cidr = "10.244.3.0/24".parse().unwrap();
        assert!(cidr.contains(Ipv4Addr::new(10, 244, 3, 255)));
        assert!(!cidr.contains(Ipv4Addr::new(10, 244, 4, 0)));
        assert_eq!(cidr.size(), 256);
        assert_eq!(cidr.nth(1), Some(Ipv4Addr::new(10, 244, 3, 1)));
        assert_eq!(cidr.nth(256), None);
        assert_eq!(cidr.to_string(), "10.244.3.0/24");
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST));
    }

    #[test]
    fn refuses_what_is_not_a_network() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.1/24",
            "10.0.0.0/33",
            "::/0",
            "10.0.0.0/-1",
            "a/8",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
