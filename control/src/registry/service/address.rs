//! Cluster IPs, one of each of the service's families.
//!
//! What is given without being asked for comes from the upper part of a range first: the lower part is for addresses
//! chosen by hand (KEP-3070).

use std::collections::hash_map::Entry;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::families::texts;
use super::range::ServiceRange;
use super::{Refusal, Reservation};
use crate::schema::FieldError;

/// Offset of the cluster DNS address, never given to another service unless asked for by name.
const DNS_OFFSET: u64 = 10;
/// Offset of the `kubernetes` service.
const API_OFFSET: u64 = 1;

impl Reservation<'_> {
    pub(super) fn fill_addresses(
        &mut self,
        before: Option<&Map<String, Value>>,
        spec: &mut Map<String, Value>,
        seed: u32,
    ) -> Result<(), Refusal> {
        let external = spec.get("type").and_then(Value::as_str) == Some("ExternalName");
        let mut addresses = texts(spec, "clusterIPs");
        let headless = addresses.first().is_some_and(|first| first == "None");
        if !external && !headless {
            for (index, family) in texts(spec, "ipFamilies").iter().enumerate() {
                let Some(range) = self.allocator.ranges.of(family) else {
                    // A family that the cluster has no longer: what the service has of it stays.
                    continue;
                };
                match addresses.get(index).filter(|asked| !asked.is_empty()) {
                    Some(asked) => self.this_address(range, asked, &addresses)?,
                    None => addresses.push(self.any_address(range, seed)?.to_string()),
                }
            }
            spec.insert("clusterIP".into(), json!(addresses.first()));
            spec.insert("clusterIPs".into(), json!(addresses));
        }
        let now: Vec<IpAddr> = parsed(&addresses).collect();
        let held = parsed(&before.map(|before| texts(before, "clusterIPs")).unwrap_or_default()).collect::<Vec<_>>();
        self.freed_addresses = held.into_iter().filter(|address| !now.contains(address)).collect();
        Ok(())
    }

    fn this_address(&mut self, range: ServiceRange, asked: &str, all: &[String]) -> Result<(), Refusal> {
        let refuse = |why: String| {
            let detail = format!("failed to allocate IP {asked}: {why}");
            FieldError::invalid("spec.clusterIPs", json!(all), detail)
        };
        let address: IpAddr = asked.parse().map_err(|_| refuse("not an IP address".into()))?;
        let mut held = self.allocator.held.lock();
        match held.addresses.get(&address) {
            // Also one outside of today's ranges.
            Some(holder) if *holder == self.owner => return Ok(()),
            Some(_) => return Err(refuse("provided IP is already allocated".into()).into()),
            None if self.others.follows_a_service(address) == Some(false) => {
                return Err(refuse("provided IP is already allocated".into()).into());
            }
            None => {}
        }
        if !range.contains(address) && !self.other_ranges(range).iter().any(|range| range.contains(address)) {
            let why = format!("the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}");
            return Err(refuse(why).into());
        }
        held.addresses.insert(address, self.owner.clone());
        self.addresses.push(address);
        Ok(())
    }

    /// An address of the cluster's range, or else of a ServiceCIDR that was added.
    fn any_address(&mut self, range: ServiceRange, seed: u32) -> Result<IpAddr, Refusal> {
        let found = self.any_of(range, seed);
        let mut others = self.other_ranges(range).into_iter().filter(|_| found.is_none());
        found
            .or_else(|| others.find_map(|other| self.any_of(other, seed)))
            .ok_or_else(|| Refusal::Exhausted(format!("failed to allocate a serviceIP: range {range} is full")))
    }

    fn any_of(&mut self, range: ServiceRange, seed: u32) -> Option<IpAddr> {
        let usable = range.usable();
        let band = ((usable + 2) / 16).clamp(16, 256).min(usable);
        let upper = usable - band;
        let start = u64::from(seed) % upper.max(1);
        let mut held = self.allocator.held.lock();
        // One more than are held: a free one is among them if there is one.
        let tries = upper.min(held.addresses.len() as u64 + 1);
        let offsets = (0..tries).map(|step| 1 + band + (start + step) % upper);
        let free = offsets
            .chain(1..=band)
            .filter(|offset| *offset != DNS_OFFSET && *offset != API_OFFSET);
        for address in free.map(|offset| range.nth(offset)) {
            if let Entry::Vacant(free) = held.addresses.entry(address)
                && self.others.follows_a_service(address).is_none()
            {
                free.insert(self.owner.clone());
                self.addresses.push(address);
                return Some(address);
            }
        }
        None
    }

    /// The ranges of a family beside the cluster's own.
    fn other_ranges(&self, own: ServiceRange) -> Vec<ServiceRange> {
        let all = self.others.ranges().into_iter();
        all.filter(|range| range.family() == own.family() && *range != own)
            .collect()
    }
}

/// The cluster IPs that a spec has.
pub(super) fn of(spec: &Value) -> impl Iterator<Item = IpAddr> + use<> {
    let mut addresses = spec
        .as_object()
        .map(|spec| texts(spec, "clusterIPs"))
        .unwrap_or_default();
    if addresses.is_empty() {
        addresses.extend(spec["clusterIP"].as_str().map(str::to_owned));
    }
    parsed(&addresses).collect::<Vec<_>>().into_iter()
}

fn parsed(addresses: &[String]) -> impl Iterator<Item = IpAddr> {
    addresses.iter().filter_map(|address| address.parse().ok())
}
