//! From the cluster's services and endpoint slices to the tables of this node: a pure function.
//!
//! It follows the rules of Kubernetes' own proxy: ready endpoints, else those terminating that still serve; named
//! target ports through the slices' ports; nothing for headless services. Only addresses inside the service range are
//! ever rewritten: a service must not be able to take traffic that is meant for someone else.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::tables::{Balanced, Frontend, Protocol, Tables};
use crate::network::Cidr;

/// Names the service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// A service with this label is left to another proxy.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// What the API server defaults `timeoutSeconds` of ClientIP affinity to: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// What the tables depend on besides the cluster's objects.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// This node's name, for services whose traffic stays on the node.
    pub name: String,
    /// The range of service addresses; nothing outside of it is rewritten.
    pub service_cidr: Cidr,
    /// The cluster's DNS address and the node-local server that answers for it.
    pub dns: Option<DnsRedirect>,
}

/// Leads the cluster's DNS address to the server on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsRedirect {
    /// The address in the pods' resolv.conf, port 53.
    pub cluster: Ipv4Addr,
    /// Where the node's DNS server listens.
    pub local: SocketAddrV4,
}

/// The tables for this node.
pub fn compute<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &NodeView,
) -> Tables {
    let slices = by_service(slices);
    let mut tables = Tables::default();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let addresses = owned_addresses(service, spec, node);
        if addresses.is_empty() {
            continue;
        }
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let slices = slices.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        for port in spec.ports.iter().flatten() {
            add_port(&mut tables, spec, port, &addresses, slices, node);
        }
    }
    if let Some(dns) = node.dns {
        add_dns(&mut tables, dns);
    }
    tables
}

/// IPv4 endpoint slices by the namespace and name of their service.
pub(crate) fn by_service<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>> {
    let mut map: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for slice in slices.into_iter().filter(|slice| slice.address_type == "IPv4") {
        let service = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_NAME));
        if let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service) {
            map.entry((namespace.as_str(), service.as_str()))
                .or_default()
                .push(slice);
        }
    }
    map
}

fn owned_addresses(service: &Service, spec: &ServiceSpec, node: &NodeView) -> Vec<Ipv4Addr> {
    let elsewhere = service
        .metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key(SERVICE_PROXY_NAME));
    if elsewhere || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let mut addresses: Vec<Ipv4Addr> = spec
        .cluster_ips
        .iter()
        .flatten()
        .chain(&spec.cluster_ip)
        .filter_map(|address| address.parse().ok())
        .filter(|address| node.service_cidr.contains(*address))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn add_port(
    tables: &mut Tables,
    spec: &ServiceSpec,
    port: &ServicePort,
    addresses: &[Ipv4Addr],
    slices: &[&EndpointSlice],
    node: &NodeView,
) {
    let protocol = Protocol::from_name(port.protocol.as_deref().unwrap_or("TCP"));
    let (Some(protocol), Some(number)) = (protocol, port_number(port.port)) else {
        return;
    };
    let local_only = spec.internal_traffic_policy.as_deref() == Some("Local");
    let balanced = Balanced {
        affinity: affinity(spec),
        backends: backends(port, protocol, slices, local_only, node),
    };
    for address in addresses {
        let frontend = Frontend {
            address: SocketAddrV4::new(*address, number),
            protocol,
        };
        tables.services.insert(frontend, balanced.clone());
    }
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    let seconds = config
        .and_then(|client| client.timeout_seconds)
        .and_then(|seconds| u32::try_from(seconds).ok());
    Some(seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS).max(1))
}

/// The ready endpoints; without any, the terminating ones that still serve, so that a rolling update of a service's
/// last pod loses no connection.
fn backends(
    port: &ServicePort,
    protocol: Protocol,
    slices: &[&EndpointSlice],
    local_only: bool,
    node: &NodeView,
) -> Vec<SocketAddrV4> {
    let mut ready = Vec::new();
    let mut draining = Vec::new();
    for slice in slices {
        let Some(number) = slice_port(slice, port, protocol) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            if local_only && endpoint.node_name.as_deref() != Some(&node.name) {
                continue;
            }
            let Some(address) = endpoint.addresses.first().and_then(|address| address.parse().ok()) else {
                continue;
            };
            let backend = SocketAddrV4::new(address, number);
            match usability(endpoint) {
                Usability::Ready => ready.push(backend),
                Usability::Draining => draining.push(backend),
                Usability::None => {}
            }
        }
    }
    let mut backends = if ready.is_empty() { draining } else { ready };
    backends.sort_unstable();
    backends.dedup();
    backends
}

fn slice_port(slice: &EndpointSlice, port: &ServicePort, protocol: Protocol) -> Option<u16> {
    let name = port.name.as_deref().unwrap_or_default();
    slice
        .ports
        .iter()
        .flatten()
        .find(|candidate| {
            candidate.name.as_deref().unwrap_or_default() == name
                && Protocol::from_name(candidate.protocol.as_deref().unwrap_or("TCP")) == Some(protocol)
        })
        .and_then(|candidate| port_number(candidate.port?))
}

enum Usability {
    Ready,
    Draining,
    None,
}

/// An absent condition counts as the API says: ready unknown is true, serving follows ready, terminating is false.
fn usability(endpoint: &Endpoint) -> Usability {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    match (ready, serving, terminating) {
        (true, _, _) => Usability::Ready,
        (false, true, true) => Usability::Draining,
        _ => Usability::None,
    }
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn add_dns(tables: &mut Tables, dns: DnsRedirect) {
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let frontend = Frontend {
            address: SocketAddrV4::new(dns.cluster, 53),
            protocol,
        };
        tables.services.insert(
            frontend,
            Balanced {
                affinity: None,
                backends: vec![dns.local],
            },
        );
    }
}

#[cfg(test)]
#[path = "compute_tests.rs"]
mod tests;
