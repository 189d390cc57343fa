//! What clients connect to: node ports, external addresses, both families, and what nobody serves.

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use hull_agent::proxy::{Backend, Exposed, Frontend, Group, GroupName, Protocol, Proxy, Scope, ServiceName};
use hull_ebpf_types::flag;
use support::proxy::{apply, balanced, group, tcp, udp};
use support::{Host, Server, ask_connected, ask_tcp, loopback};

fn addresses(proxy: &mut Proxy, list: &[&str]) {
    let list: Vec<IpAddr> = list.iter().map(|text| text.parse().unwrap()).collect();
    proxy.set_addresses(&list).unwrap();
}

fn with_flags(mut group: Group, flags: u32) -> Group {
    group.frontends.iter_mut().for_each(|exposed| exposed.flags = flags);
    group
}

fn update(proxy: &mut Proxy, name: &str, groups: &[Group]) {
    let name = ServiceName::new("test", name);
    let report = proxy.update([(&name, groups)]).unwrap();
    assert!(report.rejected.is_empty(), "{:?}", report.rejected);
}

fn node_port(frontend: Frontend, servers: &[&Server]) -> Group {
    with_flags(group(frontend, &balanced(servers)), flag::NODE_PORT)
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_node_port_is_served_on_the_nodes_addresses_and_nowhere_else() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let other = Server::tcp(at("127.0.0.9:30080"), "not the service");
    let v6 = Server::tcp(at("[::1]:0"), "six");
    let mut proxy = host.proxy();
    update(&mut proxy, "v4", &[node_port(tcp("0.0.0.0:30080"), &[&server])]);
    update(&mut proxy, "v6", &[node_port(tcp("[::]:30080"), &[&v6])]);
    assert_eq!(
        ask_tcp(other.address).unwrap(),
        "not",
        "before any address is known to be the node's"
    );
    addresses(&mut proxy, &["127.0.0.1", "::1", "192.0.2.7", "2001:db8::7"]);
    for address in ["127.0.0.1", "127.0.0.9", "0.0.0.0", "192.0.2.7", "[::ffff:192.0.2.7]"] {
        assert_eq!(ask_tcp(at(&format!("{address}:30080"))).unwrap(), "one", "{address}");
    }
    for address in ["[::1]", "[::]", "[2001:db8::7]"] {
        assert_eq!(ask_tcp(at(&format!("{address}:30080"))).unwrap(), "six", "{address}");
    }
    let elsewhere = TcpStream::connect(at("192.0.2.8:30080")).unwrap_err();
    assert_eq!(elsewhere.kind(), ErrorKind::NetworkUnreachable, "left to the network");

    // A pod's loopback is its own; the node's address is the node's from there, too.
    let pod = host.pin("pod", None);
    host.inside(&pod, || {
        let own = Server::tcp(at("127.0.0.1:30080"), "pod");
        assert_eq!(ask_tcp(own.address).unwrap(), "pod");
        let backend = Server::tcp(server.address, "hairpin");
        assert_eq!(backend.address, server.address);
        assert_eq!(ask_tcp(at("192.0.2.7:30080")).unwrap(), "hairpin");
    });
    addresses(&mut proxy, &["192.0.2.7"]);
    assert_eq!(ask_tcp(other.address).unwrap(), "not", "no more on loopback addresses");
}

#[test]
fn no_process_of_the_node_takes_a_node_port() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let early = TcpListener::bind(at("127.0.0.1:30081")).unwrap();
    let mut proxy = host.proxy();
    addresses(&mut proxy, &["127.0.0.1", "::1"]);
    let frontends = [tcp("0.0.0.0:30080"), tcp("0.0.0.0:30081"), udp("0.0.0.0:30080")];
    for frontend in frontends {
        update(&mut proxy, &frontend.to_string(), &[node_port(frontend, &[&server])]);
    }
    for address in ["0.0.0.0:30080", "127.0.0.1:30080", "[::]:30080"] {
        let error = TcpListener::bind(at(address)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "{address}");
        let error = UdpSocket::bind(at(address)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "{address}");
    }
    TcpListener::bind(at("[::1]:30080")).unwrap();
    UdpSocket::bind(at("127.0.0.1:30081")).unwrap();
    assert_eq!(early.local_addr().unwrap().port(), 30081, "what was bound before stays");
    let pod = host.pin("pod", None);
    host.inside(&pod, || TcpListener::bind(at("0.0.0.0:30080")).map(drop))
        .unwrap();
    update(&mut proxy, &tcp("0.0.0.0:30080").to_string(), &[]);
    TcpListener::bind(at("127.0.0.1:30080")).unwrap();
}

#[test]
fn ports_that_nobody_serves_are_refused_at_once() {
    let host = Host::enter();
    let mut config = host.proxy_config();
    config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()];
    let mut proxy = Proxy::load(config).unwrap();
    let server = Server::tcp(loopback(2), "one");
    let unserved = ["10.96.0.1:0", "[fd00:96::1]:0"].map(|address| {
        let frontend = Frontend::inside(at(address), Protocol::Any);
        with_flags(Group::simple(frontend, []), flag::UNSERVED)
    });
    let groups = [group(tcp("10.96.0.1:80"), &balanced(&[&server]))];
    update(&mut proxy, "a", &[groups.as_slice(), &unserved].concat());
    assert_eq!(ask_tcp(at("10.96.0.1:80")).unwrap(), "one");
    for address in ["10.96.0.1:81", "[fd00:96::1]:80"] {
        let error = TcpStream::connect(at(address)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
    }
    let socket = UdpSocket::bind(loopback(1)).unwrap();
    let error = socket.connect(at("10.96.0.1:53")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let error = TcpStream::connect(at("10.96.0.2:80")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "not a service's address");
}

#[test]
fn an_ipv6_service_shows_its_address_to_tcp_and_udp_clients() {
    let host = Host::enter();
    let (stream, datagram) = (Server::tcp(at("[::1]:0"), "six"), Server::udp(at("[::1]:0"), "udp6"));
    let (first, second) = (tcp("[fd00:96::1]:80"), udp("[fd00:96::1]:53"));
    let mut proxy = host.proxy();
    apply(
        &mut proxy,
        [(first, balanced(&[&stream])), (second, balanced(&[&datagram]))],
    );
    let client = TcpStream::connect(first.address).unwrap();
    assert_eq!(client.peer_addr().unwrap(), first.address);
    let socket = UdpSocket::bind(at("[::1]:0")).unwrap();
    socket.connect(second.address).unwrap();
    assert_eq!(ask_connected(&socket).unwrap(), "udp6");
    assert_eq!(socket.peer_addr().unwrap(), second.address);
}

#[test]
fn what_only_packets_can_be_checked_for_is_left_to_them() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let mut proxy = host.proxy();
    let restricted = group(tcp("198.51.100.7:80"), &balanced(&[&server]));
    update(&mut proxy, "lb", &[with_flags(restricted, flag::BY_PACKET)]);
    let error = TcpStream::connect(at("198.51.100.7:80")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
    update(
        &mut proxy,
        "lb",
        &[group(tcp("198.51.100.7:80"), &balanced(&[&server]))],
    );
    assert_eq!(ask_tcp(at("198.51.100.7:80")).unwrap(), "one");
}

#[test]
fn affinity_holds_for_all_addresses_of_a_service() {
    let host = Host::enter();
    let servers: Vec<Server> = (2..10)
        .map(|last| Server::tcp(loopback(last), &format!("s{last}")))
        .collect();
    let all: Vec<&Server> = servers.iter().collect();
    let mut proxy = host.proxy();
    addresses(&mut proxy, &["192.0.2.7"]);
    let mut group = group(tcp("10.96.0.1:80"), &balanced(&all));
    group.affinity = 60;
    group.frontends.push(Exposed {
        frontend: tcp("0.0.0.0:30080"),
        flags: flag::NODE_PORT,
        restricted: false,
    });
    update(&mut proxy, "a", &[group]);
    let first = ask_tcp(at("10.96.0.1:80")).unwrap();
    for _ in 0..10 {
        assert_eq!(ask_tcp(at("192.0.2.7:30080")).unwrap(), first);
    }
}

#[test]
fn an_address_of_another_service_is_not_taken_over_until_it_is_free() {
    let host = Host::enter();
    let (one, two) = (Server::tcp(loopback(2), "one"), Server::tcp(loopback(3), "two"));
    let mut proxy = host.proxy();
    let address = tcp("198.51.100.7:80");
    update(&mut proxy, "first", &[group(address, &balanced(&[&one]))]);
    let second = ServiceName::new("test", "second");
    let wanted = [group(address, &balanced(&[&two]))];
    let report = proxy.update([(&second, wanted.as_slice())]).unwrap();
    assert_eq!(report.rejected.len(), 1);
    assert!(
        report.rejected[0].reason.contains("another service"),
        "{:?}",
        report.rejected
    );
    assert_eq!(ask_tcp(address.address).unwrap(), "one");
    update(&mut proxy, "first", &[]);
    assert_eq!(ask_tcp(address.address).unwrap(), "two", "tried again by itself");
}

/// A service whose policy goes back and forth between all backends and those of the node.
#[test]
fn no_client_is_refused_while_a_frontend_moves_between_groups() {
    let host = Host::enter();
    let (one, two) = (Server::tcp(loopback(2), "one"), Server::tcp(loopback(3), "two"));
    let mut proxy = host.proxy();
    let address = tcp("10.96.0.1:80");
    let group_of = |local: bool, server: &Server| Group {
        name: GroupName {
            local,
            ..Group::simple(address, []).name
        },
        ..Group::simple(address, [Backend::new(server.address)])
    };
    update(&mut proxy, "a", &[group_of(false, &one)]);
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let client = {
        let (stop, made) = (stop.clone(), made.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                TcpStream::connect(address.address)?;
                made.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), std::io::Error>(())
        })
    };
    let mut round = 0;
    while !client.is_finished() && (round < 100 || made.load(Ordering::Relaxed) < 20) {
        let local = round % 2 == 0;
        update(&mut proxy, "a", &[group_of(local, if local { &two } else { &one })]);
        round += 1;
    }
    update(&mut proxy, "a", &[group_of(false, &one)]);
    stop.store(true, Ordering::Relaxed);
    client.join().unwrap().unwrap();
    assert_eq!(proxy.services().count(), 1);
    assert_eq!(proxy.services().next().unwrap().0.scope, Scope::Inside);
}
