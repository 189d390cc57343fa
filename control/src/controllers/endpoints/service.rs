//! From a service and its pods to endpoints, shared by EndpointSlice and the older Endpoints.
//!
//! A pod is an endpoint if it has an address and is not terminal; it is ready if its Ready condition is True and it is not
//! terminating, or if the service publishes addresses that are not ready.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ZONE;
use super::index::Index;
use crate::cache::Object;
use crate::controllers::labels;
use crate::controllers::metadata::Metadata;
use crate::controllers::pods::{Pod, pod};
use crate::controllers::view::View;

/// Annotations that ask for hints by processors: today's and the one before.
const TOPOLOGY: [&str; 2] = [
    "service.kubernetes.io/topology-mode",
    "service.kubernetes.io/topology-aware-hints",
];

/// A service, without what endpoints do not depend on.
#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    /// Metadata.
    pub metadata: Metadata,
    /// Spec.
    pub spec: Spec,
}

/// The interesting part of `ServiceSpec`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Labels of its pods.
    pub selector: Option<BTreeMap<String, String>>,
    /// `ExternalName` has no endpoints.
    #[serde(rename = "type")]
    pub kind: String,
    /// `None` for headless services.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// Families; IPv4 if there are none.
    pub ip_families: Option<Vec<String>>,
    /// Ports.
    pub ports: Option<Vec<Port>>,
    /// Endpoints need not be ready.
    pub publish_not_ready_addresses: bool,
    /// Which endpoints a client prefers.
    pub traffic_distribution: String,
}

/// `ServicePort`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Name.
    pub name: String,
    /// TCP if empty.
    pub protocol: String,
    /// The service's port.
    pub port: i32,
    /// Number or name of the pod's port.
    pub target_port: Option<IntOrString>,
    /// Application protocol.
    pub app_protocol: Option<String>,
}

/// A port of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPort {
    /// Name; may be empty.
    pub name: String,
    /// Protocol.
    pub protocol: String,
    /// Number in the pod.
    pub port: i32,
    /// Application protocol.
    pub app_protocol: Option<String>,
}

/// A pod behind a service.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The pod.
    pub pod: Pod,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its ports for this service.
    pub ports: Vec<EndpointPort>,
    /// The zone of its node, if that has one.
    pub zone: Option<String>,
    /// Its host name, if it is a named member of this service.
    pub hostname: Option<String>,
    /// Takes new connections.
    pub ready: bool,
    /// Would take them if it were not going.
    pub serving: bool,
    /// Is going.
    pub terminating: bool,
}

impl Service {
    /// Decode a service; `None` if the body is none.
    pub fn new(object: &Object) -> Option<Self> {
        object.typed().ok()
    }

    /// Whether its endpoints are ours to compute.
    pub fn has_endpoints(&self) -> bool {
        self.spec.selector.as_ref().is_some_and(|s| !s.is_empty()) && self.spec.kind != "ExternalName"
    }

    /// Whether clients see the pods' own addresses.
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }

    /// Whether hints share endpoints out by the processors of the zones.
    pub fn is_proportional(&self) -> bool {
        let annotations = &self.metadata.annotations;
        let mode = TOPOLOGY.iter().find_map(|name| annotations.get(*name));
        mode.is_some_and(|mode| matches!(mode.as_str(), "Auto" | "auto"))
    }

    /// The address types wanted.
    pub fn families(&self) -> Vec<String> {
        match &self.spec.ip_families {
            Some(families) if !families.is_empty() => families.clone(),
            _ => vec!["IPv4".to_owned()],
        }
    }

    /// Its backends, in order of pod names.
    pub fn backends(&self, view: &dyn View, index: &Index, namespace: &str) -> Vec<Backend> {
        let Some(selector) = self.spec.selector.as_ref().filter(|s| !s.is_empty()) else {
            return Vec::new();
        };
        let named = index.pods_of(namespace, &self.metadata.name);
        let pods = named.iter().filter_map(|name| view.get("pods", namespace, name));
        let selected = pods.filter(|object| labels::contains(selector, &**object));
        let backend = |object: Arc<Object>| {
            let pod = pod(&object)?;
            let counts = !pod.is_terminal() && !pod.status.pod_ip.is_empty();
            counts.then(|| self.backend(view, pod, object.namespace.clone()))
        };
        selected.filter_map(backend).collect()
    }

    fn backend(&self, view: &dyn View, pod: Pod, namespace: Arc<str>) -> Backend {
        let node = view.get("nodes", "", &pod.spec.node_name);
        let (serving, terminating) = (pod.is_ready(), pod.is_terminating());
        let named = !pod.spec.hostname.is_empty() && pod.spec.subdomain == self.metadata.name;
        Backend {
            ports: self
                .spec
                .ports
                .iter()
                .flatten()
                .filter_map(|port| resolve(port, &pod))
                .collect(),
            zone: node.and_then(|node| node.label(ZONE).map(str::to_owned)),
            hostname: named.then(|| pod.spec.hostname.clone()),
            ready: self.spec.publish_not_ready_addresses || (serving && !terminating),
            serving,
            terminating,
            namespace,
            pod,
        }
    }
}

impl Backend {
    /// Its addresses of a family.
    pub fn addresses(&self, family: &str) -> Vec<String> {
        let status = &self.pod.status;
        let all = status.pod_ips.iter().map(|a| a.ip.as_str());
        let all = if status.pod_ips.is_empty() {
            vec![status.pod_ip.as_str()]
        } else {
            all.collect()
        };
        let of_family = |address: &&str| match address.parse() {
            Ok(IpAddr::V4(_)) => family == "IPv4",
            Ok(IpAddr::V6(_)) => family == "IPv6",
            Err(_) => false,
        };
        all.into_iter().filter(of_family).take(1).map(str::to_owned).collect()
    }

    /// `targetRef`.
    pub fn target(&self) -> Value {
        let meta = &self.pod.metadata;
        json!({"kind": "Pod", "namespace": &*self.namespace, "name": meta.name, "uid": meta.uid})
    }
}

impl EndpointPort {
    /// As JSON, without empty fields.
    pub fn value(&self) -> Value {
        let mut value = json!({"name": self.name, "protocol": self.protocol, "port": self.port});
        if let Some(protocol) = &self.app_protocol {
            value["appProtocol"] = protocol.as_str().into();
        }
        value
    }
}

/// The pod's port that a service port targets; `None` if the pod has none of that name.
fn resolve(port: &Port, pod: &Pod) -> Option<EndpointPort> {
    let protocol = if port.protocol.is_empty() {
        "TCP"
    } else {
        &port.protocol
    };
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) if name.is_empty() => port.port,
        Some(IntOrString::String(name)) => named_port(pod, name, protocol)?,
    };
    Some(EndpointPort {
        name: port.name.clone(),
        protocol: protocol.to_owned(),
        port: number,
        app_protocol: port.app_protocol.clone(),
    })
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
    let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
    let speaks = |p: &str| p == protocol || (p.is_empty() && protocol == "TCP");
    ports
        .into_iter()
        .find(|p| p.name == name && speaks(&p.protocol))
        .map(|p| p.container_port)
}
