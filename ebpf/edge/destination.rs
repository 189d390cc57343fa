//! Where packets enter: what is meant for a service gets a backend, what is meant for a flow's borrowed address its pod.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::lpm_trie::Key;
use hull_ebpf_types::edge::{ENTERS, Reason, SourceRange, track};
use hull_ebpf_types::{Service, flag};

use crate::balance;
use crate::maps::{LOCAL, NODE, RANGES, SOURCES, UPLINKS, count};
use crate::packet::{Packet, SCTP, TCP, UDP, WHOLE};
use crate::rewrite::{New, replace_destination};
use crate::track::{find, follow, forget, insert, is_outdated, is_over, now, reverse, set_key};
use crate::verdict::{DIRECT_RETURN, DISGUISE, DISGUISED, DROP, FINAL, KEPT, REPLACED};
use crate::words;

const WHOLE_ADDRESS: u32 = 128;

/// To be done with [`Packet::track`].
const FOLLOW: u32 = u32::MAX;

/// `interface` is the uplink that the packet came in by; zero for a pod's.
#[inline(never)]
pub fn destination(skb: *mut __sk_buff, packet: *mut Packet, interface: u32) -> u32 {
    let interface = words::blur(packet, interface);
    let mut verdict = words::blur(packet, known(packet));
    if verdict == KEPT {
        verdict = words::blur(packet, serve(packet, interface));
    }
    if verdict == KEPT {
        verdict = words::blur(packet, begin(packet, interface));
    }
    if verdict == FOLLOW {
        verdict = apply(skb, packet);
    }
    verdict
}

/// What the packet's flow is known for.
#[inline(never)]
fn known(packet: *mut Packet) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    set_key(packet, ENTERS);
    if find(pointer) == 0 {
        return KEPT;
    }
    if is_outdated(packet) {
        forget(pointer);
        return KEPT;
    }
    follow(pointer);
    FOLLOW
}

#[inline(always)]
fn apply(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    let flags = packet.track.flags;
    if flags & track::DIRECT_RETURN != 0 {
        packet.hop = packet.track.address;
        return DIRECT_RETURN;
    }
    packet.new = New {
        address: packet.track.address,
        port: packet.track.port,
    };
    if flags & track::SOURCE != 0 {
        return DISGUISED;
    }
    replace_destination(skb, pointer);
    if flags & track::FINAL != 0 { FINAL } else { REPLACED }
}

/// A packet for a service that belongs to no known flow.
#[inline(never)]
fn serve(packet: *mut Packet, interface: u32) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    if packet.kind != WHOLE || !matches!(packet.tuple.protocol, TCP | UDP | SCTP) {
        return KEPT;
    }
    if balance::find(pointer, interface) == 0 {
        return KEPT;
    }
    if !may_use(&packet.service, &packet.tuple.source) {
        count(Reason::SourceRange);
        return DROP;
    }
    let choice = if balance::may_choose(packet) {
        words::blur(pointer, balance::choose(pointer))
    } else {
        count(Reason::UnknownConnection);
        balance::REFUSE
    };
    match choice {
        balance::SEND => count(Reason::Translated),
        balance::REFUSE => {
            count(Reason::NoBackend);
            // Nothing can listen on port 0: the node's own stack answers with a RST or "port unreachable".
            if !own_address(packet, interface) {
                count(Reason::NoAddress);
                return DROP;
            }
            packet.endpoint.port = 0;
        }
        _ => {
            count(Reason::NoLocalBackend);
            return DROP;
        }
    }
    lead(pointer, interface)
}

/// Writes the flow's tracks.
#[inline(always)]
fn lead(packet: *mut Packet, interface: u32) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    // SAFETY: only whether the element exists is used.
    let here = unsafe { LOCAL.get(&packet.endpoint.address) }.is_some();
    let direct = interface != 0 && !here && returns_directly(&packet.service);
    let itself = interface == 0 && packet.endpoint.address == packet.tuple.source;
    packet.track.seen = now();
    packet.track.service = packet.service.id;
    packet.track.flags = track::CHOSEN;
    if !direct {
        set_key(packet, ENTERS);
        reverse(&mut packet.key);
        packet.key.source = packet.endpoint.address;
        packet.key.source_port = packet.endpoint.port;
        packet.track.address = packet.tuple.destination;
        packet.track.port = packet.tuple.destination_port;
        if itself || (interface != 0 && !here) {
            packet.track.flags |= track::MASQUERADE;
        }
        if insert(pointer, 0) == 0 {
            count(Reason::MapFull);
            return DROP;
        }
        packet.track.flags = track::CHOSEN;
    } else {
        packet.track.flags |= track::DIRECT_RETURN;
    }
    set_key(packet, ENTERS);
    packet.track.address = packet.endpoint.address;
    packet.track.port = packet.endpoint.port;
    if insert(pointer, 0) == 0 {
        count(Reason::MapFull);
        return DROP;
    }
    FOLLOW
}

/// The first packet of a flow for no service.
#[inline(never)]
fn begin(packet: *mut Packet, interface: u32) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    if packet.kind != WHOLE || !packet.begins() {
        return KEPT;
    }
    set_key(packet, ENTERS);
    reverse(&mut packet.key);
    if find(pointer) != 0 {
        let (flags, seen) = (packet.track.flags, packet.track.seen);
        if flags & track::CHOSEN != 0 && !is_over(&packet.key, flags, seen) {
            // A flow through a service to this very backend has the same ports: one of the two must look different.
            return DISGUISE;
        }
    }
    if interface != 0 && comes_from_outside(packet) {
        packet.track.seen = now();
        packet.track.address = packet.tuple.destination;
        packet.track.port = packet.tuple.destination_port;
        packet.track.flags = track::IDENTITY;
        packet.track.service = 0;
        if insert(pointer, 0) == 0 {
            count(Reason::MapFull);
            return DROP;
        }
    }
    KEPT
}

/// From where pods' addresses mean nothing by themselves, straight to a pod.
#[inline(always)]
fn comes_from_outside(packet: &Packet) -> bool {
    // SAFETY: elements are written whole.
    let to_pod = unsafe { LOCAL.get(&packet.tuple.destination) }.is_some_and(|local| local.interface != 0);
    to_pod && RANGES.get(&Key::new(WHOLE_ADDRESS, packet.tuple.source)).is_none()
}

#[inline(always)]
fn may_use(service: &Service, client: &[u32; 4]) -> bool {
    if service.sources == 0 {
        return true;
    }
    let key = SourceRange {
        set: service.sources,
        address: *client,
    };
    SOURCES.get(&Key::new(u32::BITS + WHOLE_ADDRESS, key)).is_some()
}

/// Only while every other node can be handed packets as they are: elsewhere the reply comes back this way. A node port
/// is an address of this node, which no other one knows.
#[inline(always)]
fn returns_directly(service: &Service) -> bool {
    let asked = service.flags & (flag::DIRECT_RETURN | flag::NODE_PORT) == flag::DIRECT_RETURN;
    asked && NODE.get(0).is_some_and(|node| node.neighbours != 0)
}

/// An address of the node on which it can answer for a service.
#[inline(always)]
fn own_address(packet: &mut Packet, interface: u32) -> bool {
    // SAFETY: elements are written whole; a torn one costs one packet.
    let own = match (unsafe { UPLINKS.get(&interface) }, NODE.get(0), packet.v6) {
        (Some(uplink), _, 0) => &raw const uplink.v4,
        (Some(uplink), _, _) => &raw const uplink.v6,
        (None, Some(node), 0) => &raw const node.gateway4,
        (None, Some(node), _) => &raw const node.gateway6,
        (None, None, _) => return false,
    };
    let address = &mut packet.endpoint.address;
    // SAFETY: part of an element.
    unsafe { words::copy(own, address) };
    address[3] != 0
}
