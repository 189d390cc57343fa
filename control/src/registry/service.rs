//! Addresses and node ports of Services: unique, from configured ranges, given at create, freed at delete.
//!
//! Invariant: an address or port is never held by two services. The allocator is filled from the cache on first use and
//! changed only by the registry, so what it holds is what the store holds plus writes under way.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::metadata::{child_mut, text};
use super::{Registry, Status};
use crate::cache::Cache;
use crate::schema::{FieldError, Resource};

const FIRST_PORT: u16 = 30000;
const LAST_PORT: u16 = 32767;
/// Offset of the cluster DNS address, never given to another service unless asked for by name.
const DNS_OFFSET: u32 = 10;

/// An IPv4 range in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Range {
    base: u32,
    prefix: u8,
}

impl Ipv4Range {
    /// The `offset`-th address, e.g. 1 for the `kubernetes` service.
    pub fn nth(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.wrapping_add(offset))
    }

    /// Number of addresses.
    pub fn size(self) -> u32 {
        1u32.checked_shl(32 - u32::from(self.prefix)).unwrap_or(u32::MAX)
    }

    /// Whether a service may have this address (not the first and not the last one of the range).
    pub fn usable(self, address: Ipv4Addr) -> bool {
        let offset = address.to_bits().wrapping_sub(self.base);
        offset > 0 && offset < self.size() - 1
    }
}

impl FromStr for Ipv4Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not an IPv4 range such as 10.96.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if !(8..=28).contains(&prefix) {
            return Err(format!("{text:?}: a service range has a prefix of /8 to /28"));
        }
        let mask = u32::MAX << (32 - prefix);
        Ok(Self {
            base: address.to_bits() & mask,
            prefix,
        })
    }
}

impl fmt::Display for Ipv4Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.base), self.prefix)
    }
}

#[derive(Default)]
struct Held {
    loaded: bool,
    addresses: HashMap<Ipv4Addr, Box<str>>,
    ports: HashMap<u16, Box<str>>,
}

/// Who holds which address and node port.
pub struct ServiceAllocator {
    range: Ipv4Range,
    held: Mutex<Held>,
}

/// What one write took; given back when dropped, unless kept.
pub(super) struct Reservation<'a> {
    allocator: &'a ServiceAllocator,
    addresses: Vec<Ipv4Addr>,
    ports: Vec<u16>,
    freed: Vec<u16>,
    owner: Box<str>,
}

impl Reservation<'_> {
    /// The write succeeded: what it took stays taken, what it gave up is free.
    pub(super) fn keep(mut self) {
        self.addresses.clear();
        self.ports = std::mem::take(&mut self.freed);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.addresses.is_empty() || !self.ports.is_empty() {
            self.allocator.free(&self.owner, &self.addresses, &self.ports);
        }
    }
}

impl ServiceAllocator {
    /// Nothing held; the cache is read on first use.
    pub fn new(range: Ipv4Range) -> Self {
        Self {
            range,
            held: Mutex::default(),
        }
    }

    fn free(&self, owner: &str, addresses: &[Ipv4Addr], ports: &[u16]) {
        let mut held = self.held.lock();
        for address in addresses {
            if held.addresses.get(address).is_some_and(|holder| **holder == *owner) {
                held.addresses.remove(address);
            }
        }
        for port in ports {
            if held.ports.get(port).is_some_and(|holder| **holder == *owner) {
                held.ports.remove(port);
            }
        }
    }

    fn load(&self, cache: &Cache) {
        let mut held = self.held.lock();
        if held.loaded {
            return;
        }
        held.loaded = true;
        for object in cache.snapshot("services").iter() {
            let service = object.value();
            let owner = owner(&service);
            if let Ok(address) = text(&service, "/spec/clusterIP").parse() {
                held.addresses.insert(address, owner.clone());
            }
            for port in node_ports(&service) {
                held.ports.insert(port, owner.clone());
            }
        }
    }
}

impl Registry {
    /// Gives a Service what its spec asks for and takes note of it. Does nothing for other kinds.
    pub(super) fn reserve(
        &self,
        resource: &'static Resource,
        old: Option<&Value>,
        new: &mut Value,
    ) -> Result<Reservation<'_>, Status> {
        let mut reservation = Reservation {
            allocator: &self.services,
            addresses: Vec::new(),
            ports: Vec::new(),
            freed: Vec::new(),
            owner: "".into(),
        };
        if resource.key != "services" {
            return Ok(reservation);
        }
        self.services.load(self.cache());
        reservation.owner = owner(new);
        let seed = self.environment().below(u32::MAX);
        let outcome = reservation
            .address(new, seed)
            .and_then(|()| reservation.node_ports(old, new, seed));
        outcome.map_err(|error| Status::invalid(resource, text(new, "/metadata/name"), &[error]))?;
        Ok(reservation)
    }

    /// Frees what a deleted Service held.
    pub(super) fn release(&self, resource: &'static Resource, last: &Value) {
        if resource.key != "services" {
            return;
        }
        let address: Vec<Ipv4Addr> = text(last, "/spec/clusterIP").parse().into_iter().collect();
        self.services
            .free(&owner(last), &address, &node_ports(last).collect::<Vec<_>>());
    }
}

impl Reservation<'_> {
    fn address(&mut self, service: &mut Value, seed: u32) -> Result<(), FieldError> {
        if text(service, "/spec/type") == "ExternalName" {
            return Ok(());
        }
        let asked = text(service, "/spec/clusterIP").to_owned();
        if asked != "None" {
            let address = if asked.is_empty() {
                self.any_address(seed)?
            } else {
                self.this_address(&asked)?
            };
            child_mut(service, "spec").insert("clusterIP".into(), json!(address.to_string()));
        }
        let spec = child_mut(service, "spec");
        let address = spec["clusterIP"].clone();
        spec.insert("clusterIPs".into(), json!([address]));
        spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
        spec.entry("ipFamilyPolicy").or_insert_with(|| json!("SingleStack"));
        spec.entry("internalTrafficPolicy").or_insert_with(|| json!("Cluster"));
        Ok(())
    }

    fn this_address(&mut self, asked: &str) -> Result<Ipv4Addr, FieldError> {
        let range = self.allocator.range;
        let refuse = |why: String| {
            let detail = format!("failed to allocate IP {asked}: {why}");
            FieldError::invalid("spec.clusterIPs", json!([asked]), detail)
        };
        let address: Ipv4Addr = asked.parse().map_err(|_| refuse("not an IPv4 address".into()))?;
        if !range.usable(address) {
            return Err(refuse(format!(
                "the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}"
            )));
        }
        let mut held = self.allocator.held.lock();
        match held.addresses.get(&address) {
            Some(holder) if *holder == self.owner => {}
            Some(_) => return Err(refuse("provided IP is already allocated".into())),
            None => {
                held.addresses.insert(address, self.owner.clone());
                self.addresses.push(address);
            }
        }
        Ok(address)
    }

    /// A free address, from the upper part of the range first: the lower part is for addresses given by hand.
    fn any_address(&mut self, seed: u32) -> Result<Ipv4Addr, FieldError> {
        let range = self.allocator.range;
        let usable = range.size() - 2;
        let band = (range.size() / 16).clamp(16, 256).min(usable);
        let mut held = self.allocator.held.lock();
        let upper = (0..usable - band).map(|step| 1 + band + (seed % (usable - band).max(1) + step) % (usable - band));
        let free = upper
            .chain(1..=band)
            .filter(|offset| *offset != DNS_OFFSET && *offset != 1);
        for address in free.map(|offset| range.nth(offset)) {
            if let Entry::Vacant(free) = held.addresses.entry(address) {
                free.insert(self.owner.clone());
                self.addresses.push(address);
                return Ok(address);
            }
        }
        let detail = format!("failed to allocate a serviceIP: range {range} is full");
        Err(FieldError {
            kind: crate::schema::ErrorKind::Internal,
            ..FieldError::forbidden("spec.clusterIPs", detail)
        })
    }

    fn node_ports(&mut self, old: Option<&Value>, service: &mut Value, seed: u32) -> Result<(), FieldError> {
        let exposed = match text(service, "/spec/type") {
            "NodePort" => true,
            "LoadBalancer" => service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&json!(false)),
            _ => false,
        };
        let before: Vec<u16> = old.into_iter().flat_map(node_ports).collect();
        let asked: Vec<u16> = node_ports(service).collect();
        if exposed {
            for port in &asked {
                self.this_port(*port)?;
            }
        }
        let mut now = Vec::new();
        for port in child_mut(service, "spec")
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let given = port["nodePort"].as_u64().unwrap_or(0);
            if !exposed {
                if let Some(fields) = port.as_object_mut() {
                    fields.remove("nodePort");
                }
                continue;
            }
            let number = if given == 0 {
                self.any_port(seed)?
            } else {
                u16::try_from(given).unwrap_or(0)
            };
            port["nodePort"] = json!(number);
            now.push(number);
        }
        self.freed = before.into_iter().filter(|port| !now.contains(port)).collect();
        Ok(())
    }

    fn this_port(&mut self, port: u16) -> Result<(), FieldError> {
        let refuse = |detail: String| Err(FieldError::invalid("spec.ports[0].nodePort", port, detail));
        if !(FIRST_PORT..=LAST_PORT).contains(&port) {
            return refuse(format!(
                "provided port is not in the valid range. The range of valid ports is {FIRST_PORT}-{LAST_PORT}"
            ));
        }
        let mut held = self.allocator.held.lock();
        match held.ports.get(&port) {
            Some(holder) if *holder == self.owner => Ok(()),
            Some(_) => refuse("provided port is already allocated".into()),
            None => {
                held.ports.insert(port, self.owner.clone());
                self.ports.push(port);
                Ok(())
            }
        }
    }

    fn any_port(&mut self, seed: u32) -> Result<u16, FieldError> {
        let count = LAST_PORT - FIRST_PORT + 1;
        let start = u16::try_from(seed % u32::from(count)).unwrap_or(0);
        let mut held = self.allocator.held.lock();
        for step in 0..count {
            let port = FIRST_PORT + (start + step) % count;
            if let Entry::Vacant(free) = held.ports.entry(port) {
                free.insert(self.owner.clone());
                self.ports.push(port);
                return Ok(port);
            }
        }
        Err(FieldError::forbidden(
            "spec.ports",
            format!("node ports {FIRST_PORT}-{LAST_PORT} are all allocated"),
        ))
    }
}

fn owner(service: &Value) -> Box<str> {
    format!(
        "{}/{}",
        text(service, "/metadata/namespace"),
        text(service, "/metadata/name")
    )
    .into()
}

fn node_ports(service: &Value) -> impl Iterator<Item = u16> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let numbers = ports.into_iter().flatten().filter_map(|port| port["nodePort"].as_u64());
    numbers
        .filter(|number| *number != 0)
        .map(|number| u16::try_from(number).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator(range: &str) -> ServiceAllocator {
        let allocator = ServiceAllocator::new(range.parse().unwrap());
        allocator.held.lock().loaded = true;
        allocator
    }

    fn give(allocator: &ServiceAllocator, old: Option<&Value>, service: &mut Value, seed: u32) -> Result<(), String> {
        let mut reservation = Reservation {
            allocator,
            addresses: Vec::new(),
            ports: Vec::new(),
            freed: Vec::new(),
            owner: owner(service),
        };
        reservation
            .address(service, seed)
            .and_then(|()| reservation.node_ports(old, service, seed))
            .map_err(|error| error.to_string())?;
        reservation.keep();
        Ok(())
    }

    fn service(name: &str, spec: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec})
    }

    #[test]
    fn ranges_parse_and_refuse() {
        let range: Ipv4Range = "10.96.0.0/16".parse().unwrap();
        assert_eq!(range.nth(1), Ipv4Addr::new(10, 96, 0, 1));
        assert!(!range.usable(Ipv4Addr::new(10, 96, 255, 255)) && !range.usable(Ipv4Addr::new(10, 97, 0, 1)));
        for bad in ["10.96.0.0", "10.96.0/16", "10.96.0.0/31", "x/16"] {
            assert!(bad.parse::<Ipv4Range>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_address_of_a_small_range_is_given_once() {
        let allocator = allocator("10.0.0.0/28");
        let mut seen = std::collections::HashSet::new();
        for number in 0..12 {
            let mut new = service(&format!("s{number}"), json!({"type": "ClusterIP"}));
            give(&allocator, None, &mut new, number * 7919).unwrap();
            assert!(seen.insert(text(&new, "/spec/clusterIP").to_owned()));
        }
        let refused = give(&allocator, None, &mut service("last", json!({"type": "ClusterIP"})), 1).unwrap_err();
        assert!(refused.contains("is full"), "{refused}");
        assert!(!seen.contains("10.0.0.10") && !seen.contains("10.0.0.1"));
    }

    #[test]
    fn a_taken_address_is_refused_and_a_failed_write_gives_back() {
        let allocator = allocator("10.96.0.0/16");
        give(
            &allocator,
            None,
            &mut service("a", json!({"type": "ClusterIP", "clusterIP": "10.96.0.7"})),
            0,
        )
        .unwrap();
        let mut b = service("b", json!({"type": "ClusterIP", "clusterIP": "10.96.0.7"}));
        let refused = give(&allocator, None, &mut b, 0).unwrap_err();
        assert!(
            refused.ends_with("failed to allocate IP 10.96.0.7: provided IP is already allocated"),
            "{refused}"
        );
        let mut c = service(
            "c",
            json!({"type": "NodePort", "clusterIP": "10.96.0.8", "ports": [{"nodePort": 1}]}),
        );
        give(&allocator, None, &mut c, 0).unwrap_err();
        assert!(
            !allocator
                .held
                .lock()
                .addresses
                .contains_key(&Ipv4Addr::new(10, 96, 0, 8))
        );
    }

    #[test]
    fn node_ports_follow_the_type() {
        let allocator = allocator("10.96.0.0/16");
        let mut new = service(
            "a",
            json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81, "nodePort": 30007}]}),
        );
        give(&allocator, None, &mut new, 7).unwrap();
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30008);
        let mut internal = new.clone();
        internal["spec"]["type"] = json!("ClusterIP");
        give(&allocator, Some(&new), &mut internal, 7).unwrap();
        assert_eq!(internal["spec"]["ports"][1].get("nodePort"), None);
        assert!(allocator.held.lock().ports.is_empty());
    }

    #[test]
    fn headless_and_external_names_take_no_address() {
        let allocator = allocator("10.96.0.0/16");
        let mut headless = service("a", json!({"type": "ClusterIP", "clusterIP": "None"}));
        give(&allocator, None, &mut headless, 0).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let mut name = service("b", json!({"type": "ExternalName", "externalName": "x.y"}));
        give(&allocator, None, &mut name, 0).unwrap();
        assert_eq!(name["spec"].get("clusterIP"), None);
        assert!(allocator.held.lock().addresses.is_empty());
    }
}
