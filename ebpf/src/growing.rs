//! Maps that the agent exchanges for larger ones: an outer map of one place, and in it the map itself.
//!
//! Programs go by the outer map with every look; one that runs while the maps are exchanged sees the one or the other,
//! and both have the same content. An empty place is an empty map.

use aya_ebpf::btf_maps::{ArrayOfMaps, HashMap, LruHashMap, PerCpuHashMap};

/// The place of the map in force.
const CURRENT: u32 = 0;

pub trait Growing<K, V> {
    fn get_ptr_mut(&self, key: &K) -> Option<*mut V>;

    /// False when the kernel refuses, or nobody has made the map yet.
    #[allow(dead_code, reason = "not every program writes")]
    fn insert(&self, key: &K, value: &V, flags: u64) -> bool;

    #[inline(always)]
    #[allow(dead_code, reason = "not every program reads")]
    fn get_ptr(&self, key: &K) -> Option<*const V> {
        match self.get_ptr_mut(key) {
            Some(value) => Some(value.cast_const()),
            None => None,
        }
    }

    #[inline(always)]
    #[allow(dead_code, reason = "not every program asks")]
    fn has(&self, key: &K) -> bool {
        self.get_ptr_mut(key).is_some()
    }
}

macro_rules! growing {
    ($($inner:ident),*) => {$(
        impl<K, V, const SIZE: usize, const FLAGS: usize, const PLACES: usize> Growing<K, V>
            for ArrayOfMaps<$inner<K, V, SIZE, FLAGS>, PLACES>
        {
            #[inline(always)]
            fn get_ptr_mut(&self, key: &K) -> Option<*mut V> {
                self.get_value_ptr_mut(CURRENT, key)
            }

            #[inline(always)]
            fn insert(&self, key: &K, value: &V, flags: u64) -> bool {
                match self.get(CURRENT) {
                    Some(map) => map.insert(key, value, flags).is_ok(),
                    None => false,
                }
            }
        }
    )*};
}

growing!(HashMap, LruHashMap, PerCpuHashMap);
