//! Connection tracking: what is known of a packet's flow, kept up to date by the packets themselves.
//!
//! TCP entries go with a RST, or with the last acknowledgement after both FINs: long-lived idle connections must not be
//! pushed out of an LRU map by what has long ended. Everything else is forgotten by age.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use hull_ebpf_types::edge::{ENTERS, Track, Tuple, track};
use hull_ebpf_types::{Endpoint, Member};

use crate::maps::{DATAGRAMS, MEMBERS, STREAMS};
use crate::packet::{ACK, FIN, Packet, RST, SYN, TCP, WHOLE};

const SECOND: u64 = 1_000_000_000;
/// After these a track's port may be given to another flow, and datagrams begin a new flow.
const DATAGRAM_IDLE: u64 = 120 * SECOND;
const OPENING_IDLE: u64 = 60 * SECOND;
const OPEN_IDLE: u64 = 24 * 3600 * SECOND;
const CLOSING_IDLE: u64 = 60 * SECOND;

const CLOSED: u16 = track::FINISHED | track::OPPOSITE_FINISHED;

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}

#[inline(always)]
pub fn find(tuple: &Tuple) -> Option<*mut Track> {
    if tuple.protocol == TCP {
        STREAMS.get_ptr_mut(tuple)
    } else {
        DATAGRAMS.get_ptr_mut(tuple)
    }
}

#[inline(always)]
pub fn insert(tuple: &Tuple, track: &Track, flags: u64) -> bool {
    let result = if tuple.protocol == TCP {
        STREAMS.insert(tuple, track, flags)
    } else {
        DATAGRAMS.insert(tuple, track, flags)
    };
    result.is_ok()
}

#[inline(always)]
pub fn remove(tuple: &Tuple) {
    let _ = if tuple.protocol == TCP {
        STREAMS.remove(tuple)
    } else {
        DATAGRAMS.remove(tuple)
    };
}

/// Whether the flow has ended, as far as one can tell.
#[inline(always)]
pub fn is_over(tuple: &Tuple, track: &Track, now: u64) -> bool {
    let idle = now.wrapping_sub(track.seen);
    let limit = match (tuple.protocol, track.flags) {
        (TCP, flags) if flags & CLOSED != 0 => CLOSING_IDLE,
        (TCP, flags) if flags & track::OPEN != 0 => OPEN_IDLE,
        (TCP, _) => OPENING_IDLE,
        _ => DATAGRAM_IDLE,
    };
    idle > limit
}

/// Whether a packet that begins something must not follow what an earlier one was given: the connection is a new one,
/// or the backend is no longer the service's.
#[inline(always)]
pub fn is_outdated(packet: &Packet, track: &Track, now: u64) -> bool {
    if track.flags & track::CHOSEN == 0 || packet.kind != WHOLE {
        return false;
    }
    if packet.tuple.protocol == TCP {
        return packet.is_syn() && (track.flags & (track::OPEN | CLOSED) != 0 || !is_member(track));
    }
    is_over(&packet.tuple, track, now) || !is_member(track)
}

#[inline(always)]
fn is_member(track: &Track) -> bool {
    let member = Member {
        service: track.service,
        endpoint: Endpoint {
            address: track.address,
            port: track.port,
            zero: 0,
        },
    };
    // SAFETY: only whether the element exists is used.
    unsafe { MEMBERS.get(&member) }.is_some()
}

/// The key of the track for the packets that come back.
#[inline(always)]
pub fn opposite(tuple: &Tuple, track: &Track) -> Tuple {
    if track.flags & (track::SOURCE | track::FINAL) == 0 {
        return tuple.opposite(&track.address, track.port);
    }
    // Both halves of these flows are known where packets enter.
    let mut as_seen = *tuple;
    if track.flags & track::SOURCE != 0 {
        as_seen.hook ^= 1;
    }
    let mut other = as_seen.opposite(&track.address, track.port);
    other.hook = ENTERS;
    other
}

/// Takes note of one more packet of the flow. `found` is its element, `track` a copy.
#[inline(always)]
pub fn follow(packet: &Packet, found: *mut Track, track: &Track, now: u64) {
    if packet.kind != WHOLE {
        return;
    }
    if now.wrapping_sub(track.seen) >= Track::GRAIN {
        // SAFETY: an element of the map, which at worst belongs to another flow by now.
        unsafe { (*found).seen = now };
    }
    if packet.tuple.protocol != TCP {
        return;
    }
    let flags = packet.flags;
    if flags & RST != 0 || (flags & (FIN | SYN | ACK) == ACK && track.flags & CLOSED == CLOSED) {
        remove(&opposite(&packet.tuple, track));
        remove(&packet.tuple);
    } else if flags & FIN != 0 && track.flags & track::FINISHED == 0 {
        // SAFETY: as above, and so below.
        unsafe { (*found).flags |= track::FINISHED };
        if let Some(other) = find(&opposite(&packet.tuple, track)) {
            unsafe { (*other).flags |= track::OPPOSITE_FINISHED };
        }
    } else if flags & SYN == 0 && track.flags & track::OPEN == 0 {
        // SAFETY: as above.
        unsafe { (*found).flags |= track::OPEN };
    }
}
