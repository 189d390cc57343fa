//! Which backend of a service a new client gets, by the service's algorithm. Shared with the packet programs.
//!
//! A reader may fall between the agent's writes and hold a set that is gone: then nothing is picked, and the caller
//! looks the service up again. Every element is copied at once, and its own key tells whether it was reused meanwhile.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use hull_ebpf_types::{Backend, CHUNK, Endpoint, Load, Member, Service, Slot, algorithm};

use crate::growing::Growing as _;
use crate::maps::{LOAD, SLOTS, TABLES};

/// Of more backends than eight times this the one with the fewest connections is looked for among as many, from a random one
/// on. The verifier forgets what it has verified of longer loops, and verifies it again.
const ROUNDS: u32 = 2;
/// A measured latency counts half after each 2^33 ns (8.6 s) without a new measurement.
const FADES: u32 = 33;

/// `client` is a hash of whom the same backend should serve. False when the set of backends has just changed.
#[inline(never)]
pub fn pick(service: &Service, client: u32, endpoint: &mut Endpoint) -> bool {
    let count = service.count;
    if count == 0 {
        return false;
    }
    let index = match service.algorithm {
        algorithm::MAGLEV => place(service, client),
        algorithm::LEAST_CONNECTIONS => idlest(service),
        algorithm::POWER_OF_TWO if count > 1 => better_of_two(service),
        _ => below(count),
    };
    at(service, index, endpoint)
}

/// Any of the backends, whatever the algorithm: for one who finds the set changed again.
#[inline(never)]
pub fn any(service: &Service, endpoint: &mut Endpoint) -> bool {
    at(service, below(service.count), endpoint)
}

#[inline(always)]
fn at(service: &Service, index: u32, endpoint: &mut Endpoint) -> bool {
    let mut backend = Backend::default();
    if !slot(service, index, &mut backend) {
        return false;
    }
    *endpoint = backend.endpoint;
    true
}

/// Spreads what identifies a client over 32 bits.
#[inline(always)]
pub fn hash(value: u64) -> u32 {
    let mixed = (value ^ (value >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32
}

#[inline(always)]
fn slot(service: &Service, index: u32, backend: &mut Backend) -> bool {
    let slot = Slot {
        service: service.id,
        generation: service.generation,
        index,
    };
    match SLOTS.get_ptr(&slot) {
        None => return false,
        // SAFETY: copied at once, and checked.
        Some(found) => *backend = unsafe { *found },
    }
    same(&backend.slot, &slot)
}

/// In one comparison: the verifier follows both ways of each.
#[inline(always)]
fn same(one: &Slot, other: &Slot) -> bool {
    let difference = |one: u32, other: u32| u64::from(one ^ other);
    let sum = difference(one.service, other.service)
        + difference(one.generation, other.generation)
        + difference(one.index, other.index);
    sum == 0
}

/// The slot at the client's place in the look-up table; what no set has when it has just changed.
/// A function of its own in the program, too: what the verifier finds out about each way in it ends with it.
#[inline(never)]
fn place(service: &Service, client: u32) -> u32 {
    if service.table == 0 {
        return u32::MAX;
    }
    let place = client % service.table;
    let key = Slot {
        service: service.id,
        generation: service.generation,
        index: place / CHUNK as u32,
    };
    match TABLES.get_ptr(&key) {
        Some(chunk) => {
            // SAFETY: read at once; the element's own key tells whether it was reused meanwhile.
            let chunk = unsafe { &*chunk };
            let index = chunk.slots[place as usize % CHUNK];
            if chunk.key == key { u32::from(index) } else { u32::MAX }
        }
        None => u32::MAX,
    }
}

/// A function of its own in the program, too: what the verifier finds out about each way in it ends with it.
#[inline(never)]
fn idlest(service: &Service) -> u32 {
    let count = service.count;
    let start = below(count);
    let mut search = Search {
        start,
        scanned: 0,
        best: Candidate {
            index: start,
            // More than any backend has.
            open: u64::from(u32::MAX) + 1,
            weight: 1,
        },
    };
    let mut round = 0;
    while round < ROUNDS {
        round += 1;
        if !(consider(service, &mut search)
            && consider(service, &mut search)
            && consider(service, &mut search)
            && consider(service, &mut search)
            && consider(service, &mut search)
            && consider(service, &mut search)
            && consider(service, &mut search)
            && consider(service, &mut search))
        {
            break;
        }
    }
    search.best.index
}

/// Looks at one more slot; false when that was the last.
#[inline(always)]
fn consider(service: &Service, search: &mut Search) -> bool {
    let count = service.count;
    if search.scanned >= count {
        return false;
    }
    let index = (search.start + search.scanned) % count;
    search.scanned += 1;
    let key = Slot {
        service: service.id,
        generation: service.generation,
        index,
    };
    let Some(found) = SLOTS.get_ptr(&key) else {
        search.best.index = u32::MAX;
        return false;
    };
    // SAFETY: read at once; the element's own key tells whether it was reused meanwhile.
    let (slot, endpoint, weight) = unsafe { ((*found).slot, (*found).endpoint, u64::from((*found).weight)) };
    let member = Member {
        service: service.id,
        endpoint,
    };
    let open = match LOAD.get_ptr(&member) {
        // SAFETY: a torn value costs one client a less good choice.
        Some(load) => u64::from(unsafe { (*load).open }),
        None => 0,
    };
    if !same(&slot, &key) {
        search.best.index = u32::MAX;
        return false;
    }
    if open * search.best.weight < search.best.open * weight {
        // SAFETY: a variable of our own. Written as one: the compiler would test the condition for each part, and the
        // verifier follow every combination.
        unsafe { (&raw mut search.best).write_volatile(Candidate { index, open, weight }) };
    }
    true
}

struct Search {
    start: u32,
    scanned: u32,
    best: Candidate,
}

#[derive(Clone, Copy)]
struct Candidate {
    index: u32,
    open: u64,
    weight: u64,
}

/// Two different slots at random; of these the one where the product of time to connect and connections is smaller.
/// A function of its own in the program, too: what the verifier finds out about each way in it ends with it.
#[inline(never)]
fn better_of_two(service: &Service) -> u32 {
    let count = service.count;
    let one = below(count);
    let next = one + 1 + below(count - 1);
    let two = if next < count { next } else { next - count };
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let mut backend = Backend::default();
    if !slot(service, one, &mut backend) {
        return u32::MAX;
    }
    let first = effort(&load(service, &backend), now);
    if !slot(service, two, &mut backend) {
        return u32::MAX;
    }
    if effort(&load(service, &backend), now) < first {
        two
    } else {
        one
    }
}

#[inline(always)]
fn effort(load: &Load, now: u64) -> u64 {
    let halves = now.wrapping_sub(load.updated) >> FADES;
    let latency = if halves < 32 {
        u64::from(load.latency) >> halves
    } else {
        0
    };
    (latency + 1) * (u64::from(load.open) + 1)
}

/// What is known of a backend; a torn value costs one client a less good choice.
#[inline(always)]
fn load(service: &Service, backend: &Backend) -> Load {
    let member = Member {
        service: service.id,
        endpoint: backend.endpoint,
    };
    let mut load = Load {
        open: 0,
        latency: 0,
        updated: 0,
    };
    if let Some(found) = LOAD.get_ptr(&member) {
        // SAFETY: copied at once.
        load = unsafe { *found };
    }
    load
}

/// Any number below this one.
#[inline(always)]
fn below(count: u32) -> u32 {
    // SAFETY: a helper without preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    ((u64::from(random) * u64::from(count)) >> 32) as u32
}
