//! The maps. The agent pins them and sizes them; the first six are those of the socket programs (`hull.bpf.o`).

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use hull_ebpf_types::edge::{
    Fragment, Local, Node, Ports, RangeAddress, Reason, SourceRange, Track, Tuple, Uplink, Visitor,
};
use hull_ebpf_types::{Affinity, Backend, Chunk, Frontend, Load, Member, Offer, Slot};

use crate::packet::Packet;

/// Memory is taken for what is used, not for what could be.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
/// Overridden by the agent's configured limits.
const PLACEHOLDER: usize = 1024;
const REASONS: usize = Reason::NAMES.len();

#[btf_map(name = "services")]
pub static SERVICES: ArrayOfMaps<HashMap<Frontend, Offer, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

#[btf_map(name = "slots")]
pub static SLOTS: ArrayOfMaps<HashMap<Slot, Backend, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

#[btf_map(name = "tables")]
pub static TABLES: ArrayOfMaps<HashMap<Slot, Chunk, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

#[btf_map(name = "addresses")]
pub static ADDRESSES: ArrayOfMaps<HashMap<[u32; 4], u32, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

#[btf_map(name = "load")]
pub static LOAD: ArrayOfMaps<HashMap<Member, Load, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

#[btf_map(name = "members")]
pub static MEMBERS: ArrayOfMaps<HashMap<Member, u32, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

#[btf_map(name = "edge_streams")]
pub static STREAMS: LruHashMap<Tuple, Track, PLACEHOLDER> = LruHashMap::new();

/// Apart from TCP, so that a flood of datagrams never evicts a connection.
#[btf_map(name = "edge_datagrams")]
pub static DATAGRAMS: LruHashMap<Tuple, Track, PLACEHOLDER> = LruHashMap::new();

#[btf_map(name = "edge_local")]
pub static LOCAL: HashMap<[u32; 4], Local, PLACEHOLDER, ON_DEMAND> = HashMap::new();

#[btf_map(name = "edge_uplinks")]
pub static UPLINKS: HashMap<u32, Uplink, PLACEHOLDER, ON_DEMAND> = HashMap::new();

#[btf_map(name = "edge_node")]
pub static NODE: Array<Node, 1> = Array::new();

/// The value says nothing: being there is the answer.
#[btf_map(name = "edge_ranges")]
pub static RANGES: LpmTrie<RangeAddress, u32, PLACEHOLDER> = LpmTrie::new();

#[btf_map(name = "edge_sources")]
pub static SOURCES: LpmTrie<SourceRange, u32, PLACEHOLDER> = LpmTrie::new();

#[btf_map(name = "edge_fragments")]
pub static FRAGMENTS: LruHashMap<Fragment, Ports, PLACEHOLDER> = LruHashMap::new();

#[btf_map(name = "edge_affinity")]
pub static AFFINITY: LruHashMap<Visitor, Affinity, PLACEHOLDER> = LruHashMap::new();

#[btf_map(name = "edge_reasons")]
pub static COUNTS: PerCpuArray<u64, REASONS> = PerCpuArray::new();

/// The packet at hand. A program of this kind is never interrupted by another one on the same CPU.
#[btf_map(name = "edge_packet")]
pub static PACKET: PerCpuArray<Packet, 1> = PerCpuArray::new();

#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = COUNTS.get_ptr_mut(reason as u32) {
        // SAFETY: an element of this CPU.
        unsafe { *counter += 1 };
    }
}
