//! How a backend is chosen: by weight, by a hash of the client, by connections, by measured latency.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use hull_agent::proxy::{Algorithm, Frontend};
use hull_ebpf_types::{Load, Member, Offer};
use support::proxy::{Balanced, apply, balanced, in_force, tcp};
use support::{Host, Server, ask_tcp, loopback};

fn servers(count: u8) -> Vec<Server> {
    (2..2 + count)
        .map(|last| Server::tcp(loopback(last), &format!("s{last}")))
        .collect()
}

fn with(algorithm: Algorithm, servers: &[Server]) -> Balanced {
    Balanced {
        algorithm,
        ..balanced(&servers.iter().collect::<Vec<_>>())
    }
}

/// How often each server answers.
fn answers(frontend: Frontend, connections: u32) -> BTreeMap<String, u32> {
    let mut answers = BTreeMap::new();
    for _ in 0..connections {
        *answers.entry(ask_tcp(frontend.address).unwrap()).or_default() += 1;
    }
    answers
}

fn open<K: aya::Pod, V: aya::Pod>(dir: &Path, name: &str) -> HashMap<MapData, K, V> {
    HashMap::try_from(Map::HashMap(in_force(dir, name))).unwrap()
}

/// What the program that observes sockets would have written.
fn set_load(dir: &Path, frontend: Frontend, server: &Server, open_now: u32, latency: u32) {
    let services: HashMap<_, hull_ebpf_types::Frontend, Offer> = open(dir, "services");
    let service = services.get(&frontend.to_bpf(), 0).unwrap().service.id;
    let endpoint = hull_agent::proxy::Backend::new(server.address).endpoint;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let load = Load {
        open: open_now,
        latency,
        updated: now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64,
    };
    let mut loads: HashMap<_, Member, Load> = open(dir, "load");
    loads.insert(Member { service, endpoint }, load, 0).unwrap();
}

#[test]
fn a_backend_gets_clients_by_its_weight() {
    let host = Host::enter();
    let servers = servers(2);
    let service = tcp("10.96.0.1:80");
    let mut weighted = with(Algorithm::Random, &servers);
    weighted.backends[1].weight = 30;
    weighted.backends[0].weight = 10;
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, weighted)]);
    let answers = answers(service, 400);
    // One in four: further off than this once in a billion runs.
    assert!((50..=160).contains(&answers["s2"]), "{answers:?}");
}

#[test]
fn maglev_keeps_a_client_until_its_own_backend_goes() {
    let host = Host::enter();
    let mut servers = servers(6);
    let service = tcp("10.96.0.1:80");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, with(Algorithm::Maglev, &servers))]);
    let pods: Vec<_> = (0..12).map(|i| host.pin(&format!("pod{i}"), None)).collect();
    // Backends are on loopback addresses: each pod needs its own.
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let ask_all = |count: usize| -> Vec<String> {
        let ask = |pod| {
            host.inside(pod, || {
                let own = addresses
                    .iter()
                    .zip(2_u8..)
                    .map(|(address, last)| Server::tcp(*address, &format!("s{last}")));
                let _own: Vec<Server> = own.collect();
                let answers = answers(service, 4);
                assert_eq!(answers.len(), 1, "{answers:?}");
                answers.into_keys().next().unwrap()
            })
        };
        pods.iter().take(count).map(ask).collect()
    };
    let before = ask_all(12);
    let distinct: std::collections::BTreeSet<&String> = before.iter().collect();
    assert!(distinct.len() > 1, "twelve clients of six backends: {before:?}");
    drop(proxy);
    let mut proxy = host.proxy();
    let gone = servers.pop().unwrap();
    apply(&mut proxy, [(service, with(Algorithm::Maglev, &servers))]);
    let after = ask_all(12);
    let moved = before
        .iter()
        .zip(&after)
        .filter(|(old, new)| **old != "s7" && old != new)
        .count();
    assert!(moved <= 3, "{moved} clients of others moved: {before:?} {after:?}");
    assert!(!after.contains(&"s7".to_owned()));
    drop(gone);
}

#[test]
fn the_backend_with_the_fewest_connections_for_its_weight_is_chosen() {
    let host = Host::enter();
    let servers = servers(3);
    let service = tcp("10.96.0.1:80");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, with(Algorithm::LeastConnections, &servers))]);
    assert!(answers(service, 60).len() > 1, "nothing is known yet: any");
    for (server, open) in servers.iter().zip([5, 3, 4]) {
        set_load(&host.bpf_dir(), service, server, open, 100);
    }
    assert_eq!(answers(service, 20).into_keys().collect::<Vec<_>>(), ["s3"]);
    let mut weighted = with(Algorithm::LeastConnections, &servers);
    weighted.backends[0].weight = 2;
    apply(&mut proxy, [(service, weighted)]);
    assert_eq!(
        answers(service, 20).into_keys().collect::<Vec<_>>(),
        ["s2"],
        "5 of 2 is less than 3 of 1"
    );
}

#[test]
fn of_two_backends_the_one_that_connects_sooner_is_chosen() {
    let host = Host::enter();
    let servers = servers(2);
    let service = tcp("10.96.0.1:80");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, with(Algorithm::PowerOfTwo, &servers))]);
    set_load(&host.bpf_dir(), service, &servers[0], 2, 900);
    set_load(&host.bpf_dir(), service, &servers[1], 2, 90);
    assert_eq!(answers(service, 20).into_keys().collect::<Vec<_>>(), ["s3"]);
    set_load(&host.bpf_dir(), service, &servers[1], 50, 90);
    assert_eq!(
        answers(service, 20).into_keys().collect::<Vec<_>>(),
        ["s2"],
        "it has too much to do"
    );
}

#[test]
fn what_is_known_of_a_backend_goes_with_it_but_not_while_connections_drain() {
    let host = Host::enter();
    let servers = servers(3);
    let service = tcp("10.96.0.1:80");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, with(Algorithm::LeastConnections, &servers))]);
    set_load(&host.bpf_dir(), service, &servers[0], 0, 100);
    set_load(&host.bpf_dir(), service, &servers[1], 1, 100);
    apply(
        &mut proxy,
        [(service, with(Algorithm::LeastConnections, &servers[2..]))],
    );
    let known = || open::<Member, Load>(&host.bpf_dir(), "load").keys().count();
    assert_eq!(known(), 1);
    set_load(&host.bpf_dir(), service, &servers[1], 0, 100);
    apply(
        &mut proxy,
        [(service, with(Algorithm::LeastConnections, &servers[2..]))],
    );
    assert_eq!(known(), 0);
}
