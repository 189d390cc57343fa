//! The maps. `origins`, `overflow` and `load` are shared with `hull.bpf.o`; the agent pins and sizes all of them.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;
use hull_ebpf_types::observe::{Entry, Health, Observed};
use hull_ebpf_types::{Load, Member, ORIGINS as PLACES, Origin};

/// Memory is taken for what is used, not for what could be.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
/// Overridden by the agent's configured limits.
const PLACEHOLDER: usize = 1024;

#[btf_map(name = "origins")]
pub static ORIGINS: Array<Origin, { PLACES as usize }> = Array::new();

#[btf_map(name = "overflow")]
pub static OVERFLOW: SkStorage<Origin> = SkStorage::new();

#[btf_map(name = "load")]
pub static LOAD: ArrayOfMaps<HashMap<Member, Load, PLACEHOLDER, ON_DEMAND>, 1> = ArrayOfMaps::new();

/// Not per CPU: an atomic addition costs less than the memory of a histogram for each processor.
#[btf_map(name = "observed")]
pub static OBSERVED: HashMap<Member, Observed, PLACEHOLDER, ON_DEMAND> = HashMap::new();

/// What a new element of `observed` is made from: it is larger than a program's stack. Never written.
#[btf_map(name = "blank")]
pub static BLANK: Array<Observed, 1> = Array::new();

/// For each CPU a circle of lines, one behind the other: there is always a past to read, whether or not anybody does.
#[btf_map(name = "diary")]
pub static DIARY: Array<Entry, PLACEHOLDER> = Array::new();

/// Lines ever written by a CPU.
#[btf_map(name = "pages")]
pub static PAGES: PerCpuArray<u64, 1> = PerCpuArray::new();

#[btf_map(name = "health")]
pub static HEALTH: PerCpuArray<Health, 1> = PerCpuArray::new();

/// Copies a value word by word. The compiler's own way to copy between two maps, which might overlap for all it knows,
/// is a call and a loop over bytes.
///
/// # Safety
/// Both must be valid, and aligned to words.
#[inline(always)]
pub unsafe fn put<T: Copy>(to: *mut T, from: &T) {
    let (to, from) = (to.cast::<u32>(), (&raw const *from).cast::<u32>());
    let mut word = 0;
    while word < size_of::<T>() / size_of::<u32>() {
        // SAFETY: within the value.
        unsafe { core::ptr::write_volatile(to.add(word), core::ptr::read_volatile(from.add(word))) };
        word += 1;
    }
}
