//! What the sockets of services go through: how long connecting took, how far the backend is, how it ended.
//!
//! One program of type BPF_PROG_TYPE_SOCK_OPS on the node's cgroup. It looks up the socket's origin when it connects;
//! only sockets that were sent to a backend ask for the further callbacks, all others are left alone after that. It
//! only ever counts: what it returns is what the kernel would have done without it. bpf-helpers(7), linux/bpf.h.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod count;
mod diary;
#[path = "../src/growing.rs"]
mod growing;
mod maps;
#[path = "../src/origin.rs"]
mod origin;
mod socket;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_RETRANS_CB, BPF_SOCK_OPS_RETRANS_CB_FLAG, BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_sock_ops_cb_flags_set};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use hull_ebpf_types::observe::{Event, Failure, Observed};
use hull_ebpf_types::{Origin, state};

use socket::field;

/// The callbacks that a service's socket asks for when it connects, and when it has: a SYN's own round trip is known.
const WHEN_CONNECTING: u32 = BPF_SOCK_OPS_STATE_CB_FLAG;
const WHEN_OPEN: u32 = BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG;
/// The kernel goes on as without this program.
const PROCEED: u32 = 1;

const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const FIN_WAIT2: u32 = 5;
const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

const NANOSECONDS: u64 = 1_000;

#[sock_ops]
fn observe(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    let op = field!(ops, op);
    // Most callbacks are none of these, or tell nothing: they end here.
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB | BPF_SOCK_OPS_RTT_CB | BPF_SOCK_OPS_RETRANS_CB => {}
        BPF_SOCK_OPS_STATE_CB if !tells_nothing(argument(ops, 0), argument(ops, 1)) => {}
        _ => return PROCEED,
    }
    let origin = socket::origin(ops);
    if origin.is_null() {
        return PROCEED;
    }
    // SAFETY: the socket's own value; the kernel holds the socket's lock.
    let origin = unsafe { &mut *origin };
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ops, origin),
        BPF_SOCK_OPS_STATE_CB => changed(ops, origin),
        BPF_SOCK_OPS_RTT_CB => measured(ops, origin),
        _ => sent_again(ops, origin),
    }
    PROCEED
}

#[inline(always)]
fn argument(ops: *mut bpf_sock_ops, index: usize) -> u32 {
    // SAFETY: the kernel passes a valid context.
    unsafe { core::ptr::read_volatile(&raw const (*ops).__bindgen_anon_1.args[index]) }
}

/// A change of state that is no end of anything: a farewell is under way.
#[inline(always)]
fn tells_nothing(old: u32, new: u32) -> bool {
    new != CLOSE && old != SYN_SENT && old != ESTABLISHED && old != CLOSE_WAIT || new == CLOSE_WAIT
}

/// The first SYN is about to leave.
#[inline(always)]
fn connecting(ops: *mut bpf_sock_ops, origin: &mut Origin) {
    ask_for(ops, WHEN_CONNECTING);
    origin.flow.sampled = 0;
    origin.flow.sent = 0;
    origin.flow.received = 0;
    origin.flow.in_diary = 0;
    origin.flow.retransmits = 0;
    origin.state |= state::OBSERVED;
    if origin.state & state::WEIGHED != 0 {
        count::busier(origin);
    }
}

#[inline(always)]
fn ask_for(ops: *mut bpf_sock_ops, callbacks: u32) {
    let flags = field!(ops, bpf_sock_ops_cb_flags) | callbacks;
    // SAFETY: the context is the kernel's.
    unsafe { bpf_sock_ops_cb_flags_set(ops, flags as i32) };
}

/// The socket's state is about to change (tcp_set_state).
#[inline(always)]
fn changed(ops: *mut bpf_sock_ops, origin: &mut Origin) {
    let (old, new) = (argument(ops, 0), argument(ops, 1));
    if old == SYN_SENT && new == ESTABLISHED {
        return opened(ops, origin);
    }
    let was_open = old == ESTABLISHED || old == CLOSE_WAIT;
    if (was_open || old == SYN_SENT) && origin.state & state::WEIGHED != 0 {
        count::idler(origin);
    }
    let observed = count::observed(origin);
    if was_open && !observed.is_null() {
        count::closed(observed);
    }
    if new != CLOSE {
        return;
    }
    if !observed.is_null() {
        if old == SYN_SENT {
            failed(ops, origin, observed);
        } else {
            ended(ops, origin, observed, old);
        }
    }
    // SAFETY: the socket's own.
    unsafe { origin::leave(origin, state::ENDED) };
}

#[inline(always)]
fn opened(ops: *mut bpf_sock_ops, origin: &mut Origin) {
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    ask_for(ops, WHEN_OPEN);
    // The SYN is acknowledged as if it were a byte.
    origin.flow.sent = field!(ops, bytes_acked);
    let took = since_connect(origin, now);
    if origin.state & state::WEIGHED != 0 {
        count::timed(origin, took, now);
    }
    let observed = count::observed(origin);
    if observed.is_null() {
        return;
    }
    count::opened(observed, took);
    if diary::has_room(observed, now) {
        origin.flow.in_diary = 1;
        diary::write(ops, origin, Event::Opened, 0);
    }
}

#[inline(always)]
fn failed(ops: *mut bpf_sock_ops, origin: &mut Origin, observed: *mut Observed) {
    let failure = socket::why_not_made(ops);
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let took = since_connect(origin, now);
    if origin.state & state::WEIGHED != 0 && failure != Failure::Abandoned {
        count::timed(origin, took.max(count::FAILED), now);
    }
    count::failed(observed, failure, took);
    count::traffic(ops, origin, observed, 0);
    diary::write(ops, origin, Event::Failed, failure as u32);
}

/// A connection that was made is gone for good.
#[inline(always)]
fn ended(ops: *mut bpf_sock_ops, origin: &mut Origin, observed: *mut Observed, old: u32) {
    let mut failure = Failure::Reset;
    if (old == ESTABLISHED || old == CLOSE_WAIT) && socket::why_broken(ops, &mut failure) {
        count::traffic(ops, origin, observed, 0);
        count::broke(observed, failure);
        return diary::write(ops, origin, Event::Broken, failure as u32);
    }
    // Both FINs are counted as if they were bytes.
    let farewell = u64::from(matches!(old, FIN_WAIT2 | CLOSING | LAST_ACK));
    count::traffic(ops, origin, observed, farewell);
    // The end of what has no beginning there says little.
    if origin.flow.in_diary != 0 {
        diary::write(ops, origin, Event::Closed, 0);
    }
}

/// A round-trip time was measured: recorded once in a tick of the kernel's clock, however many there are.
#[inline(always)]
fn measured(ops: *mut bpf_sock_ops, origin: &mut Origin) {
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if origin.flow.sampled == now || field!(ops, state) != ESTABLISHED {
        return;
    }
    origin.flow.sampled = now;
    let observed = count::observed(origin);
    if !observed.is_null() {
        count::round_trip(observed, field!(ops, srtt_us) >> 3);
        count::traffic(ops, origin, observed, 0);
    }
}

#[inline(always)]
fn sent_again(ops: *mut bpf_sock_ops, origin: &mut Origin) {
    let observed = count::observed(origin);
    if !observed.is_null() {
        count::traffic(ops, origin, observed, 0);
    }
}

/// Microseconds since connect(2).
#[inline(always)]
fn since_connect(origin: &Origin, now: u64) -> u32 {
    let elapsed = now.wrapping_sub(origin.started) / NANOSECONDS;
    if elapsed > u64::from(u32::MAX) {
        u32::MAX
    } else {
        elapsed as u32
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
