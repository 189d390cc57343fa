//! For readers: the maps that are in an outer map at the moment, whoever has exchanged them since.

use std::marker::PhantomData;
use std::path::Path;

use aya::maps::{ArrayOfMaps, Map, MapData, MapError};

use super::{CURRENT, all, at, typed};

pub(crate) struct Followed<M> {
    outer: ArrayOfMaps<MapData>,
    is: PhantomData<M>,
}

impl<M: TryFrom<Map, Error = MapError>> Followed<M> {
    /// Of a loaded object's outer map.
    pub(crate) fn new(outer: Map) -> Result<Followed<M>, MapError> {
        Ok(Followed {
            outer: ArrayOfMaps::try_from(outer)?,
            is: PhantomData,
        })
    }

    /// Of a pinned outer map.
    pub(crate) fn open(pin: &Path) -> Result<Followed<M>, MapError> {
        Followed::new(Map::from_map_data(MapData::from_pin(pin)?)?)
    }

    /// The map in force, unless there is none yet. It may be exchanged the moment after: do not keep it.
    pub(crate) fn now(&self) -> Result<Option<M>, MapError> {
        at(&self.outer, CURRENT)?.map(typed).transpose()
    }

    /// The map in force and its predecessors, each of them once.
    pub(crate) fn all(&self) -> Result<Vec<M>, MapError> {
        all(&self.outer)
    }
}
