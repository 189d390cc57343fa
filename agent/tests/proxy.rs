//! The service proxy in the kernel: real sockets through real programs, in a cgroup and namespace of the test's own.

mod support;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::links::PinnedLink;
use hull_agent::proxy::{Balanced, Frontend, Limits, Protocol, Proxy, Tables, unload};
use support::{Host, Server, ask_connected, ask_tcp, ask_unconnected, loopback};

fn tcp(address: &str) -> Frontend {
    Frontend {
        address: address.parse().unwrap(),
        protocol: Protocol::Tcp,
    }
}

fn udp(address: &str) -> Frontend {
    Frontend {
        address: address.parse().unwrap(),
        protocol: Protocol::Udp,
    }
}

fn balanced(servers: &[&Server]) -> Balanced {
    let mut backends: Vec<SocketAddrV4> = servers.iter().map(|server| server.address).collect();
    backends.sort_unstable();
    Balanced {
        affinity: None,
        backends,
    }
}

fn tables(services: impl IntoIterator<Item = (Frontend, Balanced)>) -> Tables {
    Tables {
        services: services.into_iter().collect(),
    }
}

fn apply(proxy: &mut Proxy, services: impl IntoIterator<Item = (Frontend, Balanced)>) {
    let report = proxy.apply(&tables(services)).unwrap();
    assert!(report.rejected.is_empty(), "{:?}", report.rejected);
}

#[test]
fn tcp_clients_reach_all_backends_and_see_the_service_as_their_peer() {
    let host = Host::enter();
    let (one, two) = (Server::tcp(loopback(2), "one"), Server::tcp(loopback(3), "two"));
    let service = tcp("10.96.0.1:80");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[&one, &two]))]);

    let names: BTreeSet<String> = (0..64).map(|_| ask_tcp(service.address).unwrap()).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["one", "two"]);

    let stream = TcpStream::connect(service.address).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), SocketAddr::V4(service.address));
    let direct = TcpStream::connect(one.address).unwrap();
    assert_eq!(direct.peer_addr().unwrap(), SocketAddr::V4(one.address));

    let counters = proxy.counters(&service).unwrap().unwrap();
    assert_eq!((counters.translated, counters.refused), (65, 0));
}

#[test]
fn an_ipv6_socket_reaches_a_service_through_its_mapped_address() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let service = tcp("10.96.0.1:80");
    apply(&mut host.proxy(), [(service, balanced(&[&server]))]);
    let mapped = SocketAddr::from((service.address.ip().to_ipv6_mapped(), 80));
    let stream = TcpStream::connect(mapped).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), mapped);
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    let host = Host::enter();
    let (service, datagrams) = (tcp("10.96.0.1:80"), udp("10.96.0.1:80"));
    let mut proxy = host.proxy();
    apply(
        &mut proxy,
        [(service, Balanced::default()), (datagrams, Balanced::default())],
    );
    assert_eq!(
        ask_tcp(service.address).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    let socket = UdpSocket::bind(loopback(1)).unwrap();
    let error = socket.send_to(b"?", datagrams.address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(proxy.counters(&service).unwrap().unwrap().refused, 1);
}

#[test]
fn udp_replies_come_from_the_service_on_connected_and_unconnected_sockets() {
    let host = Host::enter();
    let (one, two) = (Server::udp(loopback(2), "one"), Server::udp(loopback(3), "two"));
    let (first, second) = (udp("10.96.0.1:53"), udp("10.96.0.2:53"));
    let mut proxy = host.proxy();
    apply(&mut proxy, [(first, balanced(&[&one])), (second, balanced(&[&two]))]);

    let connected = UdpSocket::bind(loopback(1)).unwrap();
    connected.connect(first.address).unwrap();
    assert_eq!(ask_connected(&connected).unwrap(), "one");
    assert_eq!(connected.peer_addr().unwrap(), SocketAddr::V4(first.address));
    let mut buffer = [0; 8];
    connected.send(b"?").unwrap();
    assert_eq!(
        connected.recv_from(&mut buffer).unwrap().1,
        SocketAddr::V4(first.address)
    );

    let unconnected = UdpSocket::bind(loopback(1)).unwrap();
    for (service, name) in [(first, "one"), (second, "two"), (first, "one")] {
        let answer = ask_unconnected(&unconnected, service.address).unwrap();
        assert_eq!(answer, (name.to_owned(), SocketAddr::V4(service.address)));
    }
    // The same socket to the same backend, but directly: now the truth is shown.
    let answer = ask_unconnected(&unconnected, one.address).unwrap();
    assert_eq!(answer, ("one".to_owned(), SocketAddr::V4(one.address)));
}

#[test]
fn a_reconnected_udp_socket_shows_its_new_peer() {
    let host = Host::enter();
    let server = Server::udp(loopback(2), "one");
    let service = udp("10.96.0.1:53");
    apply(&mut host.proxy(), [(service, balanced(&[&server]))]);
    let socket = UdpSocket::bind(loopback(1)).unwrap();
    socket.connect(service.address).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), SocketAddr::V4(service.address));
    socket.connect(server.address).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), SocketAddr::V4(server.address));
    assert_eq!(ask_connected(&socket).unwrap(), "one");
}

#[test]
fn an_unconnected_socket_stays_with_its_backend_until_that_is_gone() {
    let host = Host::enter();
    let servers: Vec<Server> = (2..10)
        .map(|last| Server::udp(loopback(last), &format!("server-{last}")))
        .collect();
    let all: Vec<&Server> = servers.iter().collect();
    let service = udp("10.96.0.1:53");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&all))]);
    let socket = UdpSocket::bind(loopback(1)).unwrap();
    let first = ask_unconnected(&socket, service.address).unwrap().0;
    for _ in 0..20 {
        assert_eq!(ask_unconnected(&socket, service.address).unwrap().0, first);
    }
    let number: usize = first.rsplit('-').next().unwrap().parse().unwrap();
    let others: Vec<&Server> = servers
        .iter()
        .enumerate()
        .filter(|(i, _)| i + 2 != number)
        .map(|(_, s)| s)
        .collect();
    apply(&mut proxy, [(service, balanced(&others))]);
    assert_ne!(ask_unconnected(&socket, service.address).unwrap().0, first);
}

#[test]
fn affinity_keeps_a_pod_with_its_backend() {
    let host = Host::enter();
    let servers: Vec<Server> = (2..10)
        .map(|last| Server::tcp(loopback(last), &format!("server-{last}")))
        .collect();
    let all: Vec<&Server> = servers.iter().collect();
    let service = tcp("10.96.0.1:80");
    let mut proxy = host.proxy();
    let sticky = |servers: &[&Server], seconds| Balanced {
        affinity: Some(seconds),
        ..balanced(servers)
    };
    apply(&mut proxy, [(service, sticky(&all, 3600))]);
    let first = ask_tcp(service.address).unwrap();
    for _ in 0..30 {
        assert_eq!(ask_tcp(service.address).unwrap(), first);
    }

    // A change of other backends, and a new agent, leave the client where it is.
    let number: usize = first.rsplit('-').next().unwrap().parse().unwrap();
    let spare = if number == 2 { 1 } else { 0 };
    let fewer: Vec<&Server> = all
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != spare)
        .map(|(_, s)| *s)
        .collect();
    drop(proxy);
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, sticky(&fewer, 3600))]);
    for _ in 0..30 {
        assert_eq!(ask_tcp(service.address).unwrap(), first);
    }

    // When its backend is gone it gets another one, and stays there.
    let others: Vec<&Server> = all
        .iter()
        .enumerate()
        .filter(|(i, _)| i + 2 != number)
        .map(|(_, s)| *s)
        .collect();
    apply(&mut proxy, [(service, sticky(&others, 3600))]);
    let second = ask_tcp(service.address).unwrap();
    assert_ne!(second, first);
    for _ in 0..30 {
        assert_eq!(ask_tcp(service.address).unwrap(), second);
    }

    // After the time-out it is free again: six choices among seven backends do not all fall on one.
    apply(&mut proxy, [(service, sticky(&others, 1))]);
    let mut names = BTreeSet::new();
    for _ in 0..6 {
        names.insert(ask_tcp(service.address).unwrap());
        thread::sleep(Duration::from_millis(1050));
    }
    assert!(names.len() > 1, "{names:?}");
}

#[test]
fn services_outlive_the_agent_and_are_adopted() {
    let host = Host::enter();
    let (one, two) = (Server::tcp(loopback(2), "one"), Server::tcp(loopback(3), "two"));
    let (kept, dropped) = (tcp("10.96.0.1:80"), tcp("10.96.0.2:80"));
    let mut proxy = host.proxy();
    apply(&mut proxy, [(kept, balanced(&[&one])), (dropped, balanced(&[&one]))]);
    let programs = program_ids(&host.bpf_dir());
    assert_eq!(programs.len(), 8);

    // As after kill -9: the descriptors are closed, nothing is undone.
    drop(proxy);
    assert_eq!(ask_tcp(kept.address).unwrap(), "one");

    let mut proxy = host.proxy();
    assert_eq!(ask_tcp(kept.address).unwrap(), "one", "before the first apply");
    assert!(
        program_ids(&host.bpf_dir()).is_disjoint(&programs),
        "the links run the new agent's programs"
    );
    let same = tables([(kept, balanced(&[&one])), (dropped, balanced(&[&one]))]);
    assert_eq!(proxy.apply(&same).unwrap().changed, 0, "all is known from the maps");
    assert_eq!(proxy.counters(&kept).unwrap().unwrap().translated, 2, "counters go on");
    apply(&mut proxy, [(kept, balanced(&[&two]))]);
    assert_eq!(ask_tcp(kept.address).unwrap(), "two");
    assert_eq!(proxy.services().count(), 1);
}

#[test]
fn no_connection_fails_while_backends_change_and_agents_come_and_go() {
    let host = Host::enter();
    let servers: Vec<Server> = (2..8).map(|last| Server::tcp(loopback(last), "x")).collect();
    let service = tcp("10.96.0.1:80");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[&servers[0]]))]);
    let stop = Arc::new(AtomicBool::new(false));
    let client = {
        let stop = stop.clone();
        // The thread inherits the test's namespace and cgroup.
        thread::spawn(move || {
            let mut connections = 0;
            while !stop.load(Ordering::Relaxed) {
                TcpStream::connect(service.address).map_err(|error| (connections, error))?;
                connections += 1;
            }
            Ok::<_, (u32, std::io::Error)>(connections)
        })
    };
    for round in 0..200 {
        if round % 20 == 19 {
            drop(proxy);
            proxy = host.proxy();
        }
        let some: Vec<&Server> = servers.iter().cycle().skip(round % 6).take(1 + round % 4).collect();
        apply(&mut proxy, [(service, balanced(&some))]);
    }
    stop.store(true, Ordering::Relaxed);
    let connections = client.join().unwrap().unwrap();
    assert!(connections > 0);
}

#[test]
fn a_udp_socket_is_told_when_its_backend_is_gone() {
    let host = Host::enter();
    let (one, two) = (Server::udp(loopback(2), "one"), Server::udp(loopback(3), "two"));
    let service = udp("10.96.0.1:53");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[&one]))]);
    let through = UdpSocket::bind(loopback(1)).unwrap();
    through.connect(service.address).unwrap();
    assert_eq!(ask_connected(&through).unwrap(), "one");
    let direct = UdpSocket::bind(loopback(1)).unwrap();
    direct.connect(one.address).unwrap();

    let report = proxy.apply(&tables([(service, balanced(&[&two]))])).unwrap();
    assert_eq!(report.destroyed, 1);
    assert_eq!(
        through.take_error().unwrap().unwrap().kind(),
        ErrorKind::ConnectionAborted
    );
    assert!(ask_connected(&through).is_err(), "it is connected no more");
    assert_eq!(ask_connected(&direct).unwrap(), "one", "a direct client is left alone");
    through.connect(service.address).unwrap();
    assert_eq!(ask_connected(&through).unwrap(), "two");
}

#[test]
fn a_full_map_costs_only_the_service_that_does_not_fit() {
    let host = Host::enter();
    let servers: Vec<Server> = (2..8).map(|last| Server::tcp(loopback(last), "x")).collect();
    let all: Vec<&Server> = servers.iter().collect();
    let mut config = host.proxy_config();
    config.limits = Limits {
        services: 8,
        backends: 4,
        clients: 8,
    };
    let mut proxy = Proxy::load(config).unwrap();
    let (small, large) = (tcp("10.96.0.1:80"), tcp("10.96.0.2:80"));
    let report = proxy
        .apply(&tables([(small, balanced(&all[..1])), (large, balanced(&all))]))
        .unwrap();
    assert_eq!(report.rejected.len(), 1);
    assert_eq!(report.rejected[0].frontend, large);
    assert!(
        report.rejected[0].reason.contains("full"),
        "{}",
        report.rejected[0].reason
    );
    assert_eq!(ask_tcp(small.address).unwrap(), "x");

    // What was written of it is gone again: there is room for what fits.
    apply(&mut proxy, [(small, balanced(&all[..1])), (large, balanced(&all[..3]))]);
    assert_eq!(ask_tcp(large.address).unwrap(), "x");
}

#[test]
fn an_upgrade_with_another_layout_hands_over_without_a_gap() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let service = tcp("10.96.0.1:80");
    let mut old = host.proxy();
    apply(&mut old, [(service, balanced(&[&server]))]);
    drop(old);
    let mut config = host.proxy_config();
    config.layout += 1;
    let mut new = Proxy::load(config).unwrap();
    assert_eq!(new.services().count(), 0, "maps of another layout are not read");
    assert_eq!(ask_tcp(service.address).unwrap(), "one", "the old programs go on");
    apply(&mut new, [(service, balanced(&[&server]))]);
    assert_eq!(ask_tcp(service.address).unwrap(), "one");
    assert_eq!(
        new.counters(&service).unwrap().unwrap().translated,
        1,
        "now through the new maps"
    );
    let old_pins = std::fs::read_dir(host.bpf_dir())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with("_v1"));
    assert_eq!(old_pins.count(), 0);
}

#[test]
fn unload_leaves_nothing() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let service = tcp("10.96.0.1:80");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[&server]))]);
    let programs = program_ids(&host.bpf_dir());
    drop(proxy);
    unload(&host.bpf_dir()).unwrap();
    assert!(!host.bpf_dir().exists());
    let direct = TcpStream::connect_timeout(&service.address.into(), Duration::from_millis(200));
    assert!(direct.is_err(), "nothing is translated any more");
    let deadline = Instant::now() + support::PATIENCE;
    loop {
        let left: BTreeSet<u32> = aya::programs::loaded_programs()
            .flatten()
            .map(|program| program.id())
            .collect();
        if left.is_disjoint(&programs) {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "programs left: {:?}",
            left.intersection(&programs)
        );
        thread::sleep(Duration::from_millis(10));
    }
    unload(&host.bpf_dir()).unwrap();
}

/// The programs that the pinned links run.
fn program_ids(bpf_dir: &Path) -> BTreeSet<u32> {
    let entries = std::fs::read_dir(bpf_dir).unwrap().map(|entry| entry.unwrap().path());
    let links = entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("link_"));
    links
        .map(|path| {
            let link: aya::programs::links::FdLink = PinnedLink::from_pin(&path).unwrap().into();
            link.info().unwrap().program_id()
        })
        .collect()
}

#[test]
fn sockets_of_other_cgroups_are_left_alone() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let service = tcp("10.96.0.1:80");
    apply(&mut host.proxy(), [(service, balanced(&[&server]))]);
    let parent = host.cgroup.parent().unwrap().join("cgroup.threads");
    let outside = thread::spawn(move || {
        std::fs::write(parent, rustix::thread::gettid().as_raw_nonzero().to_string()).unwrap();
        ask_tcp(service.address)
    });
    assert!(outside.join().unwrap().is_err());
    assert_eq!(ask_tcp(service.address).unwrap(), "one");
}
