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
#[path = "../src/growing.rs"]
mod growing;
mod icmp;
mod maps;
mod masquerade;
mod packet;
mod rewrite;
mod sctp;
mod source;
mod track;
mod verdict;
mod words;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use hull_ebpf_types::edge::Reason;

use maps::{LOCAL, PACKET, UPLINKS, count};
use packet::Packet;
use verdict::{DIRECT_RETURN, DISGUISE, DISGUISED, DROP, FINAL, KEPT};

/// TC_ACT_UNSPEC, which is TCX_NEXT: whatever would happen without this program.
const PASS: i32 = -1;
/// TC_ACT_SHOT.
const SHOT: i32 = 2;
/// In `tc_index`, which survives the way through the node: the source has its final form.
const FINAL_MARK: u32 = 0x4855;

/// Ingress of an uplink, and of the host's side of a pod's interface.
#[classifier]
fn enters(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(packet) = parsed(skb) else {
        return PASS;
    };
    let uplink = words::blur(packet, uplink(skb));
    if uplink == 0 {
        // SAFETY: the program's own packet; the context is the kernel's.
        let (v6, sender, interface) = unsafe { ((*packet).v6, &(*packet).sender, (*skb).ifindex) };
        if v6 != 0 && forward::is_link_scope(sender) {
            return PASS;
        }
        // SAFETY: elements are written whole.
        let own = unsafe { LOCAL.get(sender) }.is_some_and(|local| local.interface == interface);
        if !own {
            count(Reason::SpoofedSource);
            return SHOT;
        }
    }
    enter(skb, packet, words::blur(packet, uplink))
}

/// Egress of the same: of a pod's interface what came the long way.
#[classifier]
fn leaves(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
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
    // SAFETY: the program's own packet.
    unsafe { (*packet).leaves = uplink(skb) };
    match source::source(skb, packet, words::blur(packet, KEPT)) {
        DROP => SHOT,
        _ => PASS,
    }
}

/// The interface's index if it leads out, zero for a pod's: one program for both is verified once.
#[inline(always)]
fn uplink(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context is the kernel's; only whether the element exists is used.
    unsafe {
        let interface = (*skb).ifindex;
        if UPLINKS.get(&interface).is_some() {
            interface
        } else {
            0
        }
    }
}

/// Settles the destination and, where the packet takes the short way, the source.
#[inline(always)]
fn enter(skb: *mut __sk_buff, packet: *mut Packet, interface: u32) -> i32 {
    let pointer = packet;
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    packet.verdict = destination::destination(skb, pointer, interface);
    let verdict = words::fresh(&packet.verdict);
    if verdict == DROP {
        return SHOT;
    }
    let direct = u32::from(verdict == DIRECT_RETURN);
    if direct == 0 {
        packet.hop = packet.tuple.destination;
    }
    // What comes from outside and is not ours is none of our business.
    let elsewhere = u32::from(interface == 0 || verdict != KEPT);
    packet.way_kind = forward::find_way(skb, pointer, elsewhere, words::blur(pointer, direct));
    let way = words::fresh(&packet.way_kind);
    if direct != 0 && way != forward::NEXT_HOP {
        return SHOT;
    }
    if settle(skb, pointer) == DROP {
        return SHOT;
    }
    match words::fresh(&packet.way_kind) {
        forward::POD => forward::to_pod(skb, packet),
        forward::NEXT_HOP => forward::to_next_hop(skb, packet),
        _ => PASS,
    }
}

/// Replaces the source, unless that is done where the packet leaves: when it takes the stack's way, nobody knows yet where
/// that is.
#[inline(never)]
fn settle(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    let pointer = packet;
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    let (verdict, way) = (packet.verdict, packet.way_kind);
    let settled = matches!(verdict, FINAL | DIRECT_RETURN);
    let disguised = matches!(verdict, DISGUISE | DISGUISED);
    packet.leaves = if way == forward::NEXT_HOP {
        packet.way.interface
    } else {
        0
    };
    if way != forward::POD && (way == forward::NEXT_HOP || settled || disguised) {
        // SAFETY: the context is the kernel's.
        unsafe { (*skb).tc_index = FINAL_MARK };
    }
    let now = u32::from(disguised || (way != forward::STACK && !settled));
    if words::blur(pointer, now) == 0 {
        return verdict;
    }
    source::source(skb, pointer, words::fresh(&packet.verdict))
}

#[inline(always)]
fn parsed(skb: *mut __sk_buff) -> Option<*mut Packet> {
    let packet = PACKET.get_ptr_mut(0)?;
    packet::parse(skb, packet).then_some(packet)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
