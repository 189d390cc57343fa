//! The short way on: straight into a local pod, or to the next hop, without climbing the stack.
//!
//! Whatever the short way cannot do (a packet too big, the last hop, no route) is left to the stack, which knows how to
//! say so.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    __sk_buff, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS, bpf_check_mtu_ret::BPF_MTU_CHK_RET_SUCCESS,
    bpf_fib_lookup as FibLookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::generated::{bpf_check_mtu, bpf_fib_lookup, bpf_redirect_neigh, bpf_redirect_peer};
use hull_ebpf_types::edge::{Local, OVERLAY};

use crate::maps::{LOCAL, UPLINKS};
use crate::packet::{Packet, V4_PREFIX};
use crate::rewrite::{address_frame, count_hop, is_last_hop};
use crate::words;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const FOUND: i64 = 0;
/// The route is known, the neighbour not yet: sending resolves it.
const NO_NEIGHBOUR: i64 = 7;

/// Ways on: the stack's, into a pod, out of an uplink.
pub const STACK: u32 = 0;
pub const POD: u32 = 1;
pub const NEXT_HOP: u32 = 2;

/// What the short way needs to know.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Way {
    pub local: Local,
    pub interface: u32,
    pub family: u32,
    pub gateway: [u32; 4],
}

/// The way to [`Packet::hop`], into [`Packet::way`]; `elsewhere` also to other machines, and `direct` only outside of
/// tunnels.
#[inline(never)]
pub fn find_way(skb: *mut __sk_buff, packet: *mut Packet, elsewhere: u32, direct: u32) -> u32 {
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    // SAFETY: elements of the map are written whole.
    if let Some(local) = unsafe { LOCAL.get(&packet.hop) } {
        if local.interface == 0 || is_last_hop(skb, packet) {
            return STACK;
        }
        // SAFETY: as above.
        unsafe { words::copy(&raw const *local, &raw mut packet.way.local) };
        return POD;
    }
    if elsewhere == 0 || is_group(&packet.hop) {
        return STACK;
    }
    next_hop(skb, packet, direct)
}

#[inline(always)]
fn next_hop(skb: *mut __sk_buff, packet: &mut Packet, direct: u32) -> u32 {
    let mut lookup = MaybeUninit::<FibLookup>::uninit();
    let lookup = lookup.as_mut_ptr();
    // SAFETY: the structure is made of words; the context is the kernel's.
    unsafe {
        words::clear(lookup);
        (*lookup).l4_protocol = packet.protocol;
        (*lookup).ifindex = (*skb).ifindex;
        if packet.v6 != 0 {
            (*lookup).family = AF_INET6;
            (*lookup).__bindgen_anon_3.ipv6_src = packet.sender;
            (*lookup).__bindgen_anon_4.ipv6_dst = packet.hop;
        } else {
            (*lookup).family = AF_INET;
            (*lookup).__bindgen_anon_3.ipv4_src = packet.sender[3];
            (*lookup).__bindgen_anon_4.ipv4_dst = packet.hop[3];
        }
        let found = bpf_fib_lookup(skb.cast(), lookup, size_of::<FibLookup>() as i32, 0);
        if found != FOUND && found != NO_NEIGHBOUR {
            return STACK;
        }
        // Elements of the map are written whole.
        let Some(uplink) = UPLINKS.get(&(*lookup).ifindex) else {
            return STACK;
        };
        let tunnel = uplink.flags & OVERLAY != 0;
        if (direct != 0 && tunnel) || is_last_hop(skb, packet) || !fits(skb, (*lookup).ifindex) {
            return STACK;
        }
        packet.way.interface = (*lookup).ifindex;
        // After the look-up the destination is the next hop's address, of the family that it says.
        packet.way.family = u32::from((*lookup).family);
        packet.way.gateway = (*lookup).__bindgen_anon_4.ipv6_dst;
    }
    NEXT_HOP
}

/// Whether what the kernel took for one packet is cut into ones that the interface can send: the look-up of a route says
/// so only of single packets.
#[inline(always)]
fn fits(skb: *mut __sk_buff, interface: u32) -> bool {
    // SAFETY: the context is the kernel's.
    if unsafe { (*skb).gso_size } == 0 {
        return true;
    }
    let mut mtu = 0_u32;
    // SAFETY: a helper that checks the interface.
    let fits = unsafe { bpf_check_mtu(skb.cast(), interface, &raw mut mtu, 0, u64::from(BPF_MTU_CHK_SEGS)) };
    fits == i64::from(BPF_MTU_CHK_RET_SUCCESS)
}

/// Into the pod of [`Packet::way`].
#[inline(always)]
pub fn to_pod(skb: *mut __sk_buff, packet: &Packet) -> i32 {
    let local: &Local = &packet.way.local;
    count_hop(skb, packet);
    address_frame(skb, &local.pod, &local.host);
    // SAFETY: a helper that checks the interface.
    unsafe { bpf_redirect_peer(local.interface, 0) as i32 }
}

/// To the next hop of [`Packet::way`].
#[inline(always)]
pub fn to_next_hop(skb: *mut __sk_buff, packet: &Packet) -> i32 {
    count_hop(skb, packet);
    let mut next = MaybeUninit::<bpf_redir_neigh>::uninit();
    let next = next.as_mut_ptr();
    // SAFETY: all of it is written.
    unsafe {
        (*next).nh_family = packet.way.family;
        (*next).__bindgen_anon_1.ipv6_nh = packet.way.gateway;
        bpf_redirect_neigh(packet.way.interface, next, size_of::<bpf_redir_neigh>() as i32, 0) as i32
    }
}

/// Whether the address means only something on its own link (or is none at all).
#[inline(always)]
pub fn is_link_scope(address: &[u32; 4]) -> bool {
    let [a, b, ..] = address[0].to_ne_bytes();
    let unspecified = address[0] | address[1] | address[2] | address[3] == 0;
    unspecified || (a == 0xfe && b & 0xc0 == 0x80)
}

/// Group addresses are the stack's business.
#[inline(always)]
fn is_group(address: &[u32; 4]) -> bool {
    if address[2] == V4_PREFIX && address[0] == 0 && address[1] == 0 {
        let first = address[3].to_ne_bytes()[0];
        return first >= 224;
    }
    address[0].to_ne_bytes()[0] == 0xff
}
