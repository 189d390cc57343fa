//! SCTP without the kernel's help: this machine's need not have it. RFC 9260.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recvfrom, sendto, socket};

/// A raw socket that gets every SCTP packet for its host.
pub struct Raw(OwnedFd);

impl Raw {
    pub fn open() -> Raw {
        let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap();
        let patience = Some(super::PATIENCE);
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, patience).unwrap();
        Raw(socket)
    }

    pub fn send(&self, to: SocketAddr, packet: &[u8]) {
        sendto(&self.0, packet, SendFlags::empty(), &SocketAddr::new(to.ip(), 0)).unwrap();
    }

    /// The sender's address, and the packet without its network header.
    pub fn receive(&self) -> (IpAddr, Vec<u8>) {
        let mut buffer = [0; 2048];
        let (length, _, from) = recvfrom(&self.0, &mut buffer[..], RecvFlags::empty())
            .map_err(io::Error::from)
            .unwrap();
        let from = SocketAddr::try_from(from.unwrap()).unwrap();
        let header = usize::from(buffer[0] & 15) * 4;
        (from.ip(), buffer[header..length].to_vec())
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step =
        |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)));
    !bytes.iter().fold(u32::MAX, step)
}

/// An INIT chunk from one port to another.
pub fn packet(from: u16, to: u16) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend((0..16).map(|byte: u8| byte.wrapping_mul(37)));
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

pub fn is_intact(packet: &[u8]) -> bool {
    let mut zeroed = packet.to_vec();
    zeroed[8..12].fill(0);
    packet[8..12] == crc32c(&zeroed).to_le_bytes()
}
