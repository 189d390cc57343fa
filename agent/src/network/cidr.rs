//! Networks in CIDR notation (RFC 4632, RFC 4291), as pod and service ranges are configured; either family.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An IPv4 or IPv6 network; the host bits of the address are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    base: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The network of `prefix` bits that holds `address`; `None` when the family has no such prefix.
    pub fn new(address: impl Into<IpAddr>, prefix: u8) -> Option<Cidr> {
        let address = address.into();
        (u32::from(prefix) <= width(address)).then(|| Cidr {
            base: from_bits(address, bits(address) & mask(address, prefix)),
            prefix,
        })
    }

    /// The network of one address: `/32` or `/128`.
    pub fn host(address: impl Into<IpAddr>) -> Cidr {
        let base = address.into();
        let prefix = if base.is_ipv4() { 32 } else { 128 };
        Cidr { base, prefix }
    }

    /// The network's first address.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// The number of leading bits that all addresses of the network share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether this is an IPv4 network.
    pub fn is_ipv4(&self) -> bool {
        self.base.is_ipv4()
    }

    /// Whether `address` is inside; never for one of the other family.
    pub fn contains(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        address.is_ipv4() == self.is_ipv4() && bits(address) & mask(address, self.prefix) == bits(self.base)
    }

    /// The number of addresses; that of `::/0` is one less than it should be.
    pub fn size(&self) -> u128 {
        1u128
            .checked_shl(width(self.base) - u32::from(self.prefix))
            .unwrap_or(u128::MAX)
    }

    /// The address `offset` places after the base; `None` outside of the network.
    pub fn nth(&self, offset: u128) -> Option<IpAddr> {
        (offset < self.size()).then(|| from_bits(self.base, bits(self.base) | offset))
    }

    /// How many places after the base `address` is; `None` outside of the network.
    pub fn offset(&self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| bits(address) - bits(self.base))
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address with `bits`, of the family of `like`.
fn from_bits(like: IpAddr, bits: u128) -> IpAddr {
    match like {
        // The upper 96 bits are zero for this family.
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(bits).unwrap_or(u32::MAX).into()),
        IpAddr::V6(_) => IpAddr::V6(bits.into()),
    }
}

fn mask(address: IpAddr, prefix: u8) -> u128 {
    u128::MAX.checked_shl(width(address) - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// Text that is not a network.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a network in CIDR notation (as 10.244.0.0/24 or fd00:10:244::/64) with zero host bits")]
pub struct InvalidCidr(String);

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Cidr, InvalidCidr> {
        let invalid = || InvalidCidr(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
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
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn parses_contains_and_counts() {
        let cidr: Cidr = "10.244.3.0/24".parse().unwrap();
        assert!(cidr.contains(Ipv4Addr::new(10, 244, 3, 255)));
        assert!(!cidr.contains(Ipv4Addr::new(10, 244, 4, 0)));
        assert!(!cidr.contains(Ipv6Addr::LOCALHOST));
        assert_eq!(cidr.size(), 256);
        assert_eq!(cidr.nth(1), Some(Ipv4Addr::new(10, 244, 3, 1).into()));
        assert_eq!(cidr.nth(256), None);
        assert_eq!(cidr.offset(Ipv4Addr::new(10, 244, 3, 9).into()), Some(9));
        assert_eq!(cidr.to_string(), "10.244.3.0/24");
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST));
        assert_eq!(Cidr::host(Ipv4Addr::LOCALHOST).to_string(), "127.0.0.1/32");
    }

    #[test]
    fn either_family() {
        let cidr: Cidr = "fd00:10:244:3::/64".parse().unwrap();
        assert_eq!(cidr.size(), 1 << 64);
        assert_eq!(cidr.nth(0x1_0000), Some("fd00:10:244:3::1:0".parse().unwrap()));
        assert_eq!(cidr.nth(1 << 64), None);
        assert!(cidr.contains("fd00:10:244:3:ffff::".parse::<Ipv6Addr>().unwrap()));
        assert!(!cidr.contains(Ipv4Addr::new(10, 244, 3, 1)));
        assert!("::/0".parse::<Cidr>().unwrap().contains(Ipv6Addr::LOCALHOST));
    }

    #[test]
    fn refuses_what_is_not_a_network() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.1/24",
            "10.0.0.0/33",
            "::/129",
            "fd00::1/64",
            "10.0.0.0/-1",
            "a/8",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
