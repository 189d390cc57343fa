//! Gives each node ranges for its pods, one of each family of the cluster: the lowest free /24, and the lowest free /64
//! (or the whole range, if that is smaller). A deleted node's ranges are free again.
//!
//! All nodes are one key, so two nodes can never be given the same range. Kubernetes: `--allocate-node-cidrs`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde_json::json;

use super::{NODES, Node, node};
use crate::cache::Event;
use crate::controllers::controller::{Context, Controller, Key, Notice, Outcome};
use crate::controllers::view::View;

/// Sizes of a node's ranges (`--node-cidr-mask-size-ipv4`, `-ipv6`).
const NODE_BITS: (u8, u8) = (24, 64);

/// A range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    ipv4: bool,
    first: u128,
    bits: u8,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, bits)| {
            let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
            let (ipv4, number) = match address {
                IpAddr::V4(address) => (true, u128::from(u32::from(address))),
                IpAddr::V6(address) => (false, u128::from(address)),
            };
            let range = Self { ipv4, first: 0, bits };
            let first = number & !(range.size()? - 1);
            Some(Self { first, ..range })
        });
        parsed.ok_or_else(|| format!("{text:?} is not a range of addresses such as 10.244.0.0/16 or fd00:10:244::/48"))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address: IpAddr = if self.ipv4 {
            Ipv4Addr::from(u32::try_from(self.first).unwrap_or(0)).into()
        } else {
            Ipv6Addr::from(self.first).into()
        };
        write!(f, "{address}/{}", self.bits)
    }
}

impl Range {
    /// How many addresses; `None`: the prefix is longer than an address, or none at all.
    fn size(self) -> Option<u128> {
        let width: u8 = if self.ipv4 { 32 } else { 128 };
        1u128.checked_shl(u32::from(width.checked_sub(self.bits)?))
    }

    /// Whether an address is in both.
    pub fn overlaps(self, other: Range) -> bool {
        let last = |range: Range| range.first + (range.size().unwrap_or(1) - 1);
        self.ipv4 == other.ipv4 && self.first <= last(other) && other.first <= last(self)
    }

    /// The lowest range of a node's size in this one that overlaps none of those `used`.
    fn free(self, used: &[Range]) -> Option<Range> {
        let bits = self.bits.max(if self.ipv4 { NODE_BITS.0 } else { NODE_BITS.1 });
        let mut candidate = Range { bits, ..self };
        let step = candidate.size()?;
        let mut taken: Vec<Range> = used.iter().copied().filter(|range| range.overlaps(self)).collect();
        taken.sort_unstable_by_key(|range| range.first);
        for range in taken {
            if candidate.overlaps(range) {
                let end = range.first.checked_add(range.size()?)?;
                candidate.first = end.checked_add(step - 1)? & !(step - 1);
            }
        }
        candidate.overlaps(self).then_some(candidate)
    }
}

/// The cluster's ranges: one, or one of each family, the first one's first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRanges(Vec<Range>);

impl ClusterRanges {
    /// The ranges.
    pub fn iter(&self) -> impl Iterator<Item = Range> {
        self.0.iter().copied()
    }
}

impl FromStr for ClusterRanges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ranges: Vec<Range> = text
            .split(',')
            .map(|part| part.trim().parse())
            .collect::<Result<_, _>>()?;
        match ranges[..] {
            [_] => Ok(Self(ranges)),
            [first, second] if first.ipv4 != second.ipv4 => Ok(Self(ranges)),
            _ => Err(format!(
                "{text:?} is not one range of addresses, nor one of each family"
            )),
        }
    }
}

/// The controller.
pub struct NodeRanges {
    /// The cluster's ranges.
    pub cluster: ClusterRanges,
}

impl Controller for NodeRanges {
    fn name(&self) -> &'static str {
        "node-ipam-controller"
    }

    fn keys(&self, _view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        if &*event.object.resource == NODES && node(&event.object).is_some_and(|n| n.spec.pod_cidr.is_empty()) {
            add(Key::new(NODES, "", ""));
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, _key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let nodes = context.view.list(NODES, None);
        let decoded: Vec<_> = nodes.iter().filter_map(|o| node(o).map(|n| (o, n))).collect();
        let mut used: Vec<Range> = decoded.iter().flat_map(|(_, node)| ranges(node)).collect();
        for (object, _) in decoded.iter().filter(|(_, n)| n.spec.pod_cidr.is_empty()) {
            let given: Option<Vec<Range>> = self.cluster.iter().map(|range| range.free(&used)).collect();
            let Some(given) = given else {
                let message = format!("Node {} status is now: CIDRNotAvailable", object.name);
                outcome
                    .notices
                    .push(Notice::normal(object, "CIDRNotAvailable", message));
                continue;
            };
            let mut value = object.value();
            let texts: Vec<String> = given.iter().map(Range::to_string).collect();
            value["spec"]["podCIDR"] = json!(texts[0]);
            value["spec"]["podCIDRs"] = json!(texts);
            outcome.update(object, None, value);
            used.extend(given);
        }
        outcome
    }
}

/// The ranges a node has.
fn ranges(node: &Node) -> impl Iterator<Item = Range> {
    let texts = node.spec.pod_cidrs.iter().chain(std::iter::once(&node.spec.pod_cidr));
    texts.filter_map(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        text.parse().unwrap()
    }

    #[test]
    fn the_lowest_free_range_is_found_between_those_of_any_size() {
        let free = |cluster: &str, used: &[&str]| {
            let used: Vec<Range> = used.iter().map(|text| range(text)).collect();
            range(cluster).free(&used).map(|found| found.to_string())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(free("10.244.0.0/16", &[]), some("10.244.0.0/24"));
        assert_eq!(
            free("10.244.0.0/16", &["10.244.1.0/24", "10.244.0.0/24", "192.0.2.0/24"]),
            some("10.244.2.0/24")
        );
        assert_eq!(
            free("10.244.0.0/16", &["10.244.0.0/23", "10.244.2.128/25"]),
            some("10.244.3.0/24")
        );
        assert_eq!(free("10.244.0.0/16", &["10.0.0.0/8"]), None);
        assert_eq!(free("10.244.0.0/23", &["10.244.0.0/24", "10.244.1.0/24"]), None);
        assert_eq!(free("10.244.7.0/25", &[]), some("10.244.7.0/25"));
        assert_eq!(free("255.255.255.0/24", &["255.255.255.0/24"]), None);
        assert_eq!(
            free("fd00:10:244::/48", &["fd00:10:244::/64"]),
            some("fd00:10:244:1::/64")
        );
    }

    #[test]
    fn a_cluster_has_one_range_or_one_of_each_family() {
        for good in [
            "10.244.0.0/16",
            "fd00::/48",
            "10.244.0.0/16,fd00::/48",
            "fd00::/48, 10.244.0.0/16",
        ] {
            assert!(good.parse::<ClusterRanges>().is_ok(), "{good}");
        }
        for wrong in [
            "",
            "10.244.0.0",
            "10.0.0.0/33",
            "10.0.0.0/8,10.1.0.0/16",
            "10.0.0.0/8,fd00::/48,fd01::/48",
        ] {
            assert!(wrong.parse::<ClusterRanges>().is_err(), "{wrong}");
        }
    }
}
