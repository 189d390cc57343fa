//! What every loader of eBPF programs needs: maps that grow under the programs that read them, and the calls of bpf(2)
//! that aya has no public way to.
//!
//! Invariant: a pin never changes what it names. A map that grows has an outer map of one place (BPF_MAP_TYPE_ARRAY_OF_MAPS),
//! which is pinned; the map in that place is exchanged for a larger one with the same content in one step. Whoever is
//! killed meanwhile leaves the old map in force, and the new one goes with its last descriptor.

mod followed;
mod generations;
mod growing;
mod on_demand;
pub(crate) mod sys;

use std::fmt;
use std::io;
use std::path::Path;

use aya::maps::{ArrayOfMaps, Map, MapData, MapError};

pub(crate) use followed::Followed;
pub(crate) use generations::Generations;
pub(crate) use growing::Growing;
pub(crate) use on_demand::OnDemand;

/// The place of the map in force in its outer map.
const CURRENT: u32 = 0;
/// BPF_F_NO_PREALLOC of linux/bpf.h: elements take memory when they come; room for one costs 16 bytes.
const ON_DEMAND: u32 = 1;
/// Of enum bpf_map_type.
const HASH: u32 = 1;
const PERCPU_HASH: u32 = 5;
const LRU_HASH: u32 = 9;

/// How full a map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// The map's name.
    pub map: &'static str,
    /// Elements in it.
    pub entries: u32,
    /// Elements it has room for as it is now; zero if it is not made yet.
    pub capacity: u32,
    /// Elements it can grow to.
    pub limit: u32,
}

/// Why a map does not take an element.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It is as large as it can be.
    Full { limit: u32 },
    /// There is no larger one to be had.
    Stuck {
        capacity: u32,
        wanted: u32,
        source: io::Error,
    },
    /// The kernel said something else.
    Other(MapError),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Full { limit } => write!(f, "it is full: more than {limit} elements it cannot have"),
            Refused::Stuck {
                capacity,
                wanted,
                source,
            } => write!(
                f,
                "it is full, and cannot grow from {capacity} to {wanted} elements: {source}; give the machine, or the \
                 cgroup of the agent, more memory"
            ),
            Refused::Other(MapError::SyscallError(call)) => call.io_error.fmt(f),
            Refused::Other(error) => error.fmt(f),
        }
    }
}

impl From<MapError> for Refused {
    fn from(error: MapError) -> Refused {
        Refused::Other(error)
    }
}

/// What the kernel said, if it was asked.
pub(crate) fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    }
}

/// Whether there was nothing to remove.
pub(crate) fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || errno(error) == Some(libc::ENOENT)
}

/// Pins an outer map for maps of this shape, unless it is there. Not left to the loader: the maps that it makes have type
/// information, and before Linux 6.2 a map without is not exchanged for one that has some.
pub(crate) fn ensure_outer(pin: &Path, name: &str, shape: sys::Shape, places: u32) -> io::Result<()> {
    if pin.exists() {
        return Ok(());
    }
    let template = sys::create_map(name, shape, 1)?;
    let outer = sys::create_outer_map(name, &template, places)?;
    sys::pin(&outer, pin)
}

/// The map in a place of an outer map, if there is one.
fn at(outer: &ArrayOfMaps<MapData>, place: u32) -> Result<Option<MapData>, MapError> {
    match outer.get(&place, 0) {
        Ok(found) => Ok(Some(found)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The maps in all places, the one in force first. A growth that was cut short leaves one map in two places: it is named once.
fn all<M: TryFrom<Map, Error = MapError>>(outer: &ArrayOfMaps<MapData>) -> Result<Vec<M>, MapError> {
    let (mut maps, mut ids) = (Vec::new(), Vec::new());
    for place in 0..outer.len() {
        let Some(found) = at(outer, place)? else { continue };
        let id = found.info()?.id();
        if !ids.contains(&id) {
            ids.push(id);
            maps.push(typed(found)?);
        }
    }
    Ok(maps)
}

/// Checks the type and the sizes.
fn typed<M: TryFrom<Map, Error = MapError>>(map: MapData) -> Result<M, MapError> {
    Map::from_map_data(map)?.try_into()
}

/// Room for `wanted` elements and a third more, as a power of two: a map is exchanged before it is full.
fn roomy(wanted: u32, least: u32, limit: u32) -> u32 {
    let roomy = wanted.saturating_add(wanted / 3).saturating_add(1);
    roomy
        .checked_next_power_of_two()
        .unwrap_or(u32::MAX)
        .max(least)
        .min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_was_given_room_is_not_exchanged_at_once() {
        for wanted in [0, 1, 2, 3, 767, 768, 769, 100_000, 1 << 20] {
            let capacity = roomy(wanted, 1, u32::MAX);
            assert!(
                capacity.is_power_of_two() && wanted <= growing::threshold(capacity),
                "{wanted}"
            );
        }
        assert_eq!(roomy(5, 1024, 1 << 20), 1024);
        assert_eq!(roomy(5, 1024, 4), 4);
        assert_eq!(roomy(u32::MAX, 1, 1 << 22), 1 << 22);
    }
}
