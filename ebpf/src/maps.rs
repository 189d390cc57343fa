//! The maps. The agent pins them, sizes them, and fills those before `load`. What grows has an outer map ([`crate::growing`]).

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, SkStorage};
use aya_ebpf::macros::btf_map;
use hull_ebpf_types::{
    Affinity, Backend, Chunk, Client, Counters, Frontend, GENERATIONS, Load, Member, Offer, Origin, Peers, Slot,
    Translation,
};

/// Memory is taken for what is used, not for what could be.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
/// The agent makes the maps as large as they have to be.
const PLACEHOLDER: usize = 1024;
const STRAYS_PLACES: usize = 16_384;
const ORIGINS_PLACES: usize = hull_ebpf_types::ORIGINS as usize;

#[btf_map(name = "services")]
pub static SERVICES: ArrayOfMaps<HashMap<Frontend, Offer, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

#[btf_map(name = "slots")]
pub static SLOTS: ArrayOfMaps<HashMap<Slot, Backend, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

#[btf_map(name = "tables")]
pub static TABLES: ArrayOfMaps<HashMap<Slot, Chunk, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

/// The value says nothing: being there is the answer.
#[btf_map(name = "members")]
pub static MEMBERS: ArrayOfMaps<HashMap<Member, u32, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

/// The node's own addresses on which node ports are served; the value is HOST_ONLY or zero.
#[btf_map(name = "addresses")]
pub static ADDRESSES: ArrayOfMaps<HashMap<[u32; 4], u32, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

/// Written by the program that observes sockets. Its place is empty until a service needs it.
#[btf_map(name = "load")]
pub static LOAD: ArrayOfMaps<HashMap<Member, Load, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

/// Behind the one in force stand those that became too small: what they have counted counts.
#[btf_map(name = "counters")]
pub static COUNTERS: ArrayOfMaps<PerCpuHashMap<u32, Counters, PLACEHOLDER, ON_DEMAND>, { GENERATIONS as usize }> =
    ArrayOfMaps::new();

/// Its place is empty until a service needs it.
#[btf_map(name = "affinity")]
pub static AFFINITY: ArrayOfMaps<LruHashMap<Client, Affinity, PLACEHOLDER>, 1> = ArrayOfMaps::new();

/// Each socket's place is its cookie's remainder: cookies are given out in order.
#[btf_map(name = "origins")]
pub static ORIGINS: Array<Origin, { ORIGINS_PLACES }> = Array::new();

/// What does not fit into `origins`.
#[btf_map(name = "overflow")]
pub static OVERFLOW: SkStorage<Origin> = SkStorage::new();

/// Where datagram sockets of `overflow` came from, by their cookies.
#[btf_map(name = "strays")]
pub static STRAYS: HashMap<u64, Translation, STRAYS_PLACES, ON_DEMAND> = HashMap::new();

/// Datagram sockets that fit into neither `origins` nor `strays`, ever.
#[btf_map(name = "untold")]
pub static UNTOLD: PerCpuArray<u64, 1> = PerCpuArray::new();

#[btf_map(name = "peers")]
pub static PEERS: SkStorage<Peers> = SkStorage::new();
