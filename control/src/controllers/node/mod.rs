//! Controllers around nodes: their life cycle, eviction by taints, and addresses for their pods.

pub mod cidr;
pub mod eviction;
pub mod lifecycle;
pub mod taints;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;

use super::metadata::Metadata;
use crate::cache::Object;

/// The resource.
pub const NODES: &str = "nodes";

/// A node, without what its controllers do not look at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Metadata.
    pub metadata: Metadata,
    /// Spec.
    pub spec: Spec,
    /// Status.
    pub status: Status,
}

/// The interesting part of `NodeSpec`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Cordoned.
    pub unschedulable: bool,
    /// Taints.
    pub taints: Vec<Taint>,
    /// First range of its pods' addresses.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    /// All ranges of its pods' addresses.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// The interesting part of `NodeStatus`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// Where it is reached.
    pub addresses: Vec<Address>,
}

/// `NodeAddress`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Address {
    /// `InternalIP`, `Hostname`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// An address or a name.
    pub address: String,
}

/// `NodeCondition`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False, Unknown.
    pub status: String,
    /// When the agent last said so.
    pub last_heartbeat_time: Option<Timestamp>,
}

/// Decode a node; `None` if the body is none.
pub fn node(object: &Object) -> Option<Node> {
    object.typed().ok()
}

impl Node {
    /// Status of a condition; empty if it has none of that type.
    pub fn condition(&self, kind: &str) -> &str {
        self.status
            .conditions
            .iter()
            .find(|c| c.kind == kind)
            .map_or("", |c| &c.status)
    }

    /// The agent says that it can run pods.
    pub fn is_ready(&self) -> bool {
        self.condition("Ready") == "True"
    }
}
