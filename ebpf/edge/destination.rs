//! Where packets enter: what is meant for a service gets a backend, what is meant for a flow's borrowed address its pod.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::lpm_trie::Key;
use hull_ebpf_types::edge::{ENTERS, LEAVES, Reason, SourceRange, Track, track};
use hull_ebpf_types::{Service, flag};

use crate::balance;
use crate::maps::{LOCAL, NODE, RANGES, SOURCES, UPLINKS, count};
use crate::masquerade::masquerade;
use crate::packet::{Packet, SCTP, TCP, UDP, WHOLE};
use crate::rewrite::{New, replace_destination, replace_source};
use crate::track::{find, follow, insert, is_outdated, is_over, now, opposite, remove};
use crate::verdict::{DIRECT_RETURN, DROP, FINAL, KEPT, REPLACED};

const WHOLE_ADDRESS: u32 = 128;

/// `interface` is the uplink that the packet came in by; zero for a pod's.
#[inline(never)]
pub fn destination(skb: *mut __sk_buff, packet: *mut Packet, interface: u32) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    packet.tuple.hook = ENTERS;
    if let Some(found) = find(&packet.tuple) {
        // SAFETY: copied at once.
        let track = unsafe { *found };
        let now = now();
        if !is_outdated(packet, &track, now) {
            follow(packet, found, &track, now);
            return apply(skb, pointer, &track);
        }
        remove(&opposite(&packet.tuple, &track));
        remove(&packet.tuple);
    }
    if packet.kind != WHOLE {
        return KEPT;
    }
    if let TCP | UDP | SCTP = packet.tuple.protocol {
        let verdict = serve(skb, pointer, interface);
        if verdict != KEPT {
            return verdict;
        }
    }
    if packet.begins() {
        return begin(skb, pointer, interface);
    }
    KEPT
}

#[inline(always)]
fn apply(skb: *mut __sk_buff, packet: *mut Packet, track: &Track) -> u32 {
    if track.flags & track::DIRECT_RETURN != 0 {
        // SAFETY: callers pass the program's own packet.
        unsafe { (*packet).hop = track.address };
        return DIRECT_RETURN;
    }
    // SAFETY: as above.
    unsafe {
        (*packet).new = New {
            address: track.address,
            port: track.port,
        };
    }
    if track.flags & track::SOURCE != 0 {
        replace_source(skb, packet);
        return FINAL;
    }
    replace_destination(skb, packet);
    if track.flags & track::FINAL != 0 {
        FINAL
    } else {
        REPLACED
    }
}

/// A packet for a service that belongs to no known flow.
#[inline(always)]
fn serve(skb: *mut __sk_buff, packet: *mut Packet, interface: u32) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    if balance::find(pointer, interface) == 0 {
        return KEPT;
    }
    if !may_use(&packet.service, &packet.tuple.source) {
        count(Reason::SourceRange);
        return DROP;
    }
    let choice = if balance::may_choose(packet) {
        balance::choose(pointer)
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
    lead(skb, pointer, interface)
}

/// Writes the flow's tracks and the packet's new destination.
#[inline(always)]
fn lead(skb: *mut __sk_buff, packet: *mut Packet, interface: u32) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &*packet };
    let (service, endpoint) = (&packet.service, &packet.endpoint);
    // SAFETY: only whether the element exists is used.
    let here = unsafe { LOCAL.get(&endpoint.address) }.is_some();
    let direct = interface != 0 && !here && returns_directly(service);
    let seen = now();
    let mut track = Track {
        seen,
        address: endpoint.address,
        port: endpoint.port,
        flags: track::CHOSEN,
        service: service.id,
    };
    if direct {
        track.flags |= track::DIRECT_RETURN;
    } else {
        let mut flags = track::CHOSEN;
        let itself = interface == 0 && endpoint.address == packet.tuple.source;
        if itself || (interface != 0 && !here) {
            flags |= track::MASQUERADE;
        }
        let back = Track {
            seen,
            address: packet.tuple.destination,
            port: packet.tuple.destination_port,
            flags,
            service: service.id,
        };
        if !insert(&packet.tuple.opposite(&endpoint.address, endpoint.port), &back, 0) {
            count(Reason::MapFull);
            return DROP;
        }
    }
    if !insert(&packet.tuple, &track, 0) {
        count(Reason::MapFull);
        return DROP;
    }
    apply(skb, pointer, &track)
}

/// The first packet of a flow for no service.
#[inline(always)]
fn begin(skb: *mut __sk_buff, packet: *mut Packet, interface: u32) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    let mut back = packet.tuple.reverse();
    back.hook = LEAVES;
    let now = now();
    if let Some(found) = find(&back) {
        // SAFETY: copied at once.
        let held = unsafe { *found };
        if held.flags & track::CHOSEN != 0 && !is_over(&back, &held, now) {
            // A flow through a service to this very backend has the same ports: one of the two must look different.
            return match masquerade(skb, pointer, 0, u32::from(track::SOURCE)) {
                REPLACED => FINAL,
                verdict => verdict,
            };
        }
    }
    if interface != 0 && comes_from_outside(packet) {
        let identity = Track {
            seen: now,
            address: packet.tuple.destination,
            port: packet.tuple.destination_port,
            flags: track::IDENTITY,
            service: 0,
        };
        if !insert(&back, &identity, 0) {
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
    let address = &mut packet.endpoint.address;
    // SAFETY: elements are written whole; a torn one costs one packet.
    match (unsafe { UPLINKS.get(&interface) }, NODE.get(0)) {
        (Some(uplink), _) => *address = if packet.v6 != 0 { uplink.v6 } else { uplink.v4 },
        (None, Some(node)) => *address = if packet.v6 != 0 { node.gateway6 } else { node.gateway4 },
        (None, None) => return false,
    }
    address[3] != 0
}
