//! A node as the fabric sees it: where it is, and which pods are behind it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;

use crate::network::Cidr;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeRoute {
    /// Its name.
    pub name: String,
    /// Its `InternalIP` addresses, of one or both families, in the order of its status.
    pub addresses: Vec<IpAddr>,
    /// Its `podCIDRs`: at most one of each family.
    pub pod_cidrs: Vec<Cidr>,
}

impl NodeRoute {
    /// What a Node object says; entries that are no addresses or networks are left out.
    #[must_use]
    pub fn of(node: &Node) -> NodeRoute {
        let spec = node.spec.as_ref();
        let mut ranges: Vec<&String> = spec
            .and_then(|spec| spec.pod_cidrs.as_ref())
            .into_iter()
            .flatten()
            .collect();
        if ranges.is_empty() {
            ranges.extend(spec.and_then(|spec| spec.pod_cidr.as_ref()));
        }
        let status = node.status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_ref());
        let internal = addresses
            .into_iter()
            .flatten()
            .filter(|address| address.type_ == "InternalIP");
        NodeRoute {
            name: node.metadata.name.clone().unwrap_or_default(),
            addresses: internal.filter_map(|address| address.address.parse().ok()).collect(),
            pod_cidrs: ranges.into_iter().filter_map(|range| range.parse().ok()).collect(),
        }
    }

    /// Its first address of a family.
    pub(super) fn address(&self, ipv4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4)
    }

    /// Its own address in its range of pods of a family: the first one after the base.
    pub(super) fn pod_address(&self, ipv4: bool) -> Option<IpAddr> {
        self.pod_cidrs
            .iter()
            .find(|cidr| cidr.is_ipv4() == ipv4)
            .and_then(|cidr| cidr.nth(1))
    }

    /// The link-layer address of its VXLAN interfaces: locally administered (IEEE 802), made from the name, so that every
    /// node knows it without being told.
    pub(super) fn mac(&self) -> [u8; 6] {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(self.name.as_bytes());
        let [a, b, c, d, e] = std::array::from_fn(|place| digest[place]);
        [0x0e, a, b, c, d, e]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_node_object_is_read() {
        let node: Node = from_value(json!({
            "metadata": {"name": "n2"},
            "spec": {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24", "fd00:10:244:2::/64", "nonsense"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n2"},
                {"type": "InternalIP", "address": "192.0.2.2"},
                {"type": "ExternalIP", "address": "198.51.100.2"},
                {"type": "InternalIP", "address": "2001:db8::2"},
            ]},
        }))
        .unwrap();
        let route = NodeRoute::of(&node);
        assert_eq!(
            route.addresses,
            ["192.0.2.2", "2001:db8::2"].map(|text| text.parse::<IpAddr>().unwrap())
        );
        assert_eq!(route.pod_cidrs.len(), 2);
        assert_eq!(route.pod_address(false), Some("fd00:10:244:2::1".parse().unwrap()));
        assert_eq!(route.mac()[0] & 3, 2, "locally administered, unicast");
        assert_eq!(NodeRoute::of(&Node::default()).pod_cidrs, []);
    }
}
