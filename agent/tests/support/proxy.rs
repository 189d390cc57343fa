//! Services of tests: one frontend each, under a name of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use aya::maps::{ArrayOfMaps, Map, MapData};
use hull_agent::proxy::{Algorithm, Backend, Frontend, Group, Protocol, Proxy, ServiceName};
use hull_ebpf_types::LAYOUT;

use super::Server;

pub type Tables = BTreeMap<ServiceName, Vec<Group>>;

pub fn tcp(address: &str) -> Frontend {
    Frontend::inside(address.parse::<SocketAddr>().unwrap(), Protocol::Tcp)
}

pub fn udp(address: &str) -> Frontend {
    Frontend::inside(address.parse::<SocketAddr>().unwrap(), Protocol::Udp)
}

/// Backends, and how one of them is chosen.
#[derive(Clone, Debug, Default)]
pub struct Balanced {
    pub backends: Vec<Backend>,
    pub affinity: u32,
    pub algorithm: Algorithm,
}

pub fn balanced(servers: &[&Server]) -> Balanced {
    Balanced {
        backends: servers.iter().map(|server| Backend::new(server.address)).collect(),
        ..Balanced::default()
    }
}

pub fn group(frontend: Frontend, balanced: &Balanced) -> Group {
    Group {
        affinity: balanced.affinity,
        algorithm: balanced.algorithm,
        ..Group::simple(frontend, balanced.backends.iter().copied())
    }
}

pub fn tables(services: impl IntoIterator<Item = (Frontend, Balanced)>) -> Tables {
    let named = services.into_iter().map(|(frontend, balanced)| {
        let name = ServiceName::new("test", &frontend.to_string());
        (name, vec![group(frontend, &balanced)])
    });
    named.collect()
}

pub fn apply(proxy: &mut Proxy, services: impl IntoIterator<Item = (Frontend, Balanced)>) {
    let report = proxy.apply(&tables(services)).unwrap();
    assert!(report.rejected.is_empty(), "{:?}", report.rejected);
}

/// The map in force of one that grows.
pub fn in_force(bpf_dir: &Path, name: &str) -> MapData {
    present(bpf_dir, name).unwrap_or_else(|| panic!("nobody has needed the map {name} yet"))
}

/// The same, if somebody has needed it.
pub fn present(bpf_dir: &Path, name: &str) -> Option<MapData> {
    let outer = MapData::from_pin(bpf_dir.join(format!("{name}_v{LAYOUT}"))).unwrap();
    let outer = ArrayOfMaps::<MapData>::try_from(Map::ArrayOfMaps(outer)).unwrap();
    outer.get(&0, 0).ok()
}
