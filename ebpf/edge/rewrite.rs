//! Writing addresses and ports into a packet, with every checksum that covers them; RFC 1624.
//!
//! In an ICMP error the quoted packet is changed the other way round: the error's destination is the quoted source.

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes};

use crate::packet::{ERROR, LATER_FRAGMENT, NETWORK, PSEUDO_HEADER, Packet, SCTP, load_u8, load_u16};
use crate::sctp;

const V4_CHECKSUM: u32 = 10;
const V4_TIME_TO_LIVE: u32 = 8;
const V6_HOP_LIMIT: u32 = 7;
const RECOMPUTE: u64 = BPF_F_RECOMPUTE_CSUM as u64;

/// Which half of the tuple is replaced.
#[derive(Clone, Copy, PartialEq)]
pub enum Side {
    Source,
    Destination,
}

/// What is put in its place.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct New {
    pub address: [u32; 4],
    pub port: u16,
}

/// Where an address stands in a network header, from its beginning.
#[inline(always)]
fn place(v6: bool, side: Side) -> u32 {
    match (v6, side) {
        (false, Side::Source) => 12,
        (false, Side::Destination) => 16,
        (true, Side::Source) => 8,
        (true, Side::Destination) => 24,
    }
}

#[inline(always)]
fn store(skb: *mut __sk_buff, offset: u32, from: *const u8, length: u32, flags: u64) {
    // SAFETY: callers pass memory of that length; the helper checks the offset. It fails only for want of memory,
    // and then the checksums are wrong, and the packet is dropped by whoever gets it.
    unsafe { bpf_skb_store_bytes(skb, offset, from.cast(), length, flags) };
}

#[inline(always)]
fn difference(old: &[u32; 4], new: &[u32; 4]) -> u64 {
    // SAFETY: both are 16 bytes, which the helper only reads.
    unsafe { bpf_csum_diff(old.as_ptr().cast_mut(), 16, new.as_ptr().cast_mut(), 16, 0) as u64 }
}

/// Puts [`Packet::new`] in place of the source.
#[inline(never)]
pub fn replace_source(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    replace(skb, packet, Side::Source);
    let new = packet.new;
    if packet.kind != ERROR {
        packet.sender = new.address;
    }
    packet.tuple.source = new.address;
    packet.tuple.source_port = new.port;
    0
}

/// Puts [`Packet::new`] in place of the destination.
#[inline(never)]
pub fn replace_destination(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    replace(skb, packet, Side::Destination);
    let new = packet.new;
    packet.tuple.destination = new.address;
    packet.tuple.destination_port = new.port;
    0
}

#[inline(always)]
fn replace(skb: *mut __sk_buff, packet: &mut Packet, side: Side) {
    if packet.kind == ERROR {
        return replace_in_error(skb, packet, side);
    }
    network_address(skb, packet, side);
    let (old, new) = (port(packet, side), packet.new.port);
    if old != new && packet.kind != LATER_FRAGMENT {
        transport_port(skb, packet, side, old, new);
    }
}

#[inline(always)]
fn address(packet: &Packet, side: Side) -> &[u32; 4] {
    match side {
        Side::Source => &packet.tuple.source,
        Side::Destination => &packet.tuple.destination,
    }
}

#[inline(always)]
fn port(packet: &Packet, side: Side) -> u16 {
    match side {
        Side::Source => packet.tuple.source_port,
        Side::Destination => packet.tuple.destination_port,
    }
}

/// The outer header's address, and the checksums that cover it.
#[inline(always)]
fn network_address(skb: *mut __sk_buff, packet: &Packet, side: Side) {
    let (old, new) = (address(packet, side), &packet.new.address);
    let v6 = packet.v6 != 0;
    let flags = u64::from(packet.checksum_flags);
    let covered = packet.address_checksum != 0;
    let at = NETWORK + place(v6, side);
    // SAFETY: helpers that check their offsets.
    unsafe {
        if v6 {
            if covered {
                bpf_l4_csum_replace(skb, packet.address_checksum, 0, difference(old, new), flags);
            }
            store(skb, at, new.as_ptr().cast(), 16, RECOMPUTE);
        } else {
            let (from, to) = (u64::from(old[3]), u64::from(new[3]));
            if covered {
                bpf_l4_csum_replace(skb, packet.address_checksum, from, to, flags | 4);
            }
            bpf_l3_csum_replace(skb, NETWORK + V4_CHECKSUM, from, to, 4);
            store(skb, at, (&raw const new[3]).cast(), 4, 0);
        }
    }
}

#[inline(always)]
fn transport_port(skb: *mut __sk_buff, packet: &Packet, side: Side, old: u16, new: u16) {
    let behind = match side {
        Side::Source => 0,
        Side::Destination => packet.ports_apart,
    };
    if packet.protocol == SCTP {
        sctp::replace_port(skb, packet.transport, behind, u32::from(old), u32::from(new));
        return;
    }
    let (from, to) = (u64::from(old), u64::from(new));
    let flags = u64::from(packet.checksum_flags & !PSEUDO_HEADER) | 2;
    // SAFETY: a helper that checks its offset.
    unsafe { bpf_l4_csum_replace(skb, packet.port_checksum, from, to, flags) };
    store(skb, packet.ports + behind, (&raw const new).cast(), 2, 0);
}

/// The error's own address is replaced where it is the flow's: a destination always is, a source only when the error
/// comes from the flow's end and not from a router on the way.
#[inline(always)]
fn replace_in_error(skb: *mut __sk_buff, packet: &mut Packet, side: Side) {
    if side == Side::Destination || packet.sender == *address(packet, side) {
        network_address(skb, packet, side);
        if side == Side::Source {
            packet.sender = packet.new.address;
        }
    }
    let (old, new, port) = (address(packet, side), &packet.new, port(packet, side));
    let v6 = packet.v6 != 0;
    let other = match side {
        Side::Source => Side::Destination,
        Side::Destination => Side::Source,
    };
    let at = packet.quoted + place(v6, other);
    let checksum = packet.transport + 2;
    // SAFETY: helpers that check their offsets.
    unsafe {
        if v6 {
            bpf_l4_csum_replace(skb, checksum, 0, difference(old, &new.address), 0);
            store(skb, at, new.address.as_ptr().cast(), 16, 0);
        } else {
            // The quoted header's checksum changes as much as the address, so the error's own stays right.
            bpf_l3_csum_replace(
                skb,
                packet.quoted + V4_CHECKSUM,
                u64::from(old[3]),
                u64::from(new.address[3]),
                4,
            );
            store(skb, at, (&raw const new.address[3]).cast(), 4, 0);
        }
        if port != new.port {
            let within = match (packet.quoted_echo, other) {
                (1, _) => 4,
                (_, Side::Source) => 0,
                (_, Side::Destination) => 2,
            };
            bpf_l4_csum_replace(skb, checksum, u64::from(port), u64::from(new.port), 2);
            store(
                skb,
                packet.quoted_transport + within,
                (&raw const new.port).cast(),
                2,
                0,
            );
        }
    }
}

/// Whether the packet may go no further than to this node.
#[inline(always)]
pub fn is_last_hop(skb: *mut __sk_buff, packet: &Packet) -> bool {
    let limit = if packet.v6 != 0 { V6_HOP_LIMIT } else { V4_TIME_TO_LIVE };
    load_u8(skb, NETWORK + limit) <= 1
}

/// Counts the hop over this node.
#[inline(always)]
pub fn count_hop(skb: *mut __sk_buff, packet: &Packet) {
    if packet.v6 != 0 {
        let limit = load_u8(skb, NETWORK + V6_HOP_LIMIT).wrapping_sub(1);
        store(skb, NETWORK + V6_HOP_LIMIT, &raw const limit, 1, RECOMPUTE);
        return;
    }
    let old = load_u16(skb, NETWORK + V4_TIME_TO_LIVE);
    let [limit, protocol] = old.to_ne_bytes();
    let new = u16::from_ne_bytes([limit.wrapping_sub(1), protocol]);
    // SAFETY: a helper that checks its offset.
    unsafe { bpf_l3_csum_replace(skb, NETWORK + V4_CHECKSUM, u64::from(old), u64::from(new), 2) };
    store(skb, NETWORK + V4_TIME_TO_LIVE, (&raw const new).cast(), 2, 0);
}

/// The link-layer addresses of the last hop to a pod.
#[inline(always)]
pub fn address_frame(skb: *mut __sk_buff, to: &[u8; 6], from: &[u8; 6]) {
    store(skb, 0, to.as_ptr(), 6, 0);
    store(skb, 6, from.as_ptr(), 6, 0);
}
