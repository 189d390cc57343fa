//! The pinned maps, read one element at a time.

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use hull_ebpf_types::observe::{Entry, Event, Health, Observed};
use hull_ebpf_types::{Load, Member};

use super::Error;
use super::load::lines_of_each;
use crate::bpf::Followed;

/// The maps of the program that observes.
pub(super) struct Maps {
    observed: HashMap<MapData, Member, Observed>,
    load: Followed<HashMap<MapData, Member, Load>>,
    diary: Array<MapData, Entry>,
    pages: PerCpuArray<MapData, u64>,
    health: PerCpuArray<MapData, Health>,
    processors: u32,
}

impl Maps {
    /// Takes the maps out of the loaded object; each conversion checks type, key and value size.
    pub(super) fn take(ebpf: &mut Ebpf, processors: u32) -> Result<Maps, Error> {
        let mut map = |name: &'static str| {
            ebpf.take_map(name)
                .ok_or_else(|| Error::Load(format!("the object has no map {name}")))
        };
        Ok(Maps {
            observed: fits("observed", HashMap::try_from(map("observed")?))?,
            load: fits("load", Followed::new(map("load")?))?,
            diary: fits("diary", Array::try_from(map("diary")?))?,
            pages: fits("pages", PerCpuArray::try_from(map("pages")?))?,
            health: fits("health", PerCpuArray::try_from(map("health")?))?,
            processors,
        })
    }

    /// All that was observed.
    pub(super) fn observed(&self) -> Result<Vec<(Member, Observed)>, Error> {
        let mut all = Vec::new();
        for key in self.observed.keys() {
            let key = key.map_err(|error| Error::access("read", "observed", &error))?;
            match self.observed.get(&key, 0) {
                Ok(value) => all.push((key, value)),
                // Removed meanwhile.
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(Error::access("read", "observed", &error)),
            }
        }
        Ok(all)
    }

    /// The backends that anything was observed of.
    pub(super) fn members(&self) -> Result<Vec<Member>, Error> {
        self.observed
            .keys()
            .collect::<Result<_, _>>()
            .map_err(|error| Error::access("read", "observed", &error))
    }

    /// How busy a backend is: as the balancer counts it where that matters to it, else as it was observed.
    pub(super) fn load(&self, member: &Member) -> Load {
        let observed = || {
            self.observed
                .get(member, 0)
                .ok()
                .map(|observed| from_observed(&observed))
        };
        self.counted(member).or_else(observed).unwrap_or_default()
    }

    /// As the balancer counts.
    fn counted(&self, member: &Member) -> Option<Load> {
        self.load.now().ok()??.get(member, 0).ok()
    }

    /// Connections open to a backend, and its element.
    pub(super) fn is_in_use(&self, member: &Member) -> bool {
        let observed = self.observed.get(member, 0);
        observed.is_ok_and(|observed| observed.opened != observed.closed)
            || self.counted(member).is_some_and(|load| load.open > 0)
    }

    /// Forgets a backend.
    pub(super) fn forget(&mut self, member: &Member) -> Result<(), Error> {
        removed("observed", self.observed.remove(member))?;
        match fits("load", self.load.now())? {
            Some(mut load) => removed("load", load.remove(member)),
            None => Ok(()),
        }
    }

    /// What the program could not do, all CPUs together.
    pub(super) fn health(&self) -> Result<Health, Error> {
        let values = self
            .health
            .get(&0, 0)
            .map_err(|error| Error::access("read", "health", &error))?;
        let sum = |sum: Health, value: &Health| Health {
            unobserved: sum.unobserved + value.unobserved,
            unweighed: sum.unweighed + value.unweighed,
            unwritten: sum.unwritten + value.unwritten,
        };
        Ok(values.iter().fold(Health::default(), sum))
    }

    /// The newest lines of the diary that `wanted` takes, at most `most`, the oldest of them first.
    pub(super) fn diary(&self, most: usize, wanted: impl Fn(&Entry) -> bool) -> Result<Vec<Entry>, Error> {
        let pages = self
            .pages
            .get(&0, 0)
            .map_err(|error| Error::access("read", "pages", &error))?;
        let lines = lines_of_each(self.processors);
        let mut all = Vec::new();
        for (processor, written) in (0..self.processors).zip(pages.iter()) {
            let mut found = 0;
            for back in 1..=(*written).min(u64::from(lines)) {
                if found == most {
                    break;
                }
                let line = u32::try_from((written - back) % u64::from(lines)).unwrap_or_default();
                let entry = self.diary.get(&(processor * lines + line), 0);
                let entry = entry.map_err(|error| Error::access("read", "diary", &error))?;
                if is_complete(&entry) && wanted(&entry) {
                    found += 1;
                    all.push(entry);
                }
            }
        }
        all.sort_by_key(|entry| entry.time);
        Ok(all.split_off(all.len().saturating_sub(most)))
    }
}

fn from_observed(observed: &Observed) -> Load {
    let open = observed.opened.saturating_sub(observed.closed);
    Load {
        open: u32::try_from(open).unwrap_or(u32::MAX),
        latency: observed.smoothed,
        updated: 0,
    }
}

/// A line that is being written has no time.
fn is_complete(entry: &Entry) -> bool {
    entry.time != 0 && (Event::Opened as u32..=Event::Broken as u32).contains(&entry.event)
}

fn fits<T>(map: &'static str, result: Result<T, MapError>) -> Result<T, Error> {
    result.map_err(|error| Error::access("use", map, &error))
}

fn removed(map: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    match result {
        Err(MapError::KeyNotFound) | Ok(()) => Ok(()),
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(Error::access("remove from", map, &error)),
    }
}
