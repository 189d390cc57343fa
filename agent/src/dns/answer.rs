//! From a question to an answer, for the names that are the cluster's own. Pure.
//!
//! The tree of names is that of Kubernetes' DNS-based service discovery 1.1.0; RFC 2308 for what does not exist.

use std::net::Ipv4Addr;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::zone::{Entry, Host, Owner, Port, Zone, dashed};

/// Seconds an answer may be cached: short, because pods come and go.
const TTL: u32 = 5;
const SCHEMA_VERSION: &str = "1.1.0";
const DEFAULT_WEIGHT: u16 = 100;

/// What the zone says to a question.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// The name is not the cluster's: someone else knows.
    NotOurs,
    /// Records, possibly none (the name exists, but has none of that type).
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
        authority: Option<Record>,
    },
    /// The name is an alias for one that is not the cluster's.
    Alias { record: Record, target: Name },
    /// The name does not exist.
    NoSuchName { authority: Record },
}

impl Answer {
    /// The response code, where the zone decides it.
    pub(super) fn code(&self) -> ResponseCode {
        match self {
            Answer::NoSuchName { .. } => ResponseCode::NXDomain,
            _ => ResponseCode::NoError,
        }
    }
}

/// What a name of the zone leads to; borrowed from the zone.
enum Found<'a> {
    /// Exists only because names below it do.
    Empty,
    Addresses(Vec<Ipv4Addr>),
    Service {
        service: &'a str,
        namespace: &'a str,
        entry: &'a Entry,
    },
    Ports {
        service: &'a str,
        namespace: &'a str,
        entry: &'a Entry,
        name: &'a str,
        protocol: &'a str,
    },
    Version,
    Apex,
}

impl Zone {
    /// Answers a question. `rotation` turns the order of addresses, so that clients that take the first spread out.
    pub(super) fn answer(&self, query: &Query, rotation: usize) -> Answer {
        if query.query_class() != DNSClass::IN {
            return Answer::NotOurs;
        }
        let labels: Vec<String> = query
            .name()
            .iter()
            .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
            .collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        if let Some(address) = reverse_address(&labels) {
            return self.answer_reverse(query, address);
        }
        match self.relative(&labels) {
            None => Answer::NotOurs,
            Some(relative) => match self.find(relative) {
                None => Answer::NoSuchName { authority: self.soa() },
                Some(found) => self.records(query, &found, rotation),
            },
        }
    }

    /// The labels before the cluster's domain.
    fn relative<'a, 'b>(&self, labels: &'b [&'a str]) -> Option<&'b [&'a str]> {
        let split = labels.len().checked_sub(self.domain.len())?;
        let (relative, domain) = labels.split_at(split);
        (!self.domain.is_empty() && domain == self.domain.as_slice()).then_some(relative)
    }

    fn find<'a>(&'a self, relative: &[&'a str]) -> Option<Found<'a>> {
        match relative {
            [] => Some(Found::Apex),
            ["svc"] | ["pod"] => Some(Found::Empty),
            ["dns-version"] => Some(Found::Version),
            [namespace, "svc"] => self.namespaces.contains_key(*namespace).then_some(Found::Empty),
            [_, "pod"] => Some(Found::Empty),
            [host, _, "pod"] => Some(Found::Addresses(vec![undashed(host)?])),
            [service, namespace, "svc"] => {
                let entry = self.entry(service, namespace)?;
                Some(Found::Service {
                    service,
                    namespace,
                    entry,
                })
            }
            [name, protocol, service, namespace, "svc"] => {
                let (name, protocol) = (name.strip_prefix('_')?, protocol.strip_prefix('_')?);
                let entry = self.entry(service, namespace)?;
                let exists = entry.ports().any(|port| port.name == name && port.protocol == protocol);
                exists.then_some(Found::Ports {
                    service,
                    namespace,
                    entry,
                    name,
                    protocol,
                })
            }
            [label, service, namespace, "svc"] => self.find_below(label, self.entry(service, namespace)?),
            _ => None,
        }
    }

    /// A host of a headless service, or the empty name above ports.
    fn find_below<'a>(&self, label: &str, entry: &'a Entry) -> Option<Found<'a>> {
        if let Some(protocol) = label.strip_prefix('_') {
            return entry
                .ports()
                .any(|port| port.protocol == protocol)
                .then_some(Found::Empty);
        }
        let Entry::Headless { hosts } = entry else {
            return None;
        };
        let addresses: Vec<Ipv4Addr> = hosts
            .iter()
            .filter(|host| host.label == label)
            .map(|host| host.address)
            .collect();
        (!addresses.is_empty()).then_some(Found::Addresses(addresses))
    }

    fn entry(&self, service: &str, namespace: &str) -> Option<&Entry> {
        self.namespaces.get(namespace)?.get(service)
    }

    fn records(&self, query: &Query, found: &Found<'_>, rotation: usize) -> Answer {
        let kind = query.query_type();
        let owner = query.name();
        let mut additionals = Vec::new();
        let answers = match (found, kind) {
            (
                Found::Service {
                    entry: Entry::External { name },
                    ..
                },
                _,
            ) => {
                return match Name::from_utf8(name) {
                    Ok(target) => self.alias(query, target, rotation),
                    Err(_) => self.no_data(),
                };
            }
            (Found::Addresses(addresses), RecordType::A) => addresses_of(owner, addresses, rotation),
            (Found::Service { entry, .. }, RecordType::A) => addresses_of(owner, &entry.addresses(), rotation),
            (
                Found::Service {
                    service,
                    namespace,
                    entry,
                },
                RecordType::SRV,
            ) => {
                let answers = self.ports(owner, (service, namespace), entry, |_| true);
                additionals = targets(&answers, entry);
                answers
            }
            (
                Found::Ports {
                    service,
                    namespace,
                    entry,
                    name,
                    protocol,
                },
                RecordType::SRV,
            ) => {
                let wanted = |port: &Port| port.name == *name && port.protocol == *protocol;
                let answers = self.ports(owner, (service, namespace), entry, wanted);
                additionals = targets(&answers, entry);
                answers
            }
            (Found::Version, RecordType::TXT) => {
                vec![record(owner, RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()])))]
            }
            (Found::Apex, RecordType::SOA) => vec![self.soa()],
            _ => Vec::new(),
        };
        if answers.is_empty() {
            return self.no_data();
        }
        Answer::Records {
            answers,
            additionals,
            authority: None,
        }
    }

    /// An alias into the cluster is followed once; one that leads outside is for the caller to resolve.
    fn alias(&self, query: &Query, mut target: Name, rotation: usize) -> Answer {
        target.set_fqdn(true);
        let alias = record(query.name(), RData::CNAME(CNAME(target.clone())));
        if query.query_type() == RecordType::CNAME {
            return Answer::Records {
                answers: vec![alias],
                additionals: Vec::new(),
                authority: None,
            };
        }
        let labels: Vec<String> = target
            .iter()
            .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
            .collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let Some(relative) = self.relative(&labels) else {
            return Answer::Alias { record: alias, target };
        };
        let mut answers = vec![alias];
        let followed = Query::query(target, query.query_type());
        if let Some(found) = self.find(relative)
            && !matches!(
                found,
                Found::Service {
                    entry: Entry::External { .. },
                    ..
                }
            )
            && let Answer::Records { answers: more, .. } = self.records(&followed, &found, rotation)
        {
            answers.extend(more);
        }
        Answer::Records {
            answers,
            additionals: Vec::new(),
            authority: None,
        }
    }

    /// SRV records; all of a service's ports have the same chance, so have all hosts of a port.
    fn ports(
        &self,
        owner: &Name,
        (service, namespace): (&str, &str),
        entry: &Entry,
        wanted: impl Fn(&Port) -> bool,
    ) -> Vec<Record> {
        let srv = |host: Option<&str>, port: &Port| {
            let target = self.name(host.into_iter().chain([service, namespace, "svc"]))?;
            Some(record(
                owner,
                RData::SRV(SRV::new(0, DEFAULT_WEIGHT, port.number, target)),
            ))
        };
        match entry {
            Entry::Cluster { ports, .. } => ports
                .iter()
                .filter(|port| wanted(port))
                .filter_map(|port| srv(None, port))
                .collect(),
            Entry::Headless { hosts } => hosts
                .iter()
                .flat_map(|host| host.ports.iter().map(move |port| (host, port)))
                .filter(|(_, port)| wanted(port))
                .filter_map(|(host, port)| srv(Some(&host.label), port))
                .collect(),
            Entry::External { .. } => Vec::new(),
        }
    }

    fn answer_reverse(&self, query: &Query, address: Ipv4Addr) -> Answer {
        let Some(owners) = self.reverse.get(&address) else {
            return match self.ranges.iter().any(|range| range.contains(address)) {
                true => Answer::NoSuchName { authority: self.soa() },
                false => Answer::NotOurs,
            };
        };
        if query.query_type() != RecordType::PTR {
            return self.no_data();
        }
        let name = |owner: &Owner| {
            let host = owner.host.as_deref();
            let name = self.name(
                host.into_iter()
                    .chain([owner.service.as_str(), &owner.namespace, "svc"]),
            )?;
            Some(record(query.name(), RData::PTR(PTR(name))))
        };
        let answers = owners.iter().filter_map(name).collect();
        Answer::Records {
            answers,
            additionals: Vec::new(),
            authority: None,
        }
    }

    fn no_data(&self) -> Answer {
        Answer::Records {
            answers: Vec::new(),
            additionals: Vec::new(),
            authority: Some(self.soa()),
        }
    }

    fn name<'a>(&'a self, labels: impl Iterator<Item = &'a str>) -> Option<Name> {
        let labels = labels.chain(self.domain.iter().map(String::as_str));
        let mut name = Name::from_labels(labels.map(str::as_bytes)).ok()?;
        name.set_fqdn(true);
        Some(name)
    }

    fn soa(&self) -> Record {
        let name = |labels: &[&'static str]| self.name(labels.iter().copied()).unwrap_or_else(Name::root);
        let soa = SOA::new(name(&["ns", "dns"]), name(&["hostmaster"]), 1, 7200, 1800, 86_400, TTL);
        record(&name(&[]), RData::SOA(soa))
    }
}

impl Entry {
    fn ports(&self) -> Box<dyn Iterator<Item = &Port> + '_> {
        match self {
            Entry::Cluster { ports, .. } => Box::new(ports.iter()),
            Entry::Headless { hosts } => Box::new(hosts.iter().flat_map(|host| &host.ports)),
            Entry::External { .. } => Box::new(std::iter::empty()),
        }
    }

    fn addresses(&self) -> Vec<Ipv4Addr> {
        match self {
            Entry::Cluster { addresses, .. } => addresses.clone(),
            Entry::Headless { hosts } => hosts.iter().map(|host| host.address).collect(),
            Entry::External { .. } => Vec::new(),
        }
    }
}

fn addresses_of(owner: &Name, addresses: &[Ipv4Addr], rotation: usize) -> Vec<Record> {
    let mut addresses = addresses.to_vec();
    if !addresses.is_empty() {
        let middle = rotation % addresses.len();
        addresses.rotate_left(middle);
    }
    addresses
        .into_iter()
        .map(|address| record(owner, RData::A(A(address))))
        .collect()
}

/// The addresses of what SRV records point to, so that a client need not ask again.
fn targets(answers: &[Record], entry: &Entry) -> Vec<Record> {
    let mut names: Vec<&Name> = Vec::new();
    for answer in answers {
        if let RData::SRV(srv) = &answer.data
            && !names.contains(&&srv.target)
        {
            names.push(&srv.target);
        }
    }
    let addresses = |name: &Name| -> Vec<Ipv4Addr> {
        match entry {
            Entry::Headless { hosts } => {
                let label = name.iter().next().unwrap_or_default();
                let is_it = |host: &&Host| host.label.as_bytes() == label;
                hosts.iter().filter(is_it).map(|host| host.address).collect()
            }
            other => other.addresses(),
        }
    };
    names
        .into_iter()
        .flat_map(|name| addresses_of(name, &addresses(name), 0))
        .collect()
}

fn record(owner: &Name, data: RData) -> Record {
    Record::from_rdata(owner.clone(), TTL, data)
}

/// `1-2-3-4` as in the names of pods.
fn undashed(label: &str) -> Option<Ipv4Addr> {
    let address = label.replace('-', ".").parse().ok()?;
    (dashed(address) == label).then_some(address)
}

/// `4.3.2.1.in-addr.arpa`.
fn reverse_address(labels: &[&str]) -> Option<Ipv4Addr> {
    let [d, c, b, a, "in-addr", "arpa"] = labels else {
        return None;
    };
    format!("{a}.{b}.{c}.{d}").parse().ok()
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
