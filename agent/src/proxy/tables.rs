//! What the proxy should do, as plain values: for each service groups of backends, and the addresses that lead there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use hull_ebpf_types as bpf;

use crate::network::Cidr;

/// A service's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Namespace; empty for what belongs to no service.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ServiceName {
    /// From its two parts.
    pub fn new(namespace: &str, name: &str) -> ServiceName {
        ServiceName {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol that services can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Whatever is not named: the ports of a cluster address that nobody serves.
    Any,
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Stream Control Transmission Protocol: its sockets run no programs, it is balanced on packets.
    Sctp,
}

impl Protocol {
    /// From the name that Kubernetes uses.
    pub fn from_name(name: &str) -> Option<Protocol> {
        match name {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Protocol::Any => "any",
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }

    fn number(self) -> u8 {
        match self {
            Protocol::Any => 0,
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    fn from_number(number: u8) -> Option<Protocol> {
        [Protocol::Any, Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == number)
    }
}

/// Whose clients a frontend is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Processes of this node, in pods and outside.
    Inside,
    /// What reaches this node from elsewhere.
    Outside,
}

/// What a client connects to. A node port has the unspecified address of its family: any of the node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Address and port.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Whose clients.
    pub scope: Scope,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol.name())
    }
}

impl Frontend {
    /// For the node's own clients.
    pub fn inside(address: impl Into<SocketAddr>, protocol: Protocol) -> Frontend {
        Frontend {
            address: address.into(),
            protocol,
            scope: Scope::Inside,
        }
    }

    /// The key in the map.
    pub fn to_bpf(self) -> bpf::Frontend {
        let endpoint = endpoint_to_bpf(self.address);
        bpf::Frontend {
            address: endpoint.address,
            port: endpoint.port,
            protocol: self.protocol.number(),
            scope: match self.scope {
                Scope::Inside => bpf::scope::INSIDE,
                Scope::Outside => bpf::scope::OUTSIDE,
            },
        }
    }

    /// From a key in the map; `None` for what this agent would not have written.
    pub fn from_bpf(frontend: &bpf::Frontend) -> Option<Frontend> {
        let endpoint = bpf::Endpoint {
            address: frontend.address,
            port: frontend.port,
            zero: 0,
        };
        Some(Frontend {
            address: endpoint_from_bpf(&endpoint),
            protocol: Protocol::from_number(frontend.protocol)?,
            scope: match frontend.scope {
                bpf::scope::INSIDE => Scope::Inside,
                bpf::scope::OUTSIDE => Scope::Outside,
                _ => return None,
            },
        })
    }
}

/// How a backend is chosen: the value of the annotation `hull.dev/balance` of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// `random`: any, by weight.
    #[default]
    Random,
    /// `maglev`: by a hash of the client, that changes little when backends come and go.
    Maglev,
    /// `least-connections`: the one with the fewest open connections from this node, for its weight.
    LeastConnections,
    /// `power-of-two`: of two at random the one that connects sooner and has less to do, as measured from this node.
    PowerOfTwo,
}

impl Algorithm {
    /// From its name.
    pub fn from_name(name: &str) -> Option<Algorithm> {
        match name {
            "random" => Some(Algorithm::Random),
            "maglev" => Some(Algorithm::Maglev),
            "least-connections" => Some(Algorithm::LeastConnections),
            "power-of-two" => Some(Algorithm::PowerOfTwo),
            _ => None,
        }
    }

    pub(super) fn to_bpf(self) -> u32 {
        match self {
            Algorithm::Random => bpf::algorithm::RANDOM,
            Algorithm::Maglev => bpf::algorithm::MAGLEV,
            Algorithm::LeastConnections => bpf::algorithm::LEAST_CONNECTIONS,
            Algorithm::PowerOfTwo => bpf::algorithm::POWER_OF_TWO,
        }
    }
}

/// Where clients are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Address and port.
    pub endpoint: bpf::Endpoint,
    /// Share of the clients, at least 1.
    pub weight: u32,
}

impl Backend {
    /// With the usual share.
    pub fn new(address: impl Into<SocketAddr>) -> Backend {
        Backend {
            endpoint: endpoint_to_bpf(address.into()),
            weight: 1,
        }
    }

    /// Address and port.
    pub fn address(&self) -> SocketAddr {
        endpoint_from_bpf(&self.endpoint)
    }
}

/// A frontend of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exposed {
    /// What clients connect to.
    pub frontend: Frontend,
    /// [`bpf::flag`] bits.
    pub flags: u32,
    /// Only for clients in the group's source ranges.
    pub restricted: bool,
}

/// Tells a service's groups apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName {
    /// The service's port; zero for what nobody serves.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Address family.
    pub ipv6: bool,
    /// Holds the backends on this node only.
    pub local: bool,
}

/// A set of backends, and what leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Which of the service's.
    pub name: GroupName,
    /// Sorted, without duplicates.
    pub frontends: Vec<Exposed>,
    /// Sorted, each address once. Empty: clients are refused.
    pub backends: Vec<Backend>,
    /// Session affinity by client, in seconds; zero is none.
    pub affinity: u32,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// Who may use restricted frontends.
    pub sources: Vec<Cidr>,
}

impl Group {
    /// One frontend for the node's own clients, with random choice.
    pub fn simple(frontend: Frontend, backends: impl IntoIterator<Item = Backend>) -> Group {
        let mut backends: Vec<Backend> = backends.into_iter().collect();
        backends.sort_unstable();
        Group {
            name: GroupName {
                port: frontend.address.port(),
                protocol: frontend.protocol,
                ipv6: frontend.address.is_ipv6(),
                local: false,
            },
            frontends: vec![Exposed {
                frontend,
                flags: 0,
                restricted: false,
            }],
            backends,
            affinity: 0,
            algorithm: Algorithm::default(),
            sources: Vec::new(),
        }
    }
}

/// An address as the maps have it.
pub(super) fn words(address: IpAddr) -> [u32; 4] {
    let octets = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let mut words = [0; 4];
    for (word, four) in words.iter_mut().zip(octets.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*four);
    }
    words
}

pub(super) fn endpoint_to_bpf(address: SocketAddr) -> bpf::Endpoint {
    bpf::Endpoint {
        address: words(address.ip()),
        port: address.port().to_be(),
        zero: 0,
    }
}

pub(super) fn endpoint_from_bpf(endpoint: &bpf::Endpoint) -> SocketAddr {
    let mut octets = [0; 16];
    for (four, word) in octets.as_chunks_mut::<4>().0.iter_mut().zip(endpoint.address) {
        *four = word.to_ne_bytes();
    }
    let address = Ipv6Addr::from(octets);
    let address = address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4);
    SocketAddr::new(address, u16::from_be(endpoint.port))
}

/// The unspecified address of a family.
pub(super) fn unspecified(ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_survive_the_way_through_a_map() {
        for address in ["10.96.1.2:8080", "[fd00::7]:8080", "0.0.0.0:30080", "[::]:30080"] {
            let frontend = Frontend::inside(address.parse::<SocketAddr>().unwrap(), Protocol::Udp);
            assert_eq!(Frontend::from_bpf(&frontend.to_bpf()), Some(frontend));
        }
        let bpf = Frontend::inside("10.96.1.2:8080".parse::<SocketAddr>().unwrap(), Protocol::Tcp).to_bpf();
        assert_eq!(bpf.port.to_ne_bytes(), [0x1f, 0x90], "ports are in network byte order");
        assert_eq!(bpf.address[3].to_ne_bytes(), [10, 96, 1, 2]);
        assert_eq!(Frontend::from_bpf(&bpf::Frontend { protocol: 33, ..bpf }), None);
        assert_eq!(Frontend::from_bpf(&bpf::Frontend { scope: 9, ..bpf }), None);
    }
}
