//! The pinned maps of the edge, and bringing one to a desired content by writing what differs.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use hull_ebpf_types::edge::{Local, Node, Reason, SourceRange, Uplink};

use super::Error;

/// The names of the edge's own maps, as in the object and, with the layout's version, as pins.
pub(super) const NAMES: [&str; 10] = [
    "edge_streams",
    "edge_datagrams",
    "edge_local",
    "edge_uplinks",
    "edge_node",
    "edge_ranges",
    "edge_sources",
    "edge_fragments",
    "edge_affinity",
    "edge_reasons",
];

/// Any value: being in the map is what counts.
const PRESENT: u32 = 1;

pub(super) struct Maps {
    pub(super) local: HashMap<MapData, [u32; 4], Local>,
    pub(super) uplinks: HashMap<MapData, u32, Uplink>,
    node: Array<MapData, Node>,
    ranges: LpmTrie<MapData, [u32; 4], u32>,
    sources: LpmTrie<MapData, SourceRange, u32>,
    reasons: PerCpuArray<MapData, u64>,
}

impl Maps {
    /// Takes the maps out of the loaded object; each conversion checks type, key and value size.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Maps, Error> {
        let mut map = |name| {
            ebpf.take_map(name)
                .ok_or_else(|| Error::Load(format!("the object has no map {name}")))
        };
        Ok(Maps {
            local: fits("edge_local", HashMap::try_from(map("edge_local")?))?,
            uplinks: fits("edge_uplinks", HashMap::try_from(map("edge_uplinks")?))?,
            node: fits("edge_node", Array::try_from(map("edge_node")?))?,
            ranges: fits("edge_ranges", LpmTrie::try_from(map("edge_ranges")?))?,
            sources: fits("edge_sources", LpmTrie::try_from(map("edge_sources")?))?,
            reasons: fits("edge_reasons", PerCpuArray::try_from(map("edge_reasons")?))?,
        })
    }

    pub(super) fn set_node(&mut self, node: &Node) -> Result<(), Error> {
        self.node
            .set(0, *node, 0)
            .map_err(|error| access("write to", "edge_node", &error))
    }

    pub(super) fn set_ranges(&mut self, desired: &BTreeSet<(u32, [u32; 4])>) -> Result<(), Error> {
        let key = |(length, address): &(u32, [u32; 4])| Key::new(*length, *address);
        set_tries(&mut self.ranges, "edge_ranges", desired, key, |key| {
            (key.prefix_len(), key.data())
        })
    }

    /// `desired`: prefix length of the address alone, set, address.
    pub(super) fn set_sources(&mut self, desired: &BTreeSet<(u32, u32, [u32; 4])>) -> Result<(), Error> {
        let key = |(length, set, address): &(u32, u32, [u32; 4])| {
            let data = SourceRange {
                set: *set,
                address: *address,
            };
            Key::new(u32::BITS + *length, data)
        };
        let back = |key: &Key<SourceRange>| {
            let data = key.data();
            (key.prefix_len() - u32::BITS, data.set, data.address)
        };
        set_tries(&mut self.sources, "edge_sources", desired, key, back)
    }

    /// How often each reason was met, over all CPUs.
    pub(super) fn reasons(&self) -> Result<[u64; Reason::NAMES.len()], Error> {
        let mut sums = [0; Reason::NAMES.len()];
        for (index, sum) in (0..).zip(&mut sums) {
            let values = self.reasons.get(&index, 0);
            *sum = values
                .map_err(|error| access("read", "edge_reasons", &error))?
                .iter()
                .sum();
        }
        Ok(sums)
    }
}

fn set_tries<K: Pod, T: Ord + Copy>(
    trie: &mut LpmTrie<MapData, K, u32>,
    name: &'static str,
    desired: &BTreeSet<T>,
    to_key: impl Fn(&T) -> Key<K>,
    of_key: impl Fn(&Key<K>) -> T,
) -> Result<(), Error> {
    let keys: Result<Vec<Key<K>>, MapError> = trie.keys().collect();
    let present: BTreeSet<T> = keys
        .map_err(|error| access("read", name, &error))?
        .iter()
        .map(of_key)
        .collect();
    // What is new first: never a moment in which something that stays is not there.
    for entry in desired.difference(&present) {
        let written = trie.insert(&to_key(entry), PRESENT, 0);
        written.map_err(|error| access("write to", name, &error))?;
    }
    for entry in present.difference(desired) {
        gone(name, trie.remove(&to_key(entry)))?;
    }
    Ok(())
}

/// Brings those entries of the map for which `mine` holds to `desired`.
pub(super) fn set<K: Pod + Ord + Hash, V: Pod + PartialEq>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    desired: &BTreeMap<K, V>,
    mine: impl Fn(&K, &V) -> bool,
) -> Result<(), Error> {
    let entries: Result<BTreeMap<K, V>, MapError> = map.iter().collect();
    let present = entries.map_err(|error| access("read", name, &error))?;
    for (key, value) in desired {
        if present.get(key) != Some(value) {
            put(map, name, key, value)?;
        }
    }
    for (key, value) in &present {
        if !desired.contains_key(key) && mine(key, value) {
            gone(name, map.remove(key))?;
        }
    }
    Ok(())
}

pub(super) fn put<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    key: &K,
    value: &V,
) -> Result<(), Error> {
    map.insert(key, value, 0)
        .map_err(|error| access("write to", name, &error))
}

fn fits<T>(map: &'static str, result: Result<T, MapError>) -> Result<T, Error> {
    result.map_err(|error| {
        Error::Load(format!(
            "the pinned map {map} does not fit: {error}; `hull down` removes it"
        ))
    })
}

/// Removing what is not there is fine.
pub(super) fn gone(map: &'static str, result: Result<(), MapError>) -> Result<(), Error> {
    match result {
        Err(error) if errno(&error) != Some(libc::ENOENT) && !matches!(error, MapError::KeyNotFound) => {
            Err(access("remove from", map, &error))
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

fn access(action: &'static str, map: &'static str, error: &MapError) -> Error {
    let full = [Some(libc::E2BIG), Some(libc::ENOSPC)].contains(&errno(error));
    let reason = match error {
        _ if full => "it is full: this is all that the packet programs of a node can hold".to_owned(),
        MapError::SyscallError(call) => call.io_error.to_string(),
        other => other.to_string(),
    };
    Error::Access { action, map, reason }
}
