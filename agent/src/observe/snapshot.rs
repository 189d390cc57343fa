//! What a node observed, as the agent tells it (`GET /observe/services`) and `hull top` adds it up.

use std::collections::BTreeMap;
use std::sync::Arc;

use hull_ebpf_types::Member;
use hull_ebpf_types::observe::{Event, Failure, Observed};
use serde::{Deserialize, Serialize};

use super::frontends::Clients;
use super::latencies::Latencies;
use super::names::{Names, ServicePort, socket_address};

/// The kinds of failure, in the order of [`Observed::failures`].
pub const FAILURES: [&str; hull_ebpf_types::observe::FAILURES] =
    ["refused", "timedOut", "unreachable", "abandoned", "reset", "lost"];

/// Everything a node observed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The node.
    pub node: String,
    /// Backend by backend.
    pub backends: Vec<BackendView>,
    /// What became of clients, of every protocol, port by port.
    pub clients: Vec<ClientsView>,
}

/// What became of the clients of a service's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientsView {
    /// The service's port.
    #[serde(flatten)]
    pub service: ServicePort,
    /// Sent to a backend: connects, and datagrams without one.
    pub translated: u64,
    /// Refused for want of a backend.
    pub refused: u64,
}

/// A backend of a service's port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    /// The service's port.
    #[serde(flatten)]
    pub service: ServicePort,
    /// Address and port of the backend.
    pub backend: String,
    /// What was seen of it.
    #[serde(flatten)]
    pub seen: Seen,
}

/// What was seen of a backend, or of several together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Connections established since the backend was first used.
    pub opened: u64,
    /// Connections open now.
    pub open: u64,
    /// Bytes sent to it and acknowledged.
    pub sent: u64,
    /// Bytes received from it.
    pub received: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Failures by kind, those that happened.
    pub failures: BTreeMap<String, u64>,
    /// Time that connecting took.
    pub connect: Latencies,
    /// Smoothed round-trip times.
    pub rtt: Latencies,
    /// Smoothed time that connecting takes now, microseconds; of several the largest.
    pub smoothed: u32,
}

impl Seen {
    /// From the maps.
    #[must_use]
    pub fn of(observed: &Observed) -> Seen {
        let failures = FAILURES.iter().zip(observed.failures).filter(|(_, count)| *count > 0);
        Seen {
            opened: observed.opened,
            open: observed.opened.saturating_sub(observed.closed),
            sent: observed.sent,
            received: observed.received,
            retransmits: observed.retransmits,
            failures: failures.map(|(kind, count)| ((*kind).to_owned(), count)).collect(),
            connect: Latencies::from(&observed.connect),
            rtt: Latencies::from(&observed.rtt),
            smoothed: observed.smoothed,
        }
    }

    /// Adds what was seen elsewhere.
    pub fn add(&mut self, other: &Seen) {
        self.opened += other.opened;
        self.open += other.open;
        self.sent += other.sent;
        self.received += other.received;
        self.retransmits += other.retransmits;
        for (kind, count) in &other.failures {
            *self.failures.entry(kind.clone()).or_default() += count;
        }
        self.connect.add(&other.connect);
        self.rtt.add(&other.rtt);
        self.smoothed = self.smoothed.max(other.smoothed);
    }

    /// What was seen since `earlier`. A counter that is smaller now began anew.
    #[must_use]
    pub fn since(&self, earlier: &Seen) -> Seen {
        if self.opened < earlier.opened || self.sent < earlier.sent || self.received < earlier.received {
            return self.clone();
        }
        let before = |kind: &String| earlier.failures.get(kind).copied().unwrap_or_default();
        let failures = self
            .failures
            .iter()
            .map(|(kind, count)| (kind, count.saturating_sub(before(kind))));
        Seen {
            opened: self.opened - earlier.opened,
            open: self.open,
            sent: self.sent - earlier.sent,
            received: self.received - earlier.received,
            retransmits: self.retransmits.saturating_sub(earlier.retransmits),
            failures: failures
                .filter(|(_, count)| *count > 0)
                .map(|(kind, count)| (kind.clone(), count))
                .collect(),
            connect: self.connect.since(&earlier.connect),
            rtt: self.rtt.since(&earlier.rtt),
            smoothed: self.smoothed,
        }
    }

    /// All failures together.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// Puts names to what the maps hold. A backend that is reached through several addresses of a service is one.
#[must_use]
pub fn named(observed: &[(Member, Observed)], names: &Names) -> Vec<BackendView> {
    let mut all: BTreeMap<(ServicePort, String), Seen> = BTreeMap::new();
    for (member, observed) in observed {
        let service = (*names.name(&observed.frontend)).clone();
        let backend = socket_address(member.endpoint.address, member.endpoint.port).to_string();
        all.entry((service, backend)).or_default().add(&Seen::of(observed));
    }
    all.into_iter()
        .map(|((service, backend), seen)| BackendView { service, backend, seen })
        .collect()
}

/// Puts what became of clients into the form that is told.
#[must_use]
pub fn clients(found: BTreeMap<Arc<ServicePort>, Clients>) -> Vec<ClientsView> {
    let view = |(service, clients): (Arc<ServicePort>, Clients)| ClientsView {
        service: (*service).clone(),
        translated: clients.translated,
        refused: clients.refused,
    };
    found.into_iter().map(view).collect()
}

/// The word for a failure.
#[must_use]
pub fn failure_name(failure: u32) -> &'static str {
    FAILURES.get(failure as usize).copied().unwrap_or("unknown")
}

/// The word for an event of the diary.
#[must_use]
pub fn event_name(event: u32) -> &'static str {
    match event {
        event if event == Event::Opened as u32 => "opened",
        event if event == Event::Failed as u32 => "failed",
        event if event == Event::Closed as u32 => "closed",
        _ => "broken",
    }
}

// The words and the numbers belong together.
const _: () = assert!(Failure::Refused as u32 == 0 && Failure::Abandoned as u32 == 3 && Failure::Lost as u32 == 5);

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(opened: u64, closed: u64, refused: u64) -> Seen {
        let mut observed = Observed {
            opened,
            closed,
            sent: 100 * opened,
            ..Observed::default()
        };
        observed.failures[0] = refused;
        observed.connect.counts[9] = opened;
        Seen::of(&observed)
    }

    #[test]
    fn what_happened_between_two_looks_is_their_difference() {
        let since = seen(10, 4, 3).since(&seen(7, 7, 3));
        assert_eq!((since.opened, since.open, since.sent, since.failed()), (3, 6, 300, 0));
        assert_eq!(since.connect.count(), 3);
        assert_eq!(
            seen(2, 0, 0).since(&seen(7, 7, 3)),
            seen(2, 0, 0),
            "the backend was forgotten meanwhile"
        );
    }

    #[test]
    fn two_ways_to_one_backend_are_one_line() {
        let backend = bpf_endpoint();
        let one = |service| {
            let member = Member {
                service,
                endpoint: backend,
            };
            (
                member,
                Observed {
                    opened: 2,
                    ..Observed::default()
                },
            )
        };
        let views = named(&[one(1), one(2)], &Names::default());
        assert_eq!(views.len(), 1);
        assert_eq!((views[0].backend.as_str(), views[0].seen.opened), ("10.0.0.1:80", 4));
    }

    fn bpf_endpoint() -> hull_ebpf_types::Endpoint {
        hull_ebpf_types::Endpoint {
            address: [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([10, 0, 0, 1])],
            port: 80u16.to_be(),
            zero: 0,
        }
    }

    #[test]
    fn it_survives_the_way_to_the_client() {
        let mut snapshot = Snapshot {
            node: "n1".to_owned(),
            backends: named(
                &[(
                    Member {
                        service: 1,
                        endpoint: bpf_endpoint(),
                    },
                    Observed::default(),
                )],
                &Names::default(),
            ),
            clients: vec![ClientsView {
                service: (*Names::default().name(&hull_ebpf_types::Frontend::default())).clone(),
                translated: 3,
                refused: 1,
            }],
        };
        snapshot.backends[0].seen.connect.counts.insert(27, 4);
        // As the client decodes it: a value first.
        let value: serde_json::Value = serde_json::from_str(&serde_json::to_string(&snapshot).unwrap()).unwrap();
        assert_eq!(serde_json::from_value::<Snapshot>(value).unwrap(), snapshot);
    }
}
