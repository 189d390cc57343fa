//! A map that programs fill, made in its full size when it is first needed.
//!
//! Most nodes never have a service with affinity, or one whose backends are chosen by how busy they are; until then the place
//! in the outer map is empty, there is nothing that could be lost, and the map costs nothing.

use aya::Pod;
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData, MapError};

use super::sys::{self, Shape};
use super::{CURRENT, HASH, LRU_HASH, ON_DEMAND, Refused, at, typed};

pub(crate) struct OnDemand<K, V> {
    name: &'static str,
    outer: ArrayOfMaps<MapData>,
    map: Option<HashMap<MapData, K, V>>,
    shape: Shape,
    entries: u32,
}

impl<K: Pod, V: Pod> OnDemand<K, V> {
    pub(crate) const HASH: Shape = Shape {
        kind: HASH,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        flags: ON_DEMAND,
    };
    /// Allocated in advance, whether one likes it or not.
    pub(crate) const CACHE: Shape = Shape {
        kind: LRU_HASH,
        flags: 0,
        ..OnDemand::<K, V>::HASH
    };

    /// A hash map that is full with so many elements.
    pub(crate) fn hash(name: &'static str, outer: Map, entries: u32) -> Result<OnDemand<K, V>, MapError> {
        OnDemand::open(name, outer, OnDemand::<K, V>::HASH, entries)
    }

    /// A hash map that forgets the least recently used of more elements.
    pub(crate) fn cache(name: &'static str, outer: Map, entries: u32) -> Result<OnDemand<K, V>, MapError> {
        OnDemand::open(name, outer, OnDemand::<K, V>::CACHE, entries)
    }

    fn open(name: &'static str, outer: Map, shape: Shape, entries: u32) -> Result<OnDemand<K, V>, MapError> {
        let outer = ArrayOfMaps::<MapData>::try_from(outer)?;
        let map = at(&outer, CURRENT)?.map(typed).transpose()?;
        Ok(OnDemand {
            name,
            outer,
            map,
            shape,
            entries,
        })
    }

    /// The map, if anybody has needed it.
    pub(crate) fn get(&mut self) -> Option<&mut HashMap<MapData, K, V>> {
        self.map.as_mut()
    }

    /// From now on it is needed.
    pub(crate) fn make(&mut self) -> Result<(), Refused> {
        if self.map.is_some() {
            return Ok(());
        }
        let made = sys::create_map(self.name, self.shape, self.entries).map_err(|source| Refused::Stuck {
            capacity: 0,
            wanted: self.entries,
            source,
        })?;
        let made = MapData::from_fd(made)?;
        self.outer.set(CURRENT, &made, 0)?;
        self.map = Some(typed(made)?);
        Ok(())
    }
}
