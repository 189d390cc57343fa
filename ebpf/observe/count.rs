//! Counting, for the backend of the socket at hand.
//!
//! All additions are atomic: softirqs of every CPU count for the same backend. The smoothed latency is not, a lost
//! sample of it is only one sample fewer.

use core::arch::asm;
use core::hint::black_box;

use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock_ops};
use aya_ebpf::helpers::generated::bpf_map_update_elem;
use hull_ebpf_types::observe::{BUCKETS, FAILURES, Failure, Histogram, Observed, bucket};
use hull_ebpf_types::{Load, Member, Origin};

use crate::growing::Growing as _;
use crate::maps::{BLANK, HEALTH, LOAD, OBSERVED, put};
use crate::socket::field;

/// The newest sample weighs 1 / 2^3 in the smoothed latency.
const WEIGHT: u32 = 3;
/// A connect that fails counts as one that took at least so long, in microseconds.
pub const FAILED: u32 = 1_000_000;

#[inline(always)]
fn member(origin: &Origin) -> Member {
    Member {
        service: origin.service,
        endpoint: origin.to.endpoint,
    }
}

/// Atomic addition. The target's atomic types can only load and store: it has no compare-and-swap before cpu v3.
#[inline(always)]
fn add(counter: *mut u64, more: u64) {
    // SAFETY: an aligned word of a map's element, only ever added to atomically.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) counter, in(reg) more) };
}

/// [`add`], for a word of half the size; adding all ones takes one away.
#[inline(always)]
fn add_word(counter: *mut u32, more: u64) {
    // SAFETY: as above.
    unsafe { asm!("lock *(u32 *)({} + 0) += {}", in(reg) counter, in(reg) more) };
}

/// What is known of the backend; made if there is nothing yet. Null if that does not fit.
#[inline(always)]
pub fn observed(origin: &Origin) -> *mut Observed {
    match OBSERVED.get_ptr_mut(&member(origin)) {
        Some(observed) => observed,
        None => first(origin),
    }
}

/// The backend's first connection.
#[inline(never)]
fn first(origin: &Origin) -> *mut Observed {
    let key = member(origin);
    let Some(blank) = BLANK.get_ptr_mut(0) else {
        return core::ptr::null_mut();
    };
    // SAFETY: both point to values of the map's types. That another CPU was faster is as good.
    unsafe {
        bpf_map_update_elem(
            (&raw const OBSERVED).cast_mut().cast(),
            (&raw const key).cast_mut().cast(),
            blank.cast(),
            u64::from(BPF_NOEXIST),
        )
    };
    match OBSERVED.get_ptr_mut(&key) {
        Some(observed) => {
            // SAFETY: a valid element; whoever else writes this writes the same.
            unsafe { put(&raw mut (*observed).frontend, &origin.to.frontend) };
            observed
        }
        None => {
            if let Some(health) = HEALTH.get_ptr_mut(0) {
                // SAFETY: an element of this CPU.
                add(unsafe { &raw mut (*health).unobserved }, 1);
            }
            core::ptr::null_mut()
        }
    }
}

#[inline(always)]
fn record(histogram: *mut Histogram, microseconds: u32) {
    // The compiler knows that no bucket is outside and would leave the check out that the verifier wants to see.
    let index = black_box(bucket(microseconds));
    if index >= BUCKETS {
        return;
    }
    // SAFETY: within the array.
    unsafe {
        add((&raw mut (*histogram).counts).cast::<u64>().add(index), 1);
        add(&raw mut (*histogram).sum, u64::from(microseconds));
    }
}

/// A client is about to connect to the backend, which is chosen by how busy it is.
#[inline(never)]
pub fn busier(origin: &Origin) {
    let key = member(origin);
    let load = match LOAD.get_ptr_mut(&key) {
        Some(load) => load,
        None => {
            // That another CPU was faster is as good.
            LOAD.insert(&key, &Load::default(), u64::from(BPF_NOEXIST));
            let Some(load) = LOAD.get_ptr_mut(&key) else {
                if let Some(health) = HEALTH.get_ptr_mut(0) {
                    // SAFETY: an element of this CPU.
                    add(unsafe { &raw mut (*health).unweighed }, 1);
                }
                return;
            };
            load
        }
    };
    // SAFETY: an aligned word of the element.
    add_word(unsafe { &raw mut (*load).open }, 1);
}

/// A connection to such a backend is no more, or was never made.
#[inline(never)]
pub fn idler(origin: &Origin) {
    if let Some(load) = LOAD.get_ptr_mut(&member(origin)) {
        // SAFETY: an aligned word of the element.
        add_word(unsafe { &raw mut (*load).open }, u64::MAX);
    }
}

/// Connecting to such a backend took so long.
#[inline(never)]
pub fn timed(origin: &Origin, microseconds: u32, now: u64) {
    if let Some(load) = LOAD.get_ptr_mut(&member(origin)) {
        // SAFETY: a valid element.
        unsafe {
            (*load).latency = smoothed((*load).latency, microseconds);
            (*load).updated = now;
        }
    }
}

#[inline(always)]
fn smoothed(old: u32, microseconds: u32) -> u32 {
    if old == 0 {
        microseconds.max(1)
    } else {
        old - (old >> WEIGHT) + (microseconds >> WEIGHT)
    }
}

/// A connection was made.
#[inline(always)]
pub fn opened(observed: *mut Observed, microseconds: u32) {
    // SAFETY: a valid element, by the caller.
    unsafe {
        add(&raw mut (*observed).opened, 1);
        (*observed).smoothed = smoothed((*observed).smoothed, microseconds);
        record(&raw mut (*observed).connect, microseconds);
    }
}

/// A connection that was made is no more.
#[inline(always)]
pub fn closed(observed: *mut Observed) {
    // SAFETY: a valid element, by the caller.
    add(unsafe { &raw mut (*observed).closed }, 1);
}

/// A connection was not made. That its client gave up says nothing about the backend's latency.
#[inline(always)]
pub fn failed(observed: *mut Observed, failure: Failure, microseconds: u32) {
    if failure != Failure::Abandoned {
        // SAFETY: a valid element, by the caller.
        unsafe { (*observed).smoothed = smoothed((*observed).smoothed, microseconds.max(FAILED)) };
    }
    broke(observed, failure);
}

#[inline(always)]
pub fn broke(observed: *mut Observed, failure: Failure) {
    let index = black_box(failure as usize);
    if index < FAILURES {
        // SAFETY: within the array of a valid element, by the caller.
        unsafe { add((&raw mut (*observed).failures).cast::<u64>().add(index), 1) };
    }
}

#[inline(always)]
pub fn round_trip(observed: *mut Observed, microseconds: u32) {
    // SAFETY: a valid element, by the caller.
    record(unsafe { &raw mut (*observed).rtt }, microseconds);
}

/// Adds what was sent and received since the last time; `farewell` bytes of both are the connection's own.
#[inline(always)]
pub fn traffic(ops: *mut bpf_sock_ops, origin: &mut Origin, observed: *mut Observed, farewell: u64) {
    let sent = field!(ops, bytes_acked).saturating_sub(farewell);
    let received = field!(ops, bytes_received).saturating_sub(farewell);
    let retransmits = field!(ops, total_retrans);
    let flow = &mut origin.flow;
    let more_sent = sent.saturating_sub(flow.sent);
    let more_received = received.saturating_sub(flow.received);
    let more_retransmits = retransmits.saturating_sub(flow.retransmits);
    flow.sent += more_sent;
    flow.received += more_received;
    flow.retransmits += more_retransmits;
    // SAFETY: a valid element, by the caller.
    unsafe {
        if more_sent != 0 {
            add(&raw mut (*observed).sent, more_sent);
        }
        if more_received != 0 {
            add(&raw mut (*observed).received, more_received);
        }
        if more_retransmits != 0 {
            add(&raw mut (*observed).retransmits, u64::from(more_retransmits));
        }
    }
}
