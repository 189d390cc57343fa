//! The pinned maps, read and written one element at a time.

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError, PerCpuHashMap, PerCpuValues, SkStorage};
use hull_ebpf_types as bpf;

use super::Error;
use super::destroy::Flows;
use super::diff::{Contents, Op};

/// The names of all maps, as in the object and, with the layout's version, as pins.
pub(super) const NAMES: [&str; 8] = [
    "services", "slots", "members", "counters", "affinity", "origins", "peers", "flows",
];

/// Any value: being in the map is what counts.
const PRESENT: u32 = 1;

pub(super) struct Maps {
    services: HashMap<MapData, bpf::Frontend, bpf::Service>,
    slots: HashMap<MapData, bpf::Slot, bpf::Backend>,
    members: HashMap<MapData, bpf::Member, u32>,
    counters: PerCpuHashMap<MapData, u32, bpf::Counters>,
    flows: Flows,
    processors: usize,
}

impl Maps {
    /// Takes the maps out of the loaded object; each conversion checks type, key and value size.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Maps, Error> {
        let mut map = |name| {
            ebpf.take_map(name)
                .ok_or_else(|| Error::Load(format!("the object has no map {name}")))
        };
        let (services, slots, members) = (map("services")?, map("slots")?, map("members")?);
        let (counters, flows) = (map("counters")?, map("flows")?);
        for (name, fit) in [
            ("peers", SkStorage::<_, bpf::Peers>::try_from(&map("peers")?).map(drop)),
            (
                "origins",
                SkStorage::<_, bpf::Origin>::try_from(&map("origins")?).map(drop),
            ),
        ] {
            fits(name, fit)?;
        }
        Ok(Maps {
            services: fits("services", HashMap::try_from(services))?,
            slots: fits("slots", HashMap::try_from(slots))?,
            members: fits("members", HashMap::try_from(members))?,
            counters: fits("counters", PerCpuHashMap::try_from(counters))?,
            flows: fits("flows", HashMap::try_from(flows))?,
            processors: aya::util::nr_cpus().map_err(|(path, source)| Error::File {
                action: "read",
                path: path.into(),
                source,
            })?,
        })
    }

    /// What connected UDP sockets asked for.
    pub(super) fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Everything that is in the maps.
    pub(super) fn read(&self) -> Result<Contents, Error> {
        Ok(Contents {
            services: collect("services", self.services.iter())?,
            slots: collect("slots", self.slots.iter())?,
            members: collect("members", self.members.keys())?,
            counters: collect("counters", self.counters.keys())?,
        })
    }

    /// Carries out one write. Removing what is not there is fine.
    pub(super) fn execute(&mut self, op: &Op) -> Result<(), Error> {
        match op {
            Op::PutSlot(backend) => wrote("slots", self.slots.insert(backend.slot, backend, 0)),
            Op::PutMember(member) => wrote("members", self.members.insert(member, PRESENT, 0)),
            Op::PutService(service) => wrote("services", self.services.insert(service.frontend, service, 0)),
            Op::PutCounters(id) => {
                let zero =
                    PerCpuValues::try_from(vec![bpf::Counters::default(); self.processors]).map_err(|error| {
                        Error::Access {
                            action: "size",
                            map: "counters",
                            reason: error.to_string(),
                        }
                    })?;
                wrote("counters", self.counters.insert(id, zero, 0))
            }
            Op::RemoveSlot(slot) => removed("slots", self.slots.remove(slot)),
            Op::RemoveMember(member) => removed("members", self.members.remove(member)),
            Op::RemoveService(frontend) => removed("services", self.services.remove(frontend)),
            Op::RemoveCounters(id) => removed("counters", self.counters.remove(id)),
        }
    }

    /// The counters of a service, over all CPUs.
    pub(super) fn counters(&self, id: u32) -> Result<bpf::Counters, Error> {
        let values = self.counters.get(&id, 0).map_err(|error| Error::Access {
            action: "read",
            map: "counters",
            reason: explain(&error),
        })?;
        let sum = |sum: bpf::Counters, value: &bpf::Counters| bpf::Counters {
            translated: sum.translated + value.translated,
            refused: sum.refused + value.refused,
        };
        Ok(values.iter().fold(bpf::Counters::default(), sum))
    }
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
