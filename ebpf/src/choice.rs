//! Which backend of a service a new client gets, by the service's algorithm. Shared with the packet programs.
//!
//! A reader may fall between the agent's writes and hold a set that is gone: then nothing is picked, and the caller
//! looks the service up again. Every element is copied at once, and its own key tells whether it was reused meanwhile.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use hull_ebpf_types::{Backend, CHUNK, Endpoint, Load, Member, Service, Slot, algorithm};

use crate::maps::{LOAD, SLOTS, TABLES};

/// Of more backends than this the one with the fewest connections is looked for among as many, from a random one on.
const SCANNED: u32 = 32;
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
        _ => random() % count,
    };
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
    // SAFETY: copied at once, and checked.
    match unsafe { SLOTS.get(&slot) } {
        None => return false,
        Some(found) => *backend = *found,
    }
    backend.slot == slot
}

/// The slot at the client's place in the look-up table; what no set has when it has just changed.
#[inline(always)]
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
    // SAFETY: read at once; the element's own key tells whether it was reused meanwhile.
    match unsafe { TABLES.get(&key) } {
        Some(chunk) => {
            let index = chunk.slots[place as usize % CHUNK];
            if chunk.key == key { u32::from(index) } else { u32::MAX }
        }
        None => u32::MAX,
    }
}

#[inline(always)]
fn idlest(service: &Service) -> u32 {
    let count = service.count;
    let start = random() % count;
    let mut best = start;
    let mut best_open = u64::MAX;
    let mut best_weight = 1;
    let mut scanned = 0;
    while scanned < SCANNED && scanned < count {
        let index = (start + scanned) % count;
        scanned += 1;
        let mut backend = Backend::default();
        if !slot(service, index, &mut backend) {
            return u32::MAX;
        }
        let open = u64::from(load(service, &backend).open);
        let weight = u64::from(backend.weight);
        if best_open == u64::MAX || open * best_weight < best_open * weight {
            best = index;
            best_open = open;
            best_weight = weight;
        }
    }
    best
}

/// Two different slots at random; of these the one where the product of time to connect and connections is smaller.
#[inline(always)]
fn better_of_two(service: &Service) -> u32 {
    let count = service.count;
    let one = random() % count;
    let two = (one + 1 + random() % (count - 1)) % count;
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
    // SAFETY: copied at once.
    if let Some(found) = unsafe { LOAD.get(&member) } {
        load = *found;
    }
    load
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_get_prandom_u32() }
}
