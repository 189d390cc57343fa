//! From a question to an answer, for the names that are the cluster's own. Pure; writes straight into the reply.
//!
//! The tree of names is that of Kubernetes' DNS-based service discovery 1.1.0, and what it leaves open is as in CoreDNS'
//! kubernetes plugin. RFC 2308 for what does not exist, RFC 8482 for questions for everything.

use std::net::IpAddr;

use parking_lot::RwLockReadGuard;

use super::find::{Found, Ports, find};
use super::name::Name;
use super::records::{Host, Hosts, Port, ServiceRecords, Shape};
use super::reply::{Owner, QUESTION, Reply, Section};
use super::request::Request;
use super::wire::{HEADER, code, kind};
use super::zone::{Key, Tables, Zone};

/// Seconds an answer may be cached: short, because pods come and go.
pub(super) const TTL: u32 = 5;
/// Seconds for what never changes.
const VERSION_TTL: u32 = 28_800;
const SCHEMA_VERSION: &[u8] = b"1.1.0";
/// Aliases followed within the cluster, as in CoreDNS.
const MAX_ALIASES: usize = 8;
/// The weights of SRV records share this.
const WEIGHTS: usize = 100;
const NAME_SERVER: &[u8] = b"\x02ns\x03dns";
const MAILBOX: &[u8] = b"\x0ahostmaster";
const REFRESH_RETRY_EXPIRE: [u32; 3] = [7200, 1800, 86_400];

/// What the zone says to a question.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The name is not the cluster's: someone else knows.
    NotOurs,
    /// The reply has all the records; it needs this response code.
    Answered(u16),
    /// The reply has an alias that leads outside; the target's name is the last thing in it.
    Alias(Box<Name>),
    /// The cluster's services are not known yet.
    NotReady,
}

/// Where the names of a reply are that others can be shortened with.
#[derive(Clone, Copy)]
struct Places {
    /// The name that is asked for: the question's, or that of an alias' target.
    owner: usize,
    /// The zone's own name.
    apex: usize,
}

impl Zone {
    /// Answers a question. `rotation` turns the order of addresses, so that clients that take the first spread out.
    pub(super) fn answer(&self, request: &Request<'_>, reply: &mut Reply<'_>, rotation: usize) -> Verdict {
        if let Some(verdict) = self.answer_reverse(request, reply) {
            return verdict;
        }
        let Some(relative) = request.name.relative_to(&self.domain) else {
            return Verdict::NotOurs;
        };
        let tables = self.tables.read();
        if !tables.complete && relative > 0 && request.name.label(relative - 1) == b"svc" {
            return Verdict::NotReady;
        }
        let places = Places {
            owner: HEADER,
            apex: HEADER + request.name.labels(0, relative).len(),
        };
        self.follow(&tables, request, reply, places, rotation)
    }

    /// Answers for the name asked, and for those it is an alias of.
    fn follow(
        &self,
        tables: &RwLockReadGuard<'_, Tables>,
        request: &Request<'_>,
        reply: &mut Reply<'_>,
        mut places: Places,
        rotation: usize,
    ) -> Verdict {
        let mut name = std::borrow::Cow::Borrowed(&request.name);
        for _ in 0..MAX_ALIASES {
            let found = name
                .relative_to(&self.domain)
                .and_then(|count| find(tables, &name, count));
            let target = match &found {
                Some(Found::Service(
                    _,
                    ServiceRecords {
                        shape: Shape::External { target },
                        ..
                    },
                    _,
                )) => target,
                _ => return self.conclude(found, request.kind, reply, places, rotation),
            };
            let Some(place) = reply.record(Section::Answer, Owner::At(places.owner), kind::CNAME, TTL, &[target])
            else {
                return Verdict::Answered(code::NOERROR);
            };
            let Some((target, _)) = Name::read(target, 0) else {
                return Verdict::Answered(code::SERVFAIL);
            };
            if request.kind == kind::CNAME {
                return Verdict::Answered(code::NOERROR);
            }
            if target.relative_to(&self.domain).is_none() {
                return Verdict::Alias(Box::new(target));
            }
            places.owner = place;
            name = std::borrow::Cow::Owned(target);
        }
        // In a circle, or longer than anyone needs.
        Verdict::Answered(code::SERVFAIL)
    }

    fn conclude(
        &self,
        found: Option<Found<'_, '_>>,
        kind: u16,
        reply: &mut Reply<'_>,
        places: Places,
        rotation: usize,
    ) -> Verdict {
        let before = reply.answers();
        let exists = found.is_some();
        if let Some(found) = found {
            self.records(&found, kind, reply, places, rotation);
        }
        if reply.answers() == before && !reply.is_truncated() {
            self.soa(reply, Section::Authority, places.apex, Owner::At(places.apex));
        }
        Verdict::Answered(if exists { code::NOERROR } else { code::NXDOMAIN })
    }

    fn records(&self, found: &Found<'_, '_>, kind: u16, reply: &mut Reply<'_>, places: Places, rotation: usize) {
        let owner = Owner::At(places.owner);
        let addresses = |reply: &mut Reply<'_>, all: &[IpAddr]| {
            write_addresses(reply, Section::Answer, owner, kind, all.len(), rotation, |index| {
                all[index]
            });
        };
        match (found, kind) {
            (_, kind::ANY) => {
                reply.record(Section::Answer, owner, kind::HINFO, TTL, &[b"\x07RFC8482\0"]);
            }
            (Found::Apex, kind::SOA) => self.soa(reply, Section::Answer, places.apex, owner),
            (Found::Apex, kind::NS) => self.name_server(reply, owner, places.apex),
            (Found::NameServer, _) => addresses(reply, &self.servers),
            (Found::Version, kind::TXT) => {
                let text = [&[SCHEMA_VERSION.len() as u8], SCHEMA_VERSION];
                reply.record(Section::Answer, owner, kind::TXT, VERSION_TTL, &text);
            }
            (Found::Pod(address), _) => addresses(reply, &[*address]),
            (Found::Service(key, records, ports), kind::SRV) => self.service_srv(reply, owner, key, records, *ports),
            (Found::Hosts(key, hosts, some), kind::SRV) => {
                self.host_srv(reply, owner, key, hosts, some, Ports(None));
            }
            (Found::Service(_, records, ports), _) => match &records.shape {
                Shape::Cluster { addresses: all, .. } => addresses(reply, all),
                _ => {
                    let (hosts, all) = (&records.hosts, records.hosts.all());
                    write_hosts(reply, owner, kind, all.len(), rotation, |index| {
                        let host = &all[index];
                        let meant = ports.0.is_none() || hosts.ports(host).iter().any(|port| ports.have(port));
                        meant.then_some(host)
                    });
                }
            },
            (Found::Hosts(_, hosts, some), _) => {
                write_hosts(reply, owner, kind, some.len(), rotation, |index| {
                    Some(hosts.at(some[index]))
                });
            }
            _ => {}
        }
    }

    fn service_srv(
        &self,
        reply: &mut Reply<'_>,
        owner: Owner<'_>,
        key: &Key,
        records: &ServiceRecords,
        ports: Ports<'_>,
    ) {
        let Shape::Cluster { addresses, ports: all } = &records.shape else {
            return self.host_srv(reply, owner, key, &records.hosts, records.hosts.by_label(), ports);
        };
        let weight = weight(all.iter().filter(|port| ports.have(port)).count());
        let mut target = None;
        for port in all.iter().filter(|port| ports.have(port)) {
            let fixed = srv_fields(weight, port.number);
            let data: [&[u8]; 4] = [&fixed, key, b"\x03svc", self.domain.as_bytes()];
            let place = reply.record(Section::Answer, owner, kind::SRV, TTL, &data);
            target = target.or(place);
        }
        let Some(target) = target else { return };
        for kind in [kind::A, kind::AAAA] {
            let owner = Owner::At(target + SRV_FIELDS);
            write_addresses(reply, Section::Additional, owner, kind, addresses.len(), 0, |index| {
                addresses[index]
            });
        }
    }

    /// One record a host's name and port. `some` has those with one name beside each other.
    fn host_srv(
        &self,
        reply: &mut Reply<'_>,
        owner: Owner<'_>,
        key: &Key,
        hosts: &Hosts,
        some: &[u32],
        ports: Ports<'_>,
    ) {
        let wanted = |host: &Host| hosts.ports(host).iter().filter(|port| ports.have(port)).count();
        let weight = weight(some.iter().map(|place| wanted(hosts.at(*place))).sum());
        let mut targets: Vec<(usize, &[u32])> = Vec::new();
        for of_name in some.chunk_by(|a, b| {
            let name = hosts.at(*a).hostname.as_ref();
            name.is_some() && name == hosts.at(*b).hostname.as_ref()
        }) {
            let label = hosts.at(of_name[0]).label();
            let mut done: Vec<&Port> = Vec::new();
            let mut target = None;
            let all = of_name.iter().flat_map(|place| hosts.ports(hosts.at(*place)));
            for port in all.filter(|port| ports.have(port)) {
                if done.contains(&port) {
                    continue;
                }
                done.push(port);
                let fixed = srv_fields(weight, port.number);
                let length = [label.len() as u8];
                let data: [&[u8]; 6] = [
                    &fixed,
                    &length,
                    label.as_bytes(),
                    key,
                    b"\x03svc",
                    self.domain.as_bytes(),
                ];
                let place = reply.record(Section::Answer, owner, kind::SRV, TTL, &data);
                target = target.or(place);
            }
            targets.extend(target.map(|place| (place, of_name)));
        }
        for (target, of_name) in targets {
            for kind in [kind::A, kind::AAAA] {
                let owner = Owner::At(target + SRV_FIELDS);
                let address = |index: usize| hosts.at(of_name[index]).address;
                write_addresses(reply, Section::Additional, owner, kind, of_name.len(), 0, address);
            }
        }
    }

    fn name_server(&self, reply: &mut Reply<'_>, owner: Owner<'_>, apex: usize) {
        let Some(place) = reply.record(Section::Answer, owner, kind::NS, TTL, &[NAME_SERVER, &pointer(apex)]) else {
            return;
        };
        for kind in [kind::A, kind::AAAA] {
            let servers = &self.servers;
            write_addresses(
                reply,
                Section::Additional,
                Owner::At(place),
                kind,
                servers.len(),
                0,
                |index| servers[index],
            );
        }
    }

    /// The record that says for how long a negative answer holds. `apex` is where the cluster's domain stands, or 0.
    pub(super) fn soa(&self, reply: &mut Reply<'_>, section: Section, apex: usize, owner: Owner<'_>) {
        let mut numbers = [0; 20];
        let [refresh, retry, expire] = REFRESH_RETRY_EXPIRE;
        for (place, number) in numbers
            .chunks_exact_mut(4)
            .zip([self.serial(), refresh, retry, expire, TTL])
        {
            place.copy_from_slice(&number.to_be_bytes());
        }
        let short = pointer(apex);
        let domain = if apex == 0 { self.domain.as_bytes() } else { &short };
        let data = [NAME_SERVER, domain, MAILBOX, domain, &numbers];
        reply.record(section, owner, kind::SOA, TTL, &data);
    }
}

/// Bytes of an SRV record before its target.
const SRV_FIELDS: usize = 6;

fn srv_fields(weight: u16, port: u16) -> [u8; SRV_FIELDS] {
    let ([a, b], [c, d]) = (weight.to_be_bytes(), port.to_be_bytes());
    [0, 0, a, b, c, d]
}

/// Every record has the same chance; the weights add up to about a hundred.
fn weight(records: usize) -> u16 {
    u16::try_from(WEIGHTS / records.max(1)).unwrap_or(1).max(1)
}

fn pointer(place: usize) -> [u8; 2] {
    // The question is within the first 267 bytes.
    (0xc000 | (place as u16 & 0x3fff)).to_be_bytes()
}

/// Writes the addresses of the family that `kind` asks for; none for other kinds.
fn write_addresses(
    reply: &mut Reply<'_>,
    section: Section,
    owner: Owner<'_>,
    kind: u16,
    count: usize,
    rotation: usize,
    address: impl Fn(usize) -> IpAddr,
) {
    for step in 0..count {
        let complete = match (address((step + rotation) % count), kind) {
            (IpAddr::V4(address), kind::A) => reply.record(section, owner, kind, TTL, &[&address.octets()]),
            (IpAddr::V6(address), kind::AAAA) => reply.record(section, owner, kind, TTL, &[&address.octets()]),
            _ => continue,
        };
        if complete.is_none() {
            return;
        }
    }
}

/// Writes the addresses of those hosts that are meant; hosts that share one are neighbours, and told once.
fn write_hosts<'h>(
    reply: &mut Reply<'_>,
    owner: Owner<'_>,
    kind: u16,
    count: usize,
    rotation: usize,
    host: impl Fn(usize) -> Option<&'h Host>,
) {
    let mut last = None;
    let mut first = None;
    for step in 0..count {
        let Some(address) = host((step + rotation) % count).map(|host| host.address) else {
            continue;
        };
        if last == Some(address) || (step > 0 && first == Some(address)) {
            continue;
        }
        last = Some(address);
        first = first.or(last);
        let before = reply.is_truncated();
        write_addresses(reply, Section::Answer, owner, kind, 1, 0, |_| address);
        if reply.is_truncated() && !before {
            return;
        }
    }
}

/// The question's name, as the owner of records.
pub(super) const ASKED: Owner<'static> = QUESTION;

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
