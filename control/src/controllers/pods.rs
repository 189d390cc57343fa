//! What controllers need to know of a pod, decoded lightly: lists of a thousand pods are read on every status change.
//!
//! Definitions follow Kubernetes: active, ready, available (`minReadySeconds`), terminal.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::metadata::Metadata;
use crate::cache::Object;

/// A pod, without what no controller looks at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Metadata.
    pub metadata: Metadata,
    /// Spec.
    pub spec: Spec,
    /// Status.
    pub status: Status,
}

/// The interesting part of `PodSpec`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Where it runs.
    pub node_name: String,
    /// With `subdomain`, its name under a headless service.
    pub hostname: String,
    /// Name of the headless service.
    pub subdomain: String,
    /// Containers, for their ports.
    pub containers: Vec<Container>,
    /// Init containers: those that restart always have ports too.
    pub init_containers: Vec<Container>,
}

/// The interesting part of `Container`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// `Always` makes an init container a sidecar.
    pub restart_policy: String,
    /// Ports.
    pub ports: Vec<Port>,
}

/// `ContainerPort`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Name that services may target.
    pub name: String,
    /// Number.
    pub container_port: i32,
    /// TCP if empty.
    pub protocol: String,
}

/// The interesting part of `PodStatus`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Pending, Running, Succeeded, Failed, Unknown.
    pub phase: String,
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// First address.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    /// All addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<Address>,
    /// For restart counts.
    pub container_statuses: Vec<ContainerStatus>,
}

/// `PodCondition`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False, Unknown.
    pub status: String,
    /// When it became so.
    pub last_transition_time: Option<Timestamp>,
}

/// `PodIP`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Address {
    /// The address.
    pub ip: String,
}

/// The interesting part of `ContainerStatus`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// How often it was restarted.
    pub restart_count: i32,
}

/// Decode a pod. `None` if the body is no pod; the caller treats it as absent.
pub fn pod(object: &Object) -> Option<Pod> {
    serde_json::from_slice(&object.body).ok()
}

impl Pod {
    /// Succeeded or Failed: it will never run again.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Deletion began.
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Neither terminal nor terminating: it counts as a replica.
    pub fn is_active(&self) -> bool {
        !self.is_terminal() && !self.is_terminating()
    }

    fn ready_condition(&self) -> Option<&Condition> {
        self.status.conditions.iter().find(|c| c.kind == "Ready")
    }

    /// The Ready condition is True.
    pub fn is_ready(&self) -> bool {
        self.ready_condition().is_some_and(|c| c.status == "True")
    }

    /// When it last became ready, or ceased to be.
    pub fn ready_changed(&self) -> Option<Timestamp> {
        self.ready_condition()?.last_transition_time
    }

    /// Since when it is ready.
    pub fn ready_since(&self) -> Option<Timestamp> {
        self.ready_condition()
            .filter(|c| c.status == "True")?
            .last_transition_time
    }

    /// How long it still has to stay ready to be available: zero if it is, `None` if it is not even ready.
    pub fn until_available(&self, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
        if !self.is_ready() {
            return None;
        }
        if min_ready_seconds <= 0 {
            return Some(Duration::ZERO);
        }
        let since = self.ready_since()?;
        let age = now.duration_since(since);
        let wanted = Duration::from_secs(min_ready_seconds.unsigned_abs().into());
        Some(Duration::try_from(age).map_or(wanted, |age| wanted.saturating_sub(age)))
    }

    /// Restarts of all containers together.
    pub fn restarts(&self) -> i32 {
        self.status.container_statuses.iter().map(|s| s.restart_count).sum()
    }
}
