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
mod maps;
mod socket;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_RETRANS_CB, BPF_SOCK_OPS_RETRANS_CB_FLAG, BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_sock_ops_cb_flags_set};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use hull_ebpf_types::Origin;
use hull_ebpf_types::observe::{Event, Failure};

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
    if !matches!(
        op,
        BPF_SOCK_OPS_TCP_CONNECT_CB | BPF_SOCK_OPS_STATE_CB | BPF_SOCK_OPS_RTT_CB | BPF_SOCK_OPS_RETRANS_CB
    ) {
        return PROCEED;
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
        _ => count::traffic(ops, origin, 0),
    }
    PROCEED
}

/// The first SYN is about to leave.
#[inline(always)]
fn connecting(ops: *mut bpf_sock_ops, origin: &Origin) {
    ask_for(ops, WHEN_CONNECTING);
    count::busier(origin);
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
    // SAFETY: the kernel passes a valid context.
    let (old, new) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ops).__bindgen_anon_1.args[0]),
            core::ptr::read_volatile(&raw const (*ops).__bindgen_anon_1.args[1]),
        )
    };
    match (old, new) {
        (SYN_SENT, ESTABLISHED) => opened(ops, origin),
        (SYN_SENT, CLOSE) => failed(ops, origin),
        (ESTABLISHED, CLOSE_WAIT) => {}
        (ESTABLISHED | CLOSE_WAIT, _) => {
            count::idler(origin);
            count::closed(origin);
            if new == CLOSE {
                broken(ops, origin, old);
            }
        }
        (_, CLOSE) => ended(ops, origin, old),
        _ => {}
    }
}

#[inline(always)]
fn opened(ops: *mut bpf_sock_ops, origin: &mut Origin) {
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    ask_for(ops, WHEN_OPEN);
    // The SYN is acknowledged as if it were a byte.
    origin.flow.sent = field!(ops, bytes_acked);
    let observed = count::observed(origin);
    count::opened(origin, observed, since_connect(origin, now), now);
    if diary::has_room(observed) {
        origin.flow.in_diary = 1;
        diary::write(ops, origin, Event::Opened, 0);
    }
}

#[inline(always)]
fn failed(ops: *mut bpf_sock_ops, origin: &mut Origin) {
    let failure = socket::why_not_made(ops);
    count::idler(origin);
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    count::failed(origin, failure, since_connect(origin, now), now);
    count::traffic(ops, origin, 0);
    diary::write(ops, origin, Event::Failed, failure as u32);
}

/// An open connection is gone at once, without a farewell.
#[inline(always)]
fn broken(ops: *mut bpf_sock_ops, origin: &mut Origin, old: u32) {
    let mut failure = Failure::Reset;
    if !socket::why_broken(ops, &mut failure) {
        return ended(ops, origin, old);
    }
    count::traffic(ops, origin, 0);
    count::broke(origin, failure);
    diary::write(ops, origin, Event::Broken, failure as u32);
}

#[inline(always)]
fn ended(ops: *mut bpf_sock_ops, origin: &mut Origin, old: u32) {
    // Both FINs are counted as if they were bytes.
    let farewell = u64::from(matches!(old, FIN_WAIT2 | CLOSING | LAST_ACK));
    count::traffic(ops, origin, farewell);
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
    count::round_trip(origin, field!(ops, srtt_us) >> 3);
    count::traffic(ops, origin, 0);
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
