//! Addresses and node ports of Services: unique, from configured ranges, given at create, freed at delete.
//!
//! Invariant: an address or port is never held by two services. The allocator is filled from the cache on first use and
//! changed only by the registry, so what it holds is what the store holds plus writes under way.

mod address;
mod families;
mod port;
mod range;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;

use parking_lot::Mutex;
use serde_json::Value;

use super::metadata::{child_mut, text};
use super::{Registry, Status};
use crate::cache::Cache;
use crate::controllers::service_address::{ADDRESSES, MANAGED_BY, MANAGER};
use crate::controllers::service_cidr::RANGES;
use crate::schema::{FieldError, Resource};

pub use range::{ServiceRange, ServiceRanges};

#[derive(Default)]
struct Held {
    loaded: bool,
    addresses: HashMap<IpAddr, Box<str>>,
    ports: HashMap<u16, Box<str>>,
}

/// Who holds which address and node port.
pub struct ServiceAllocator {
    ranges: ServiceRanges,
    held: Mutex<Held>,
}

/// What stands in objects of their own: addresses that are taken, and ranges beside the cluster's.
trait Others: Sync {
    /// Whether the IPAddress of that name, if there is one, follows a service, and so what is held here.
    fn follows_a_service(&self, address: IpAddr) -> Option<bool>;
    /// The ranges of ServiceCIDRs that stay.
    fn ranges(&self) -> Vec<ServiceRange>;
}

impl Others for Cache {
    fn follows_a_service(&self, address: IpAddr) -> Option<bool> {
        let object = self.get(ADDRESSES, "", &address.to_string())?;
        Some(object.label(MANAGED_BY) == Some(MANAGER))
    }

    fn ranges(&self) -> Vec<ServiceRange> {
        let objects = self.snapshot(RANGES);
        let values = objects.iter().map(|object| object.value());
        let staying = values.filter(|value| value["metadata"]["deletionTimestamp"].is_null());
        let texts = staying.flat_map(|value| value["spec"]["cidrs"].as_array().cloned().unwrap_or_default());
        texts.filter_map(|text| text.as_str()?.parse().ok()).collect()
    }
}

/// What one write took; given back when dropped, unless kept.
pub(super) struct Reservation<'a> {
    allocator: &'a ServiceAllocator,
    others: &'a dyn Others,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    freed_addresses: Vec<IpAddr>,
    freed_ports: Vec<u16>,
    owner: Box<str>,
}

/// Why a Service does not get what it asks for.
#[derive(Debug)]
enum Refusal {
    /// It asks for something wrong.
    Fields(Vec<FieldError>),
    /// There is nothing left.
    Exhausted(String),
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Refusal::Fields(vec![error])
    }
}

impl Reservation<'_> {
    /// The write succeeded: what it took stays taken, what it gave up is free.
    pub(super) fn keep(mut self) {
        self.addresses = std::mem::take(&mut self.freed_addresses);
        self.ports = std::mem::take(&mut self.freed_ports);
    }

    /// Gives `service` what its spec asks for. `seed` decides where the search for something free begins.
    fn fill(&mut self, old: Option<&Value>, service: &mut Value, seed: u32) -> Result<(), Refusal> {
        let spec = child_mut(service, "spec");
        let before = old.and_then(|old| old["spec"].as_object());
        families::complete(spec, before, self.allocator.ranges).map_err(Refusal::Fields)?;
        self.fill_addresses(before, spec, seed)?;
        self.fill_ports(before, spec, seed)
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
    pub fn new(ranges: ServiceRanges) -> Self {
        Self {
            ranges,
            held: Mutex::default(),
        }
    }

    fn reservation<'a>(&'a self, others: &'a dyn Others, owner: Box<str>) -> Reservation<'a> {
        Reservation {
            allocator: self,
            others,
            addresses: Vec::new(),
            ports: Vec::new(),
            freed_addresses: Vec::new(),
            freed_ports: Vec::new(),
            owner,
        }
    }

    fn free(&self, owner: &str, addresses: &[IpAddr], ports: &[u16]) {
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
            let addresses = address::of(&service["spec"]);
            held.addresses.extend(addresses.map(|address| (address, owner.clone())));
            held.ports
                .extend(port::of(&service["spec"]).map(|port| (port, owner.clone())));
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
        if resource.key != "services" {
            return Ok(self.services.reservation(&**self.cache(), "".into()));
        }
        self.services.load(self.cache());
        let mut reservation = self.services.reservation(&**self.cache(), owner(new));
        let seed = self.environment().below(u32::MAX);
        match reservation.fill(old, new, seed) {
            Ok(()) => Ok(reservation),
            Err(Refusal::Fields(errors)) => Err(Status::invalid(resource, text(new, "/metadata/name"), &errors)),
            Err(Refusal::Exhausted(why)) => Err(Status::internal(why)),
        }
    }

    /// Frees what a deleted Service held.
    pub(super) fn release(&self, resource: &'static Resource, last: &Value) {
        if resource.key != "services" {
            return;
        }
        let addresses: Vec<IpAddr> = address::of(&last["spec"]).collect();
        let ports: Vec<u16> = port::of(&last["spec"]).collect();
        self.services.free(&owner(last), &addresses, &ports);
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
