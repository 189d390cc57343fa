//! A per-CPU hash map that programs count in, followed by a larger one before it is full.
//!
//! Moving counts under programs that count would lose some. So the map that became too small moves to a place behind the
//! first of its outer map, where nobody counts any more, and what is in the new one is added to what is in it.

use aya::Pod;
use aya::maps::{ArrayOfMaps, IterableMap as _, Map, MapData, MapError, PerCpuHashMap};

use super::sys::{self, Shape};
use super::{CURRENT, Fill, ON_DEMAND, PERCPU_HASH, Refused, all, at, is_absent, roomy, typed};

/// Elements that the first map has room for.
const FIRST: u32 = 1024;

pub(crate) struct Generations<K: Pod, V: Pod> {
    name: &'static str,
    outer: ArrayOfMaps<MapData>,
    /// The one in force and, behind it, its predecessors.
    maps: Vec<PerCpuHashMap<MapData, K, V>>,
    entries: u32,
    capacity: u32,
    limit: u32,
}

impl<K: Pod + Ord, V: Pod> Generations<K, V> {
    pub(crate) const SHAPE: Shape = Shape {
        kind: PERCPU_HASH,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        flags: ON_DEMAND,
    };

    /// Of the outer map, in which there may be maps of an earlier agent.
    pub(crate) fn open(name: &'static str, outer: Map, limit: u32) -> Result<Generations<K, V>, MapError> {
        let outer = ArrayOfMaps::<MapData>::try_from(outer)?;
        let maps: Vec<PerCpuHashMap<MapData, K, V>> = all(&outer)?;
        let capacity = match maps.first() {
            Some(map) => map.map().info()?.max_entries(),
            None => 0,
        };
        Ok(Generations {
            name,
            outer,
            maps,
            entries: 0,
            capacity,
            limit,
        })
    }

    pub(crate) fn fill(&self) -> Fill {
        Fill {
            map: self.name,
            entries: self.entries,
            capacity: self.capacity,
            limit: self.limit,
        }
    }

    /// Makes sure that programs can count under so many keys.
    pub(crate) fn hold(&mut self, entries: u32) -> Result<(), Refused> {
        self.entries = entries;
        if !self.maps.is_empty() && entries <= self.capacity {
            return Ok(());
        }
        let capacity = roomy(entries, FIRST, self.limit);
        if !self.maps.is_empty() && capacity <= self.capacity {
            return Err(Refused::Full { limit: self.limit });
        }
        let larger = sys::create_map(self.name, Self::SHAPE, capacity).map_err(|source| Refused::Stuck {
            capacity: self.capacity,
            wanted: capacity,
            source,
        })?;
        let larger = MapData::from_fd(larger)?;
        if let Some(current) = self.maps.first() {
            let free = (CURRENT + 1..self.outer.len()).find(|place| self.is_free(*place));
            let free = free.ok_or(Refused::Full { limit: self.capacity })?;
            self.outer.set(free, current.map(), 0)?;
        }
        self.outer.set(CURRENT, &larger, 0)?;
        self.maps.insert(0, typed(larger)?);
        self.capacity = capacity;
        Ok(())
    }

    fn is_free(&self, place: u32) -> bool {
        matches!(at(&self.outer, place), Ok(None))
    }

    /// The keys that anything was counted under.
    pub(crate) fn keys(&self) -> Result<Vec<K>, MapError> {
        let mut all: Vec<K> = self
            .maps
            .iter()
            .flat_map(PerCpuHashMap::keys)
            .collect::<Result<_, _>>()?;
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// What is under a key: of every CPU, and of every map.
    pub(crate) fn get(&self, key: &K) -> Result<Vec<V>, MapError> {
        let mut all = Vec::new();
        for map in &self.maps {
            match map.get(key, 0) {
                Ok(values) => all.extend(values.iter().copied()),
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Removes a key; that it is not there is fine.
    pub(crate) fn remove(&mut self, key: &K) -> Result<(), MapError> {
        self.maps.iter_mut().try_for_each(|map| match map.remove(key) {
            Err(error) if !is_absent(&error) => Err(error),
            _ => Ok(()),
        })
    }
}
