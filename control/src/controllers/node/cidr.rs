//! Gives each node a range for its pods: the lowest free /24 of the cluster's range (or the whole range, if smaller).
//!
//! All nodes are one key, so two nodes can never be given the same range.

use std::net::Ipv4Addr;
use std::str::FromStr;

use serde_json::json;

use super::{NODES, node};
use crate::cache::Event;
use crate::controllers::controller::{Context, Controller, Key, Notice, Outcome};
use crate::controllers::view::View;

/// Size of a node's range (`--node-cidr-mask-size`).
const NODE_BITS: u8 = 24;

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: u32,
    bits: u8,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, bits)| {
            let (address, bits) = (address.parse::<Ipv4Addr>().ok()?, bits.parse::<u8>().ok()?);
            (bits <= 32).then(|| Self {
                first: u32::from(address) & mask(bits),
                bits,
            })
        });
        parsed.ok_or_else(|| format!("{text:?} is not an IPv4 range such as 10.244.0.0/16"))
    }
}

fn mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.bits)
    }
}

impl Range {
    /// The ranges of nodes in it, lowest first.
    fn nodes(self) -> impl Iterator<Item = Range> {
        let bits = self.bits.max(NODE_BITS);
        let count = 1u32 << (bits - self.bits).min(31);
        let size = 1u32.checked_shl(32 - u32::from(bits)).unwrap_or(0);
        (0..count).map(move |i| Range {
            first: self.first.wrapping_add(i.wrapping_mul(size)),
            bits,
        })
    }

    fn overlaps(self, other: Range) -> bool {
        let common = mask(self.bits.min(other.bits));
        self.first & common == other.first & common
    }
}

/// The controller.
pub struct NodeRanges {
    /// The cluster's range.
    pub cluster: Range,
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
        let decoded = nodes.iter().filter_map(|o| node(o).map(|n| (o, n))).collect::<Vec<_>>();
        let used = decoded
            .iter()
            .filter_map(|(_, n)| n.spec.pod_cidr.parse::<Range>().ok())
            .collect::<Vec<_>>();
        let is_free = |range: &Range| !used.iter().any(|u| u.overlaps(*range));
        let mut free = self.cluster.nodes().filter(is_free);
        for (object, _) in decoded.iter().filter(|(_, n)| n.spec.pod_cidr.is_empty()) {
            let Some(range) = free.next() else {
                let message = format!("Node {} status is now: CIDRNotAvailable", object.name);
                outcome
                    .notices
                    .push(Notice::normal(object, "CIDRNotAvailable", message));
                continue;
            };
            let mut value = object.value();
            value["spec"]["podCIDR"] = range.to_string().into();
            value["spec"]["podCIDRs"] = json!([range.to_string()]);
            outcome.update(object, None, value);
        }
        outcome
    }
}
