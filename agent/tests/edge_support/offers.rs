//! Services as the packet programs find them in the maps of the socket programs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use aya::maps::{ArrayOfMaps, HashMap, Map, MapData};
use hull_ebpf_types::{Backend, Endpoint, Frontend, LAYOUT, Member, Service, Slot, flag, scope};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;

/// One service address, and where it leads.
#[derive(Clone, Debug)]
pub struct Offer {
    /// An unspecified address is a node port.
    pub address: SocketAddr,
    pub protocol: u8,
    pub scope: u8,
    pub flags: u32,
    pub sources: u32,
    pub affinity: u32,
    pub backends: Vec<SocketAddr>,
}

impl Offer {
    /// Of the family of its backends.
    pub fn node_port(port: u16, protocol: u8, backends: &[SocketAddr]) -> Offer {
        let any = match backends.first() {
            Some(SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
            _ => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        };
        Offer {
            flags: flag::NODE_PORT,
            ..Offer::external(SocketAddr::new(any, port), protocol, backends)
        }
    }

    pub fn external(address: SocketAddr, protocol: u8, backends: &[SocketAddr]) -> Offer {
        Offer {
            address,
            protocol,
            scope: scope::OUTSIDE,
            flags: flag::EXTERNAL,
            sources: 0,
            affinity: 0,
            backends: backends.to_vec(),
        }
    }

    /// For pods.
    pub fn cluster(address: SocketAddr, protocol: u8, backends: &[SocketAddr]) -> Offer {
        Offer {
            scope: scope::INSIDE,
            flags: 0,
            ..Offer::external(address, protocol, backends)
        }
    }

    pub fn flags(self, flags: u32) -> Offer {
        Offer {
            flags: self.flags | flags,
            ..self
        }
    }
}

pub fn words(ip: IpAddr) -> [u32; 4] {
    let octets = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    std::array::from_fn(|word| u32::from_ne_bytes(octets[4 * word..4 * word + 4].try_into().unwrap()))
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint {
        address: words(address.ip()),
        port: address.port().to_be(),
        zero: 0,
    }
}

fn open<K: aya::Pod, V: aya::Pod>(bpf: &Path, name: &str) -> HashMap<MapData, K, V> {
    let outer = MapData::from_pin(bpf.join(format!("{name}_v{LAYOUT}"))).unwrap();
    let outer = ArrayOfMaps::<MapData>::try_from(Map::ArrayOfMaps(outer)).unwrap();
    HashMap::try_from(Map::HashMap(outer.get(&0, 0).unwrap())).unwrap()
}

/// Makes `offers` the only ones; node ports are served on `addresses`.
pub fn write(bpf: &Path, addresses: &[IpAddr], offers: &[Offer], generation: u32) {
    let mut members: HashMap<_, Member, u32> = open(bpf, "members");
    let mut slots: HashMap<_, Slot, Backend> = open(bpf, "slots");
    let mut services: HashMap<_, Frontend, hull_ebpf_types::Offer> = open(bpf, "services");
    let mut served: HashMap<_, [u32; 4], u32> = open(bpf, "addresses");
    for address in addresses {
        served.insert(words(*address), 0, 0).unwrap();
    }
    let old: Vec<Member> = members.keys().map(Result::unwrap).collect();
    let stale: Vec<Frontend> = services.keys().map(Result::unwrap).collect();
    let (mut present, mut offered) = (Vec::new(), Vec::new());
    for (id, offer) in (1..).zip(offers) {
        for (index, backend) in (0..).zip(&offer.backends) {
            let slot = Slot {
                service: id,
                generation,
                index,
            };
            let backend = Backend {
                slot,
                endpoint: endpoint(*backend),
                weight: 1,
            };
            slots.insert(slot, backend, 0).unwrap();
            let member = Member {
                service: id,
                endpoint: backend.endpoint,
            };
            members.insert(member, 1, 0).unwrap();
            present.push(member);
        }
        let address = endpoint(offer.address);
        let frontend = Frontend {
            address: address.address,
            port: address.port,
            protocol: offer.protocol,
            scope: offer.scope,
        };
        let service = Service {
            frontend,
            id,
            count: offer.backends.len() as u32,
            generation,
            affinity: offer.affinity,
            flags: offer.flags,
            sources: offer.sources,
            ..Service::default()
        };
        let first = Default::default();
        services
            .insert(frontend, hull_ebpf_types::Offer { service, first }, 0)
            .unwrap();
        offered.push(frontend);
    }
    for frontend in stale.iter().filter(|frontend| !offered.contains(frontend)) {
        services.remove(frontend).unwrap();
    }
    for member in old.iter().filter(|member| !present.contains(member)) {
        members.remove(member).unwrap();
    }
}
