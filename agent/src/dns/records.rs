//! What the names of one service lead to: from its Service and EndpointSlices, purely.
//!
//! As in CoreDNS, hosts are known for every service, not only for headless ones, so that `pod.service` names and
//! addresses lead somewhere for both. An endpoint without a host name is called after its address.

use std::collections::HashMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::name::Name;
use crate::proxy::{Protocol, Slice};

/// The older way to say `publishNotReadyAddresses`; the specification names it.
const TOLERATE_UNREADY: &str = "service.alpha.kubernetes.io/tolerate-unready-endpoints";

/// What the names of a service lead to.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceRecords {
    pub(super) shape: Shape,
    pub(super) hosts: Hosts,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Answers with its own addresses.
    Cluster {
        addresses: Box<[IpAddr]>,
        ports: Box<[Port]>,
    },
    /// Answers with its hosts.
    Headless,
    /// Another name for something, in wire form with the root.
    External { target: Box<[u8]> },
}

/// A port of a service or of a host; the name may be empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Port {
    pub(super) name: Box<str>,
    pub(super) protocol: &'static str,
    pub(super) number: u16,
}

/// An address behind a service.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Host {
    pub(super) address: IpAddr,
    pub(super) hostname: Option<Box<str>>,
    /// Which of [`Hosts::ports`].
    ports: u16,
}

/// The ready addresses behind a service, without duplicates, IPv4 first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hosts {
    by_address: Box<[Host]>,
    /// Places in `by_address`: those without a host name by address, then the others by host name.
    by_label: Box<[u32]>,
    /// How many have no host name.
    unnamed: u32,
    ports: Box<[Box<[Port]>]>,
}

impl ServiceRecords {
    /// The records of a service with all its endpoint slices, of both families; `None` when it has no names (yet).
    pub fn new<'a>(service: &Service, slices: impl IntoIterator<Item = &'a Slice>) -> Option<ServiceRecords> {
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec.external_name.as_deref().and_then(alias_target)?;
            return Some(ServiceRecords {
                shape: Shape::External { target },
                hosts: Hosts::default(),
            });
        }
        let shape = match spec.cluster_ip.as_deref() {
            None | Some("") => return None,
            Some("None") => Shape::Headless,
            Some(first) => cluster(spec, first),
        };
        Some(ServiceRecords {
            shape,
            hosts: Hosts::new(slices, publishes_unready(service, spec)),
        })
    }

    /// The service's own addresses.
    pub(super) fn addresses(&self) -> &[IpAddr] {
        match &self.shape {
            Shape::Cluster { addresses, .. } => addresses,
            _ => &[],
        }
    }
}

fn publishes_unready(service: &Service, spec: &ServiceSpec) -> bool {
    let annotation = service.metadata.annotations.as_ref();
    let annotated = annotation.is_some_and(|all| all.get(TOLERATE_UNREADY).is_some_and(|value| value == "true"));
    annotated || spec.publish_not_ready_addresses == Some(true)
}

/// An address is no name to be an alias of; CoreDNS leaves such services out.
fn alias_target(name: &str) -> Option<Box<[u8]>> {
    let name = name.trim();
    let is_address = name.parse::<IpAddr>().is_ok();
    let target = Name::from_text(name).filter(|target| !is_address && target.count() > 0)?;
    Some(target.as_bytes().into())
}

fn cluster(spec: &ServiceSpec, first: &str) -> Shape {
    let all = spec.cluster_ips.iter().flatten().map(String::as_str).chain([first]);
    let mut addresses: Vec<IpAddr> = all.filter_map(|address| address.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let ports = spec.ports.iter().flatten();
    let ports = ports.filter_map(|port| {
        let protocol = Protocol::from_name(port.protocol.as_deref().unwrap_or("TCP"))?;
        let number = u16::try_from(port.port).ok()?;
        Some(Port::new(port.name.as_deref().unwrap_or_default(), protocol, number))
    });
    Shape::Cluster {
        addresses: addresses.into(),
        ports: ports.collect(),
    }
}

impl Port {
    fn new(name: &str, protocol: Protocol, number: u16) -> Port {
        Port {
            name: name.to_ascii_lowercase().into(),
            protocol: match protocol {
                Protocol::Any => "",
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            },
            number,
        }
    }
}

impl Hosts {
    fn new<'a>(slices: impl IntoIterator<Item = &'a Slice>, unready: bool) -> Hosts {
        let mut ports = PortSets::default();
        let mut hosts: Vec<Host> = Vec::new();
        for slice in slices {
            let mut wanted = slice.hosts().filter(|(_, _, ready)| *ready || unready).peekable();
            if wanted.peek().is_none() {
                continue;
            }
            let of_slice = ports.of(slice);
            hosts.extend(wanted.map(|(address, hostname, _)| Host {
                address,
                hostname: hostname.map(|name| name.to_ascii_lowercase().into()),
                ports: of_slice,
            }));
        }
        // An address may be in two slices, for a moment or for other ports.
        hosts.sort_unstable();
        hosts.dedup_by(|next, kept| {
            let same = next.address == kept.address && next.hostname == kept.hostname;
            if same && next.ports != kept.ports {
                kept.ports = ports.union(kept.ports, next.ports);
            }
            same
        });
        Hosts::from_sorted(hosts, ports.sets.into())
    }

    fn from_sorted(hosts: Vec<Host>, ports: Box<[Box<[Port]>]>) -> Hosts {
        let places = 0..u32::try_from(hosts.len()).unwrap_or(u32::MAX);
        let mut by_label: Vec<u32> = places.collect();
        // Stable: those of one name stay in the order of their addresses.
        by_label.sort_by(|a, b| hosts[*a as usize].hostname.cmp(&hosts[*b as usize].hostname));
        let unnamed = hosts.iter().filter(|host| host.hostname.is_none()).count();
        Hosts {
            by_address: hosts.into(),
            by_label: by_label.into(),
            unnamed: u32::try_from(unnamed).unwrap_or(u32::MAX),
            ports,
        }
    }

    /// All, by address, IPv4 first.
    pub(super) fn all(&self) -> &[Host] {
        &self.by_address
    }

    /// All, so that those with one name are neighbours.
    pub(super) fn by_label(&self) -> &[u32] {
        &self.by_label
    }

    /// The host at a place that [`Hosts::by_label`] or [`Hosts::called`] gave.
    pub(super) fn at(&self, place: u32) -> &Host {
        &self.by_address[place as usize]
    }

    /// The hosts with an address.
    pub(super) fn with_address(&self, address: IpAddr) -> &[Host] {
        let start = self.by_address.partition_point(|host| host.address < address);
        let end = self.by_address.partition_point(|host| host.address <= address);
        &self.by_address[start..end]
    }

    /// The hosts called `label`, in lower case.
    pub(super) fn called(&self, label: &[u8]) -> &[u32] {
        let (unnamed, named) = self.by_label.split_at(self.unnamed as usize);
        let name = |place: &u32| self.at(*place).hostname.as_deref().unwrap_or_default().as_bytes();
        let start = named.partition_point(|place| name(place) < label);
        let end = named.partition_point(|place| name(place) <= label);
        if start < end {
            return &named[start..end];
        }
        let found = undashed(label).and_then(|address| {
            let place = unnamed.binary_search_by(|place| self.at(*place).address.cmp(&address));
            place.ok().filter(|_| dashed(address).as_bytes() == label)
        });
        found.map_or(&[], |place| &unnamed[place..=place])
    }

    /// The ports of a host.
    pub(super) fn ports(&self, host: &Host) -> &[Port] {
        &self.ports[usize::from(host.ports)]
    }

    /// The ports that some host has; one that several have may come several times.
    pub(super) fn all_ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().flatten()
    }
}

impl Host {
    /// What the host is called below its service.
    pub(super) fn label(&self) -> std::borrow::Cow<'_, str> {
        match &self.hostname {
            Some(name) => name.as_ref().into(),
            None => dashed(self.address).into(),
        }
    }
}

/// The distinct sets of ports of a service's slices: one, nearly always.
#[derive(Default)]
struct PortSets {
    sets: Vec<Box<[Port]>>,
    known: HashMap<Box<[Port]>, u16>,
}

impl PortSets {
    fn of(&mut self, slice: &Slice) -> u16 {
        let ports = slice.ports();
        self.add(
            ports
                .map(|(name, protocol, number)| Port::new(name, protocol, number))
                .collect(),
        )
    }

    fn union(&mut self, first: u16, second: u16) -> u16 {
        let sets = [first, second].map(|set| self.sets[usize::from(set)].to_vec());
        self.add(sets.concat())
    }

    fn add(&mut self, mut ports: Vec<Port>) -> u16 {
        ports.sort_unstable();
        ports.dedup();
        let ports: Box<[Port]> = ports.into();
        if let Some(known) = self.known.get(&ports) {
            return *known;
        }
        // A service has at most some thousand slices; should it have more, the surplus shares the last set.
        let place = u16::try_from(self.sets.len()).unwrap_or(u16::MAX);
        if place < u16::MAX {
            self.sets.push(ports.clone());
            self.known.insert(ports, place);
        }
        place.min(u16::MAX - 1)
    }
}

/// `1-2-3-4` and `fd00--1`: addresses as labels.
pub(super) fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address that a label stands for; it may be written in more ways than [`dashed`] does.
pub(super) fn undashed(label: &[u8]) -> Option<IpAddr> {
    let label = std::str::from_utf8(label).ok()?;
    let dashes = label.bytes().filter(|byte| *byte == b'-').count();
    if dashes == 3 && !label.contains("--") {
        label.replace('-', ".").parse().ok().map(IpAddr::V4)
    } else {
        label.replace('-', ":").parse().ok().map(IpAddr::V6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(kind: &str, port: i32, endpoints: Value) -> Slice {
        let slice = json!({"addressType": kind, "metadata": {}, "ports": [{"name": "http", "port": port}],
            "endpoints": endpoints});
        Slice::new(&serde_json::from_value(slice).unwrap(), "node").unwrap()
    }

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    fn labels(records: &ServiceRecords) -> Vec<String> {
        records
            .hosts
            .all()
            .iter()
            .map(|host| host.label().into_owned())
            .collect()
    }

    #[test]
    fn hosts_of_several_slices_are_merged() {
        let slices = [
            slice(
                "IPv4",
                80,
                json!([{"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.1"], "hostname": "A"}]),
            ),
            slice("IPv4", 81, json!([{"addresses": ["10.0.0.2"]}])),
            slice("IPv6", 80, json!([{"addresses": ["fd00::1"], "hostname": "a"}])),
        ];
        let records = ServiceRecords::new(&service(json!({"clusterIP": "None"})), &slices).unwrap();
        assert_eq!(labels(&records), ["a", "10-0-0-2", "a"]);
        let hosts = &records.hosts;
        let numbers =
            |place: u32| -> Vec<u16> { hosts.ports(hosts.at(place)).iter().map(|port| port.number).collect() };
        assert_eq!((numbers(0), numbers(1)), (vec![80], vec![80, 81]));
        assert_eq!(
            (hosts.called(b"a"), hosts.called(b"10-0-0-2")),
            ([0, 2].as_slice(), [1].as_slice())
        );
        assert!(hosts.called(b"10-0-0-1").is_empty() && hosts.called(b"b").is_empty());
    }

    #[test]
    fn unready_endpoints_count_where_the_service_says_so() {
        let slices = [slice(
            "IPv4",
            80,
            json!([{"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]),
        )];
        let count = |service: &Service| ServiceRecords::new(service, &slices).unwrap().hosts.all().len();
        assert_eq!(count(&service(json!({"clusterIP": "None"}))), 0);
        assert_eq!(
            count(&service(json!({"clusterIP": "None", "publishNotReadyAddresses": true}))),
            1
        );
        let mut annotated = service(json!({"clusterIP": "None"}));
        annotated.metadata.annotations = Some([(TOLERATE_UNREADY.to_owned(), "true".to_owned())].into());
        assert_eq!(count(&annotated), 1);
    }

    #[test]
    fn services_without_names_have_no_records() {
        let none = |spec| ServiceRecords::new(&service(spec), []).is_none();
        assert!(none(json!({})) && none(json!({"clusterIP": ""})));
        assert!(none(json!({"type": "ExternalName"})));
        assert!(none(json!({"type": "ExternalName", "externalName": "192.0.2.1"})));
        assert!(none(json!({"type": "ExternalName", "externalName": "a..b"})));
        assert!(!none(
            json!({"type": "ExternalName", "externalName": "www.example.com."})
        ));
    }

    #[test]
    fn addresses_are_labels() {
        for (label, address) in [
            ("1-2-3-4", "1.2.3.4"),
            ("fd00--1", "fd00::1"),
            ("--1", "::1"),
            ("1-2-3--4", "1:2:3::4"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(undashed(label.as_bytes()), Some(address));
            assert_eq!(dashed(address), label);
        }
        for junk in ["1-2-3-300", "01-2-3-4", "1-2-3", "web", "", "-", "\u{e9}-1-1-1"] {
            assert_eq!(undashed(junk.as_bytes()), None, "{junk}");
        }
    }
}
