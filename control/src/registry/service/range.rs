//! The ranges of service addresses: `--service-cidr`, one network or one of each family.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The part of a large IPv6 range that is used: random offsets are 32 bits wide.
const MAX_SIZE: u64 = 1 << 32;

/// A network in CIDR notation from which services get addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    base: IpAddr,
    prefix: u8,
}

impl ServiceRange {
    /// The `offset`-th address, e.g. 1 for the `kubernetes` service.
    pub fn nth(self, offset: u64) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                IpAddr::V4(base.to_bits().wrapping_add(offset).into())
            }
            IpAddr::V6(base) => IpAddr::V6(base.to_bits().wrapping_add(offset.into()).into()),
        }
    }

    /// Number of addresses that services may have: not the first one, and of IPv4 not the last one either.
    pub fn usable(self) -> u64 {
        let bits = self.width() - self.prefix;
        let size = 1u64
            .checked_shl(bits.into())
            .map_or(MAX_SIZE, |size| size.min(MAX_SIZE));
        size - 1 - u64::from(self.base.is_ipv4())
    }

    /// Whether a service may have this address.
    pub fn contains(self, address: IpAddr) -> bool {
        let offset = match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                u128::from(address.to_bits()).checked_sub(u128::from(base.to_bits()))
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => address.to_bits().checked_sub(base.to_bits()),
            _ => None,
        };
        let bits = self.width() - self.prefix;
        let last = (1u128 << bits) - u128::from(self.base.is_ipv4());
        offset.is_some_and(|offset| offset > 0 && offset < last)
    }

    /// `IPv4` or `IPv6`, as `ipFamilies` has it.
    pub fn family(self) -> &'static str {
        family(self.base)
    }

    fn width(self) -> u8 {
        if self.base.is_ipv4() { 32 } else { 128 }
    }
}

/// The family of an address, as `ipFamilies` has it.
pub(super) fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

impl FromStr for ServiceRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a range of addresses such as 10.96.0.0/16 or fd00:10:96::/112");
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        let (allowed, base) = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32u32.saturating_sub(prefix.into())).unwrap_or(0);
                (8..=28, IpAddr::V4((address.to_bits() & mask).into()))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128u32.saturating_sub(prefix.into())).unwrap_or(0);
                (64..=124, IpAddr::V6((address.to_bits() & mask).into()))
            }
        };
        if !allowed.contains(&prefix) {
            let (from, to) = (allowed.start(), allowed.end());
            return Err(format!(
                "{text:?}: such a service range has a prefix of /{from} to /{to}"
            ));
        }
        Ok(Self { base, prefix })
    }
}

impl fmt::Display for ServiceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// One range, or one of each family; the first one's family is the cluster's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRanges {
    primary: ServiceRange,
    secondary: Option<ServiceRange>,
}

impl ServiceRanges {
    /// The range of the default family.
    pub fn primary(self) -> ServiceRange {
        self.primary
    }

    /// The range of a family, if the cluster has it.
    pub fn of(self, family: &str) -> Option<ServiceRange> {
        self.all().find(|range| range.family() == family)
    }

    /// Both ranges, the default one first.
    pub fn all(self) -> impl Iterator<Item = ServiceRange> {
        std::iter::once(self.primary).chain(self.secondary)
    }

    /// Whether services can have addresses of both families.
    pub fn is_dual(self) -> bool {
        self.secondary.is_some()
    }
}

impl FromStr for ServiceRanges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(|part| part.trim().parse::<ServiceRange>());
        let primary = parts.next().ok_or("no service range is given")??;
        let secondary = parts.next().transpose()?;
        let two_families = secondary.is_none_or(|range| range.family() != primary.family());
        if !two_families || parts.next().is_some() {
            return Err(format!("{text:?}: there is one service range, or one of each family"));
        }
        Ok(Self { primary, secondary })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_and_refuse() {
        let range: ServiceRange = "10.96.0.0/16".parse().unwrap();
        assert_eq!(range.nth(1).to_string(), "10.96.0.1");
        assert_eq!(range.usable(), 65534);
        let contains = |text: &str| range.contains(text.parse().unwrap());
        assert!(contains("10.96.255.254") && !contains("10.96.255.255") && !contains("10.96.0.0"));
        assert!(!contains("10.97.0.1") && !contains("10.95.255.255") && !contains("fd00::1"));
        for bad in [
            "10.96.0.0",
            "10.96.0/16",
            "10.96.0.0/31",
            "x/16",
            "fd00::/16",
            "fd00::/200",
        ] {
            assert!(bad.parse::<ServiceRange>().is_err(), "{bad}");
        }
        let range: ServiceRange = "fd00:10:96::/112".parse().unwrap();
        assert_eq!(
            (range.usable(), range.nth(10).to_string()),
            (65535, "fd00:10:96::a".into())
        );
        assert!(range.contains("fd00:10:96::ffff".parse().unwrap()));
        assert!(!range.contains("fd00:10:96::".parse().unwrap()));
        assert!(!range.contains("fd00:10:96::1:0".parse().unwrap()));
    }

    #[test]
    fn there_is_one_range_or_one_of_each_family() {
        let both: ServiceRanges = "fd00::/108, 10.96.0.0/16".parse().unwrap();
        assert_eq!((both.primary().family(), both.is_dual()), ("IPv6", true));
        assert_eq!(both.of("IPv4").unwrap().to_string(), "10.96.0.0/16");
        assert!("10.96.0.0/16".parse::<ServiceRanges>().unwrap().of("IPv6").is_none());
        for bad in ["", "10.96.0.0/16,10.97.0.0/16", "10.96.0.0/16,fd00::/108,fd01::/108"] {
            assert!(bad.parse::<ServiceRanges>().is_err(), "{bad}");
        }
    }
}
