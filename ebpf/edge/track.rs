//! Connection tracking: what is known of a packet's flow, kept up to date by the packets themselves.
//!
//! TCP entries go with a RST, or with the last acknowledgement after both FINs: long-lived idle connections must not be
//! pushed out of an LRU map by what has long ended. Everything else is forgotten by age. Functions work on
//! [`Packet::key`] and [`Packet::track`].

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use hull_ebpf_types::edge::{ENTERS, LEAVES, Track, Tuple, track};

use crate::growing::Growing as _;
use crate::maps::{DATAGRAMS, MEMBERS, STREAMS};
use crate::packet::{ACK, FIN, Packet, RST, SYN, TCP, WHOLE};
use crate::words;

const SECOND: u64 = 1_000_000_000;
/// After these a track's port may be given to another flow, and datagrams begin a new flow: an open connection, and what
/// begins, ends or knows no ends.
const OPEN_IDLE: u64 = 24 * 3600 * SECOND;
const IDLE: u64 = 120 * SECOND;

const CLOSED: u16 = track::FINISHED | track::OPPOSITE_FINISHED;

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The packet's own tuple, as it is looked up at a hook.
#[inline(always)]
pub fn set_key(packet: &mut Packet, hook: u8) {
    packet.tuple.hook = hook;
    // SAFETY: two parts of the program's own packet.
    unsafe { words::copy(&raw const packet.tuple, &raw mut packet.key) };
}

#[inline(always)]
fn element(key: &Tuple) -> Option<*mut Track> {
    if key.protocol == TCP {
        STREAMS.get_ptr_mut(key)
    } else {
        DATAGRAMS.get_ptr_mut(key)
    }
}

/// Copies the element; zero when there is none.
#[inline(never)]
pub fn find(packet: *mut Packet) -> u32 {
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    match element(&packet.key) {
        None => 0,
        Some(found) => {
            // SAFETY: an element of the map, copied at once.
            unsafe { words::copy(found.cast_const(), &raw mut packet.track) };
            1
        }
    }
}

/// Writes the element; zero when that failed.
#[inline(never)]
pub fn insert(packet: *mut Packet, flags: u32) -> u32 {
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &*packet };
    let result = if packet.key.protocol == TCP {
        STREAMS.insert(&packet.key, &packet.track, u64::from(flags))
    } else {
        DATAGRAMS.insert(&packet.key, &packet.track, u64::from(flags))
    };
    u32::from(result.is_ok())
}

#[inline(never)]
pub fn remove(packet: *mut Packet) -> u32 {
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &*packet };
    let result = if packet.key.protocol == TCP {
        STREAMS.remove(&packet.key)
    } else {
        DATAGRAMS.remove(&packet.key)
    };
    u32::from(result.is_ok())
}

/// Removes the flow of which `find` has just copied one half.
#[inline(always)]
pub fn forget(packet: *mut Packet) {
    remove(packet);
    turn(packet);
    remove(packet);
}

/// Notes in the element that the flow lives.
#[inline(never)]
fn touch(packet: *mut Packet, flags: u32) -> u32 {
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &*packet };
    if let Some(found) = element(&packet.key) {
        // SAFETY: an element of the map, which at worst belongs to another flow by now.
        unsafe {
            (*found).seen = now();
            (*found).flags |= flags as u16;
        }
    }
    0
}

/// Whether the flow has ended, as far as one can tell.
#[inline(always)]
pub fn is_over(tuple: &Tuple, flags: u16, seen: u64) -> bool {
    let idle = now().wrapping_sub(seen);
    let open = tuple.protocol == TCP && flags & (track::OPEN | CLOSED) == track::OPEN;
    let limit = if open { OPEN_IDLE } else { IDLE };
    idle > limit
}

/// Whether a packet that begins something must not follow what an earlier one was given: the connection is a new one,
/// or the backend is no longer the service's.
#[inline(always)]
pub fn is_outdated(packet: &mut Packet) -> bool {
    if packet.track.flags & track::CHOSEN == 0 || packet.kind != WHOLE {
        return false;
    }
    if packet.tuple.protocol == TCP {
        return packet.is_syn() && (packet.track.flags & (track::OPEN | CLOSED) != 0 || !is_member(packet));
    }
    is_over(&packet.key, packet.track.flags, packet.track.seen) || !is_member(packet)
}

#[inline(always)]
fn is_member(packet: &mut Packet) -> bool {
    packet.member.service = packet.track.service;
    packet.member.endpoint.port = packet.track.port;
    // SAFETY: two parts of the program's own packet.
    unsafe { words::copy(&raw const packet.track.address, &raw mut packet.member.endpoint.address) };
    MEMBERS.has(&packet.member)
}

/// Makes of the key that of the track for the packets that come back ([`Tuple::opposite`], in place).
#[inline(never)]
fn turn(packet: *mut Packet) -> u32 {
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    let flags = packet.track.flags;
    if flags & track::SOURCE != 0 {
        packet.key.hook ^= 1;
    }
    let enters = packet.key.hook == ENTERS;
    reverse(&mut packet.key);
    let (side, port) = if enters {
        (&raw mut packet.key.source, &mut packet.key.source_port)
    } else {
        (&raw mut packet.key.destination, &mut packet.key.destination_port)
    };
    *port = packet.track.port;
    // SAFETY: two parts of the program's own packet.
    unsafe { words::copy(&raw const packet.track.address, side) };
    // Both halves of these flows are known where packets enter.
    if flags & (track::SOURCE | track::FINAL) != 0 {
        packet.key.hook = ENTERS;
    }
    0
}

/// [`Tuple::reverse`], in place.
#[inline(always)]
pub fn reverse(key: &mut Tuple) {
    let mut word = 0;
    while word < 4 {
        let source = key.source[word];
        key.source[word] = key.destination[word];
        key.destination[word] = source;
        word += 1;
    }
    let source_port = key.source_port;
    key.source_port = key.destination_port;
    key.destination_port = source_port;
    key.hook ^= LEAVES;
}

/// Takes note of one more packet of the flow, whose key and track are at hand.
#[inline(never)]
pub fn follow(packet: *mut Packet) -> u32 {
    let pointer = packet;
    // SAFETY: callers pass the program's own packet.
    let packet = unsafe { &mut *packet };
    if packet.kind != WHOLE {
        return 0;
    }
    let known = packet.track.flags;
    let mut news = 0;
    if packet.tuple.protocol == TCP {
        let flags = packet.flags;
        if flags & RST != 0 || (flags & (FIN | SYN | ACK) == ACK && known & CLOSED == CLOSED) {
            forget(pointer);
            return 0;
        }
        if flags & FIN != 0 {
            news = track::FINISHED & !known;
        } else if flags & SYN == 0 {
            news = track::OPEN & !known;
        }
    }
    if news != 0 || now().wrapping_sub(packet.track.seen) >= Track::GRAIN {
        touch(pointer, u32::from(news));
    }
    if news == track::FINISHED {
        turn(pointer);
        touch(pointer, u32::from(track::OPPOSITE_FINISHED));
    }
    0
}
