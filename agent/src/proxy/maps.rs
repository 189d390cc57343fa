//! The pinned maps, read and written one element at a time.

use std::collections::BTreeMap;
use std::thread;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, SkStorage};
use hull_ebpf_types as bpf;

use super::destroy::Origins;
use super::installed::{Contents, Op};
use super::{Error, Limits};
use crate::bpf::sys::Shape;
use crate::bpf::{Fill, Generations, Growing, OnDemand, Refused, is_absent};

/// The names of all maps, as in the object and, with the layout's version, as pins.
pub(super) const NAMES: [&str; 13] = [
    "services",
    "slots",
    "tables",
    "members",
    "addresses",
    "load",
    "counters",
    "affinity",
    "origins",
    "overflow",
    "strays",
    "untold",
    "peers",
];

/// Names that earlier layouts had besides.
pub(super) const RETIRED: [&str; 1] = ["flows"];

/// Maps that grow.
pub(super) const MAPS: usize = 6;

/// Any value: being in the map is what counts.
const PRESENT: u32 = 1;

pub(super) struct Maps {
    services: Growing<bpf::Frontend, bpf::Offer>,
    slots: Growing<bpf::Slot, bpf::Backend>,
    tables: Growing<bpf::Slot, bpf::Chunk>,
    members: Growing<bpf::Member, u32>,
    addresses: Growing<[u32; 4], u32>,
    counters: Generations<u32, bpf::Counters>,
    load: OnDemand<bpf::Member, bpf::Load>,
    affinity: OnDemand<bpf::Client, bpf::Affinity>,
    origins: Origins,
    untold: PerCpuArray<MapData, u64>,
}

/// The outer maps: what they hold, and how many places they have.
pub(super) const OUTER: [(&str, Shape, u32); 8] = [
    ("services", Growing::<bpf::Frontend, bpf::Offer>::SHAPE, 1),
    ("slots", Growing::<bpf::Slot, bpf::Backend>::SHAPE, 1),
    ("tables", Growing::<bpf::Slot, bpf::Chunk>::SHAPE, 1),
    ("members", Growing::<bpf::Member, u32>::SHAPE, 1),
    ("addresses", Growing::<[u32; 4], u32>::SHAPE, 1),
    ("counters", Generations::<u32, bpf::Counters>::SHAPE, bpf::GENERATIONS),
    ("load", OnDemand::<bpf::Member, bpf::Load>::HASH, 1),
    ("affinity", OnDemand::<bpf::Client, bpf::Affinity>::CACHE, 1),
];

impl Maps {
    /// Takes the maps out of the loaded object; each conversion checks type, key and value size. Those that are empty places
    /// are made.
    pub(super) fn take(ebpf: &mut Ebpf, limits: &Limits) -> Result<Maps, Error> {
        let mut map = |name| {
            ebpf.take_map(name)
                .ok_or_else(|| Error::Load(format!("the object has no map {name}")))
        };
        let (origins, strays, untold) = (map("origins")?, map("strays")?, map("untold")?);
        for (name, fit) in [
            ("peers", SkStorage::<_, bpf::Peers>::try_from(&map("peers")?).map(drop)),
            (
                "overflow",
                SkStorage::<_, bpf::Origin>::try_from(&map("overflow")?).map(drop),
            ),
        ] {
            fits(name, fit)?;
        }
        let mut maps = Maps {
            services: open("services", map("services")?, limits.services)?,
            slots: open("slots", map("slots")?, limits.backends)?,
            tables: open("tables", map("tables")?, limits.chunks)?,
            members: open("members", map("members")?, limits.members)?,
            addresses: open("addresses", map("addresses")?, limits.addresses)?,
            counters: fits(
                "counters",
                Generations::open("counters", map("counters")?, limits.services),
            )?,
            load: fits("load", OnDemand::hash("load", map("load")?, limits.weighed))?,
            affinity: fits(
                "affinity",
                OnDemand::cache("affinity", map("affinity")?, limits.clients),
            )?,
            origins: Origins {
                places: fits("origins", Array::try_from(origins))?,
                strays: fits("strays", HashMap::try_from(strays))?,
            },
            untold: fits("untold", PerCpuArray::try_from(untold))?,
        };
        maps.begin()?;
        Ok(maps)
    }

    /// Makes what every node needs. The kernel waits for its programs with each of them, which it can do for all at once.
    fn begin(&mut self) -> Result<(), Error> {
        let Maps {
            services,
            slots,
            members,
            addresses,
            counters,
            ..
        } = self;
        thread::scope(|scope| {
            let made = [
                ("services", scope.spawn(|| services.reserve(0))),
                ("slots", scope.spawn(|| slots.reserve(0))),
                ("members", scope.spawn(|| members.reserve(0))),
                ("addresses", scope.spawn(|| addresses.reserve(0))),
                ("counters", scope.spawn(|| counters.hold(0))),
            ];
            made.into_iter().try_for_each(|(name, thread)| match thread.join() {
                Ok(made) => made.map_err(|refused| access("make", name, &refused)),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    /// What connected sockets asked for.
    pub(super) fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Everything that is in the maps.
    pub(super) fn read(&mut self) -> Result<Contents, Error> {
        let services = read("services", self.services.elements())?;
        Ok(Contents {
            // Without the backends that elements have in themselves: they follow from the generation.
            services: services.into_iter().map(|(key, offer)| (key, offer.service)).collect(),
            slots: read("slots", self.slots.elements())?,
            chunks: read("tables", self.tables.keys())?,
            members: read("members", self.members.keys())?,
            counters: read("counters", self.counters.keys())?,
        })
    }

    /// How full the maps are.
    pub(super) fn fill(&self) -> [Fill; MAPS] {
        [
            self.services.fill(),
            self.slots.fill(),
            self.tables.fill(),
            self.members.fill(),
            self.addresses.fill(),
            self.counters.fill(),
        ]
    }

    /// Datagram sockets, ever, that will not be told when their backend goes.
    pub(super) fn untold(&self) -> Result<u64, Error> {
        Ok(read("untold", self.untold.get(&0, 0))?.iter().sum())
    }

    /// Exchanges maps once for all of these writes; what then does not fit is refused write by write.
    pub(super) fn reserve(&mut self, services: usize, slots: usize, members: usize) {
        let more = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let _ = self.services.reserve(more(services));
        let _ = self.slots.reserve(more(slots));
        let _ = self.members.reserve(more(members));
    }

    /// Makes sure that the clients of so many sets can be counted.
    pub(super) fn count(&mut self, sets: usize) -> Result<(), Error> {
        let held = self.counters.hold(u32::try_from(sets).unwrap_or(u32::MAX));
        held.map_err(|refused| access("write to", "counters", &refused))
    }

    /// Carries out one write. Removing what is not there is fine.
    pub(super) fn execute(&mut self, op: &Op) -> Result<(), Error> {
        match op {
            Op::PutSlot(backend) => wrote("slots", self.slots.insert(&backend.slot, backend)),
            Op::PutChunk(chunk) => wrote("tables", self.tables.insert(&chunk.key, chunk)),
            Op::PutMember(member) => wrote("members", self.members.insert(member, &PRESENT)),
            Op::PutService(offer) => self.put_service(offer),
            Op::RemoveSlot(slot) => removed("slots", self.slots.remove(slot)),
            Op::RemoveChunk(chunk) => removed("tables", self.tables.remove(chunk)),
            Op::RemoveMember(member) => removed("members", self.members.remove(member)),
            Op::RemoveLoad(member) => self.remove_load(member),
            Op::RemoveService(frontend) => removed("services", self.services.remove(frontend)),
            Op::RemoveCounters(id) => removed("counters", self.counters.remove(id)),
        }
    }

    /// The maps in which programs keep what they need to know of such a service are there before it is.
    fn put_service(&mut self, offer: &bpf::Offer) -> Result<(), Error> {
        let service = &offer.service;
        if service.affinity != 0 {
            wrote("affinity", self.affinity.make())?;
        }
        if matches!(
            service.algorithm,
            bpf::algorithm::LEAST_CONNECTIONS | bpf::algorithm::POWER_OF_TWO
        ) {
            wrote("load", self.load.make())?;
        }
        wrote("services", self.services.insert(&service.frontend, offer))
    }

    /// A backend that comes back while its old connections drain must not count as idle: those with open ones stay.
    fn remove_load(&mut self, member: &bpf::Member) -> Result<(), Error> {
        let Some(loads) = self.load.get() else { return Ok(()) };
        match loads.get(member, 0) {
            Ok(load) if load.open == 0 => removed("load", loads.remove(member)),
            _ => Ok(()),
        }
    }

    /// Removes what is known of backends that no service has any more, once their connections are gone.
    pub(super) fn sweep_load(&mut self, is_member: impl Fn(&bpf::Member) -> bool) -> Result<(), Error> {
        let Some(loads) = self.load.get() else { return Ok(()) };
        let members: Vec<bpf::Member> = read("load", loads.keys().collect())?;
        members
            .iter()
            .filter(|member| !is_member(member))
            .try_for_each(|member| self.remove_load(member))
    }

    /// Sets the addresses on which node ports are served.
    pub(super) fn set_addresses(&mut self, desired: &BTreeMap<[u32; 4], u32>) -> Result<(), Error> {
        let present = read("addresses", self.addresses.keys())?;
        for (address, kind) in desired {
            wrote("addresses", self.addresses.insert(address, kind))?;
        }
        let gone = present.iter().filter(|address| !desired.contains_key(*address));
        gone.into_iter()
            .try_for_each(|address| removed("addresses", self.addresses.remove(address)))
    }

    /// The counters of a set, over all CPUs; zero before its first client.
    pub(super) fn counters(&self, id: u32) -> Result<bpf::Counters, Error> {
        let values = read("counters", self.counters.get(&id))?;
        let sum = |sum: bpf::Counters, value: &bpf::Counters| bpf::Counters {
            translated: sum.translated + value.translated,
            refused: sum.refused + value.refused,
        };
        Ok(values.iter().fold(bpf::Counters::default(), sum))
    }
}

fn open<K: aya::Pod, V: aya::Pod>(
    name: &'static str,
    outer: aya::maps::Map,
    limit: u32,
) -> Result<Growing<K, V>, Error> {
    fits(name, Growing::open(name, outer, limit))
}

fn fits<T>(map: &'static str, result: Result<T, MapError>) -> Result<T, Error> {
    result.map_err(|error| Error::Map {
        path: map.into(),
        reason: error.to_string(),
    })
}

fn access(action: &'static str, map: &'static str, refused: &Refused) -> Error {
    Error::Access {
        action,
        map,
        reason: refused.to_string(),
    }
}

fn read<T>(map: &'static str, result: Result<T, MapError>) -> Result<T, Error> {
    result.map_err(|error| access("read", map, &error.into()))
}

fn wrote(map: &'static str, result: Result<(), Refused>) -> Result<(), Error> {
    result.map_err(|refused| access("write to", map, &refused))
}

fn removed(map: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    match result {
        Err(error) if !is_absent(&error) => Err(access("remove from", map, &error.into())),
        _ => Ok(()),
    }
}
