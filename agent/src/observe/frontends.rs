//! The proxy's tables as the kernel has them: what a client that connects now would meet.
//!
//! Read from the proxy's pinned maps, not from the agent's memory of them, so that it is the truth even when the two
//! should differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuHashMap};
use hull_ebpf_types as bpf;

use super::names::{Names, ServicePort};
use super::{Error, ObserveConfig};

/// As many slots as a service can have.
const SLOTS_MAX: u32 = 65_536;

/// The proxy's maps.
pub(super) struct Frontends {
    services: HashMap<MapData, bpf::Frontend, bpf::Offer>,
    slots: HashMap<MapData, bpf::Slot, bpf::Backend>,
    counters: PerCpuHashMap<MapData, u32, bpf::Counters>,
}

/// What has happened to the clients of a service's port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Sent to a backend: connects, and datagrams without one.
    pub translated: u64,
    /// Refused for want of a backend.
    pub refused: u64,
}

impl Frontends {
    /// Opens the maps where the proxy pinned them.
    pub(super) fn open(config: &ObserveConfig) -> Result<Frontends, Error> {
        let pinned = |name: &'static str| {
            let path = config.shared_pin(name);
            MapData::from_pin(&path).map_err(|error| Error::access("open", name, &error))
        };
        Ok(Frontends {
            services: fits("services", HashMap::try_from(Map::HashMap(pinned("services")?)))?,
            slots: fits("slots", HashMap::try_from(Map::HashMap(pinned("slots")?)))?,
            counters: fits(
                "counters",
                PerCpuHashMap::try_from(Map::PerCpuHashMap(pinned("counters")?)),
            )?,
        })
    }

    /// The service at an address, if the kernel knows one.
    pub(super) fn service(&self, frontend: &bpf::Frontend) -> Option<bpf::Service> {
        self.services.get(frontend, 0).ok().map(|offer| offer.service)
    }

    /// The backends of a service, each with the number of slots that lead to it.
    pub(super) fn backends(&self, service: &bpf::Service) -> Vec<(bpf::Backend, u32)> {
        let mut found: BTreeMap<bpf::Endpoint, (bpf::Backend, u32)> = BTreeMap::new();
        for index in 0..service.count.min(SLOTS_MAX) {
            let slot = bpf::Slot {
                service: service.id,
                generation: service.generation,
                index,
            };
            if let Ok(backend) = self.slots.get(&slot, 0) {
                found.entry(backend.endpoint).or_insert((backend, 0)).1 += 1;
            }
        }
        found.into_values().collect()
    }

    /// The backends that these services have now.
    pub(super) fn living(&self, services: &BTreeSet<u32>) -> Result<BTreeSet<bpf::Member>, Error> {
        let mut living = BTreeSet::new();
        for element in self.services.iter() {
            let (_, bpf::Offer { service, .. }) = element.map_err(|error| Error::access("read", "services", &error))?;
            if services.contains(&service.id) {
                let member = |(backend, _): (bpf::Backend, u32)| bpf::Member {
                    service: service.id,
                    endpoint: backend.endpoint,
                };
                living.extend(self.backends(&service).into_iter().map(member));
            }
        }
        Ok(living)
    }

    /// What has happened to the clients of a service.
    pub(super) fn clients(&self, service: u32) -> Clients {
        let Ok(values) = self.counters.get(&service, 0) else {
            return Clients::default();
        };
        values.iter().fold(Clients::default(), |sum, value| Clients {
            translated: sum.translated + value.translated,
            refused: sum.refused + value.refused,
        })
    }

    /// What has happened to the clients of every port that had any.
    pub(super) fn all_clients(&self, names: &Names) -> Result<BTreeMap<Arc<ServicePort>, Clients>, Error> {
        let broken = |map| move |error: MapError| Error::access("read", map, &error);
        let mut found = BTreeMap::new();
        let counted: Vec<u32> = self
            .counters
            .keys()
            .collect::<Result<_, _>>()
            .map_err(broken("counters"))?;
        if counted.is_empty() {
            return Ok(found);
        }
        let mut named: BTreeMap<u32, Arc<ServicePort>> = BTreeMap::new();
        for element in self.services.iter() {
            let (frontend, bpf::Offer { service, .. }) = element.map_err(broken("services"))?;
            // A whole address whose ports are refused is nobody's.
            if frontend.port != 0 {
                named.entry(service.id).or_insert_with(|| names.name(&frontend));
            }
        }
        for id in counted {
            if let Some(name) = named.get(&id) {
                let sum: &mut Clients = found.entry(Arc::clone(name)).or_default();
                let more = self.clients(id);
                sum.translated += more.translated;
                sum.refused += more.refused;
            }
        }
        Ok(found)
    }
}

fn fits<T>(map: &'static str, result: Result<T, MapError>) -> Result<T, Error> {
    result.map_err(|error| Error::access("use", map, &error))
}
