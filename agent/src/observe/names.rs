//! Which service an address belongs to, from the services as the API has them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use hull_ebpf_types as bpf;
use k8s_openapi::api::core::v1::Service;
use serde::{Deserialize, Serialize};

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Namespace; empty for an address that is no service's any more.
    pub namespace: String,
    /// Name of the service, or the address itself.
    pub name: String,
    /// Name of the port, or its number where it has none.
    pub port: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// An address, port and protocol that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Address {
    ip: IpAddr,
    port: u16,
    protocol: u8,
}

/// The names of all addresses.
#[derive(Debug, Default)]
pub struct Names {
    addresses: HashMap<Address, Arc<ServicePort>>,
    node_ports: HashMap<(u16, u8), Arc<ServicePort>>,
}

impl Names {
    /// Of these services.
    pub fn of<'a>(services: impl IntoIterator<Item = &'a Service>) -> Names {
        let mut names = Names::default();
        for service in services {
            names.add(service);
        }
        names
    }

    fn add(&mut self, service: &Service) {
        let Some(spec) = &service.spec else { return };
        let addresses = addresses(service);
        for port in spec.ports.iter().flatten() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let (Some(number), Ok(port_number)) = (protocol_number(protocol), u16::try_from(port.port)) else {
                continue;
            };
            let named = Arc::new(ServicePort {
                namespace: service.metadata.namespace.clone().unwrap_or_default(),
                name: service.metadata.name.clone().unwrap_or_default(),
                port: port.name.clone().unwrap_or_else(|| port.port.to_string()),
                protocol: protocol.to_owned(),
            });
            for ip in &addresses {
                let address = Address {
                    ip: *ip,
                    port: port_number,
                    protocol: number,
                };
                self.addresses.insert(address, Arc::clone(&named));
            }
            if let Some(node_port) = port.node_port.and_then(|port| u16::try_from(port).ok()) {
                self.node_ports.insert((node_port, number), named);
            }
        }
    }

    /// The service behind an address; the address itself, where it is nobody's any more.
    #[must_use]
    pub fn name(&self, frontend: &bpf::Frontend) -> Arc<ServicePort> {
        let address = socket_address(frontend.address, frontend.port);
        let key = Address {
            ip: address.ip(),
            port: address.port(),
            protocol: frontend.protocol,
        };
        let found = self.addresses.get(&key);
        let found = found.or_else(|| self.node_ports.get(&(key.port, key.protocol)));
        found.cloned().unwrap_or_else(|| {
            Arc::new(ServicePort {
                namespace: String::new(),
                name: key.ip.to_string(),
                port: key.port.to_string(),
                protocol: protocol_name(key.protocol).to_owned(),
            })
        })
    }
}

/// Everything that clients of a service may connect to, as the maps have it, and the name of the port.
#[must_use]
pub fn frontends_of(service: &Service) -> Vec<(bpf::Frontend, String)> {
    let addresses = addresses(service);
    let mut all = Vec::new();
    for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
        let protocol = protocol_number(port.protocol.as_deref().unwrap_or("TCP"));
        let (Some(protocol), Ok(number)) = (protocol, u16::try_from(port.port)) else {
            continue;
        };
        let name = port.name.clone().unwrap_or_else(|| number.to_string());
        let frontend = |address, port: u16| bpf::Frontend {
            address,
            port: port.to_be(),
            protocol,
            scope: bpf::scope::INSIDE,
        };
        all.extend(addresses.iter().map(|ip| (frontend(words(*ip), number), name.clone())));
        if let Some(node_port) = port.node_port.and_then(|port| u16::try_from(port).ok()) {
            for family in families(&addresses) {
                all.push((frontend(words(family), node_port), name.clone()));
            }
        }
    }
    all.dedup();
    all
}

/// The unspecified address of each family that a service has: it stands for every address of the node.
fn families(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let of = |family: IpAddr| {
        addresses
            .iter()
            .any(|ip| ip.is_ipv4() == family.is_ipv4())
            .then_some(family)
    };
    [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
        .into_iter()
        .filter_map(of)
        .collect()
}

/// An address as the maps have it.
fn words(ip: IpAddr) -> [u32; 4] {
    let octets = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    std::array::from_fn(|word| {
        let at = 4 * word;
        u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
    })
}

/// Every address of a service that is its own, each but once.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let spec = service.spec.as_ref();
    let cluster = spec.and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default();
    let first = spec.and_then(|spec| spec.cluster_ip.clone());
    let external = spec.and_then(|spec| spec.external_ips.clone()).unwrap_or_default();
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let given = ingress.iter().filter_map(|ingress| ingress.ip.clone());
    let all = cluster.into_iter().chain(first).chain(external).chain(given);
    let mut found = Vec::new();
    for ip in all.filter_map(|text| text.parse().ok()) {
        if !found.contains(&ip) {
            found.push(ip);
        }
    }
    found
}

/// An address of the maps: IPv4 where it is mapped.
#[must_use]
pub fn socket_address(address: [u32; 4], port: u16) -> SocketAddr {
    let mut octets = [0; 16];
    for (four, word) in octets.chunks_exact_mut(4).zip(address) {
        four.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = std::net::Ipv6Addr::from(octets);
    let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
    SocketAddr::new(ip, u16::from_be(port))
}

fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

/// As Kubernetes writes it.
#[must_use]
pub fn protocol_name(number: u8) -> &'static str {
    match number {
        6 => "TCP",
        17 => "UDP",
        132 => "SCTP",
        _ => "?",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn frontend(ip: &str, port: u16, protocol: u8) -> bpf::Frontend {
        let address = words(ip.parse().unwrap());
        bpf::Frontend {
            address,
            port: port.to_be(),
            protocol,
            scope: bpf::scope::INSIDE,
        }
    }

    #[test]
    fn every_address_of_a_service_has_its_name() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {
                "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "externalIPs": ["192.0.2.7"],
                "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}},
        }))
        .unwrap();
        let names = Names::of([&service]);
        let name = |ip: &str, port, protocol| {
            let ServicePort {
                namespace,
                name,
                port,
                protocol,
            } = &*names.name(&frontend(ip, port, protocol));
            format!("{namespace}/{name}:{port}/{protocol}")
        };
        for ip in ["10.96.0.7", "fd00::7", "192.0.2.7", "198.51.100.7"] {
            assert_eq!(name(ip, 80, 6), "shop/web:http/TCP", "{ip}");
        }
        assert_eq!(name("10.96.0.7", 53, 17), "shop/web:53/UDP");
        assert_eq!(
            name("172.16.0.1", 30080, 6),
            "shop/web:http/TCP",
            "any address of the node"
        );
        assert_eq!(name("10.96.0.8", 80, 6), "/10.96.0.8:80/TCP");
        let all = frontends_of(&service);
        assert_eq!(all.len(), 4 * 2 + 2, "a node port for each family");
        assert!(
            all.iter()
                .all(|(frontend, _)| !names.name(frontend).namespace.is_empty())
        );
    }
}
