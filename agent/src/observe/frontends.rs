//! The proxy's tables as the kernel has them: what a client that connects now would meet.
//!
//! Read from the proxy's pinned maps, not from the agent's memory of them, so that it is the truth even when the two
//! should differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aya::maps::{HashMap, MapData, MapError, PerCpuHashMap};
use hull_ebpf_types as bpf;

use super::names::{Names, ServicePort};
use super::{Error, ObserveConfig};
use crate::bpf::Followed;

/// As many slots as a service can have.
const SLOTS_MAX: u32 = 65_536;

type Services = HashMap<MapData, bpf::Frontend, bpf::Offer>;

/// The proxy's maps, which it exchanges for larger ones: each look goes by those in force.
pub(super) struct Frontends {
    services: Followed<Services>,
    slots: Followed<HashMap<MapData, bpf::Slot, bpf::Backend>>,
    counters: Followed<PerCpuHashMap<MapData, u32, bpf::Counters>>,
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
        let opened = |name| move |error| Error::access("open", name, &error);
        Ok(Frontends {
            services: Followed::open(&config.shared_pin("services")).map_err(opened("services"))?,
            slots: Followed::open(&config.shared_pin("slots")).map_err(opened("slots"))?,
            counters: Followed::open(&config.shared_pin("counters")).map_err(opened("counters"))?,
        })
    }

    /// The service at an address, if the kernel knows one.
    pub(super) fn service(&self, frontend: &bpf::Frontend) -> Option<bpf::Service> {
        let services = self.services.now().ok()??;
        services.get(frontend, 0).ok().map(|offer| offer.service)
    }

    /// The backends of a service, each with the number of slots that lead to it.
    pub(super) fn backends(&self, service: &bpf::Service) -> Vec<(bpf::Backend, u32)> {
        let mut found: BTreeMap<bpf::Endpoint, (bpf::Backend, u32)> = BTreeMap::new();
        let Ok(Some(slots)) = self.slots.now() else {
            return Vec::new();
        };
        for index in 0..service.count.min(SLOTS_MAX) {
            let slot = bpf::Slot {
                service: service.id,
                generation: service.generation,
                index,
            };
            if let Ok(backend) = slots.get(&slot, 0) {
                found.entry(backend.endpoint).or_insert((backend, 0)).1 += 1;
            }
        }
        found.into_values().collect()
    }

    /// The backends that these services have now.
    pub(super) fn living(&self, services: &BTreeSet<u32>) -> Result<BTreeSet<bpf::Member>, Error> {
        let mut living = BTreeSet::new();
        for (_, service) in self.services()? {
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
        let maps = self.counters.all().unwrap_or_default();
        let values = maps.iter().filter_map(|map| map.get(&service, 0).ok());
        let all = values.flat_map(|values| values.to_vec());
        all.fold(Clients::default(), |sum, value| Clients {
            translated: sum.translated + value.translated,
            refused: sum.refused + value.refused,
        })
    }

    /// What each frontend leads to.
    fn services(&self) -> Result<Vec<(bpf::Frontend, bpf::Service)>, Error> {
        let services: Option<Services> = self.services.now().map_err(broken("services"))?;
        let elements = services.iter().flat_map(HashMap::iter);
        let services = elements.map(|element| element.map(|(frontend, offer)| (frontend, offer.service)));
        services.collect::<Result<_, _>>().map_err(broken("services"))
    }

    /// What has happened to the clients of every port that had any.
    pub(super) fn all_clients(&self, names: &Names) -> Result<BTreeMap<Arc<ServicePort>, Clients>, Error> {
        let mut found = BTreeMap::new();
        let maps = self.counters.all().map_err(broken("counters"))?;
        let counted: BTreeSet<u32> = maps
            .iter()
            .flat_map(PerCpuHashMap::keys)
            .collect::<Result<_, _>>()
            .map_err(broken("counters"))?;
        if counted.is_empty() {
            return Ok(found);
        }
        let mut named: BTreeMap<u32, Arc<ServicePort>> = BTreeMap::new();
        for (frontend, service) in self.services()? {
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

fn broken(map: &'static str) -> impl Fn(MapError) -> Error {
    move |error| Error::access("read", map, &error)
}
