//! ICMP as the programs see it: an echo is a flow with an identifier instead of ports, an error belongs to the flow of the
//! packet that it quotes; RFC 792, 4443.

use aya_ebpf::bindings::__sk_buff;

use crate::packet::{
    ERROR, ICMP, ICMP6, PSEUDO_HEADER, Packet, SCTP, TCP, UDP, V4_PREFIX, V6_HEADER, covered_by, read,
};

#[inline(always)]
pub fn parse(skb: *mut __sk_buff, packet: &mut Packet) -> bool {
    let mut ok = false;
    let header: [u16; 4] = read(skb, packet.transport, &mut ok);
    if !ok {
        return false;
    }
    packet.ports = packet.transport + 4;
    packet.ports_apart = 0;
    packet.port_checksum = packet.transport + 2;
    if packet.protocol == ICMP6 {
        covered_by(packet, 2, PSEUDO_HEADER);
    }
    let kind = header[0].to_ne_bytes()[0];
    match (packet.protocol, kind) {
        (ICMP, 8) | (ICMP6, 128) => {
            packet.tuple.source_port = header[2];
            packet.has_ports = u32::from(header[2] != 0);
        }
        (ICMP, 0) | (ICMP6, 129) => packet.tuple.destination_port = header[2],
        // Unreachable, time exceeded, parameter problem; packet too big.
        (ICMP, 3 | 11 | 12) => return parse_quoted_v4(skb, packet),
        (ICMP6, 1..=4) => return parse_quoted_v6(skb, packet),
        _ => {}
    }
    true
}

/// The quoted packet came from where the error goes; anything else is an ordinary packet to these programs.
#[inline(always)]
fn parse_quoted_v4(skb: *mut __sk_buff, packet: &mut Packet) -> bool {
    packet.quoted = packet.transport + 8;
    let mut ok = false;
    let header: [u32; 5] = read(skb, packet.quoted, &mut ok);
    if !ok {
        return false;
    }
    let words = u32::from(header[0].to_ne_bytes()[0] & 15);
    packet.quoted_transport = packet.quoted + words * 4;
    if header[3] != packet.tuple.destination[3] {
        return true;
    }
    packet.tuple.protocol = header[2].to_ne_bytes()[1];
    packet.tuple.source = [0, 0, V4_PREFIX, header[4]];
    parse_quoted_transport(skb, packet)
}

#[inline(always)]
fn parse_quoted_v6(skb: *mut __sk_buff, packet: &mut Packet) -> bool {
    packet.quoted = packet.transport + 8;
    let mut ok = false;
    let header: [u32; 10] = read(skb, packet.quoted, &mut ok);
    if !ok {
        return false;
    }
    packet.quoted_transport = packet.quoted + V6_HEADER;
    let mut same = true;
    let mut index = 0;
    while index < 4 {
        same &= header[2 + index] == packet.tuple.destination[index];
        index += 1;
    }
    if !same {
        return true;
    }
    packet.tuple.protocol = header[1].to_ne_bytes()[2];
    index = 0;
    while index < 4 {
        packet.tuple.source[index] = header[6 + index];
        index += 1;
    }
    parse_quoted_transport(skb, packet)
}

#[inline(always)]
fn parse_quoted_transport(skb: *mut __sk_buff, packet: &mut Packet) -> bool {
    let mut ok = false;
    let ports: [u16; 4] = read(skb, packet.quoted_transport, &mut ok);
    if !ok {
        return false;
    }
    packet.kind = ERROR;
    packet.quoted_echo = 0;
    let kind = ports[0].to_ne_bytes()[0];
    match (packet.tuple.protocol, kind) {
        (TCP | UDP | SCTP, _) => {
            packet.tuple.source_port = ports[1];
            packet.tuple.destination_port = ports[0];
        }
        (ICMP, 8) | (ICMP6, 128) => {
            packet.quoted_echo = 1;
            packet.tuple.destination_port = ports[2];
        }
        (ICMP, 0) | (ICMP6, 129) => {
            packet.quoted_echo = 1;
            packet.tuple.source_port = ports[2];
        }
        _ => {}
    }
    true
}
