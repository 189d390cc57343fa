//! Where a name leads in the cluster's tree: Kubernetes' DNS-based service discovery 1.1.0, with names that only have
//! names below them (RFC 8020). Pure.

use std::net::IpAddr;

use super::name::Name;
use super::records::{Hosts, Port, ServiceRecords, Shape, undashed};
use super::zone::{Key, Tables};

/// What a name of the zone leads to.
pub(super) enum Found<'z, 'n> {
    /// Exists only because names below it do.
    Empty,
    Apex,
    Version,
    NameServer,
    Pod(IpAddr),
    Service(&'z Key, &'z ServiceRecords, Ports<'n>),
    /// Hosts of one name, as places in the service's list.
    Hosts(&'z Key, &'z Hosts, &'z [u32]),
}

/// Which ports of a service are meant: all, or one by name and protocol.
#[derive(Clone, Copy)]
pub(super) struct Ports<'n>(pub(super) Option<(&'n [u8], &'n [u8])>);

impl Ports<'_> {
    pub(super) fn have(self, port: &Port) -> bool {
        self.0
            .is_none_or(|(name, protocol)| port.name.as_bytes() == name && port.protocol.as_bytes() == protocol)
    }
}

/// What the name leads to, whose first `relative` labels are before the cluster's domain; `None` when it does not exist.
pub(super) fn find<'z, 'n>(tables: &'z Tables, name: &'n Name, relative: usize) -> Option<Found<'z, 'n>> {
    let Some(top) = relative.checked_sub(1) else {
        return Some(Found::Apex);
    };
    match (name.label(top), top) {
        (b"svc", 0) | (b"pod", 0) | (b"dns", 0) => Some(Found::Empty),
        (b"svc", _) => find_service(tables, name, top),
        // Any namespace will do, as in CoreDNS' `pods insecure`: the record tells nothing that the name does not.
        (b"pod", 1) => Some(Found::Empty),
        (b"pod", 2) => undashed(name.label(0)).map(Found::Pod),
        (b"dns-version", 0) => Some(Found::Version),
        (b"dns", 1) => (name.label(0) == b"ns").then_some(Found::NameServer),
        _ => None,
    }
}

/// As [`find`]; the label at `svc` is that one.
fn find_service<'z, 'n>(tables: &'z Tables, name: &'n Name, svc: usize) -> Option<Found<'z, 'n>> {
    let Some(first) = svc.checked_sub(2) else {
        return tables
            .namespaces
            .contains_key(name.labels(0, 1))
            .then_some(Found::Empty);
    };
    let (key, records) = tables.service(name.labels(first, svc))?;
    let external = matches!(records.shape, Shape::External { .. });
    let headless = matches!(records.shape, Shape::Headless);
    match first {
        0 if headless && records.hosts.all().is_empty() => None,
        0 => Some(Found::Service(key, records, Ports(None))),
        _ if external => None,
        1 => {
            let hosts = records.hosts.called(name.label(0));
            if !hosts.is_empty() {
                return Some(Found::Hosts(key, &records.hosts, hosts));
            }
            let protocol = name.label(0).strip_prefix(b"_")?;
            has_port(records, |port| port.protocol.as_bytes() == protocol).then_some(Found::Empty)
        }
        2 => {
            let ports = (name.label(0).strip_prefix(b"_")?, name.label(1).strip_prefix(b"_")?);
            let ports = Ports(Some(ports));
            has_port(records, |port| ports.have(port)).then_some(Found::Service(key, records, ports))
        }
        _ => None,
    }
}

/// Whether the service, or a host of a headless one, has such a port.
fn has_port(records: &ServiceRecords, wanted: impl Fn(&Port) -> bool) -> bool {
    match &records.shape {
        Shape::Cluster { ports, .. } => ports.iter().any(wanted),
        Shape::Headless => records.hosts.all_ports().any(wanted),
        Shape::External { .. } => false,
    }
}
