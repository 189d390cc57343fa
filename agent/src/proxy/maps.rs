//! The pinned maps, read and written one element at a time.

use std::collections::BTreeMap;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuHashMap, SkStorage};
use hull_ebpf_types as bpf;

use super::Error;
use super::destroy::Origins;
use super::installed::{Contents, Op};

/// The names of all maps, as in the object and, with the layout's version, as pins.
pub(super) const NAMES: [&str; 12] = [
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
    "peers",
];

/// Names that earlier layouts had besides.
pub(super) const RETIRED: [&str; 1] = ["flows"];

/// Any value: being in the map is what counts.
const PRESENT: u32 = 1;

pub(super) struct Maps {
    services: HashMap<MapData, bpf::Frontend, bpf::Offer>,
    slots: HashMap<MapData, bpf::Slot, bpf::Backend>,
    tables: HashMap<MapData, bpf::Slot, bpf::Chunk>,
    members: HashMap<MapData, bpf::Member, u32>,
    addresses: HashMap<MapData, [u32; 4], u32>,
    load: HashMap<MapData, bpf::Member, bpf::Load>,
    counters: PerCpuHashMap<MapData, u32, bpf::Counters>,
    origins: Origins,
}

impl Maps {
    /// Takes the maps out of the loaded object; each conversion checks type, key and value size.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Maps, Error> {
        let mut map = |name| {
            ebpf.take_map(name)
                .ok_or_else(|| Error::Load(format!("the object has no map {name}")))
        };
        let (services, slots, tables) = (map("services")?, map("slots")?, map("tables")?);
        let (members, addresses, load) = (map("members")?, map("addresses")?, map("load")?);
        let (counters, origins, strays) = (map("counters")?, map("origins")?, map("strays")?);
        for (name, fit) in [
            ("peers", SkStorage::<_, bpf::Peers>::try_from(&map("peers")?).map(drop)),
            (
                "overflow",
                SkStorage::<_, bpf::Origin>::try_from(&map("overflow")?).map(drop),
            ),
        ] {
            fits(name, fit)?;
        }
        Ok(Maps {
            services: fits("services", HashMap::try_from(services))?,
            slots: fits("slots", HashMap::try_from(slots))?,
            tables: fits("tables", HashMap::try_from(tables))?,
            members: fits("members", HashMap::try_from(members))?,
            addresses: fits("addresses", HashMap::try_from(addresses))?,
            load: fits("load", HashMap::try_from(load))?,
            counters: fits("counters", PerCpuHashMap::try_from(counters))?,
            origins: Origins {
                places: fits("origins", Array::try_from(origins))?,
                strays: fits("strays", HashMap::try_from(strays))?,
            },
        })
    }

    /// What connected sockets asked for.
    pub(super) fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Everything that is in the maps.
    pub(super) fn read(&self) -> Result<Contents, Error> {
        Ok(Contents {
            services: collect("services", self.services.iter().map(service_of))?,
            slots: collect("slots", self.slots.iter())?,
            chunks: collect("tables", self.tables.keys())?,
            members: collect("members", self.members.keys())?,
            counters: collect("counters", self.counters.keys())?,
        })
    }

    /// Carries out one write. Removing what is not there is fine.
    pub(super) fn execute(&mut self, op: &Op) -> Result<(), Error> {
        match op {
            Op::PutSlot(backend) => wrote("slots", self.slots.insert(backend.slot, backend, 0)),
            Op::PutChunk(chunk) => wrote("tables", self.tables.insert(chunk.key, chunk.as_ref(), 0)),
            Op::PutMember(member) => wrote("members", self.members.insert(member, PRESENT, 0)),
            Op::PutService(offer) => wrote(
                "services",
                self.services.insert(offer.service.frontend, offer.as_ref(), 0),
            ),
            Op::RemoveSlot(slot) => removed("slots", self.slots.remove(slot)),
            Op::RemoveChunk(chunk) => removed("tables", self.tables.remove(chunk)),
            Op::RemoveMember(member) => removed("members", self.members.remove(member)),
            Op::RemoveLoad(member) => self.remove_load(member),
            Op::RemoveService(frontend) => removed("services", self.services.remove(frontend)),
            Op::RemoveCounters(id) => removed("counters", self.counters.remove(id)),
        }
    }

    /// A backend that comes back while its old connections drain must not count as idle: those with open ones stay.
    fn remove_load(&mut self, member: &bpf::Member) -> Result<(), Error> {
        match self.load.get(member, 0) {
            Ok(load) if load.open == 0 => removed("load", self.load.remove(member)),
            _ => Ok(()),
        }
    }

    /// Removes what is known of backends that no service has any more, once their connections are gone.
    pub(super) fn sweep_load(&mut self, is_member: impl Fn(&bpf::Member) -> bool) -> Result<(), Error> {
        let members: Vec<bpf::Member> = collect("load", self.load.keys())?;
        members
            .iter()
            .filter(|member| !is_member(member))
            .try_for_each(|member| self.remove_load(member))
    }

    /// Sets the addresses on which node ports are served.
    pub(super) fn set_addresses(&mut self, desired: &BTreeMap<[u32; 4], u32>) -> Result<(), Error> {
        let present: Vec<[u32; 4]> = collect("addresses", self.addresses.keys())?;
        for (address, kind) in desired {
            wrote("addresses", self.addresses.insert(address, kind, 0))?;
        }
        let gone = present.iter().filter(|address| !desired.contains_key(*address));
        gone.into_iter()
            .try_for_each(|address| removed("addresses", self.addresses.remove(address)))
    }

    /// The counters of a set, over all CPUs; zero before its first client.
    pub(super) fn counters(&self, id: u32) -> Result<bpf::Counters, Error> {
        let values = match self.counters.get(&id, 0) {
            Ok(values) => values,
            Err(MapError::KeyNotFound) => return Ok(bpf::Counters::default()),
            Err(error) => {
                return Err(Error::Access {
                    action: "read",
                    map: "counters",
                    reason: explain(&error),
                });
            }
        };
        let sum = |sum: bpf::Counters, value: &bpf::Counters| bpf::Counters {
            translated: sum.translated + value.translated,
            refused: sum.refused + value.refused,
        };
        Ok(values.iter().fold(bpf::Counters::default(), sum))
    }
}

/// An element of `services` without the backends it has in itself: they follow from the generation.
fn service_of(
    element: Result<(bpf::Frontend, bpf::Offer), MapError>,
) -> Result<(bpf::Frontend, bpf::Service), MapError> {
    element.map(|(frontend, offer)| (frontend, offer.service))
}

fn fits<T>(map: &'static str, result: Result<T, MapError>) -> Result<T, Error> {
    result.map_err(|error| Error::Map {
        path: map.into(),
        reason: error.to_string(),
    })
}

fn collect<T>(map: &'static str, elements: impl Iterator<Item = Result<T, MapError>>) -> Result<Vec<T>, Error> {
    elements.collect::<Result<_, _>>().map_err(|error| Error::Access {
        action: "read",
        map,
        reason: explain(&error),
    })
}

fn wrote(map: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    result.map_err(|error| Error::Access {
        action: "write to",
        map,
        reason: explain(&error),
    })
}

fn removed(map: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    match result {
        Err(error) if errno(&error) != Some(libc::ENOENT) && !matches!(error, MapError::KeyNotFound) => {
            Err(Error::Access {
                action: "remove from",
                map,
                reason: explain(&error),
            })
        }
        _ => Ok(()),
    }
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    }
}

fn explain(error: &MapError) -> String {
    match error {
        MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(libc::E2BIG) => {
            "it is full: raise the proxy's limits, which takes a restart after `hull down`".to_owned()
        }
        MapError::SyscallError(call) => call.io_error.to_string(),
        other => other.to_string(),
    }
}
