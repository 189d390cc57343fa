//! From what the maps hold to what they should hold: the smallest list of writes, in an order that is safe to stop
//! at any point. Pure.
//!
//! Invariant: whenever a service is in the map, the complete set of slots of its generation is there, too. So a new
//! set is written under the next generation, the service is switched to it in one write, then the old set goes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use hull_ebpf_types as bpf;

use super::tables::{Balanced, Frontend, Protocol, Tables, endpoint_from_bpf, endpoint_to_bpf};

/// One write to one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    PutSlot(bpf::Backend),
    RemoveSlot(bpf::Slot),
    PutMember(bpf::Member),
    RemoveMember(bpf::Member),
    PutCounters(u32),
    RemoveCounters(u32),
    PutService(bpf::Service),
    RemoveService(bpf::Frontend),
}

impl Op {
    /// What takes a prepared write back.
    pub(super) fn inverse(&self) -> Option<Op> {
        match *self {
            Op::PutSlot(backend) => Some(Op::RemoveSlot(backend.slot)),
            Op::PutMember(member) => Some(Op::RemoveMember(member)),
            Op::PutCounters(id) => Some(Op::RemoveCounters(id)),
            _ => None,
        }
    }
}

/// The change of one service: all of `prepare`, then `commit`, then `cleanup`. Until the commit nothing shows.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) frontend: Frontend,
    pub(super) prepare: Vec<Op>,
    pub(super) commit: Op,
    pub(super) cleanup: Vec<Op>,
    /// The state after the commit; `None` when the service is gone.
    pub(super) result: Option<Entry>,
    /// Backends that clients must leave.
    pub(super) gone: Vec<SocketAddrV4>,
}

/// A service as it is in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) service: bpf::Service,
    pub(super) backends: Vec<SocketAddrV4>,
    /// False for what a crash or another program left incomplete: it is written anew.
    pub(super) intact: bool,
}

/// All that is in the maps.
#[derive(Clone, Debug, Default)]
pub(super) struct Installed {
    pub(super) services: BTreeMap<Frontend, Entry>,
    last_id: u32,
}

/// The maps' raw contents.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    pub(super) services: Vec<(bpf::Frontend, bpf::Service)>,
    pub(super) slots: Vec<(bpf::Slot, bpf::Backend)>,
    pub(super) members: Vec<bpf::Member>,
    pub(super) counters: Vec<u32>,
}

impl Installed {
    /// Understands what an earlier agent left, and what of it nothing refers to.
    pub(super) fn rebuild(contents: &Contents) -> (Installed, Vec<Op>) {
        let mut strays = Vec::new();
        let mut sets: BTreeMap<(u32, u32), BTreeMap<u32, SocketAddrV4>> = BTreeMap::new();
        for (slot, backend) in &contents.slots {
            if let Some(address) = endpoint_from_bpf(&backend.endpoint) {
                sets.entry((slot.service, slot.generation))
                    .or_default()
                    .insert(slot.index, address);
            }
        }
        let mut installed = Installed::default();
        for (key, service) in &contents.services {
            match Frontend::from_bpf(key) {
                Some(frontend) => {
                    installed.last_id = installed.last_id.max(service.id);
                    let set = sets.get(&(service.id, service.generation));
                    installed.services.insert(frontend, Entry::read(key, service, set));
                }
                None => strays.push(Op::RemoveService(*key)),
            }
        }
        let by_id: BTreeMap<u32, &Entry> = installed
            .services
            .values()
            .map(|entry| (entry.service.id, entry))
            .collect();
        let members = by_id
            .values()
            .flat_map(|entry| entry.members())
            .collect::<BTreeSet<_>>();
        strays.extend(contents.slots.iter().filter_map(|(slot, _)| {
            let used = by_id
                .get(&slot.service)
                .is_some_and(|entry| slot.generation == entry.service.generation && slot.index < entry.service.count);
            (!used).then_some(Op::RemoveSlot(*slot))
        }));
        strays.extend(
            contents
                .members
                .iter()
                .filter(|m| !members.contains(m))
                .map(|m| Op::RemoveMember(*m)),
        );
        strays.extend(
            contents
                .counters
                .iter()
                .filter(|id| !by_id.contains_key(id))
                .map(|id| Op::RemoveCounters(*id)),
        );
        // An id that still has strays must not be given to a new service before they are gone.
        let stray_ids = contents.slots.iter().map(|(slot, _)| slot.service);
        installed.last_id = stray_ids
            .chain(contents.counters.iter().copied())
            .fold(installed.last_id, u32::max);
        (installed, strays)
    }

    /// The changes that lead to `desired`: removals first, they make room.
    pub(super) fn plan(&mut self, desired: &Tables) -> Vec<Change> {
        let removed = self
            .services
            .iter()
            .filter(|(frontend, _)| !desired.services.contains_key(frontend));
        let mut changes: Vec<Change> = removed.map(|(frontend, entry)| removal(*frontend, entry)).collect();
        for (frontend, balanced) in &desired.services {
            match self.services.get(frontend) {
                Some(entry) if entry.fits(balanced) => {}
                Some(entry) => changes.push(update(*frontend, entry, balanced)),
                None => {
                    self.last_id = self.last_id.wrapping_add(1);
                    changes.push(addition(*frontend, self.last_id, balanced));
                }
            }
        }
        changes
    }

    /// Takes note of a change that was carried out.
    pub(super) fn done(&mut self, change: Change) {
        match change.result {
            Some(entry) => self.services.insert(change.frontend, entry),
            None => self.services.remove(&change.frontend),
        };
    }
}

impl Entry {
    fn new(frontend: Frontend, id: u32, generation: u32, balanced: &Balanced) -> Entry {
        let service = bpf::Service {
            frontend: frontend.to_bpf(),
            id,
            count: u32::try_from(balanced.backends.len()).unwrap_or(u32::MAX),
            generation,
            affinity: balanced.affinity.unwrap_or(0),
            zero: 0,
        };
        Entry {
            service,
            backends: balanced.backends.clone(),
            intact: true,
        }
    }

    fn read(key: &bpf::Frontend, service: &bpf::Service, set: Option<&BTreeMap<u32, SocketAddrV4>>) -> Entry {
        let found = set.into_iter().flatten().filter(|(index, _)| **index < service.count);
        let backends: Vec<SocketAddrV4> = found.map(|(_, address)| *address).collect();
        let intact = backends.len() == service.count as usize && service.frontend == *key;
        Entry {
            service: *service,
            backends,
            intact,
        }
    }

    fn fits(&self, balanced: &Balanced) -> bool {
        self.intact && self.backends == balanced.backends && self.service.affinity == balanced.affinity.unwrap_or(0)
    }

    fn slots(&self) -> impl Iterator<Item = bpf::Backend> {
        let bpf::Service { id, generation, .. } = self.service;
        (0..).zip(&self.backends).map(move |(index, address)| bpf::Backend {
            slot: bpf::Slot {
                service: id,
                generation,
                index,
            },
            endpoint: endpoint_to_bpf(*address),
        })
    }

    /// Only where a client may come back to a backend without a new choice: affinity and unconnected UDP.
    fn members(&self) -> BTreeSet<bpf::Member> {
        let bpf::Service {
            id, affinity, frontend, ..
        } = self.service;
        let udp = Frontend::from_bpf(&frontend).is_some_and(|frontend| frontend.protocol == Protocol::Udp);
        if affinity == 0 && !udp {
            return BTreeSet::new();
        }
        let member = |address: &SocketAddrV4| bpf::Member {
            service: id,
            endpoint: endpoint_to_bpf(*address),
        };
        self.backends.iter().map(member).collect()
    }
}

fn addition(frontend: Frontend, id: u32, balanced: &Balanced) -> Change {
    let entry = Entry::new(frontend, id, 1, balanced);
    let prepare = std::iter::once(Op::PutCounters(id))
        .chain(entry.slots().map(Op::PutSlot))
        .chain(entry.members().into_iter().map(Op::PutMember))
        .collect();
    let commit = Op::PutService(entry.service);
    Change {
        frontend,
        prepare,
        commit,
        cleanup: Vec::new(),
        result: Some(entry),
        gone: Vec::new(),
    }
}

fn removal(frontend: Frontend, entry: &Entry) -> Change {
    let cleanup = entry
        .slots()
        .map(|backend| Op::RemoveSlot(backend.slot))
        .chain(entry.members().into_iter().map(Op::RemoveMember))
        .chain([Op::RemoveCounters(entry.service.id)])
        .collect();
    let commit = Op::RemoveService(entry.service.frontend);
    Change {
        frontend,
        prepare: Vec::new(),
        commit,
        cleanup,
        result: None,
        gone: entry.backends.clone(),
    }
}

fn update(frontend: Frontend, old: &Entry, balanced: &Balanced) -> Change {
    let same_set = old.intact && old.backends == balanced.backends;
    let generation = if same_set {
        old.service.generation
    } else {
        old.service.generation.wrapping_add(1)
    };
    let new = Entry::new(frontend, old.service.id, generation, balanced);
    let (old_members, new_members) = (old.members(), new.members());
    let mut prepare = Vec::new();
    let mut cleanup = Vec::new();
    if !same_set {
        prepare.extend(new.slots().map(Op::PutSlot));
        // A set with holes is left by its indices, not by what was found in it.
        let bpf::Service {
            id: service,
            generation,
            count,
            ..
        } = old.service;
        cleanup.extend((0..count).map(|index| {
            Op::RemoveSlot(bpf::Slot {
                service,
                generation,
                index,
            })
        }));
    }
    prepare.extend(new_members.difference(&old_members).copied().map(Op::PutMember));
    cleanup.extend(old_members.difference(&new_members).copied().map(Op::RemoveMember));
    let gone = old
        .backends
        .iter()
        .filter(|address| !new.backends.contains(address))
        .copied()
        .collect();
    Change {
        frontend,
        prepare,
        commit: Op::PutService(new.service),
        cleanup,
        result: Some(new),
        gone,
    }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
