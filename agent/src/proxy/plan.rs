//! From what the maps hold of a group to what they should hold: the writes, in an order that is safe to stop at any
//! point. Pure.
//!
//! A new set of backends is written under the next generation, each frontend is switched to it in one write, then the
//! old set goes: no reader ever finds an empty or a mixed set.

use std::collections::{BTreeSet, HashSet};

use hull_ebpf_types as bpf;

use super::installed::{Extent, Installed, Op, Set};
use super::maglev;
use super::tables::{Backend, Exposed, Group};

/// Slots of a set of which backends are chosen at random by weight: weights are scaled down to fit.
const MAX_SLOTS: u32 = 4096;

/// The change of one group: all of `prepare`, then each of `commits`, then `cleanup`. Before the commits nothing shows.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub(super) id: u32,
    pub(super) prepare: Vec<Op>,
    pub(super) commits: Vec<Op>,
    pub(super) cleanup: Vec<Op>,
    /// The state after the commits; without frontends the set is gone.
    pub(super) result: Set,
    /// Backends that clients must leave, and the frontends they came by.
    pub(super) gone: Vec<bpf::Endpoint>,
    pub(super) left: Vec<bpf::Frontend>,
}

impl Change {
    pub(super) fn is_empty(&self) -> bool {
        self.prepare.is_empty() && self.commits.is_empty() && self.cleanup.is_empty()
    }
}

/// What leads from the set `id` to the group with these of its frontends. What is `wanted` is not removed: another
/// group of the service takes it over.
pub(super) fn change(
    installed: &Installed,
    id: u32,
    group: &Group,
    frontends: &[Exposed],
    wanted: &HashSet<bpf::Frontend>,
) -> Change {
    let empty = Set::default();
    let old = installed.sets.get(&id).unwrap_or(&empty);
    let algorithm = group.algorithm.to_bpf();
    let same = old.intact && old.backends == group.backends && old.algorithm == algorithm;
    let extent = match old.extents.first() {
        Some(extent) if same => *extent,
        _ => next_extent(old, group, algorithm),
    };
    let new = Set {
        extents: vec![extent],
        backends: group.backends.clone(),
        algorithm,
        affinity: group.affinity,
        frontends: frontends.iter().map(|exposed| exposed.frontend.to_bpf()).collect(),
        intact: true,
    };
    let mut change = Change {
        id,
        ..Change::default()
    };
    if !same {
        change
            .prepare
            .extend(slots(id, extent.generation, group).map(Op::PutSlot));
        change.prepare.extend(chunks(id, extent, group));
        change.cleanup.extend(remove_extents(id, old));
    }
    members(&mut change, old, &new);
    for exposed in frontends {
        let service = service(id, extent, group, exposed);
        if installed.services.get(&service.frontend) != Some(&service) || !old.intact {
            let first = first(extent.count, group);
            change
                .commits
                .push(Op::PutService(Box::new(bpf::Offer { service, first })));
        }
    }
    let kept: BTreeSet<&bpf::Frontend> = new.frontends.iter().collect();
    let lost = old.frontends.iter().filter(|frontend| {
        // What another set has taken over meanwhile is no longer this one's to remove.
        let held = installed.services.get(frontend).is_some_and(|service| service.id == id);
        held && !kept.contains(frontend) && !wanted.contains(frontend)
    });
    change.commits.extend(lost.map(|frontend| Op::RemoveService(*frontend)));
    let remains: BTreeSet<&bpf::Endpoint> = new.backends.iter().map(|backend| &backend.endpoint).collect();
    let gone = old.backends.iter().map(|backend| backend.endpoint);
    change.gone = gone.filter(|endpoint| !remains.contains(endpoint)).collect();
    change.cleanup.extend(change.gone.iter().map(|endpoint| {
        Op::RemoveLoad(bpf::Member {
            service: id,
            endpoint: *endpoint,
        })
    }));
    change.left = old.frontends.clone();
    change.result = new;
    change
}

/// What takes a set away.
pub(super) fn removal(installed: &Installed, id: u32) -> Change {
    let empty = Set::default();
    let old = installed.sets.get(&id).unwrap_or(&empty);
    let held = |frontend: &&bpf::Frontend| installed.services.get(frontend).is_some_and(|service| service.id == id);
    let mut change = Change {
        id,
        commits: old
            .frontends
            .iter()
            .filter(held)
            .copied()
            .map(Op::RemoveService)
            .collect(),
        cleanup: remove_extents(id, old).collect(),
        gone: old.backends.iter().map(|backend| backend.endpoint).collect(),
        left: old.frontends.clone(),
        ..Change::default()
    };
    members(&mut change, old, &empty);
    let loads = old
        .backends
        .iter()
        .map(|backend| member(id, backend))
        .map(Op::RemoveLoad);
    change.cleanup.extend(loads);
    change.cleanup.push(Op::RemoveCounters(id));
    change
}

fn next_extent(old: &Set, group: &Group, algorithm: u32) -> Extent {
    let last = old.extents.iter().map(|extent| extent.generation).max().unwrap_or(0);
    let count = places(group).map(|(_, times)| times).sum();
    let table = match algorithm {
        bpf::algorithm::MAGLEV => {
            let present = old.extents.first().map_or(0, |extent| extent.table);
            maglev::length(present, group.backends.len())
        }
        _ => 0,
    };
    Extent {
        generation: last.wrapping_add(1),
        count,
        table,
    }
}

/// How many slots each backend has: where a slot is taken at random, as many as its weight.
fn places(group: &Group) -> impl Iterator<Item = (&Backend, u32)> {
    let repeated = matches!(
        group.algorithm.to_bpf(),
        bpf::algorithm::RANDOM | bpf::algorithm::POWER_OF_TWO
    );
    let weights = || group.backends.iter().map(|backend| backend.weight);
    let divisor = weights().fold(0, greatest_common_divisor).max(1);
    let sum: u32 = weights().map(|weight| weight / divisor).sum();
    // Of a set so large that its weights do not fit, each backend has at least one slot.
    let scale = sum.div_ceil(MAX_SLOTS).max(1);
    group.backends.iter().map(move |backend| {
        let times = if repeated {
            (backend.weight / divisor / scale).max(1)
        } else {
            1
        };
        (backend, times)
    })
}

/// Slots that a group needs.
pub(super) fn slot_count(group: &Group) -> usize {
    places(group).map(|(_, times)| times as usize).sum()
}

/// Backends of a group that clients may come back to.
pub(super) fn member_count(group: &Group) -> usize {
    let set = Set {
        affinity: group.affinity,
        frontends: group
            .frontends
            .iter()
            .map(|exposed| exposed.frontend.to_bpf())
            .collect(),
        ..Set::default()
    };
    if set.has_members() { group.backends.len() } else { 0 }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

fn slots(id: u32, generation: u32, group: &Group) -> impl Iterator<Item = bpf::Backend> {
    let repeated = places(group).flat_map(|(backend, times)| (0..times).map(move |_| backend));
    (0..).zip(repeated).map(move |(index, backend)| bpf::Backend {
        slot: bpf::Slot {
            service: id,
            generation,
            index,
        },
        endpoint: backend.endpoint,
        weight: backend.weight,
    })
}

/// The backends of the first slots.
fn first(count: u32, group: &Group) -> [bpf::Endpoint; bpf::FIRST] {
    let mut first = [bpf::Endpoint::default(); bpf::FIRST];
    // Nobody looks for those of larger sets here.
    if count as usize <= bpf::FIRST {
        for (place, slot) in first.iter_mut().zip(slots(0, 0, group)) {
            *place = slot.endpoint;
        }
    }
    first
}

fn chunks(id: u32, extent: Extent, group: &Group) -> Vec<Op> {
    if extent.table == 0 {
        return Vec::new();
    }
    let table = maglev::table(extent.table, &group.backends);
    let chunks = (0..).zip(table.chunks(bpf::CHUNK));
    chunks
        .map(|(index, places)| {
            let key = bpf::Slot {
                service: id,
                generation: extent.generation,
                index,
            };
            let mut slots = [0; bpf::CHUNK];
            slots[..places.len()].copy_from_slice(places);
            Op::PutChunk(Box::new(bpf::Chunk { key, slots }))
        })
        .collect()
}

/// A set with holes is left by its indices, not by what was found in it.
fn remove_extents(id: u32, old: &Set) -> impl Iterator<Item = Op> {
    old.extents.iter().flat_map(move |extent| {
        let key = move |index| bpf::Slot {
            service: id,
            generation: extent.generation,
            index,
        };
        let slots = (0..extent.count).map(move |index| Op::RemoveSlot(key(index)));
        let chunks = (0..extent.table.div_ceil(bpf::CHUNK as u32)).map(move |index| Op::RemoveChunk(key(index)));
        slots.chain(chunks)
    })
}

fn member(id: u32, backend: &Backend) -> bpf::Member {
    bpf::Member {
        service: id,
        endpoint: backend.endpoint,
    }
}

fn members(change: &mut Change, old: &Set, new: &Set) {
    let id = change.id;
    let of = |set: &Set| -> BTreeSet<bpf::Member> {
        let backends = set.backends.iter().filter(|_| set.has_members());
        backends.map(|backend| member(id, backend)).collect()
    };
    if old.intact && old.backends == new.backends && old.has_members() == new.has_members() {
        return;
    }
    let (had, has) = (of(old), of(new));
    let known = |member: &&bpf::Member| !(old.intact && had.contains(member));
    change
        .prepare
        .extend(has.iter().filter(known).copied().map(Op::PutMember));
    change
        .cleanup
        .extend(had.difference(&has).copied().map(Op::RemoveMember));
}

fn service(id: u32, extent: Extent, group: &Group, exposed: &Exposed) -> bpf::Service {
    bpf::Service {
        frontend: exposed.frontend.to_bpf(),
        id,
        count: extent.count,
        generation: extent.generation,
        affinity: group.affinity,
        flags: exposed.flags,
        sources: if exposed.restricted { id } else { 0 },
        algorithm: group.algorithm.to_bpf(),
        table: extent.table,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
