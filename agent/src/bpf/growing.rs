//! A hash map that programs read and only the agent writes, exchanged for one twice as large before it is full.
//!
//! The larger map is filled while programs still go by the old one; then it takes its place in the outer map in one step.
//! Programs that run in that moment read the same from either. It never shrinks: the next growth is then not far.

use std::os::fd::AsFd as _;

use aya::Pod;
use aya::maps::{ArrayOfMaps, HashMap, IterableMap as _, Map, MapData, MapError};

use super::sys::{self, Shape};
use super::{CURRENT, Fill, HASH, ON_DEMAND, Refused, at, errno, is_absent, roomy, typed};

/// Elements that a map has room for at first.
const FIRST: u32 = 1024;
/// BPF_ANY and BPF_NOEXIST of linux/bpf.h.
const ANY: u64 = 0;
const ONLY_NEW: u64 = 1;

/// Elements of a map from which on a larger one is made.
pub(super) fn threshold(capacity: u32) -> u32 {
    capacity - capacity / 4
}

pub(crate) struct Growing<K, V> {
    name: &'static str,
    outer: ArrayOfMaps<MapData>,
    inner: Option<HashMap<MapData, K, V>>,
    entries: u32,
    capacity: u32,
    limit: u32,
    /// There was no larger map to be had: it is tried again when this one is full, not for every element.
    stuck: bool,
}

impl<K: Pod, V: Pod> Growing<K, V> {
    pub(crate) const SHAPE: Shape = Shape {
        kind: HASH,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        flags: ON_DEMAND,
    };

    /// Of the outer map; in it may be a map of an earlier agent, or none yet. How many elements it has is known once it was read.
    pub(crate) fn open(name: &'static str, outer: Map, limit: u32) -> Result<Growing<K, V>, MapError> {
        let outer = ArrayOfMaps::<MapData>::try_from(outer)?;
        let inner: Option<HashMap<MapData, K, V>> = at(&outer, CURRENT)?.map(typed).transpose()?;
        let capacity = match &inner {
            Some(map) => map.map().info()?.max_entries(),
            None => 0,
        };
        Ok(Growing {
            name,
            outer,
            inner,
            entries: 0,
            capacity,
            limit,
            stuck: false,
        })
    }

    /// Everything in it.
    pub(crate) fn elements(&mut self) -> Result<Vec<(K, V)>, MapError> {
        let all: Vec<(K, V)> = self.inner.iter().flat_map(HashMap::iter).collect::<Result<_, _>>()?;
        self.entries = all.len() as u32;
        Ok(all)
    }

    /// The keys of everything in it.
    pub(crate) fn keys(&mut self) -> Result<Vec<K>, MapError> {
        let all: Vec<K> = self.inner.iter().flat_map(HashMap::keys).collect::<Result<_, _>>()?;
        self.entries = all.len() as u32;
        Ok(all)
    }

    pub(crate) fn fill(&self) -> Fill {
        Fill {
            map: self.name,
            entries: self.entries,
            capacity: self.capacity,
            limit: self.limit,
        }
    }

    /// Writes an element, into a larger map if need be.
    pub(crate) fn insert(&mut self, key: &K, value: &V) -> Result<(), Refused> {
        self.reserve(1)?;
        let written = self.write(key, value, ONLY_NEW);
        match written.as_ref().map_err(errno) {
            Ok(()) => {
                self.entries += 1;
                Ok(())
            }
            Err(Some(libc::EEXIST)) => Ok(self.write(key, value, ANY)?),
            Err(Some(libc::E2BIG)) => {
                self.grow(self.capacity.saturating_add(1))?;
                self.write(key, value, ANY)?;
                self.entries += 1;
                Ok(())
            }
            Err(_) => Ok(written?),
        }
    }

    fn write(&mut self, key: &K, value: &V, flags: u64) -> Result<(), MapError> {
        let inner = self.inner.as_mut().ok_or(MapError::KeyNotFound)?;
        inner.insert(key, value, flags)
    }

    /// Removes an element; that it is not there is fine.
    pub(crate) fn remove(&mut self, key: &K) -> Result<(), MapError> {
        let Some(inner) = &mut self.inner else { return Ok(()) };
        match inner.remove(key) {
            Ok(()) => {
                self.entries = self.entries.saturating_sub(1);
                Ok(())
            }
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes room for so many more elements, so that the map is exchanged once for all of them.
    pub(crate) fn reserve(&mut self, more: u32) -> Result<(), Refused> {
        let wanted = self.entries.saturating_add(more);
        let suffices = wanted <= threshold(self.capacity) || self.capacity >= self.limit || self.stuck;
        if self.inner.is_some() && suffices {
            return Ok(());
        }
        match self.grow(wanted) {
            // There still is room for what is written now; what does not fit is refused.
            Err(refused) if self.inner.is_some() && self.entries < self.capacity => {
                tracing::error!(map = self.name, entries = self.entries, %refused, "a map of the service proxy does not grow");
                self.stuck = true;
                Ok(())
            }
            result => result,
        }
    }

    fn grow(&mut self, wanted: u32) -> Result<(), Refused> {
        let capacity = roomy(wanted, FIRST, self.limit);
        if self.inner.is_some() && capacity <= self.capacity {
            return Err(Refused::Full { limit: self.limit });
        }
        let stuck = |source| Refused::Stuck {
            capacity: self.capacity,
            wanted: capacity,
            source,
        };
        let larger = sys::create_map(self.name, Self::SHAPE, capacity).map_err(stuck)?;
        if let Some(inner) = &self.inner {
            sys::copy_elements(inner.map().fd().as_fd(), larger.as_fd(), Self::SHAPE).map_err(stuck)?;
        }
        let larger = MapData::from_fd(larger)?;
        self.outer.set(CURRENT, &larger, 0)?;
        tracing::debug!(map = self.name, from = self.capacity, to = capacity, "a map has grown");
        self.inner = Some(typed(larger)?);
        self.capacity = capacity;
        self.stuck = false;
        Ok(())
    }
}
