//! Which backend a flow gets, from the maps that the socket programs use: its client's by affinity, else by the
//! service's algorithm ([`crate::choice`]). Clients are told apart by their addresses.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use hull_ebpf_types::edge::Visitor;
use hull_ebpf_types::{Affinity, Endpoint, Frontend, Member, Service, algorithm, flag, scope};

use crate::choice;
use crate::maps::{ADDRESSES, AFFINITY, MEMBERS, SERVICES};
use crate::packet::{Packet, TCP, UDP};

pub const SEND: u32 = 0;
pub const REFUSE: u32 = 1;
pub const DROP: u32 = 2;

/// A reader may fall between the agent's writes and hold a set that is gone; the next look finds the new one.
const ATTEMPTS: u32 = 2;
const SECOND: u64 = 1_000_000_000;
const ANYWHERE: [u32; 4] = [0; 4];

/// Finds the service of the packet's destination, as it is offered to pods or to what comes from outside.
#[inline(never)]
pub fn find(packet: *mut Packet, outside: u32) -> u32 {
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    packet.frontend = Frontend {
        address: packet.tuple.destination,
        port: packet.tuple.destination_port,
        protocol: packet.tuple.protocol,
        scope: if outside != 0 { scope::OUTSIDE } else { scope::INSIDE },
    };
    if exactly(&packet.frontend, &mut packet.service) {
        return 1;
    }
    // SAFETY: only whether the element exists is used: node ports are served on this address.
    if unsafe { ADDRESSES.get(&packet.tuple.destination) }.is_some() {
        packet.frontend.address = ANYWHERE;
        let found = exactly(&packet.frontend, &mut packet.service) && packet.service.flags & flag::NODE_PORT != 0;
        return u32::from(found);
    }
    // A port of a cluster address that nobody serves.
    packet.frontend.port = 0;
    packet.frontend.protocol = 0;
    u32::from(outside == 0 && exactly(&packet.frontend, &mut packet.service))
}

#[inline(always)]
fn exactly(frontend: &Frontend, service: &mut Service) -> bool {
    // SAFETY: the element is copied at once, and its own key tells whether it was reused meanwhile.
    match unsafe { SERVICES.get(frontend) } {
        None => return false,
        Some(found) => *service = *found,
    }
    service.frontend == *frontend
}

/// Chooses for [`Packet::service`], into [`Packet::endpoint`].
#[inline(never)]
pub fn choose(packet: *mut Packet) -> u32 {
    // SAFETY: the program's own packet.
    let packet = unsafe { &mut *packet };
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        let service = packet.service;
        if service.count == 0 {
            let elsewhere = service.flags & flag::ELSEWHERE != 0 && packet.frontend.scope == scope::OUTSIDE;
            return if elsewhere { DROP } else { REFUSE };
        }
        let visitor = Visitor {
            address: packet.tuple.source,
            service: service.id,
        };
        let kept = service.affinity != 0 && affine(&visitor, &service, &mut packet.endpoint);
        if kept || choice::pick(&service, client_hash(packet), &mut packet.endpoint) {
            if service.affinity != 0 {
                stay(&visitor, &packet.endpoint);
            }
            return SEND;
        }
        if !exactly(&packet.frontend, &mut packet.service) {
            break;
        }
    }
    REFUSE
}

/// Whether a packet in the middle of a connection leads to the backend that its first one was led to.
#[inline(always)]
pub fn is_repeatable(service: &Service) -> bool {
    service.affinity != 0 || service.algorithm == algorithm::MAGLEV
}

/// A client is an address; of datagrams, as with sockets, a port.
#[inline(always)]
fn client_hash(packet: &Packet) -> u32 {
    let [a, b, c, d] = packet.tuple.source;
    let mut client = (u64::from(a ^ c) << 32 | u64::from(b)) ^ u64::from(d).wrapping_mul(0x9e37_79b9);
    if packet.tuple.protocol == UDP {
        client ^= u64::from(packet.tuple.source_port) << 40;
    }
    choice::hash(client)
}

#[inline(always)]
fn affine(visitor: &Visitor, service: &Service, endpoint: &mut Endpoint) -> bool {
    // SAFETY: copied at once; a torn copy names no member of the service, or one of its backends.
    let affinity = match unsafe { AFFINITY.get(visitor) } {
        None => return false,
        Some(affinity) => *affinity,
    };
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    *endpoint = affinity.endpoint;
    let member = Member {
        service: service.id,
        endpoint: *endpoint,
    };
    // SAFETY: only whether the element exists is used.
    now.wrapping_sub(affinity.used) < u64::from(service.affinity) * SECOND && unsafe { MEMBERS.get(&member) }.is_some()
}

#[inline(always)]
fn stay(visitor: &Visitor, endpoint: &Endpoint) {
    // SAFETY: a helper without preconditions.
    let used = unsafe { bpf_ktime_get_ns() };
    let affinity = Affinity {
        used,
        endpoint: *endpoint,
        zero: 0,
    };
    // Without memory for it the client merely has no affinity.
    let _ = AFFINITY.insert(visitor, &affinity, 0);
}

/// Whether the packet is one that a client of the service may have sent at any time.
#[inline(always)]
pub fn may_choose(packet: &Packet) -> bool {
    packet.tuple.protocol != TCP || packet.is_syn() || is_repeatable(&packet.service)
}
