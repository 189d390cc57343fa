//! Where packets leave: replies get back the address that the client asked for, pods' flows to the world get the node's.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::lpm_trie::Key;
use hull_ebpf_types::edge::{LEAVES, Reason, track};

use crate::maps::{LOCAL, RANGES, UPLINKS, count};
use crate::masquerade::masquerade;
use crate::packet::{ERROR, Packet, UNKNOWN_FRAGMENT};
use crate::rewrite::{New, replace_source};
use crate::track::{find, follow, reverse, set_key};
use crate::verdict::{DISGUISE, DISGUISED, DROP, KEPT, REPLACED};
use crate::words;

const WHOLE_ADDRESS: u32 = 128;

/// The packet leaves by [`Packet::leaves`]; at a pod only services' flows are given another source. `verdict` is what
/// became of it where it entered.
#[inline(never)]
pub fn source(skb: *mut __sk_buff, packet: *mut Packet, verdict: u32) -> u32 {
    let mut result = match verdict {
        DISGUISED => REPLACED,
        DISGUISE => DISGUISE,
        _ => known(packet),
    };
    result = words::blur(packet, result);
    if result == DISGUISE {
        result = words::blur(packet, masquerade(skb, packet, u32::from(verdict == DISGUISE)));
    }
    if result == REPLACED {
        replace_source(skb, packet);
    }
    result
}

/// REPLACED with what the flow has got, KEPT, DROP, or DISGUISE for a flow that still has to get something.
#[inline(never)]
fn known(packet: *mut Packet) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    let interface = packet.leaves;
    set_key(packet, LEAVES);
    if find(pointer) != 0 {
        let flags = packet.track.flags;
        packet.new = New {
            address: packet.track.address,
            port: packet.track.port,
        };
        follow(pointer);
        return if flags & track::IDENTITY != 0 { KEPT } else { REPLACED };
    }
    if !needs_masquerade(pointer) && !(interface != 0 && leaves_cluster(packet, interface)) {
        return KEPT;
    }
    if packet.kind == ERROR || packet.kind == UNKNOWN_FRAGMENT {
        count(Reason::UnknownFragment);
        return DROP;
    }
    DISGUISE
}

/// A service's flow on its way to a backend whose replies must come back over this node.
#[inline(always)]
fn needs_masquerade(packet: *mut Packet) -> bool {
    // SAFETY: callers pass the program's own packet.
    let key = unsafe { &mut (*packet).key };
    reverse(key);
    key.hook = LEAVES;
    // SAFETY: as above.
    find(packet) != 0 && unsafe { (*packet).track.flags & track::MASQUERADE != 0 }
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
