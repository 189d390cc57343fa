//! What the proxy should do, as plain values: which service address leads to which backends.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use hull_ebpf_types as bpf;

/// A transport protocol that services can have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

impl Protocol {
    /// From the name that Kubernetes uses; `None` for what is not balanced (SCTP).
    pub fn from_name(name: &str) -> Option<Protocol> {
        match name {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            _ => None,
        }
    }

    fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

/// What a client connects to: address, port and protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Address and port.
    pub address: SocketAddrV4,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        write!(f, "{}/{protocol}", self.address)
    }
}

impl Frontend {
    pub(super) fn to_bpf(self) -> bpf::Frontend {
        let endpoint = endpoint_to_bpf(self.address);
        bpf::Frontend {
            address: endpoint.address,
            port: endpoint.port,
            protocol: self.protocol.number(),
            zero: 0,
        }
    }

    pub(super) fn from_bpf(frontend: &bpf::Frontend) -> Option<Frontend> {
        let endpoint = bpf::Endpoint {
            address: frontend.address,
            port: frontend.port,
            zero: 0,
        };
        let protocol = [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .find(|p| p.number() == frontend.protocol)?;
        Some(Frontend {
            address: endpoint_from_bpf(&endpoint)?,
            protocol,
        })
    }
}

/// The backends of one frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balanced {
    /// Session affinity by client, in seconds.
    pub affinity: Option<u32>,
    /// Sorted, without duplicates. Empty: clients are refused.
    pub backends: Vec<SocketAddrV4>,
}

/// The complete contents that the maps should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// By what clients connect to.
    pub services: BTreeMap<Frontend, Balanced>,
}

pub(super) fn endpoint_to_bpf(address: SocketAddrV4) -> bpf::Endpoint {
    let word = u32::from_ne_bytes(address.ip().octets());
    bpf::Endpoint {
        address: [0, 0, 0xffff_u32.to_be(), word],
        port: address.port().to_be(),
        zero: 0,
    }
}

pub(super) fn endpoint_from_bpf(endpoint: &bpf::Endpoint) -> Option<SocketAddrV4> {
    let [0, 0, prefix, word] = endpoint.address else {
        return None;
    };
    if prefix != 0xffff_u32.to_be() {
        return None;
    }
    Some(SocketAddrV4::new(
        Ipv4Addr::from(word.to_ne_bytes()),
        u16::from_be(endpoint.port),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_survive_the_way_through_a_map() {
        let frontend = Frontend {
            address: "10.96.1.2:8080".parse().unwrap(),
            protocol: Protocol::Udp,
        };
        let bpf = frontend.to_bpf();
        assert_eq!(bpf.port.to_ne_bytes(), [0x1f, 0x90], "ports are in network byte order");
        assert_eq!(bpf.address[3].to_ne_bytes(), [10, 96, 1, 2]);
        assert_eq!(Frontend::from_bpf(&bpf), Some(frontend));
        assert_eq!(Frontend::from_bpf(&bpf::Frontend { protocol: 132, ..bpf }), None);
        assert_eq!(
            Frontend::from_bpf(&bpf::Frontend {
                address: [1, 0, 0, 0],
                ..bpf
            }),
            None
        );
    }
}
