//! A mirror of what the maps hold, and how it is understood again after a restart. Pure.
//!
//! Invariant: whenever a frontend is in the map, the complete set of slots of its generation is there, too.

use std::collections::{BTreeMap, HashMap, HashSet};

use hull_ebpf_types as bpf;

use super::tables::{Backend, Group, GroupName, ServiceName};

/// One write to one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    PutSlot(bpf::Backend),
    RemoveSlot(bpf::Slot),
    PutChunk(Box<bpf::Chunk>),
    RemoveChunk(bpf::Slot),
    PutMember(bpf::Member),
    RemoveMember(bpf::Member),
    RemoveLoad(bpf::Member),
    RemoveCounters(u32),
    PutService(Box<bpf::Offer>),
    RemoveService(bpf::Frontend),
}

impl Op {
    /// The frontend that is written or removed.
    pub(super) fn frontend(&self) -> Option<bpf::Frontend> {
        match self {
            Op::PutService(offer) => Some(offer.service.frontend),
            Op::RemoveService(frontend) => Some(*frontend),
            _ => None,
        }
    }

    /// What takes a prepared write back.
    pub(super) fn inverse(&self) -> Option<Op> {
        match self {
            Op::PutSlot(backend) => Some(Op::RemoveSlot(backend.slot)),
            Op::PutChunk(chunk) => Some(Op::RemoveChunk(chunk.key)),
            Op::PutMember(member) => Some(Op::RemoveMember(*member)),
            _ => None,
        }
    }
}

/// The extent of a generation of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Extent {
    pub(super) generation: u32,
    pub(super) count: u32,
    pub(super) table: u32,
}

/// A set of backends as it is in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    /// What the frontends refer to; more than one after a crash in the middle of a change.
    pub(super) extents: Vec<Extent>,
    pub(super) backends: Vec<Backend>,
    pub(super) algorithm: u32,
    pub(super) affinity: u32,
    pub(super) frontends: Vec<bpf::Frontend>,
    /// False for what a crash or another program left incomplete: it is written anew.
    pub(super) intact: bool,
}

impl Set {
    /// Only where a client may come back to a backend without a new choice: affinity and UDP.
    pub(super) fn has_members(&self) -> bool {
        const UDP: u8 = 17;
        self.affinity != 0 || self.frontends.iter().any(|frontend| frontend.protocol == UDP)
    }
}

/// All that is in the maps.
#[derive(Debug, Default)]
pub(super) struct Installed {
    pub(super) services: HashMap<bpf::Frontend, bpf::Service>,
    pub(super) sets: HashMap<u32, Set>,
    /// The sets of each service.
    pub(super) names: HashMap<ServiceName, Vec<(GroupName, u32)>>,
    /// Sets that belong to a service. The others were left by an earlier agent.
    pub(super) claimed: HashSet<u32>,
    pub(super) last_id: u32,
}

/// The maps' raw contents.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    pub(super) services: Vec<(bpf::Frontend, bpf::Service)>,
    pub(super) slots: Vec<(bpf::Slot, bpf::Backend)>,
    pub(super) chunks: Vec<bpf::Slot>,
    pub(super) members: Vec<bpf::Member>,
    pub(super) counters: Vec<u32>,
}

impl Installed {
    /// Understands what an earlier agent left, and what of it nothing refers to.
    pub(super) fn rebuild(contents: &Contents) -> (Installed, Vec<Op>) {
        let mut slots: HashMap<(u32, u32), BTreeMap<u32, &bpf::Backend>> = HashMap::new();
        for (slot, backend) in &contents.slots {
            let set = slots.entry((slot.service, slot.generation)).or_default();
            set.insert(slot.index, backend);
        }
        let mut chunks: HashMap<(u32, u32), u32> = HashMap::new();
        for chunk in &contents.chunks {
            *chunks.entry((chunk.service, chunk.generation)).or_default() += 1;
        }
        let mut installed = Installed::default();
        for (frontend, service) in &contents.services {
            let extent = Extent {
                generation: service.generation,
                count: service.count,
                table: service.table,
            };
            let key = (service.id, service.generation);
            let set = installed.sets.entry(service.id).or_insert_with(|| {
                let (backends, complete) = backends(slots.get(&key), extent);
                let tables = chunks.get(&key).copied().unwrap_or(0);
                Set {
                    extents: vec![extent],
                    backends,
                    algorithm: service.algorithm,
                    affinity: service.affinity,
                    frontends: Vec::new(),
                    intact: complete && tables == extent.table.div_ceil(bpf::CHUNK as u32),
                }
            });
            set.frontends.push(*frontend);
            if !set.extents.contains(&extent) {
                set.extents.push(extent);
            }
            let alike =
                set.extents.len() == 1 && (set.algorithm, set.affinity) == (service.algorithm, service.affinity);
            set.intact &= alike && service.frontend == *frontend;
            installed.services.insert(*frontend, *service);
        }
        let strays = installed.strays(contents);
        // An id that still has strays must not be given to a new set before they are gone.
        let ids = contents.services.iter().map(|(_, service)| service.id);
        let stray_ids = contents.slots.iter().map(|(slot, _)| slot.service);
        installed.last_id = ids
            .chain(stray_ids)
            .chain(contents.counters.iter().copied())
            .max()
            .unwrap_or(0);
        (installed, strays)
    }

    fn strays(&self, contents: &Contents) -> Vec<Op> {
        let used = |slot: &bpf::Slot, extent: fn(&Extent) -> u32| {
            let extents = self.sets.get(&slot.service).map(|set| set.extents.as_slice());
            let mut extents = extents.unwrap_or_default().iter();
            extents.any(|e| e.generation == slot.generation && slot.index < extent(e))
        };
        let slots = contents.slots.iter().map(|(slot, _)| slot);
        let slots = slots.filter(|slot| !used(slot, |extent| extent.count));
        let chunks = &contents.chunks;
        let chunks = chunks
            .iter()
            .filter(|chunk| !used(chunk, |e| e.table.div_ceil(bpf::CHUNK as u32)));
        let members = contents.members.iter().filter(|member| {
            let set = self.sets.get(&member.service);
            let of_set = set.is_some_and(|set| set.backends.iter().any(|b| b.endpoint == member.endpoint));
            !(of_set && set.is_some_and(Set::has_members))
        });
        let counters = contents.counters.iter();
        let counters = counters.filter(|id| **id != 0 && !self.sets.contains_key(id));
        slots
            .map(|slot| Op::RemoveSlot(*slot))
            .chain(chunks.map(|chunk| Op::RemoveChunk(*chunk)))
            .chain(members.map(|member| Op::RemoveMember(*member)))
            .chain(counters.map(|id| Op::RemoveCounters(*id)))
            .collect()
    }

    /// The set that holds a group: its own, or one that an earlier agent left under one of its frontends.
    pub(super) fn find(&self, service: &ServiceName, group: &Group) -> Option<u32> {
        let own = self.names.get(service).into_iter().flatten();
        if let Some((_, id)) = own.copied().find(|(name, _)| *name == group.name) {
            return Some(id);
        }
        let keys = group.frontends.iter().map(|exposed| exposed.frontend.to_bpf());
        let ids = keys.filter_map(|key| self.services.get(&key).map(|service| service.id));
        ids.into_iter().find(|id| !self.claimed.contains(id))
    }

    /// Gives a group its set, a new one if it has none.
    pub(super) fn claim(&mut self, service: &ServiceName, group: &Group) -> u32 {
        let found = self.find(service, group);
        let id = found.unwrap_or_else(|| {
            self.last_id = self.last_id.wrapping_add(1).max(1);
            self.last_id
        });
        if self.claimed.insert(id) {
            self.names.entry(service.clone()).or_default().push((group.name, id));
        }
        id
    }

    /// Whether a set belongs to another service than this.
    pub(super) fn is_others(&self, service: &ServiceName, id: u32) -> bool {
        let mut own = self.names.get(service).into_iter().flatten();
        self.claimed.contains(&id) && !own.any(|(_, own)| *own == id)
    }

    /// Takes note that a service no longer has a set.
    pub(super) fn release(&mut self, service: &ServiceName, id: u32) {
        self.claimed.remove(&id);
        if let Some(sets) = self.names.get_mut(service) {
            sets.retain(|(_, other)| *other != id);
            if sets.is_empty() {
                self.names.remove(service);
            }
        }
    }
}

/// The backends that the slots of a generation lead to, and whether all slots are there.
fn backends(slots: Option<&BTreeMap<u32, &bpf::Backend>>, extent: Extent) -> (Vec<Backend>, bool) {
    let used = slots.into_iter().flatten().filter(|(index, _)| **index < extent.count);
    let mut found = 0;
    let mut backends: Vec<Backend> = used
        .map(|(_, backend)| {
            found += 1;
            Backend {
                endpoint: backend.endpoint,
                weight: backend.weight,
            }
        })
        .collect();
    backends.sort_unstable();
    backends.dedup();
    (backends, found == extent.count)
}
