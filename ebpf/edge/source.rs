//! Where packets leave: replies get back the address that the client asked for, pods' flows to the world get the node's.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::lpm_trie::Key;
use hull_ebpf_types::edge::{LEAVES, Reason, track};

use crate::maps::{LOCAL, RANGES, UPLINKS, count};
use crate::masquerade::masquerade;
use crate::packet::{ERROR, Packet, UNKNOWN_FRAGMENT};
use crate::rewrite::{New, replace_source};
use crate::track::{find, follow, now};
use crate::verdict::{DROP, KEPT, REPLACED};

const WHOLE_ADDRESS: u32 = 128;

/// `interface` is where the packet leaves; zero for a pod's, where only services' flows are given another source.
#[inline(never)]
pub fn source(skb: *mut __sk_buff, packet: *mut Packet, interface: u32) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    packet.tuple.hook = LEAVES;
    if let Some(found) = find(&packet.tuple) {
        // SAFETY: copied at once.
        let track = unsafe { *found };
        follow(packet, found, &track, now());
        if track.flags & track::IDENTITY != 0 {
            return KEPT;
        }
        packet.new = New {
            address: track.address,
            port: track.port,
        };
        replace_source(skb, pointer);
        return REPLACED;
    }
    let masked = needs_masquerade(packet) || (interface != 0 && leaves_cluster(packet, interface));
    if !masked {
        return KEPT;
    }
    if packet.kind == ERROR || packet.kind == UNKNOWN_FRAGMENT {
        count(Reason::UnknownFragment);
        return DROP;
    }
    masquerade(skb, pointer, interface, 0)
}

/// A service's flow on its way to a backend whose replies must come back over this node.
#[inline(always)]
fn needs_masquerade(packet: &Packet) -> bool {
    let mut back = packet.tuple.reverse();
    back.hook = LEAVES;
    match find(&back) {
        // SAFETY: an element of the map.
        Some(track) => unsafe { (*track).flags & track::MASQUERADE != 0 },
        None => false,
    }
}

/// A pod's own flow, to where pods' addresses mean nothing.
#[inline(always)]
fn leaves_cluster(packet: &Packet, interface: u32) -> bool {
    // SAFETY: elements are written whole.
    let from_pod = unsafe { LOCAL.get(&packet.tuple.source) }.is_some_and(|local| local.interface != 0);
    if !from_pod {
        return false;
    }
    // SAFETY: only whether the element exists is used.
    let managed = unsafe { UPLINKS.get(&interface) }.is_some();
    managed && RANGES.get(&Key::new(WHOLE_ADDRESS, packet.tuple.destination)).is_none()
}
