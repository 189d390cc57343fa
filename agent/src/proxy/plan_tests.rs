//! The maps are simulated: after every single write, readers must find complete sets.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use hull_ebpf_types as bpf;
use proptest::prelude::*;

use super::*;
use crate::proxy::installed::Contents;
use crate::proxy::tables::{Algorithm, Frontend, Protocol, ServiceName};

/// The contents of the maps.
#[derive(Clone, Default)]
struct Maps {
    services: HashMap<bpf::Frontend, bpf::Service>,
    slots: BTreeMap<bpf::Slot, bpf::Backend>,
    chunks: BTreeMap<bpf::Slot, bpf::Chunk>,
    members: BTreeSet<bpf::Member>,
}

impl Maps {
    fn execute(&mut self, op: &Op) {
        match op {
            Op::PutSlot(backend) => drop(self.slots.insert(backend.slot, *backend)),
            Op::RemoveSlot(slot) => drop(self.slots.remove(slot)),
            Op::PutChunk(chunk) => drop(self.chunks.insert(chunk.key, **chunk)),
            Op::RemoveChunk(chunk) => drop(self.chunks.remove(chunk)),
            Op::PutMember(member) => drop(self.members.insert(*member)),
            Op::RemoveMember(member) => drop(self.members.remove(member)),
            Op::PutService(offer) => drop(self.services.insert(offer.service.frontend, offer.service)),
            Op::RemoveService(frontend) => drop(self.services.remove(frontend)),
            Op::RemoveLoad(_) | Op::RemoveCounters(_) => {}
        }
    }

    fn contents(&self) -> Contents {
        Contents {
            services: self.services.iter().map(|(key, value)| (*key, *value)).collect(),
            slots: self.slots.iter().map(|(key, value)| (*key, *value)).collect(),
            chunks: self.chunks.keys().copied().collect(),
            members: self.members.iter().copied().collect(),
            counters: Vec::new(),
        }
    }

    /// What a client of the frontend may be led to; fails where a reader would find a hole.
    fn backends(&self, frontend: &bpf::Frontend) -> Option<Vec<Backend>> {
        let service = self.services.get(frontend)?;
        let slot = |index| bpf::Slot {
            service: service.id,
            generation: service.generation,
            index,
        };
        let mut backends: Vec<Backend> = (0..service.count)
            .map(|index| {
                let backend = self.slots[&slot(index)];
                assert_eq!(backend.slot, slot(index));
                Backend {
                    endpoint: backend.endpoint,
                    weight: backend.weight,
                }
            })
            .collect();
        for place in 0..service.table {
            let chunk = self.chunks[&slot(place / bpf::CHUNK as u32)];
            assert!(u32::from(chunk.slots[place as usize % bpf::CHUNK]) < service.count);
        }
        backends.sort_unstable();
        backends.dedup();
        Some(backends)
    }
}

fn frontend(number: u8) -> Frontend {
    Frontend::inside(SocketAddr::from(([10, 96, 0, number], 80)), Protocol::Udp)
}

fn a_group(backends: &[(u8, u32)], algorithm: Algorithm, frontends: u8) -> Group {
    let backends = backends.iter().map(|(last, weight)| Backend {
        weight: *weight,
        ..Backend::new(SocketAddr::from(([10, 244, 0, *last], 8080)))
    });
    let mut group = Group {
        algorithm,
        ..Group::simple(frontend(1), backends)
    };
    group.backends.dedup_by_key(|backend| backend.endpoint);
    let first = group.frontends[0];
    group.frontends.extend((2..=frontends).map(|number| Exposed {
        frontend: frontend(number),
        ..first
    }));
    group
}

fn service_name() -> ServiceName {
    ServiceName::new("ns", "web")
}

/// Carries a change out, write by write; `stop` is where the agent is killed.
fn carry_out(maps: &mut Maps, installed: &mut Installed, group: &Group, stop: Option<usize>) {
    let before: Vec<Option<Vec<Backend>>> = (1..=3).map(|n| maps.backends(&frontend(n).to_bpf())).collect();
    let id = installed.claim(&service_name(), group);
    let change = change(
        installed,
        id,
        group,
        &group.frontends,
        &std::collections::HashSet::new(),
    );
    let writes = change.prepare.iter().chain(&change.commits).chain(&change.cleanup);
    for op in writes.take(stop.unwrap_or(usize::MAX)) {
        maps.execute(op);
        for number in 1..=3_u8 {
            let found = maps.backends(&frontend(number).to_bpf());
            let (old, new) = (&before[usize::from(number) - 1], Some(&group.backends));
            assert!(found.is_none() || found == *old || found.as_ref() == new, "a mixed set");
        }
    }
    for op in &change.commits {
        match op {
            Op::PutService(offer) => drop(installed.services.insert(offer.service.frontend, offer.service)),
            Op::RemoveService(frontend) => drop(installed.services.remove(frontend)),
            _ => unreachable!(),
        }
    }
    installed.sets.insert(id, change.result);
}

fn groups() -> impl Strategy<Value = Group> {
    let algorithms = prop::sample::select(vec![
        Algorithm::Random,
        Algorithm::Maglev,
        Algorithm::LeastConnections,
        Algorithm::PowerOfTwo,
    ]);
    let backends = prop::collection::vec((1_u8..6, 1_u32..4), 0..5);
    (backends, algorithms, 1_u8..4)
        .prop_map(|(backends, algorithm, frontends)| a_group(&backends, algorithm, frontends))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// At every moment readers find a complete set, old or new; a successor understands whatever a killed agent left.
    #[test]
    fn sets_are_complete_at_every_moment(history in prop::collection::vec((groups(), 0_usize..24), 1..5)) {
        let (mut maps, mut installed) = (Maps::default(), Installed::default());
        for (group, killed) in history {
            carry_out(&mut maps, &mut installed, &group, Some(killed));
            let (rebuilt, strays) = Installed::rebuild(&maps.contents());
            strays.iter().for_each(|op| maps.execute(op));
            installed = rebuilt;
            carry_out(&mut maps, &mut installed, &group, None);
            for exposed in &group.frontends {
                prop_assert_eq!(maps.backends(&exposed.frontend.to_bpf()), Some(group.backends.clone()));
            }
            let (rebuilt, strays) = Installed::rebuild(&maps.contents());
            prop_assert_eq!(strays, vec![], "nothing is left over");
            prop_assert!(rebuilt.sets.values().all(|set| set.intact));
            installed = rebuilt;
            installed.claimed.clear();
            let id = installed.claim(&service_name(), &group);
            let again = change(&installed, id, &group, &group.frontends, &std::collections::HashSet::new());
            prop_assert!(again.is_empty(), "{:?}", again);
        }
    }
}

#[test]
fn a_removed_group_leaves_nothing() {
    for algorithm in [Algorithm::Random, Algorithm::Maglev] {
        let (mut maps, mut installed) = (Maps::default(), Installed::default());
        carry_out(
            &mut maps,
            &mut installed,
            &a_group(&[(1, 2), (2, 1)], algorithm, 3),
            None,
        );
        assert_eq!(maps.services.len(), 3);
        let id = *installed.sets.keys().next().unwrap();
        let change = removal(&installed, id);
        let writes = change.prepare.iter().chain(&change.commits).chain(&change.cleanup);
        writes.for_each(|op| maps.execute(op));
        assert!(maps.services.is_empty() && maps.slots.is_empty() && maps.chunks.is_empty() && maps.members.is_empty());
        assert_eq!((change.gone.len(), change.left.len()), (2, 3));
    }
}

#[test]
fn only_what_is_chosen_at_random_repeats_its_slots() {
    let count = |algorithm| {
        let group = a_group(&[(1, 4), (2, 2)], algorithm, 1);
        slots(1, 1, &group).count()
    };
    assert_eq!(count(Algorithm::Random), 3, "weights without their common divisor");
    assert_eq!(count(Algorithm::PowerOfTwo), 3);
    assert_eq!(count(Algorithm::LeastConnections), 2);
    assert_eq!(count(Algorithm::Maglev), 2);
}

#[test]
fn weights_of_a_huge_set_are_scaled_down() {
    let backends = (0..200_u8).map(|last| Backend {
        weight: 250 + u32::from(last) % 7,
        ..Backend::new(SocketAddr::from(([10, 244, 1, last], 8080)))
    });
    let group = Group::simple(frontend(1), backends);
    let count = slots(1, 1, &group).count();
    assert!((200..=MAX_SLOTS as usize).contains(&count), "{count}");
}
