//! Which endpoints serve a port, by readiness, topology hints and node: the rules of Kubernetes' own proxy.

use std::net::SocketAddr;

use super::NodeView;
use crate::proxy::slices::{Place, Slice, State};
use crate::proxy::tables::{Backend, Protocol};

/// The endpoints of one port of a service, with the number that the port has there.
pub(super) struct Endpoints<'a> {
    all: Vec<(u16, &'a Place)>,
}

/// How clients of this node are kept near.
enum Topology {
    Anywhere,
    SameNode,
    SameZone,
}

impl<'a> Endpoints<'a> {
    pub(super) fn of(port: &str, protocol: Protocol, ipv6: bool, slices: impl Iterator<Item = &'a Slice>) -> Self {
        let slices = slices.filter(|slice| slice.ipv6 == ipv6);
        let numbered = slices.filter_map(|slice| Some((slice.port(port, protocol)?, slice)));
        Endpoints {
            all: numbered
                .flat_map(|(number, slice)| slice.endpoints.iter().map(move |place| (number, place)))
                .collect(),
        }
    }

    /// The ready endpoints of the cluster that are meant for this node; without any, the terminating ones that still
    /// serve, so that a rolling update of a service's last pod loses no connection.
    pub(super) fn everywhere(&self, node: &NodeView) -> Vec<Backend> {
        let zone = node.zone.as_deref().unwrap_or_default();
        let near = match self.topology(zone) {
            Topology::Anywhere => self.backends(|place| place.state == State::Ready),
            Topology::SameNode => self.backends(|place| place.state == State::Ready && place.for_node == Some(true)),
            Topology::SameZone => self.backends(|place| place.state == State::Ready && has(place, zone)),
        };
        if near.is_empty() {
            return self.backends(|place| place.state == State::Draining);
        }
        near
    }

    /// The ready endpoints on this node; without any, its terminating ones that still serve.
    pub(super) fn here(&self) -> Vec<Backend> {
        let ready = self.backends(|place| place.local && place.state == State::Ready);
        if ready.is_empty() {
            return self.backends(|place| place.local && place.state == State::Draining);
        }
        ready
    }

    /// Hints count only when every ready endpoint has them and one is for this node or zone: else some endpoints would
    /// get no clients at all, or this node no endpoint.
    fn topology(&self, zone: &str) -> Topology {
        let ready = || self.all.iter().filter(|(_, place)| place.state == State::Ready);
        if ready().all(|(_, place)| place.for_node.is_some()) && ready().any(|(_, p)| p.for_node == Some(true)) {
            Topology::SameNode
        } else if !zone.is_empty()
            && ready().all(|(_, place)| !place.zones.is_empty())
            && ready().any(|(_, place)| has(place, zone))
        {
            Topology::SameZone
        } else {
            Topology::Anywhere
        }
    }

    fn backends(&self, chosen: impl Fn(&Place) -> bool) -> Vec<Backend> {
        let chosen = self.all.iter().filter(|(_, place)| chosen(place));
        let mut backends: Vec<Backend> = chosen
            .map(|(number, place)| Backend {
                weight: place.weight.into(),
                ..Backend::new(SocketAddr::new(place.address, *number))
            })
            .collect();
        backends.sort_unstable();
        backends.dedup_by_key(|backend| backend.endpoint);
        backends
    }
}

fn has(place: &Place, zone: &str) -> bool {
    place.zones.iter().any(|name| **name == *zone)
}
