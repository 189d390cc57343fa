//! Whatever is wanted, in whatever order, stopped wherever: readers always find a service with all its backends, and
//! the maps end up with what was wanted and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

/// The maps, without a kernel.
#[derive(Clone, Debug, Default)]
struct Model {
    services: BTreeMap<bpf::Frontend, bpf::Service>,
    slots: BTreeMap<bpf::Slot, bpf::Backend>,
    members: BTreeSet<bpf::Member>,
    counters: BTreeSet<u32>,
}

impl Model {
    fn execute(&mut self, op: &Op) {
        match *op {
            Op::PutSlot(backend) => drop(self.slots.insert(backend.slot, backend)),
            Op::RemoveSlot(slot) => drop(self.slots.remove(&slot)),
            Op::PutMember(member) => drop(self.members.insert(member)),
            Op::RemoveMember(member) => drop(self.members.remove(&member)),
            Op::PutCounters(id) => drop(self.counters.insert(id)),
            Op::RemoveCounters(id) => drop(self.counters.remove(&id)),
            Op::PutService(service) => drop(self.services.insert(service.frontend, service)),
            Op::RemoveService(frontend) => drop(self.services.remove(&frontend)),
        }
    }

    fn contents(&self) -> Contents {
        Contents {
            services: self.services.iter().map(|(key, value)| (*key, *value)).collect(),
            slots: self.slots.iter().map(|(key, value)| (*key, *value)).collect(),
            members: self.members.iter().copied().collect(),
            counters: self.counters.iter().copied().collect(),
        }
    }

    /// What a client of the service can be sent to; panics when a slot is missing.
    fn read(&self, service: &bpf::Service) -> Vec<SocketAddrV4> {
        let slot = |index| bpf::Slot {
            service: service.id,
            generation: service.generation,
            index,
        };
        (0..service.count)
            .map(|index| endpoint_from_bpf(&self.slots[&slot(index)].endpoint).unwrap())
            .collect()
    }

    fn tables(&self) -> Tables {
        let balanced = |service: &bpf::Service| Balanced {
            affinity: (service.affinity != 0).then_some(service.affinity),
            backends: self.read(service),
        };
        Tables {
            services: self
                .services
                .iter()
                .map(|(k, s)| (Frontend::from_bpf(k).unwrap(), balanced(s)))
                .collect(),
        }
    }

    fn assert_no_more_than(&self, tables: &Tables) {
        let backends: usize = tables.services.values().map(|balanced| balanced.backends.len()).sum();
        assert_eq!(self.slots.len(), backends, "slots nobody uses");
        assert_eq!(self.counters.len(), tables.services.len());
        let members: usize = tables
            .services
            .iter()
            .filter(|(frontend, balanced)| balanced.affinity.is_some() || frontend.protocol == Protocol::Udp)
            .map(|(_, balanced)| balanced.backends.len())
            .sum();
        assert_eq!(self.members.len(), members);
    }
}

/// Carries out at most `limit` writes and checks, after each, what clients find. Returns whether all were made.
fn apply(model: &mut Model, installed: &mut Installed, strays: &[Op], desired: &Tables, limit: usize) -> bool {
    let before = model.tables();
    let mut left = limit;
    let mut step = |model: &mut Model, op: &Op| {
        if left == 0 {
            return false;
        }
        left -= 1;
        model.execute(op);
        for (frontend, balanced) in &model.tables().services {
            let old = before.services.get(frontend).map(|b| &b.backends);
            let new = desired.services.get(frontend).map(|b| &b.backends);
            assert!(
                [old, new].contains(&Some(&balanced.backends)),
                "{frontend}: neither the old nor the new set"
            );
        }
        true
    };
    if !strays.iter().all(|op| step(model, op)) {
        return false;
    }
    for change in installed.plan(desired) {
        if !change
            .prepare
            .iter()
            .chain([&change.commit])
            .chain(&change.cleanup)
            .all(|op| step(model, op))
        {
            return false;
        }
        installed.done(change);
    }
    true
}

fn tables() -> impl Strategy<Value = Tables> {
    let frontend = (0..6u8, 0..2u8, any::<bool>()).prop_map(|(ip, port, udp)| Frontend {
        address: SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, ip), 80 + u16::from(port)),
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
    });
    let backends = prop::collection::btree_set(0..6u8, 0..5);
    let balanced = (prop::option::of(1..3u32), backends).prop_map(|(affinity, backends)| Balanced {
        affinity,
        backends: backends
            .into_iter()
            .map(|n| SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, n), 8080))
            .collect(),
    });
    prop::collection::btree_map(frontend, balanced, 0..8).prop_map(|services| Tables { services })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_prefix_of_every_plan_is_safe_and_every_restart_converges(
        steps in prop::collection::vec((tables(), 0..60usize, any::<bool>()), 1..6),
    ) {
        let mut model = Model::default();
        let mut installed = Installed::default();
        let mut strays = Vec::new();
        for (desired, limit, killed) in steps {
            let limit = if killed { limit } else { usize::MAX };
            let complete = apply(&mut model, &mut installed, &strays, &desired, limit);
            strays.clear();
            if killed {
                (installed, strays) = Installed::rebuild(&model.contents());
            }
            if complete && strays.is_empty() {
                prop_assert_eq!(&model.tables(), &desired);
                model.assert_no_more_than(&desired);
            }
        }
        let last = Tables::default();
        prop_assert!(apply(&mut model, &mut installed, &strays, &last, usize::MAX));
        model.assert_no_more_than(&last);
        prop_assert!(model.services.is_empty());
    }
}

fn one(backends: &[&str]) -> Tables {
    let frontend = Frontend {
        address: "10.96.0.1:53".parse().unwrap(),
        protocol: Protocol::Udp,
    };
    let backends = backends.iter().map(|address| address.parse().unwrap()).collect();
    Tables {
        services: [(
            frontend,
            Balanced {
                affinity: None,
                backends,
            },
        )]
        .into(),
    }
}

#[test]
fn what_is_as_wanted_is_not_written() {
    let (mut model, mut installed) = (Model::default(), Installed::default());
    let desired = one(&["10.244.0.1:53", "10.244.0.2:53"]);
    assert!(apply(&mut model, &mut installed, &[], &desired, usize::MAX));
    assert!(installed.plan(&desired).is_empty());
    let (mut rebuilt, strays) = Installed::rebuild(&model.contents());
    assert!(strays.is_empty());
    assert!(rebuilt.plan(&desired).is_empty());
}

#[test]
fn backends_that_clients_must_leave_are_named() {
    let (mut model, mut installed) = (Model::default(), Installed::default());
    apply(
        &mut model,
        &mut installed,
        &[],
        &one(&["10.244.0.1:53", "10.244.0.2:53"]),
        usize::MAX,
    );
    let changes = installed.plan(&one(&["10.244.0.2:53", "10.244.0.3:53"]));
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].gone, ["10.244.0.1:53".parse().unwrap()]);
    let changes = installed.plan(&Tables::default());
    assert_eq!(changes[0].gone.len(), 2);
}

#[test]
fn a_set_with_a_hole_is_written_anew() {
    let (mut model, mut installed) = (Model::default(), Installed::default());
    let desired = one(&["10.244.0.1:53", "10.244.0.2:53"]);
    apply(&mut model, &mut installed, &[], &desired, usize::MAX);
    model.slots.pop_first();
    let (mut rebuilt, strays) = Installed::rebuild(&model.contents());
    for change in rebuilt.plan(&desired) {
        for op in strays
            .iter()
            .chain(&change.prepare)
            .chain([&change.commit])
            .chain(&change.cleanup)
        {
            model.execute(op);
        }
    }
    assert_eq!(model.tables(), desired);
    model.assert_no_more_than(&desired);
}
