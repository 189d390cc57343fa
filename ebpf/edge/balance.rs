//! Which backend a flow gets, from the maps that the socket programs use: its client's by affinity, else by the
//! service's algorithm ([`crate::choice`]). Clients are told apart by their addresses.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use hull_ebpf_types::{Frontend, Service, algorithm, flag, scope};

use crate::choice;
use crate::growing::Growing as _;
use crate::maps::{ADDRESSES, AFFINITY, MEMBERS, SERVICES};
use crate::packet::{Packet, TCP, V4_PREFIX};
use crate::words;

pub const SEND: u32 = 0;
pub const REFUSE: u32 = 1;
pub const DROP: u32 = 2;

const AGAIN: u32 = 3;

const SECOND: u64 = 1_000_000_000;

/// Finds the service of the packet's destination, as it is offered to pods or to what comes from outside.
#[inline(never)]
pub fn find(packet: *mut Packet, outside: u32) -> u32 {
    let pointer = packet;
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    packet.frontend = Frontend {
        address: packet.tuple.destination,
        port: packet.tuple.destination_port,
        protocol: packet.tuple.protocol,
        scope: if outside != 0 { scope::OUTSIDE } else { scope::INSIDE },
    };
    if exactly(pointer) != 0 {
        return 1;
    }
    // Node ports are served on this address.
    if ADDRESSES.has(&packet.tuple.destination) {
        let [first, second, prefix, _] = packet.tuple.destination;
        // SAFETY: part of the program's own packet.
        unsafe { words::clear(&raw mut packet.frontend.address) };
        // The unspecified address of IPv4 has its prefix all the same.
        if first | second == 0 && prefix == V4_PREFIX {
            packet.frontend.address[2] = V4_PREFIX;
        }
        let found = exactly(pointer);
        return u32::from(found != 0 && packet.service.flags & flag::NODE_PORT != 0);
    }
    // A port of a cluster address that nobody serves.
    packet.frontend.port = 0;
    packet.frontend.protocol = 0;
    if outside == 0 { exactly(pointer) } else { 0 }
}

/// Looks [`Packet::frontend`] up, into [`Packet::service`]; zero when there is none.
#[inline(never)]
fn exactly(packet: *mut Packet) -> u32 {
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    let Some(found) = SERVICES.get_ptr(&packet.frontend) else {
        return 0;
    };
    // SAFETY: the element is copied at once, and its own key tells whether it was reused meanwhile.
    unsafe { words::copy(&raw const (*found).service, &raw mut packet.service) };
    u32::from(packet.service.frontend == packet.frontend)
}

/// Chooses for [`Packet::service`], into [`Packet::endpoint`].
///
/// It may fall between the agent's writes and hold a set that is gone; the next look finds the new one.
#[inline(never)]
pub fn choose(packet: *mut Packet) -> u32 {
    let choice = words::blur(packet, choose_once(packet, false));
    if choice != AGAIN {
        return choice;
    }
    if exactly(packet) == 0 {
        return REFUSE;
    }
    match words::blur(packet, choose_once(packet, true)) {
        AGAIN => REFUSE,
        choice => choice,
    }
}

#[inline(always)]
fn choose_once(packet: *mut Packet, any: bool) -> u32 {
    let pointer = packet;
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    if packet.service.count == 0 {
        let elsewhere = packet.service.flags & flag::ELSEWHERE != 0 && packet.frontend.scope == scope::OUTSIDE;
        return if elsewhere { DROP } else { REFUSE };
    }
    if words::blur(pointer, stays(pointer)) == 0 {
        let client = words::blur(pointer, client_hash(packet));
        let picked = if any {
            choice::any(&packet.service, &mut packet.endpoint)
        } else {
            choice::pick(&packet.service, client, &mut packet.endpoint)
        };
        if words::blur(pointer, u32::from(picked)) == 0 {
            return AGAIN;
        }
    }
    note(pointer);
    SEND
}

/// Whether a packet in the middle of a connection leads to the backend that its first one was led to.
#[inline(always)]
fn is_repeatable(service: &Service) -> bool {
    service.affinity != 0 || service.algorithm == algorithm::MAGLEV
}

/// A client is an address; of datagrams, as with sockets, a port.
#[inline(always)]
fn client_hash(packet: &Packet) -> u32 {
    let [a, b, c, d] = packet.tuple.source;
    let client = (u64::from(a ^ c) << 32 | u64::from(b)) ^ u64::from(d).wrapping_mul(0x9e37_79b9);
    let client = client ^ u64::from(packet.client_port) << 40;
    choice::hash(client)
}

/// Whether the client has a backend by affinity, then in [`Packet::endpoint`].
#[inline(never)]
fn stays(packet: *mut Packet) -> u32 {
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    if packet.service.affinity == 0 {
        return 0;
    }
    packet.visitor.address = packet.tuple.source;
    packet.visitor.service = packet.service.id;
    let Some(found) = AFFINITY.get_ptr(&packet.visitor) else {
        return 0;
    };
    // SAFETY: copied at once; a torn copy names no member of the service, or one of its backends.
    unsafe { words::copy(found, &raw mut packet.affinity) };
    // SAFETY: a helper without preconditions.
    let idle = unsafe { bpf_ktime_get_ns() }.wrapping_sub(packet.affinity.used);
    if idle >= u64::from(packet.service.affinity) * SECOND {
        return 0;
    }
    packet.member.service = packet.service.id;
    packet.member.endpoint = packet.affinity.endpoint;
    packet.endpoint = packet.affinity.endpoint;
    u32::from(MEMBERS.has(&packet.member))
}

/// The client stays with [`Packet::endpoint`] from now on.
#[inline(never)]
fn note(packet: *mut Packet) -> u32 {
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    if packet.service.affinity != 0 {
        // SAFETY: a helper without preconditions.
        packet.affinity.used = unsafe { bpf_ktime_get_ns() };
        packet.affinity.endpoint = packet.endpoint;
        // Without memory for it the client merely has no affinity.
        let _ = AFFINITY.insert(&packet.visitor, &packet.affinity, 0);
    }
    0
}

/// Whether the packet is one that a client of the service may have sent at any time.
#[inline(always)]
pub fn may_choose(packet: &Packet) -> bool {
    packet.tuple.protocol != TCP || packet.is_syn() || is_repeatable(&packet.service)
}
