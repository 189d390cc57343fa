//! A packet's addresses and ports, read once; RFC 791, 8200.
//!
//! What the programs know of a packet is in an element of a map, not on the stack: a chain of calls has 512 bytes of that,
//! and the verifier, which knows nothing of an element's contents, takes all ways to one place for the same. For this reason,
//! too, functions that are not inlined take and return plain numbers.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use hull_ebpf_types::edge::{Fragment, Ports, Track, Tuple, Visitor};
use hull_ebpf_types::{Affinity, Endpoint, Frontend, Member, Service};

use crate::forward::Way;
use crate::icmp;
use crate::maps::FRAGMENTS;
use crate::rewrite::New;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMP6: u8 = 58;
pub const SCTP: u8 = 132;

pub const V4_PREFIX: u32 = 0xffff_u32.to_be();
/// Where the network header is: only Ethernet interfaces have these programs.
pub const NETWORK: u32 = 14;
pub const V6_HEADER: u32 = 40;
const ETHERTYPE_V4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_V6: u16 = 0x86dd_u16.to_be();

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// A checksum covers the addresses in the network header.
pub const PSEUDO_HEADER: u32 = BPF_F_PSEUDO_HDR;

const FIRST: u32 = 1;
const LATER: u32 = 2;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// Extension headers that are looked behind.
const EXTENSIONS: u32 = 4;

/// Kinds of [`Packet::kind`].
pub const WHOLE: u8 = 0;
/// An ICMP error; the tuple is the reverse of what it quotes.
pub const ERROR: u8 = 1;
/// A fragment without the transport header; ports are those of the first one.
pub const LATER_FRAGMENT: u8 = 2;
/// The same, but the first fragment is not known.
pub const UNKNOWN_FRAGMENT: u8 = 3;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    /// The hook is filled in by who looks it up.
    pub tuple: Tuple,
    /// Offset of the transport header.
    pub transport: u32,
    /// Of an ICMP error: offset of the quoted network header, and of the transport header in it.
    pub quoted: u32,
    pub quoted_transport: u32,
    /// The quoted packet's source port is an ICMP identifier, 4 bytes into its header.
    pub quoted_echo: u32,
    /// The address that the packet itself (not a quoted one) has as its source.
    pub sender: [u32; 4],
    /// Where it goes: its destination, or the backend in direct server return. And how.
    pub hop: [u32; 4],
    pub way: Way,
    /// Offset of the checksum that covers the addresses; zero is none. And of that which covers the ports.
    pub address_checksum: u32,
    pub port_checksum: u32,
    /// For the helper that changes either.
    pub checksum_flags: u32,
    /// Offset of the source port, and how far behind it the destination port is; an echo's identifier is both.
    pub ports: u32,
    pub ports_apart: u32,
    /// One when the source port (or an echo's identifier) may be another one, else zero.
    pub has_ports: u32,
    /// Of datagrams the source port: with it a client is told from another one.
    pub client_port: u16,
    /// The packet's own protocol; the tuple's is the quoted packet's for an error.
    pub protocol: u8,
    pub v6: u8,
    pub kind: u8,
    /// Of TCP.
    pub flags: u8,
    /// Zero, [`FIRST`] or [`LATER`]; all fragments of a datagram have the same identification.
    pub fragmented: u32,
    pub identification: u32,
    /// What is being put in place of an address and port.
    pub new: New,
    /// Of the service that the packet is for.
    pub frontend: Frontend,
    pub service: Service,
    pub endpoint: Endpoint,
    /// Keys and values of maps, for as long as one look-up takes.
    pub key: Tuple,
    pub track: Track,
    pub member: Member,
    pub visitor: Visitor,
    pub affinity: Affinity,
    /// See [`crate::verdict`], and [`crate::forward`] for the kind of way.
    pub verdict: u32,
    pub way_kind: u32,
    /// Where it leaves: an interface's index, or zero for a pod's.
    pub leaves: u32,
    /// Of a search for a port: host byte order, how many there are, and a number whose remainder is the next one's.
    pub first_port: u32,
    pub ports_free: u32,
    pub next_port: u32,
    /// See [`crate::words::blur`].
    pub blurred: u32,
}

impl Packet {
    /// Whether the packet can begin a flow.
    #[inline(always)]
    pub fn begins(&self) -> bool {
        match self.kind {
            ERROR | UNKNOWN_FRAGMENT => false,
            _ if self.tuple.protocol == TCP => self.is_syn(),
            _ => true,
        }
    }

    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tuple.protocol == TCP && self.flags & (SYN | ACK | RST) == SYN
    }
}

/// Reads `length` bytes of the packet to `to`.
#[inline(always)]
pub fn load(skb: *mut __sk_buff, offset: u32, to: *mut u8, length: u32) -> bool {
    // SAFETY: callers pass memory of that length; the helper checks the offset.
    unsafe { bpf_skb_load_bytes(skb.cast_const().cast(), offset, to.cast(), length) == 0 }
}

/// Reads a value; a packet that is too short gives zeroes, by the helper's own doing.
#[inline(always)]
pub fn read<T: Copy>(skb: *mut __sk_buff, offset: u32, ok: &mut bool) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    *ok = load(skb, offset, value.as_mut_ptr().cast(), size_of::<T>() as u32);
    // SAFETY: the helper fills all of it, with zeroes when it fails; `T` is made of integers.
    unsafe { value.assume_init() }
}

#[inline(always)]
pub fn load_u8(skb: *mut __sk_buff, offset: u32) -> u8 {
    read(skb, offset, &mut false)
}

#[inline(always)]
pub fn load_u16(skb: *mut __sk_buff, offset: u32) -> u16 {
    read(skb, offset, &mut false)
}

/// Whether the packet is of a kind that these programs handle; then `packet` describes it.
#[inline(always)]
pub fn parse(skb: *mut __sk_buff, packet: *mut Packet) -> bool {
    network(skb, packet) != 0 && transport(skb, packet) != 0
}

#[inline(never)]
fn network(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the program's own element of the map; the context is the kernel's.
    let (packet, ethertype) = unsafe { (&mut *packet, (*skb).protocol as u16) };
    packet.tuple.hook = 0;
    packet.tuple.zero = 0;
    packet.tuple.source_port = 0;
    packet.tuple.destination_port = 0;
    packet.kind = WHOLE;
    packet.flags = 0;
    packet.fragmented = 0;
    packet.address_checksum = 0;
    packet.port_checksum = 0;
    packet.checksum_flags = 0;
    packet.has_ports = 0;
    packet.client_port = 0;
    let known = match ethertype {
        ETHERTYPE_V4 => network_v4(skb, packet),
        ETHERTYPE_V6 => network_v6(skb, packet),
        _ => false,
    };
    u32::from(known)
}

#[inline(always)]
fn network_v4(skb: *mut __sk_buff, packet: &mut Packet) -> bool {
    let mut ok = false;
    let header: [u32; 5] = read(skb, NETWORK, &mut ok);
    if !ok {
        return false;
    }
    let words = u32::from(header[0].to_ne_bytes()[0] & 15);
    let [_, _, high, low] = header[1].to_ne_bytes();
    let fragment = u16::from_be_bytes([high, low]);
    packet.v6 = 0;
    packet.protocol = header[2].to_ne_bytes()[1];
    packet.tuple.protocol = packet.protocol;
    packet.tuple.source = [0, 0, V4_PREFIX, header[3]];
    packet.tuple.destination = [0, 0, V4_PREFIX, header[4]];
    packet.sender = packet.tuple.source;
    packet.transport = NETWORK + words * 4;
    packet.identification = header[1] & 0xffff;
    if fragment & FRAGMENT_OFFSET != 0 {
        packet.fragmented = LATER;
    } else if fragment & MORE_FRAGMENTS != 0 {
        packet.fragmented = FIRST;
    }
    true
}

#[inline(always)]
fn network_v6(skb: *mut __sk_buff, packet: &mut Packet) -> bool {
    let mut ok = false;
    let header: [u32; 10] = read(skb, NETWORK, &mut ok);
    if !ok {
        return false;
    }
    packet.v6 = 1;
    packet.tuple.source = [header[2], header[3], header[4], header[5]];
    packet.tuple.destination = [header[6], header[7], header[8], header[9]];
    packet.sender = packet.tuple.source;
    packet.protocol = header[1].to_ne_bytes()[2];
    packet.transport = NETWORK + V6_HEADER;
    let mut count = 0;
    while count < EXTENSIONS && extension(skb, packet) != 0 {
        count += 1;
    }
    packet.tuple.protocol = packet.protocol;
    true
}

/// Steps over one extension header; zero when there is none, or none behind it that matters.
#[inline(never)]
fn extension(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the program's own element of the map.
    let packet = unsafe { &mut *packet };
    if packet.fragmented == LATER {
        return 0;
    }
    let mut ok = false;
    let header: [u32; 2] = match packet.protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT => read(skb, packet.transport, &mut ok),
        _ => return 0,
    };
    if !ok {
        return 0;
    }
    let [next, length, high, low] = header[0].to_ne_bytes();
    if packet.protocol == FRAGMENT {
        let place = u16::from_be_bytes([high, low]);
        packet.identification = header[1];
        // With neither offset nor successors it is a whole packet (RFC 6946).
        if place & 0xfff8 != 0 {
            packet.fragmented = LATER;
        } else if place & 1 != 0 {
            packet.fragmented = FIRST;
        }
        packet.transport += 8;
    } else {
        packet.transport += (u32::from(length) + 1) * 8;
    }
    packet.protocol = next;
    1
}

#[inline(never)]
fn transport(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the program's own element of the map.
    let packet = unsafe { &mut *packet };
    if packet.fragmented == LATER {
        recall_ports(packet);
        return 1;
    }
    let known = match packet.protocol {
        TCP | UDP | SCTP => ports(skb, packet),
        ICMP | ICMP6 => icmp::parse(skb, packet),
        _ => true,
    };
    if packet.fragmented == FIRST {
        remember_ports(packet);
    }
    u32::from(known)
}

#[inline(always)]
fn ports(skb: *mut __sk_buff, packet: &mut Packet) -> bool {
    let mut ok = false;
    let ports: [u16; 2] = read(skb, packet.transport, &mut ok);
    packet.tuple.source_port = ports[0];
    packet.tuple.destination_port = ports[1];
    packet.ports = packet.transport;
    packet.ports_apart = 2;
    packet.has_ports = 1;
    if packet.protocol == TCP {
        packet.flags = load_u8(skb, packet.transport + 13);
        covered_by(packet, 16, PSEUDO_HEADER);
    } else if packet.protocol == UDP {
        packet.client_port = ports[0];
        covered_by(packet, 6, PSEUDO_HEADER | BPF_F_MARK_MANGLED_0);
    }
    ok
}

/// Where the checksum of addresses and ports is, from the transport header on.
#[inline(always)]
pub fn covered_by(packet: &mut Packet, checksum: u32, flags: u32) {
    packet.address_checksum = packet.transport + checksum;
    packet.port_checksum = packet.address_checksum;
    packet.checksum_flags = flags;
}

#[inline(always)]
fn fragment_key(packet: &Packet) -> Fragment {
    Fragment {
        source: packet.sender,
        destination: packet.tuple.destination,
        identification: packet.identification,
        protocol: u32::from(packet.protocol),
    }
}

#[inline(always)]
fn recall_ports(packet: &mut Packet) {
    packet.kind = UNKNOWN_FRAGMENT;
    if let Some(ports) = FRAGMENTS.get_ptr(&fragment_key(packet)) {
        packet.kind = LATER_FRAGMENT;
        // SAFETY: elements of this map are only ever written whole.
        unsafe {
            packet.tuple.source_port = (*ports).source;
            packet.tuple.destination_port = (*ports).destination;
        }
        packet.has_ports = 1;
    }
}

/// Without room for them the later fragments are lost, as they would be on a congested link.
#[inline(always)]
fn remember_ports(packet: &Packet) {
    let ports = Ports {
        source: packet.tuple.source_port,
        destination: packet.tuple.destination_port,
    };
    let _ = FRAGMENTS.insert(&fragment_key(packet), &ports, 0);
}
