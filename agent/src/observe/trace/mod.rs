//! `hull trace service`: what the proxy would do with a connection now, and what it did with the last ones.
//!
//! The first comes from the proxy's maps, compared with the endpoints as the API has them, so that it can be said why
//! somebody is left out; the second from the diary that the kernel's program keeps.

mod reasons;
mod text;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use hull_ebpf_types as bpf;
use hull_ebpf_types::observe::{Entry, Event};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};

use super::names::{self, Names, frontends_of, socket_address};
use super::snapshot::{event_name, failure_name};
use super::{Error, Observer};
use reasons::{algorithm, excluded, notes, pod_behind, verdict};

pub use text::text;

/// Lines of the diary unless told otherwise.
const LAST: usize = 10;
/// Most lines at a time.
const LAST_MAX: usize = 10_000;
const NANOSECONDS: u64 = 1_000_000_000;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Namespace of the service.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Port, by name or number; all of them if absent.
    pub port: Option<String>,
    /// Only lines of this client: `namespace/pod`.
    pub client: Option<String>,
    /// How many lines at most.
    pub last: usize,
    /// Only lines younger than this, nanoseconds of the node's CLOCK_MONOTONIC.
    pub after: u64,
}

impl Asked {
    /// From the parameters of a query.
    ///
    /// # Errors
    /// One is missing or no number.
    pub fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Asked, String> {
        let text = |name: &str| get(name).filter(|value| !value.is_empty()).map(str::to_owned);
        let number = |name: &str, default: u64| match get(name) {
            None => Ok(default),
            Some(value) => value.parse().map_err(|_| format!("{name}={value:?} is no number")),
        };
        let last = usize::try_from(number("last", LAST as u64)?).unwrap_or(LAST_MAX);
        Ok(Asked {
            namespace: text("namespace").ok_or("namespace= is missing")?,
            service: text("service").ok_or("service= is missing")?,
            port: text("port"),
            client: text("client"),
            last: last.min(LAST_MAX),
            after: number("after", 0)?,
        })
    }
}

/// What the answer needs to know of the node.
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// Names of services.
    pub names: &'a Names,
    /// Pods of this node by address.
    pub pods: &'a HashMap<IpAddr, String>,
    /// The service asked for, as the node knows it.
    pub service: Option<&'a Service>,
    /// Its endpoints, as the API has them.
    pub slices: &'a [EndpointSlice],
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// The node that answers.
    pub node: String,
    /// The service's addresses, each with what a client of it meets.
    pub frontends: Vec<FrontendView>,
    /// The last connections, the oldest first.
    pub diary: Vec<Line>,
    /// The newest line's time, to ask for those after it.
    pub newest: u64,
}

/// An address of the service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendView {
    /// What clients connect to; `*` is every address of the node.
    pub address: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Name of the port, or its number.
    pub port: String,
    /// Whether this is for clients from outside the node.
    pub outside: bool,
    /// What becomes of a client, in a sentence.
    pub verdict: String,
    /// How a backend is chosen; absent where there is nothing to choose.
    pub algorithm: Option<String>,
    /// Session affinity, in seconds.
    pub affinity: Option<u32>,
    /// What is special about it.
    pub notes: Vec<String>,
    /// Who may be chosen.
    pub candidates: Vec<Candidate>,
    /// Who is left out, and why.
    pub excluded: Vec<Excluded>,
    /// Clients sent to a backend so far.
    pub translated: u64,
    /// Clients refused so far.
    pub refused: u64,
}

/// A backend that may be chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Address and port.
    pub backend: String,
    /// The pod behind it.
    pub pod: Option<String>,
    /// Its weight.
    pub weight: u32,
    /// Its share of the slots, 0 to 1.
    pub share: f64,
    /// Connections from this node now.
    pub open: u32,
    /// Smoothed time to connect, microseconds; zero if nothing is known.
    pub latency: u32,
}

/// An endpoint that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Excluded {
    /// Its address.
    pub address: String,
    /// The pod behind it.
    pub pod: Option<String>,
    /// Why.
    pub reason: String,
}

/// A line of the diary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Seconds since 1970.
    pub time: f64,
    /// Names the connection; all its lines have the same.
    pub socket: u64,
    /// `opened`, `failed`, `closed` or `broken`.
    pub event: String,
    /// Why, for those that failed or broke.
    pub failure: Option<String>,
    /// Address and port of the client.
    pub client: String,
    /// The client's pod; absent for processes of the node itself.
    pub client_pod: Option<String>,
    /// What it asked for.
    pub asked: String,
    /// Where it was sent.
    pub backend: String,
    /// From connect(2) until then, microseconds.
    pub after: u64,
    /// Smoothed round-trip time, microseconds.
    pub rtt: u32,
    /// Bytes sent and acknowledged until then.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Segments sent again.
    pub retransmits: u32,
}

/// Answers.
///
/// # Errors
/// A map cannot be read.
pub fn trace(observer: &Observer, asked: &Asked, node: &Node<'_>) -> Result<Trace, Error> {
    let frontends = node
        .service
        .map(|service| views(observer, asked, node, service))
        .unwrap_or_default();
    let wanted = |entry: &Entry| entry.time > asked.after && is_asked_for(entry, asked, node);
    let entries = observer.diary(asked.last, wanted)?;
    let newest = entries.last().map_or(asked.after, |entry| entry.time);
    let clocks = Clocks::now();
    Ok(Trace {
        node: node.name.to_owned(),
        frontends,
        diary: entries.iter().map(|entry| line(entry, node, &clocks)).collect(),
        newest,
    })
}

fn is_asked_for(entry: &Entry, asked: &Asked, node: &Node<'_>) -> bool {
    let service = node.names.name(&entry.frontend);
    if service.namespace != asked.namespace || service.name != asked.service {
        return false;
    }
    let port = u16::from_be(entry.frontend.port).to_string();
    let port_fits = asked
        .port
        .as_ref()
        .is_none_or(|wanted| *wanted == service.port || *wanted == port);
    let client = || node.pods.get(&socket_address(entry.client.address, 0).ip());
    port_fits && asked.client.as_ref().is_none_or(|wanted| client() == Some(wanted))
}

fn views(observer: &Observer, asked: &Asked, node: &Node<'_>, service: &Service) -> Vec<FrontendView> {
    let mut all = Vec::new();
    for (frontend, port) in frontends_of(service) {
        let number = u16::from_be(frontend.port).to_string();
        if asked
            .port
            .as_ref()
            .is_some_and(|wanted| *wanted != port && *wanted != number)
        {
            continue;
        }
        for scope in [bpf::scope::INSIDE, bpf::scope::OUTSIDE] {
            let key = bpf::Frontend { scope, ..frontend };
            let found = observer.frontends.service(&key);
            // A cluster address is not offered to the outside: nothing to say.
            if found.is_none() && scope == bpf::scope::OUTSIDE {
                continue;
            }
            all.push(view(observer, node, &key, &port, found));
        }
    }
    all
}

fn view(
    observer: &Observer,
    node: &Node<'_>,
    key: &bpf::Frontend,
    port: &str,
    found: Option<bpf::Service>,
) -> FrontendView {
    let backends = found
        .map(|service| observer.frontends.backends(&service))
        .unwrap_or_default();
    let clients = found
        .map(|service| observer.frontends.clients(service.id))
        .unwrap_or_default();
    let candidates: Vec<Candidate> = backends
        .iter()
        .map(|(backend, slots)| {
            let service = found.map(|service| service.id).unwrap_or_default();
            let load = observer.load_of(&bpf::Member {
                service,
                endpoint: backend.endpoint,
            });
            let address = socket_address(backend.endpoint.address, backend.endpoint.port);
            Candidate {
                backend: address.to_string(),
                pod: pod_behind(node.slices, address.ip()),
                weight: backend.weight,
                share: f64::from(*slots) / f64::from(found.map_or(1, |service| service.count.max(1))),
                open: load.open,
                latency: load.latency,
            }
        })
        .collect();
    let flags = found.map(|service| service.flags).unwrap_or_default();
    let chosen: BTreeSet<IpAddr> = backends
        .iter()
        .map(|(backend, _)| socket_address(backend.endpoint.address, 0).ip())
        .collect();
    FrontendView {
        address: shown(key),
        protocol: names::protocol_name(key.protocol).to_owned(),
        port: port.to_owned(),
        outside: key.scope == bpf::scope::OUTSIDE,
        verdict: verdict(found.as_ref(), node.slices),
        algorithm: found
            .filter(|service| service.count > 1)
            .map(|service| algorithm(service.algorithm).to_owned()),
        affinity: found.map(|service| service.affinity).filter(|seconds| *seconds > 0),
        notes: notes(found.as_ref()),
        candidates,
        excluded: excluded(node.slices, &chosen, flags, node.name),
        translated: clients.translated,
        refused: clients.refused,
    }
}

fn shown(key: &bpf::Frontend) -> String {
    let address = socket_address(key.address, key.port);
    if address.ip().is_unspecified() {
        format!("*:{}", address.port())
    } else {
        address.to_string()
    }
}

/// The two clocks at one moment, to turn times of the kernel into times of day.
struct Clocks {
    monotonic: u64,
    since_1970: f64,
}

impl Clocks {
    fn now() -> Clocks {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Clocks {
            monotonic: time.tv_sec as u64 * NANOSECONDS + time.tv_nsec as u64,
            since_1970: since_1970.unwrap_or_default().as_secs_f64(),
        }
    }

    fn time_of_day(&self, monotonic: u64) -> f64 {
        self.since_1970 - self.monotonic.saturating_sub(monotonic) as f64 / NANOSECONDS as f64
    }
}

fn line(entry: &Entry, node: &Node<'_>, clocks: &Clocks) -> Line {
    let client: SocketAddr = socket_address(entry.client.address, entry.client.port);
    let failed = entry.event == Event::Failed as u32 || entry.event == Event::Broken as u32;
    Line {
        time: clocks.time_of_day(entry.time),
        socket: entry.socket,
        event: event_name(entry.event).to_owned(),
        failure: failed.then(|| failure_name(entry.failure).to_owned()),
        client: client.to_string(),
        client_pod: node.pods.get(&client.ip()).cloned(),
        asked: socket_address(entry.frontend.address, entry.frontend.port).to_string(),
        backend: socket_address(entry.member.endpoint.address, entry.member.endpoint.port).to_string(),
        after: entry.time.saturating_sub(entry.started) / 1_000,
        rtt: entry.rtt,
        sent: entry.sent,
        received: entry.received,
        retransmits: entry.retransmits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_from_its_parameters() {
        let asked = Asked::parse(|name| match name {
            "namespace" => Some("d"),
            "service" => Some("web"),
            "last" => Some("999999"),
            "port" => Some(""),
            _ => None,
        });
        let asked = asked.unwrap();
        assert_eq!((asked.last, asked.port, asked.after), (LAST_MAX, None, 0));
        assert!(Asked::parse(|name| (name == "namespace").then_some("d")).is_err());
        assert!(Asked::parse(|name| Some(if name == "last" { "x" } else { "d" })).is_err());
    }
}
