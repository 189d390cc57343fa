//! The names of the cluster, kept up to date change by change.
//!
//! Services are kept by `service.namespace` in wire form: what a question contains. A batch of changes is seen whole or
//! not at all; it costs what it changes, not what the cluster has. What the records are is computed before the lock is
//! taken, so a question waits for some inserts at most.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use parking_lot::RwLock;

use super::Error;
use super::name::Name;
use super::records::ServiceRecords;
use crate::network::Cidr;

/// What a zone is made for.
#[derive(Clone, Debug)]
pub struct ZoneConfig {
    /// The cluster's domain, without a final dot, e.g. `cluster.local`.
    pub domain: String,
    /// Ranges for whose addresses the reverse names are the cluster's alone: pods and services.
    pub ranges: Vec<Cidr>,
}

/// A service by namespace and name, and what its names lead to from now on; without records it goes.
pub type Change = (String, String, Option<ServiceRecords>);

/// The names of one cluster.
#[derive(Debug)]
pub(super) struct Zone {
    pub(super) domain: Name,
    pub(super) ranges: Vec<Cidr>,
    /// Where this server is asked: the addresses of the zone's name server.
    pub(super) servers: Vec<IpAddr>,
    serial: AtomicU32,
    pub(super) tables: RwLock<Tables>,
}

/// `service.namespace` in wire form, lower case, without a root. Shared by the tables.
pub(super) type Key = Arc<[u8]>;

#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Whether the cluster's services are all here; before that nothing may be called missing.
    pub(super) complete: bool,
    pub(super) services: HashMap<Key, ServiceRecords>,
    /// How many services a namespace has, by its label in wire form.
    pub(super) namespaces: HashMap<Box<[u8]>, u32>,
    reverse: HashMap<IpAddr, Owners>,
}

/// The services that have an address, or a host with it. One, nearly always.
#[derive(Debug)]
enum Owners {
    One(Key),
    Several(BTreeSet<Key>),
}

impl Zone {
    /// A zone that knows no service yet.
    pub(super) fn new(config: &ZoneConfig, servers: Vec<IpAddr>) -> Result<Zone, Error> {
        let invalid = || Error::Domain(config.domain.clone());
        let domain = Name::from_text(&config.domain).ok_or_else(invalid)?;
        if domain.count() == 0 {
            return Err(invalid());
        }
        // Later than that of any earlier server, unless the clock was set back.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        Ok(Zone {
            domain,
            ranges: config.ranges.clone(),
            servers,
            serial: AtomicU32::new((now & u64::from(u32::MAX)) as u32),
            tables: RwLock::default(),
        })
    }

    /// Counts the changes (RFC 1035, 3.3.13).
    pub(super) fn serial(&self) -> u32 {
        self.serial.load(Ordering::Relaxed)
    }

    /// Takes changes over, all at once.
    pub(super) fn apply(&self, changes: Vec<Change>) {
        let changes: Vec<_> = changes.into_iter().filter_map(keyed).collect();
        let replaced = {
            let mut tables = self.tables.write();
            let replace = |(key, records)| tables.put(key, records);
            changes.into_iter().map(replace).collect::<Vec<_>>()
        };
        self.serial.fetch_add(1, Ordering::Relaxed);
        // Freed when nobody waits for it.
        drop(replaced);
    }

    /// Takes over all services there are: what is missing from them goes.
    pub(super) fn replace(&self, all: Vec<Change>) {
        let mut tables = Tables {
            complete: true,
            ..Tables::default()
        };
        for (key, records) in all.into_iter().filter_map(keyed) {
            tables.put(key, records);
        }
        let before = std::mem::replace(&mut *self.tables.write(), tables);
        self.serial.fetch_add(1, Ordering::Relaxed);
        drop(before);
    }
}

/// Names that cannot be in DNS are no services of Kubernetes either.
fn keyed((namespace, name, records): Change) -> Option<(Key, Option<ServiceRecords>)> {
    let mut key = Vec::with_capacity(namespace.len() + name.len() + 2);
    for label in [name, namespace] {
        if !(1..64).contains(&label.len()) {
            return None;
        }
        key.push(label.len() as u8);
        key.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    Some((key.into(), records))
}

/// The namespace's label in wire form.
fn namespace(key: &[u8]) -> &[u8] {
    let name = key.first().map_or(0, |length| 1 + usize::from(*length));
    key.get(name..).unwrap_or_default()
}

impl Tables {
    /// The service called `key`.
    pub(super) fn service(&self, key: &[u8]) -> Option<(&Key, &ServiceRecords)> {
        self.services.get_key_value(key)
    }

    /// The services that have an address, or a host with it.
    pub(super) fn owners(&self, address: IpAddr) -> impl Iterator<Item = (&Key, &ServiceRecords)> {
        let owners = self.reverse.get(&address);
        let (one, several) = match owners {
            Some(Owners::One(key)) => (Some(key), None),
            Some(Owners::Several(keys)) => (None, Some(keys)),
            None => (None, None),
        };
        let keys = one.into_iter().chain(several.into_iter().flatten());
        keys.filter_map(|key| self.services.get_key_value(key))
    }

    fn put(&mut self, key: Key, records: Option<ServiceRecords>) -> Option<ServiceRecords> {
        match records {
            Some(records) => {
                let key = self
                    .services
                    .get_key_value(&key)
                    .map_or(key, |(known, _)| known.clone());
                let before = self.services.insert(key.clone(), records);
                if before.is_none() {
                    *self.namespaces.entry(namespace(&key).into()).or_default() += 1;
                }
                self.readdress(&key, before.as_ref());
                before
            }
            None => {
                let before = self.services.remove(&key)?;
                self.leave(namespace(&key));
                self.readdress(&key, Some(&before));
                Some(before)
            }
        }
    }

    fn leave(&mut self, namespace: &[u8]) {
        if let Some(count) = self.namespaces.get_mut(namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(namespace);
            }
        }
    }

    /// Brings the addresses that lead to a service up to date: only those that came or went are touched.
    fn readdress(&mut self, key: &Key, before: Option<&ServiceRecords>) {
        let now = self.services.get(key);
        let gone = difference(before, now);
        let come = difference(now, before);
        for address in gone {
            let left = match self.reverse.get_mut(&address) {
                Some(Owners::Several(keys)) => {
                    keys.remove(key);
                    keys.is_empty()
                }
                Some(Owners::One(owner)) => owner == key,
                None => false,
            };
            if left {
                self.reverse.remove(&address);
            }
        }
        for address in come {
            let owners = self.reverse.entry(address).or_insert_with(|| Owners::One(key.clone()));
            match owners {
                Owners::One(owner) if owner == key => {}
                Owners::One(owner) => *owners = Owners::Several([owner.clone(), key.clone()].into()),
                Owners::Several(keys) => drop(keys.insert(key.clone())),
            }
        }
    }
}

/// The addresses that are in `these`, but not in `those`.
fn difference(these: Option<&ServiceRecords>, those: Option<&ServiceRecords>) -> Vec<IpAddr> {
    let Some(these) = these else { return Vec::new() };
    let known = |address: IpAddr| {
        those.is_some_and(|those| {
            those.addresses().binary_search(&address).is_ok() || !those.hosts.with_address(address).is_empty()
        })
    };
    let hosts = these.hosts.all().iter().map(|host| host.address);
    let addresses = these.addresses().iter().copied().chain(hosts);
    addresses.filter(|address| !known(*address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn zone() -> Zone {
        let config = ZoneConfig {
            domain: "cluster.local".to_owned(),
            ranges: Vec::new(),
        };
        Zone::new(&config, Vec::new()).unwrap()
    }

    fn change(namespace: &str, name: &str, address: &str, hosts: &[&str]) -> Change {
        let service = json!({"metadata": {}, "spec": {"clusterIP": address}});
        let endpoints: Vec<_> = hosts.iter().map(|host| json!({"addresses": [host]})).collect();
        let slice = json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints});
        let slice = crate::proxy::Slice::new(&serde_json::from_value(slice).unwrap(), "node").unwrap();
        let records = ServiceRecords::new(&serde_json::from_value(service).unwrap(), [&slice]);
        (namespace.to_owned(), name.to_owned(), records)
    }

    fn owners(zone: &Zone, address: &str) -> Vec<String> {
        let tables = zone.tables.read();
        let keys = tables
            .owners(address.parse().unwrap())
            .map(|(key, _)| key.escape_ascii().to_string());
        keys.collect()
    }

    #[test]
    fn changes_leave_what_a_full_list_would_give() {
        let (stepwise, whole) = (zone(), zone());
        stepwise.replace(vec![change("ns", "a", "10.96.0.1", &["10.0.0.1", "10.0.0.2"])]);
        stepwise.apply(vec![
            change("ns", "b", "None", &["10.0.0.2", "10.0.0.3"]),
            change("other", "c", "None", &["10.0.0.9"]),
        ]);
        stepwise.apply(vec![change("ns", "a", "10.96.0.7", &["10.0.0.2", "10.0.0.4"])]);
        stepwise.apply(vec![("other".to_owned(), "c".to_owned(), None)]);
        stepwise.apply(vec![("other".to_owned(), "never".to_owned(), None)]);
        whole.replace(vec![
            change("ns", "a", "10.96.0.7", &["10.0.0.2", "10.0.0.4"]),
            change("ns", "b", "None", &["10.0.0.2", "10.0.0.3"]),
        ]);
        let (left, right) = (stepwise.tables.read(), whole.tables.read());
        assert_eq!((&left.services, &left.namespaces), (&right.services, &right.namespaces));
        assert!(left.complete && left.reverse.len() == right.reverse.len());
        drop((left, right));
        for address in [
            "10.96.0.1",
            "10.96.0.7",
            "10.0.0.1",
            "10.0.0.2",
            "10.0.0.3",
            "10.0.0.4",
            "10.0.0.9",
        ] {
            assert_eq!(owners(&stepwise, address), owners(&whole, address), "{address}");
        }
        assert_eq!(owners(&whole, "10.0.0.2").len(), 2);
    }

    #[test]
    fn the_serial_grows_with_every_change() {
        let zone = zone();
        let before = zone.serial();
        zone.apply(vec![change("ns", "a", "10.96.0.1", &[])]);
        assert!(zone.serial() > before);
    }

    #[test]
    fn a_domain_is_needed() {
        for domain in ["", ".", "a..b"] {
            let config = ZoneConfig {
                domain: domain.to_owned(),
                ranges: Vec::new(),
            };
            assert!(Zone::new(&config, Vec::new()).is_err(), "{domain:?}");
        }
    }
}
