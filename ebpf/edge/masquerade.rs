//! Giving a flow an address of the node as its source, with a port that no other flow to the same place has.
//!
//! Ports come from a range in which the kernel picks none for the node's own sockets; one that a socket holds
//! nevertheless is passed over.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use aya_ebpf::programs::TcContext;
use hull_ebpf_types::edge::{ENTERS, Node, Reason, Track, Tuple, Uplink, track};

use crate::maps::{NODE, UPLINKS, count};
use crate::packet::{ICMP, ICMP6, Packet, SCTP, TCP, UDP};
use crate::rewrite::{New, replace_source};
use crate::track::{find, insert, is_over, now, remove};
use crate::verdict::{DROP, REPLACED};

const ATTEMPTS: u32 = 24;
const CURRENT_NAMESPACE: u64 = u64::MAX;

/// Gives the packet's flow an address of the interface (zero: the pods' gateway). With `extra` SOURCE the flow is known
/// by its tuple where packets enter.
#[inline(never)]
pub fn masquerade(skb: *mut __sk_buff, packet: *mut Packet, interface: u32, extra: u32) -> u32 {
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    let Some(node) = NODE.get(0) else {
        return DROP;
    };
    packet.new.port = packet.tuple.source_port;
    if !address(node, interface, packet.v6 != 0, &mut packet.new.address) {
        count(Reason::NoAddress);
        return DROP;
    }
    let extra = extra as u16;
    if !reserve(skb, packet, node, extra) {
        count(Reason::PortsExhausted);
        return DROP;
    }
    let forward = Track {
        seen: now(),
        address: packet.new.address,
        port: packet.new.port,
        flags: extra,
        service: 0,
    };
    if !insert(&packet.tuple, &forward, 0) {
        count(Reason::MapFull);
        return DROP;
    }
    count(Reason::Masqueraded);
    replace_source(skb, packet);
    REPLACED
}

#[inline(always)]
fn address(node: &Node, interface: u32, v6: bool, address: &mut [u32; 4]) -> bool {
    // SAFETY: elements are written whole; a torn one costs one packet.
    let uplink: Option<&Uplink> = unsafe { UPLINKS.get(&interface) };
    *address = match (uplink, v6) {
        (Some(uplink), false) => uplink.v4,
        (Some(uplink), true) => uplink.v6,
        (None, false) => node.gateway4,
        (None, true) => node.gateway6,
    };
    address[3] != 0
}

/// Finds a port and writes the track of the replies.
#[inline(always)]
fn reserve(skb: *mut __sk_buff, packet: &mut Packet, node: &Node, extra: u16) -> bool {
    let tuple = &packet.tuple;
    let ports = match tuple.protocol {
        TCP | UDP | SCTP => node.ports,
        ICMP | ICMP6 if tuple.source_port != 0 => node.ports,
        _ => 0,
    };
    let start = mix(tuple);
    let flags = if extra & track::SOURCE != 0 { track::FINAL } else { 0 };
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        if ports != 0 {
            let port = node.first_port + start.wrapping_add(attempt) % ports;
            packet.new.port = (port as u16).to_be();
        }
        if take(skb, packet, u32::from(flags)) != 0 {
            return true;
        }
        attempt += 1;
    }
    false
}

/// Takes the address and port for the flow when no other one has them.
#[inline(never)]
fn take(skb: *mut __sk_buff, packet: *const Packet, flags: u32) -> u32 {
    // SAFETY: the program's own packet.
    let packet = unsafe { &*packet };
    let back = reply(&packet.tuple, &packet.new);
    let value = Track {
        seen: now(),
        address: packet.tuple.source,
        port: packet.tuple.source_port,
        flags: flags as u16,
        service: 0,
    };
    if !insert(&back, &value, u64::from(BPF_NOEXIST)) {
        return u32::from(takes_over(&back, &value));
    }
    if held_by_socket(skb, &back, packet.v6 != 0) {
        remove(&back);
        return 0;
    }
    1
}

/// The tuple of the flow's replies as they enter.
#[inline(always)]
fn reply(tuple: &Tuple, new: &New) -> Tuple {
    Tuple {
        source: tuple.destination,
        destination: new.address,
        source_port: tuple.destination_port,
        destination_port: new.port,
        protocol: tuple.protocol,
        hook: ENTERS,
        zero: 0,
    }
}

/// The port is this flow's already (its own track was lost), or that of one that has ended.
#[inline(always)]
fn takes_over(back: &Tuple, value: &Track) -> bool {
    let Some(held) = find(back) else {
        return false;
    };
    // SAFETY: an element of the map; a torn copy makes the worst of two answers.
    let held = unsafe { *held };
    let same = held.address == value.address && held.port == value.port;
    (same || is_over(back, &held, value.seen)) && insert(back, value, 0)
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

/// Whether a socket of the node itself would get the replies.
#[inline(always)]
fn held_by_socket(skb: *mut __sk_buff, back: &Tuple, v6: bool) -> bool {
    // SAFETY: plain words; what is not set is not read for the given size.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if v6 {
        let inner = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        inner.saddr = back.source;
        inner.daddr = back.destination;
        inner.sport = back.source_port;
        inner.dport = back.destination_port;
        36
    } else {
        let inner = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        inner.saddr = back.source[3];
        inner.daddr = back.destination[3];
        inner.sport = back.source_port;
        inner.dport = back.destination_port;
        12
    };
    let context = TcContext::new(skb).as_ptr();
    // SAFETY: the tuple is as long as said; a socket that is found is given back.
    unsafe {
        let socket = match back.protocol {
            TCP => bpf_sk_lookup_tcp(context, &raw mut tuple, size, CURRENT_NAMESPACE, 0),
            UDP => bpf_sk_lookup_udp(context, &raw mut tuple, size, CURRENT_NAMESPACE, 0),
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}
