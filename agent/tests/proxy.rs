//! The service proxy in the kernel: real sockets through real programs, in a cgroup and namespace of the test's own.

mod support;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use hull_ebpf_types::ORIGINS;
use support::proxy::{Balanced, apply, balanced, tables, tcp, udp};
use support::{Host, Server, ask_connected, ask_tcp, ask_unconnected, loopback};

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
    assert_eq!(stream.peer_addr().unwrap(), service.address);
    let direct = TcpStream::connect(one.address).unwrap();
    assert_eq!(direct.peer_addr().unwrap(), one.address);

    let counters = proxy.counters(&service).unwrap().unwrap();
    assert_eq!((counters.translated, counters.refused), (65, 0));
}

#[test]
fn an_ipv6_socket_reaches_a_service_through_its_mapped_address() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let service = tcp("10.96.0.1:80");
    apply(&mut host.proxy(), [(service, balanced(&[&server]))]);
    let mapped: SocketAddr = "[::ffff:10.96.0.1]:80".parse().unwrap();
    let stream = TcpStream::connect(mapped).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), mapped);
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    let host = Host::enter();
    let (service, datagrams) = (tcp("10.96.0.1:80"), udp("10.96.0.1:80"));
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[])), (datagrams, balanced(&[]))]);
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
    assert_eq!(connected.peer_addr().unwrap(), first.address);
    let mut buffer = [0; 8];
    connected.send(b"?").unwrap();
    assert_eq!(connected.recv_from(&mut buffer).unwrap().1, first.address);

    let unconnected = UdpSocket::bind(loopback(1)).unwrap();
    for (service, name) in [(first, "one"), (second, "two"), (first, "one")] {
        let answer = ask_unconnected(&unconnected, service.address).unwrap();
        assert_eq!(answer, (name.to_owned(), service.address));
    }
    // The same socket to the same backend, but directly: now the truth is shown.
    let answer = ask_unconnected(&unconnected, one.address).unwrap();
    assert_eq!(answer, ("one".to_owned(), one.address));
}

#[test]
fn a_reconnected_udp_socket_shows_its_new_peer() {
    let host = Host::enter();
    let server = Server::udp(loopback(2), "one");
    let service = udp("10.96.0.1:53");
    apply(&mut host.proxy(), [(service, balanced(&[&server]))]);
    let socket = UdpSocket::bind(loopback(1)).unwrap();
    socket.connect(service.address).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), service.address);
    socket.connect(server.address).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), server.address);
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
        affinity: seconds,
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

/// Cookies are given out in order: somebody else's socket, still open, can have the place a new one would get.
#[test]
fn a_udp_socket_whose_place_is_taken_is_told_too() {
    let host = Host::enter();
    let (one, two) = (Server::udp(loopback(2), "one"), Server::udp(loopback(3), "two"));
    let service = udp("10.96.0.1:53");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[&one]))]);
    let place = |socket: &UdpSocket| rustix::net::sockopt::socket_cookie(socket).unwrap() % u64::from(ORIGINS);
    let first = UdpSocket::bind(loopback(1)).unwrap();
    first.connect(service.address).unwrap();
    let rival = || {
        (0..1_000_000)
            .map(|_| UdpSocket::bind(loopback(1)).unwrap())
            .find(|socket| place(socket) == place(&first))
            .expect("no socket got the same place")
    };
    let (second, third) = (rival(), rival());
    second.connect(service.address).unwrap();
    assert_eq!(second.peer_addr().unwrap(), service.address);
    third.connect(service.address).unwrap();
    third.connect(one.address).unwrap();

    let report = proxy.apply(&tables([(service, balanced(&[&two]))])).unwrap();
    assert_eq!(report.destroyed, 2);
    for told in [&first, &second] {
        assert_eq!(told.take_error().unwrap().unwrap().kind(), ErrorKind::ConnectionAborted);
    }
    assert_eq!(ask_connected(&third).unwrap(), "one", "it went there by itself");
    second.connect(service.address).unwrap();
    assert_eq!(ask_connected(&second).unwrap(), "two");
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
