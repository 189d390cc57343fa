//! Giving a flow an address of the node as its source, with a port that no other flow to the same place has.
//!
//! Ports come from a range in which the kernel picks none for the node's own sockets; one that a socket holds
//! nevertheless is passed over.

use core::mem::MaybeUninit;
use core::num::NonZero;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST, bpf_sock_tuple};
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use aya_ebpf::programs::TcContext;
use hull_ebpf_types::edge::{ENTERS, LEAVES, Node, Reason, Track, Tuple, Uplink, track};

use crate::maps::{DATAGRAMS, NODE, STREAMS, UPLINKS, count};
use crate::packet::{Packet, TCP, UDP};
use crate::track::{insert, is_over, now, remove, set_key};
use crate::verdict::{DROP, REPLACED};
use crate::words;

/// So many times four ports are tried. The verifier forgets what it has verified of longer loops, and verifies it again.
const ROUNDS: u32 = 3;
const NONE: u32 = 0;
const FOUND: u32 = 1;
const SOCKETS: u32 = 2;
const CURRENT_NAMESPACE: u64 = u64::MAX;

/// Finds an address of the interface that the packet leaves by (a pod's: the pods' gateway) and a port for the packet's
/// flow: [`Packet::new`]. With `disguise` the flow is known by its tuple where packets enter.
#[inline(never)]
pub fn masquerade(skb: *mut __sk_buff, packet: *mut Packet, disguise: u32) -> u32 {
    let disguise = words::blur(packet, disguise);
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    let Some(node) = NODE.get(0) else {
        return DROP;
    };
    packet.new.port = packet.tuple.source_port;
    let interface = if disguise != 0 { 0 } else { packet.leaves };
    if !address(node, interface, packet.v6 != 0, &mut packet.new.address) {
        count(Reason::NoAddress);
        return DROP;
    }
    if !reserve(skb, pointer, node, disguise) {
        count(Reason::PortsExhausted);
        return DROP;
    }
    packet.track.address = packet.new.address;
    packet.track.port = packet.new.port;
    if disguise != 0 {
        packet.track.flags = track::SOURCE;
        set_key(packet, ENTERS);
    } else {
        packet.track.flags = 0;
        set_key(packet, LEAVES);
    }
    if insert(pointer, 0) == 0 {
        count(Reason::MapFull);
        return DROP;
    }
    count(Reason::Masqueraded);
    REPLACED
}

#[inline(always)]
fn address(node: &Node, interface: u32, v6: bool, address: &mut [u32; 4]) -> bool {
    // SAFETY: elements are written whole; a torn one costs one packet.
    let uplink: Option<&Uplink> = unsafe { UPLINKS.get(&interface) };
    let own = match (uplink, v6) {
        (Some(uplink), false) => &raw const uplink.v4,
        (Some(uplink), true) => &raw const uplink.v6,
        (None, false) => &raw const node.gateway4,
        (None, true) => &raw const node.gateway6,
    };
    // SAFETY: part of an element.
    unsafe { words::copy(own, address) };
    address[3] != 0
}

/// Finds a port and writes the track of the replies.
#[inline(always)]
fn reserve(skb: *mut __sk_buff, packet: *mut Packet, node: &Node, disguise: u32) -> bool {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    // Without ports all of its flows to one place are one. No branches: the verifier follows every combination.
    let (with, without) = (packet.has_ports, 1 - packet.has_ports);
    packet.first_port = node.first_port * with + u32::from(u16::from_be(packet.tuple.source_port)) * without;
    packet.ports_free = node.ports * with + without;
    packet.next_port = mix(&packet.tuple);
    reply(packet, disguise);
    let found = find_port(skb, pointer);
    // A loop would be verified over and over.
    found == FOUND || (found == SOCKETS && find_port(skb, pointer) == FOUND)
}

/// FOUND, NONE or SOCKETS: the port is a socket's, and the next one may be free.
#[inline(always)]
fn find_port(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    if words::blur(packet, claim(packet)) == 0 {
        return NONE;
    }
    if words::blur(packet, held_by_socket(skb, packet)) == 0 {
        return FOUND;
    }
    SOCKETS
}

/// Tries one port after the other, in the map of its protocol.
#[inline(never)]
fn claim(packet: *mut Packet) -> u32 {
    // SAFETY: callers pass the program's own packet.
    if unsafe { (*packet).key.protocol } == TCP {
        claim_in(packet, &STREAMS)
    } else {
        claim_in(packet, &DATAGRAMS)
    }
}

#[inline(always)]
fn claim_in<const SIZE: usize>(packet: *mut Packet, map: &LruHashMap<Tuple, Track, SIZE>) -> u32 {
    let mut round = 0;
    while round < ROUNDS {
        round += 1;
        if claim_next(packet, map) || claim_next(packet, map) || claim_next(packet, map) || claim_next(packet, map) {
            return 1;
        }
    }
    0
}

/// Takes the address and the next port for the flow when no other one has them; when it has them already, for its own track
/// was lost; or when the other one has ended.
#[inline(always)]
fn claim_next<const SIZE: usize>(packet: *mut Packet, map: &LruHashMap<Tuple, Track, SIZE>) -> bool {
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    let number = packet.next_port;
    packet.next_port = number.wrapping_add(1);
    // SAFETY: one, or what the agent has written, which is at least one.
    let ports = unsafe { NonZero::new_unchecked(packet.ports_free) };
    let port = packet.first_port + number % ports;
    packet.new.port = (port as u16).to_be();
    packet.key.destination_port = packet.new.port;
    if map.insert(&packet.key, &packet.track, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    let Some(held) = map.get_ptr(&packet.key) else {
        return false;
    };
    // SAFETY: an element of the map; one that changes meanwhile makes the worst of two answers.
    let (address, port, flags, seen) = unsafe { ((*held).address, (*held).port, (*held).flags, (*held).seen) };
    let mut difference = u64::from(port ^ packet.track.port);
    let mut word = 0;
    while word < address.len() {
        difference += u64::from(address[word] ^ packet.track.address[word]);
        word += 1;
    }
    let free = difference == 0 || is_over(&packet.key, flags, seen);
    free && map.insert(&packet.key, &packet.track, 0).is_ok()
}

/// The track of the flow's replies as they enter, but for the port.
#[inline(always)]
fn reply(packet: &mut Packet, disguise: u32) {
    packet.key.source = packet.tuple.destination;
    packet.key.destination = packet.new.address;
    packet.key.source_port = packet.tuple.destination_port;
    packet.key.destination_port = packet.new.port;
    packet.key.protocol = packet.tuple.protocol;
    packet.key.hook = ENTERS;
    packet.key.zero = 0;
    packet.track.seen = now();
    packet.track.address = packet.tuple.source;
    packet.track.port = packet.tuple.source_port;
    packet.track.flags = disguise as u16 * track::FINAL;
    packet.track.service = 0;
}

/// The same flow begins its search at the same port each time.
#[inline(always)]
fn mix(tuple: &Tuple) -> u32 {
    let mut hash = u32::from(tuple.source_port) << 16 | u32::from(tuple.destination_port);
    let mut index = 0;
    while index < 4 {
        hash = (hash ^ tuple.source[index]).wrapping_mul(0x9e37_79b1);
        hash = (hash ^ hash >> 15 ^ tuple.destination[index]).wrapping_mul(0x85eb_ca6b);
        index += 1;
    }
    hash ^ hash >> 13
}

/// Whether a socket of the node itself would get the replies; then their track is removed again.
#[inline(never)]
fn held_by_socket(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: callers pass the program's own packet.
    let (back, v6) = unsafe { (&(*packet).key, (*packet).v6 != 0) };
    let mut tuple = MaybeUninit::<bpf_sock_tuple>::uninit();
    let tuple = tuple.as_mut_ptr();
    // SAFETY: all of the family's fields are written.
    let size = unsafe {
        if v6 {
            let inner = &raw mut (*tuple).__bindgen_anon_1.ipv6;
            (*inner).saddr = back.source;
            (*inner).daddr = back.destination;
            (*inner).sport = back.source_port;
            (*inner).dport = back.destination_port;
            36
        } else {
            let inner = &raw mut (*tuple).__bindgen_anon_1.ipv4;
            (*inner).saddr = back.source[3];
            (*inner).daddr = back.destination[3];
            (*inner).sport = back.source_port;
            (*inner).dport = back.destination_port;
            12
        }
    };
    let context = TcContext::new(skb).as_ptr();
    // SAFETY: the tuple is as long as said; a socket that is found is given back.
    unsafe {
        let socket = match back.protocol {
            TCP => bpf_sk_lookup_tcp(context, tuple, size, CURRENT_NAMESPACE, 0),
            UDP => bpf_sk_lookup_udp(context, tuple, size, CURRENT_NAMESPACE, 0),
            _ => return 0,
        };
        if socket.is_null() {
            return 0;
        }
        bpf_sk_release(socket.cast());
    }
    remove(packet);
    1
}
