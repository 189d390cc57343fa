//! The short way on: straight into a local pod, or to the next hop, without climbing the stack.
//!
//! Whatever the short way cannot do (a packet too big, the last hop, no route) is left to the stack, which knows how to
//! say so.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup as FibLookup, bpf_redir_neigh};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh, bpf_redirect_peer};
use hull_ebpf_types::edge::{Local, OVERLAY};

use crate::PASS;
use crate::maps::UPLINKS;
use crate::packet::{Packet, V4_PREFIX};
use crate::rewrite::{address_frame, count_hop};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const FOUND: i64 = 0;
/// The route is known, the neighbour not yet: sending resolves it.
const NO_NEIGHBOUR: i64 = 7;

#[inline(always)]
pub fn to_pod(skb: *mut __sk_buff, packet: &Packet, local: &Local) -> i32 {
    if !count_hop(skb, packet) {
        return PASS;
    }
    address_frame(skb, &local.pod, &local.host);
    // SAFETY: a helper that checks the interface.
    unsafe { bpf_redirect_peer(local.interface, 0) as i32 }
}

/// Sends the packet to the next hop towards `to`, when that is over an uplink; `direct` only outside of tunnels.
#[inline(never)]
pub fn to_next_hop(skb: *mut __sk_buff, packet: *const Packet, to: *const [u32; 4], direct: u32) -> i32 {
    // SAFETY: callers pass valid objects.
    let (packet, to) = unsafe { (&*packet, &*to) };
    // SAFETY: plain words.
    let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
    let v6 = packet.v6 != 0;
    lookup.l4_protocol = packet.protocol;
    // SAFETY: the context is the kernel's.
    lookup.ifindex = unsafe { (*skb).ifindex };
    if v6 {
        lookup.family = AF_INET6;
        lookup.__bindgen_anon_3.ipv6_src = packet.sender;
        lookup.__bindgen_anon_4.ipv6_dst = *to;
    } else {
        lookup.family = AF_INET;
        lookup.__bindgen_anon_3.ipv4_src = packet.sender[3];
        lookup.__bindgen_anon_4.ipv4_dst = to[3];
    }
    // SAFETY: the structure is as long as said.
    let found = unsafe { bpf_fib_lookup(skb.cast(), &raw mut lookup, size_of::<FibLookup>() as i32, 0) };
    if found != FOUND && found != NO_NEIGHBOUR {
        return PASS;
    }
    // SAFETY: elements are written whole.
    let Some(uplink) = (unsafe { UPLINKS.get(&lookup.ifindex) }) else {
        return PASS;
    };
    if direct != 0 && uplink.flags & OVERLAY != 0 {
        return PASS;
    }
    if !count_hop(skb, packet) {
        return PASS;
    }
    // SAFETY: plain words.
    let mut next: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    // SAFETY: after the look-up the destination is the next hop's address, of the family that it says.
    unsafe {
        if lookup.family == AF_INET6 {
            next.nh_family = u32::from(AF_INET6);
            next.__bindgen_anon_1.ipv6_nh = lookup.__bindgen_anon_4.ipv6_dst;
        } else {
            next.nh_family = u32::from(AF_INET);
            next.__bindgen_anon_1.ipv4_nh = lookup.__bindgen_anon_4.ipv4_dst;
        }
        bpf_redirect_neigh(lookup.ifindex, &raw mut next, size_of::<bpf_redir_neigh>() as i32, 0) as i32
    }
}

/// Whether the address means only something on its own link (or is none at all).
#[inline(always)]
pub fn is_link_scope(address: &[u32; 4]) -> bool {
    let [a, b, ..] = address[0].to_ne_bytes();
    let unspecified = address[0] == 0 && address[1] == 0 && address[2] == 0 && address[3] == 0;
    unspecified || (a == 0xfe && b & 0xc0 == 0x80)
}

/// Group addresses are the stack's business.
#[inline(always)]
pub fn is_group(address: &[u32; 4]) -> bool {
    if address[2] == V4_PREFIX && address[0] == 0 && address[1] == 0 {
        let first = address[3].to_ne_bytes()[0];
        return first >= 224;
    }
    address[0].to_ne_bytes()[0] == 0xff
}
