//! What the cluster's domain contains: services, their ports, and the hosts behind headless ones. Pure.
//!
//! Kept by namespace and service name, not by full domain name: a tenth of the memory, and a change of the cluster's
//! domain changes nothing here.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::network::Cidr;
use crate::proxy::by_service;

/// What a zone is made for.
#[derive(Clone, Debug)]
pub struct ZoneConfig {
    /// The cluster's domain, without a final dot, e.g. `cluster.local`.
    pub domain: String,
    /// Ranges for whose addresses the reverse names are the cluster's alone: pods and services.
    pub ranges: Vec<Cidr>,
}

/// The names of one cluster at one moment.
#[derive(Debug, Default)]
pub struct Zone {
    /// The labels of the domain, lower case, from left to right.
    pub(super) domain: Vec<String>,
    pub(super) ranges: Vec<Cidr>,
    pub(super) namespaces: HashMap<String, HashMap<String, Entry>>,
    /// Of which service, and of which of its hosts, an address is.
    pub(super) reverse: HashMap<Ipv4Addr, Vec<Owner>>,
}

/// A service.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Answers with the service's own addresses.
    Cluster { addresses: Vec<Ipv4Addr>, ports: Vec<Port> },
    /// Answers with its hosts.
    Headless { hosts: Vec<Host> },
    /// Another name for something outside.
    External { name: String },
}

/// A named port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) number: u16,
}

/// An address behind a headless service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) label: String,
    pub(super) address: Ipv4Addr,
    pub(super) ports: Vec<Port>,
}

/// What an address belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) host: Option<String>,
    pub(super) service: String,
    pub(super) namespace: String,
}

impl Zone {
    /// The zone for the cluster's services and endpoint slices.
    pub fn compute<'a>(
        config: &ZoneConfig,
        services: impl IntoIterator<Item = &'a Service>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> Zone {
        let domain = config
            .domain
            .trim_matches('.')
            .split('.')
            .map(str::to_ascii_lowercase)
            .collect();
        let mut zone = Zone {
            domain,
            ranges: config.ranges.clone(),
            ..Zone::default()
        };
        let slices = by_service(slices);
        for service in services {
            let (Some(name), Some(namespace)) = (&service.metadata.name, &service.metadata.namespace) else {
                continue;
            };
            let slices = slices
                .get(&(namespace.as_str(), name.as_str()))
                .map(Vec::as_slice)
                .unwrap_or_default();
            if let Some(entry) = entry(service, slices) {
                zone.add(namespace, name, entry);
            }
        }
        zone
    }

    fn add(&mut self, namespace: &str, name: &str, entry: Entry) {
        let owner = |host: Option<&str>| Owner {
            host: host.map(str::to_owned),
            service: name.to_owned(),
            namespace: namespace.to_owned(),
        };
        match &entry {
            Entry::Cluster { addresses, .. } => {
                for address in addresses {
                    self.reverse.entry(*address).or_default().push(owner(None));
                }
            }
            Entry::Headless { hosts } => {
                for host in hosts {
                    self.reverse
                        .entry(host.address)
                        .or_default()
                        .push(owner(Some(&host.label)));
                }
            }
            Entry::External { .. } => {}
        }
        self.namespaces
            .entry(namespace.to_owned())
            .or_default()
            .insert(name.to_owned(), entry);
    }
}

fn entry(service: &Service, slices: &[&EndpointSlice]) -> Option<Entry> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let name = spec.external_name.clone().filter(|name| !name.is_empty())?;
        return Some(Entry::External { name });
    }
    match spec.cluster_ip.as_deref() {
        None | Some("") => None,
        Some("None") => Some(Entry::Headless { hosts: hosts(slices) }),
        Some(first) => {
            let all = spec.cluster_ips.iter().flatten().map(String::as_str).chain([first]);
            let mut addresses: Vec<Ipv4Addr> = all.filter_map(|address| address.parse().ok()).collect();
            addresses.sort_unstable();
            addresses.dedup();
            let ports = spec.ports.iter().flatten();
            let ports = ports.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), Some(p.port)));
            Some(Entry::Cluster {
                addresses,
                ports: ports.collect(),
            })
        }
    }
}

/// The ready hosts; one without a host name is called after its address, as CoreDNS does.
fn hosts(slices: &[&EndpointSlice]) -> Vec<Host> {
    let mut hosts: BTreeMap<Ipv4Addr, Host> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let ports: Vec<Port> = ports
            .filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port))
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
                continue;
            }
            for address in endpoint.addresses.iter().filter_map(|address| address.parse().ok()) {
                let label = endpoint
                    .hostname
                    .clone()
                    .unwrap_or_else(|| dashed(address))
                    .to_ascii_lowercase();
                let host = hosts.entry(address).or_insert_with(|| Host {
                    label,
                    address,
                    ports: Vec::new(),
                });
                host.ports.extend(ports.iter().cloned());
                host.ports.sort_unstable();
                host.ports.dedup();
            }
        }
    }
    hosts.into_values().collect()
}

pub(super) fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}

fn port(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<Port> {
    Some(Port {
        name: name.unwrap_or_default().to_ascii_lowercase(),
        protocol: protocol.unwrap_or("TCP").to_ascii_lowercase(),
        number: u16::try_from(number?).ok()?,
    })
}
