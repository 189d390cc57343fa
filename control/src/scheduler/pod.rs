//! A pod as the scheduler sees it: decoded once, when it appears or changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    NodeAffinity, Pod, PodAffinityTerm, Toleration, TopologySpreadConstraint, WeightedPodAffinityTerm,
};

use super::amounts::{Amounts, requests};
use crate::cache::Object;
use crate::controllers::controller::Key;

/// A port on the node's own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Address; 0.0.0.0 for all.
    pub address: String,
    /// Protocol.
    pub protocol: String,
    /// Number.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be bound on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |address: &str| address == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || any(&self.address) || any(&other.address))
    }
}

/// What the scheduler needs to know of a pod.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// Its key.
    pub key: Key,
    /// Its uid.
    pub uid: Box<str>,
    /// Where it is placed already; empty if nowhere.
    pub node: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// uid of the managing owner.
    pub owner: Option<String>,
    /// Higher goes first.
    pub priority: i32,
    /// Requests.
    pub requests: Amounts,
    /// Requests with defaults, for scores.
    pub weight: Amounts,
    /// Ports on the node.
    pub ports: Vec<HostPort>,
    /// `spec.nodeSelector`.
    pub selector: BTreeMap<String, String>,
    /// Node affinity.
    pub node_affinity: Option<NodeAffinity>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Required pod affinity.
    pub attracted: Vec<PodAffinityTerm>,
    /// Required pod anti-affinity.
    pub repelled: Vec<PodAffinityTerm>,
    /// Preferred affinity; anti-affinity has negative weights.
    pub preferred: Vec<WeightedPodAffinityTerm>,
    /// Topology spread constraints.
    pub spread: Vec<TopologySpreadConstraint>,
    /// Images.
    pub images: Vec<String>,
    /// Waits for its gates to open.
    pub gated: bool,
    /// Deletion began.
    pub terminating: bool,
    /// Succeeded or Failed: uses nothing any more.
    pub terminal: bool,
    /// For which scheduler.
    pub scheduler: String,
}

impl PodInfo {
    /// Decode a pod; `None` if the body is none.
    pub fn new(object: &Object) -> Option<Arc<Self>> {
        let pod: Pod = object.typed().ok()?;
        let spec = pod.spec?;
        let (requests, weight) = requests(&spec);
        let affinity = spec.affinity.unwrap_or_default();
        let attraction = affinity.pod_affinity.unwrap_or_default();
        let repulsion = affinity.pod_anti_affinity.unwrap_or_default();
        let mut preferred = attraction
            .preferred_during_scheduling_ignored_during_execution
            .unwrap_or_default();
        let negative = |mut term: WeightedPodAffinityTerm| {
            term.weight = -term.weight;
            term
        };
        let avoided = repulsion
            .preferred_during_scheduling_ignored_during_execution
            .into_iter()
            .flatten();
        preferred.extend(avoided.map(negative));
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let phase = pod.status.and_then(|s| s.phase).unwrap_or_default();
        let owners = pod.metadata.owner_references.unwrap_or_default();
        Some(Arc::new(Self {
            key: Key::of(object),
            uid: object.index.uid.clone(),
            node: spec.node_name.unwrap_or_default(),
            labels: pod.metadata.labels.unwrap_or_default(),
            owner: owners.into_iter().find(|o| o.controller == Some(true)).map(|o| o.uid),
            priority: spec.priority.unwrap_or(0),
            requests,
            weight,
            ports: containers.clone().flat_map(host_ports).collect(),
            images: spec.containers.iter().filter_map(|c| c.image.clone()).collect(),
            selector: spec.node_selector.unwrap_or_default(),
            node_affinity: affinity.node_affinity,
            tolerations: spec.tolerations.unwrap_or_default(),
            attracted: attraction
                .required_during_scheduling_ignored_during_execution
                .unwrap_or_default(),
            repelled: repulsion
                .required_during_scheduling_ignored_during_execution
                .unwrap_or_default(),
            preferred,
            spread: spec.topology_spread_constraints.unwrap_or_default(),
            gated: spec.scheduling_gates.is_some_and(|g| !g.is_empty()),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            terminal: matches!(phase.as_str(), "Succeeded" | "Failed"),
            scheduler: spec.scheduler_name.unwrap_or_default(),
        }))
    }

    /// Whether it waits for this scheduler.
    pub fn is_pending(&self) -> bool {
        let ours = matches!(self.scheduler.as_str(), "" | "default-scheduler");
        self.node.is_empty() && ours && !self.gated && !self.terminating && !self.terminal
    }
}

fn host_ports(container: &k8s_openapi::api::core::v1::Container) -> Vec<HostPort> {
    let ports = container.ports.iter().flatten();
    let host_port = |port: &k8s_openapi::api::core::v1::ContainerPort| {
        Some(HostPort {
            address: port
                .host_ip
                .clone()
                .filter(|a| !a.is_empty())
                .unwrap_or_else(|| "0.0.0.0".to_owned()),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: port.host_port.filter(|p| *p > 0)?,
        })
    };
    ports.filter_map(host_port).collect()
}
