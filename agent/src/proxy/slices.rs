//! Endpoint slices, cut down to what the proxy asks of them: a tenth of the memory of the API's objects.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::tables::Protocol;

/// Names the service that a slice belongs to.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Annotation of a slice: a JSON object from addresses to weights, 1 to [`MAX_WEIGHT`]. An address that is not named
/// has the weight 1. The endpoint slice controller makes it of the pods' annotation `hull.dev/weight`.
pub const WEIGHTS: &str = "hull.dev/weights";
/// The largest weight of a backend.
pub const MAX_WEIGHT: u32 = 256;

/// An endpoint slice as the proxy of one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub(super) ipv6: bool,
    pub(super) ports: Box<[Port]>,
    pub(super) endpoints: Box<[Place]>,
}

/// A port that all endpoints of a slice serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: Box<str>,
    pub(super) protocol: Protocol,
    pub(super) number: u16,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: IpAddr,
    /// What it is called below its service in DNS.
    pub(super) hostname: Option<Box<str>>,
    pub(super) state: State,
    /// On this node.
    pub(super) local: bool,
    pub(super) weight: u16,
    /// Whether a hint says that clients of this node should use it; absent without such a hint.
    pub(super) for_node: Option<bool>,
    /// The zones whose clients should use it; empty without such a hint.
    pub(super) zones: Box<[Box<str>]>,
}

/// Whether an endpoint takes clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// Terminating, but still serving: better than none.
    Draining,
    Unusable,
}

impl Slice {
    /// What the proxy of `node` needs to know of a slice; `None` for one of names instead of addresses.
    pub fn new(slice: &EndpointSlice, node: &str) -> Option<Slice> {
        let ipv6 = match slice.address_type.as_str() {
            "IPv4" => false,
            "IPv6" => true,
            _ => return None,
        };
        let weights = weights(slice);
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(Port {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: Protocol::from_name(port.protocol.as_deref().unwrap_or("TCP"))?,
                number: port_number(port.port?)?,
            })
        });
        let endpoints = slice.endpoints.iter().flatten();
        Some(Slice {
            ipv6,
            ports: ports.collect(),
            endpoints: endpoints
                .filter_map(|endpoint| Place::new(endpoint, ipv6, node, &weights))
                .collect(),
        })
    }

    /// The addresses, with host name and whether they are ready: what DNS needs to know.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (IpAddr, Option<&str>, bool)> {
        let places = self.endpoints.iter();
        places.map(|place| (place.address, place.hostname.as_deref(), place.state == State::Ready))
    }

    /// The ports, by name, protocol and number.
    pub(crate) fn ports(&self) -> impl Iterator<Item = (&str, Protocol, u16)> {
        self.ports.iter().map(|port| (&*port.name, port.protocol, port.number))
    }

    /// The number that a port of the service has here.
    pub(super) fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let mut ports = self.ports.iter();
        ports
            .find(|port| &*port.name == name && port.protocol == protocol)
            .map(|port| port.number)
    }
}

impl Place {
    fn new(endpoint: &Endpoint, ipv6: bool, node: &str, weights: &BTreeMap<IpAddr, u32>) -> Option<Place> {
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        if address.is_ipv6() != ipv6 {
            return None;
        }
        let hints = endpoint.hints.as_ref();
        let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
        let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
        let weight = weights.get(&address).copied().unwrap_or(1).clamp(1, MAX_WEIGHT);
        Some(Place {
            address,
            hostname: endpoint
                .hostname
                .as_deref()
                .filter(|name| !name.is_empty())
                .map(Box::from),
            state: state(endpoint),
            local: endpoint.node_name.as_deref() == Some(node),
            weight: weight as u16,
            for_node: (!nodes.is_empty()).then(|| nodes.iter().any(|hint| hint.name == node)),
            zones: zones.iter().map(|zone| zone.name.as_str().into()).collect(),
        })
    }
}

/// An absent condition counts as the API says: ready unknown is true, serving follows ready, terminating is false.
fn state(endpoint: &Endpoint) -> State {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    match (ready, serving, terminating) {
        (true, _, _) => State::Ready,
        (false, true, true) => State::Draining,
        _ => State::Unusable,
    }
}

/// An annotation that is not understood changes nothing: every weight is 1.
fn weights(slice: &EndpointSlice) -> BTreeMap<IpAddr, u32> {
    let annotations = slice.metadata.annotations.as_ref();
    let text = annotations.and_then(|annotations| annotations.get(WEIGHTS));
    text.and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// A port of the API, when it is one.
pub(super) fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// The name of the service that a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<(&str, &str)> {
    let labels = slice.metadata.labels.as_ref()?;
    Some((slice.metadata.namespace.as_deref()?, labels.get(SERVICE_NAME)?))
}
