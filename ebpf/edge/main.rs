//! Packets: what enters the node from outside, what pods send, and what leaves for the world.
//!
//! Classifiers of tc on the uplinks and on the host's side of the pods' interfaces. Where a packet enters, its
//! destination may be replaced ([`destination`]), where it leaves, its source ([`source`]); in between it is routed, by
//! the short way where there is one ([`forward`]). The programs only look up what the agent decided (hull-ebpf-types,
//! module `edge`, describes the maps). tc-bpf(8), bpf-helpers(7).
#![no_std]
#![no_main]

mod balance;
#[path = "../src/choice.rs"]
mod choice;
mod destination;
mod forward;
mod maps;
mod masquerade;
mod packet;
mod rewrite;
mod sctp;
mod source;
mod track;
mod verdict;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use hull_ebpf_types::edge::{Local, Reason};

use maps::{LOCAL, PACKET, count};
use packet::Packet;
use verdict::{DIRECT_RETURN, DROP, FINAL, KEPT};

/// TC_ACT_UNSPEC, which is TCX_NEXT: whatever would happen without this program.
const PASS: i32 = -1;
/// TC_ACT_SHOT.
const SHOT: i32 = 2;
/// In `tc_index`, which survives the way through the node: the source has its final form.
const FINAL_MARK: u32 = 0x4855;

/// Ingress of an uplink.
#[classifier]
fn from_world(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(packet) = parsed(skb) else {
        return PASS;
    };
    // SAFETY: the context is the kernel's.
    let interface = unsafe { (*skb).ifindex };
    match destination::destination(skb, packet, interface) {
        DROP => SHOT,
        DIRECT_RETURN => hand_over(skb, packet),
        // SAFETY: the program's own packet.
        verdict => unsafe { deliver(skb, packet, verdict, verdict != KEPT) },
    }
}

/// Ingress of the host's side of a pod's interface.
#[classifier]
fn from_pod(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(packet) = parsed(skb) else {
        return PASS;
    };
    // SAFETY: the program's own packet; the context is the kernel's.
    unsafe {
        if (*packet).v6 != 0 && forward::is_link_scope(&(*packet).sender) {
            return PASS;
        }
        let own = LOCAL
            .get(&(*packet).sender)
            .is_some_and(|local| local.interface == (*skb).ifindex);
        if !own {
            count(Reason::SpoofedSource);
            return SHOT;
        }
        match destination::destination(skb, packet, 0) {
            DROP => SHOT,
            verdict => deliver(skb, packet, verdict, true),
        }
    }
}

/// Egress of an uplink.
#[classifier]
fn to_world(ctx: TcContext) -> i32 {
    // SAFETY: the context is the kernel's.
    let interface = unsafe { (*ctx.skb.skb).ifindex };
    leave(ctx.skb.skb, interface)
}

/// Egress of the host's side of a pod's interface: what came the long way.
#[classifier]
fn to_pod(ctx: TcContext) -> i32 {
    leave(ctx.skb.skb, 0)
}

#[inline(always)]
fn leave(skb: *mut __sk_buff, interface: u32) -> i32 {
    // SAFETY: the context is the kernel's.
    unsafe {
        if (*skb).tc_index == FINAL_MARK {
            (*skb).tc_index = 0;
            return PASS;
        }
    }
    let Some(packet) = parsed(skb) else {
        return PASS;
    };
    match source::source(skb, packet, interface) {
        DROP => SHOT,
        _ => PASS,
    }
}

#[inline(always)]
fn parsed(skb: *mut __sk_buff) -> Option<*mut Packet> {
    let packet = PACKET.get_ptr_mut(0)?;
    packet::parse(skb, packet).then_some(packet)
}

/// Sends the packet on after its destination is settled; `onward` also to other machines.
///
/// # Safety
/// `packet` is the program's own.
#[inline(always)]
unsafe fn deliver(skb: *mut __sk_buff, packet: *mut Packet, verdict: u32, onward: bool) -> i32 {
    // SAFETY: the program's own packet; elements of maps are written whole.
    unsafe {
        let local: Option<&Local> = LOCAL.get(&(*packet).tuple.destination);
        if let Some(local) = local {
            if local.interface == 0 {
                return PASS;
            }
            let (interface, pod, host) = (local.interface, local.pod, local.host);
            if verdict != FINAL && source::source(skb, packet, 0) == DROP {
                return SHOT;
            }
            return forward::to_pod(skb, &*packet, &Local { interface, pod, host });
        }
        if verdict == FINAL {
            (*skb).tc_index = FINAL_MARK;
        }
        if !onward || forward::is_group(&(*packet).tuple.destination) {
            return PASS;
        }
        let to = &raw const (*packet).tuple.destination;
        forward::to_next_hop(skb, packet, to, 0)
    }
}

/// Direct server return: the packet as it is, to the node that has the backend.
#[inline(always)]
fn hand_over(skb: *mut __sk_buff, packet: *mut Packet) -> i32 {
    // SAFETY: the program's own packet, which lives as long as the call.
    let to = unsafe { &raw const (*packet).hop };
    match forward::to_next_hop(skb, packet, to, 1) {
        PASS => SHOT,
        redirected => redirected,
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
