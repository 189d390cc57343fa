//! Services on packets: every kind of client and backend, refusals, policies, and the traps that other proxies fell into.

mod edge_support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use edge_support::{
    CLIENT, CLIENT6, Closing, Offer, PATIENCE, SCTP, Server, TCP, UDP, World, ask_on, ask_tcp, ask_udp, connect,
    connect_from, echo, sctp,
};
use hull_agent::proxy::edge::{Attach, EdgeLimits};
use hull_ebpf_types::edge::Reason;
use hull_ebpf_types::{flag, scope};

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn node_ports_and_load_balancer_addresses_work_on_both_families() {
    let mut world = World::new();
    let (near, far) = (world.nodes[0].pod("near"), world.nodes[1].pod("far"));
    let (_near, _far) = (near.serve(8080, "near"), far.serve(8080, "far"));
    let external = [address("198.51.100.1:80"), address("[2001:db8:e::1]:80")];
    world.ip(
        "r",
        "route add 198.51.100.1 via 192.0.2.1\nroute add 2001:db8:e::1 via 2001:db8:1::1\n",
    );
    for (index, pod) in [(0, &near), (1, &far)] {
        let (four, six) = (at(pod.v4(), 8080), at(pod.v6(), 8080));
        let node = &mut world.nodes[0];
        let node_ports = [at(node.address(), 30080), at(node.address6(), 30081)];
        let mut offers = Vec::new();
        for protocol in [TCP, UDP] {
            offers.extend([
                Offer::node_port(30080, protocol, &[four]),
                Offer::node_port(30081, protocol, &[six]),
                Offer::external(external[0], protocol, &[four]),
                Offer::external(external[1], protocol, &[six]),
            ]);
        }
        node.offer(&offers);
        for service in node_ports.iter().chain(&external) {
            let tcp = world.outside(|| ask_tcp(*service)).unwrap();
            let udp = world.outside(|| ask_udp(*service, 3000)).unwrap();
            let kept: IpAddr = if service.is_ipv4() { CLIENT } else { CLIENT6 }.parse().unwrap();
            for answer in [tcp, udp] {
                assert_eq!(answer.server, ["near", "far"][index], "{service}");
                assert_eq!(answer.client.ip() == kept, index == 0, "{service}: {answer:?}");
            }
        }
    }
}

#[test]
fn what_is_offered_inside_only_is_not_reached_from_outside() {
    let mut world = World::new();
    let pod = world.nodes[0].pod("a");
    let _server = pod.serve(8080, "a");
    let service = address("10.96.0.1:80");
    world.ip("r", "route add 10.96.0.0/16 via 192.0.2.1\n");
    world.nodes[0].offer(&[Offer::cluster(service, TCP, &[at(pod.v4(), 8080)])]);
    assert_eq!(pod.inside(|| ask_tcp(service)).unwrap().server, "a");
    // The node has no route but the one back to the router, who says so in the end.
    assert!(world.outside(|| ask_tcp(service)).is_err());
}

#[test]
fn a_pod_without_socket_translation_reaches_services_wherever_the_backend_is() {
    let mut world = World::new();
    let (own, near) = (world.nodes[0].pod("own"), world.nodes[0].pod("near"));
    let far = world.nodes[1].pod("far");
    let servers = [(&own, "own"), (&near, "near"), (&far, "far")].map(|(pod, name)| pod.serve(8080, name));
    let _host = Server::start(&world.nodes[0].namespace, 8080, "host");
    let (service, service6) = (address("10.96.0.1:80"), address("[fd96::1]:80"));
    let node = [at(world.nodes[0].address(), 8080), at(world.nodes[0].address6(), 8080)];
    for (name, four, six) in [
        ("own", at(own.v4(), 8080), at(own.v6(), 8080)),
        ("near", at(near.v4(), 8080), at(near.v6(), 8080)),
        ("far", at(far.v4(), 8080), at(far.v6(), 8080)),
        ("host", node[0], node[1]),
    ] {
        let offers: Vec<Offer> = [TCP, UDP]
            .into_iter()
            .flat_map(|protocol| {
                [
                    Offer::cluster(service, protocol, &[four]),
                    Offer::cluster(service6, protocol, &[six]),
                ]
            })
            .collect();
        world.nodes[0].offer(&offers);
        for service in [service, service6] {
            let tcp = own.inside(|| ask_tcp(service)).unwrap();
            assert_eq!(tcp.server, name, "{service}");
            // A host has many addresses, and a server of datagrams must choose the right one by itself.
            if name != "host" {
                let udp = own.inside(|| ask_udp(service, 3000)).unwrap();
                assert_eq!(udp.server, name, "{service}");
            }
            let seen = tcp.client.ip();
            // To itself a pod seems to be the node: only so does its reply come back over the node.
            assert_eq!(own.addresses.contains(&seen), name != "own", "{seen}");
        }
    }
    drop(servers);
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    let mut world = World::new();
    let pod = world.nodes[0].pod("a");
    let (external, inside) = (address("198.51.100.1:80"), address("10.96.0.1:80"));
    world.ip("r", "route add 198.51.100.1 via 192.0.2.1\n");
    let mut offers = Vec::new();
    for protocol in [TCP, UDP] {
        offers.extend([
            Offer::node_port(30080, protocol, &[]),
            Offer::external(external, protocol, &[]),
            Offer::cluster(inside, protocol, &[]),
        ]);
    }
    world.nodes[0].offer(&offers);
    let node_ports = [
        at(world.nodes[0].address(), 30080),
        at(world.nodes[0].address6(), 30080),
    ];
    for service in [node_ports[0], node_ports[1], external] {
        let refused = world.outside(|| (ask_tcp(service).unwrap_err(), ask_udp(service, 10).unwrap_err()));
        assert_eq!(refused.0.kind(), ErrorKind::ConnectionRefused, "{service}");
        assert_eq!(refused.1.kind(), ErrorKind::ConnectionRefused, "{service}");
    }
    let refused = pod.inside(|| (ask_tcp(inside).unwrap_err(), ask_udp(inside, 10).unwrap_err()));
    assert_eq!(refused.0.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(refused.1.kind(), ErrorKind::ConnectionRefused);

    // A socket that was refused is served as soon as there is a backend.
    let _server = pod.serve(8080, "a");
    world.nodes[0].offer(&[Offer::node_port(30080, UDP, &[at(pod.v4(), 8080)])]);
    world.outside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(node_ports[0]).unwrap();
        assert_eq!(ask_on(&socket, 10).unwrap().server, "a");
    });
}

#[test]
fn local_policy_drops_what_has_backends_elsewhere_only() {
    let mut world = World::new();
    world.nodes[0].offer(&[Offer::node_port(30080, UDP, &[]).flags(flag::LOCAL | flag::ELSEWHERE)]);
    let service = at(world.nodes[0].address(), 30080);
    world.outside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(service).unwrap();
        socket.send(b"?").unwrap();
        socket
            .set_read_timeout(Some(std::time::Duration::from_millis(100)))
            .unwrap();
        assert_eq!(
            socket.recv(&mut [0; 8]).unwrap_err().kind(),
            ErrorKind::WouldBlock,
            "no answer, not a refusal"
        );
    });
    assert_eq!(world.nodes[0].counted(Reason::NoLocalBackend), 1);
}

#[test]
fn only_clients_in_the_source_ranges_are_served() {
    let mut world = World::new();
    let pod = world.nodes[0].pod("a");
    let _server = pod.serve(8080, "a");
    let mut offer = Offer::node_port(30080, UDP, &[at(pod.v4(), 8080)]);
    offer.sources = 7;
    world.nodes[0].offer(&[offer]);
    let service = at(world.nodes[0].address(), 30080);
    let ask = || {
        world.outside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(service).unwrap();
            socket
                .set_read_timeout(Some(std::time::Duration::from_millis(200)))
                .unwrap();
            socket.send(b"?").unwrap();
            socket.recv(&mut [0; 64]).is_ok()
        })
    };
    let edge = world.nodes[0].edge();
    let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    edge.set_sources(&BTreeMap::from([
        (7, ranges(&["198.51.100.0/24", "203.0.113.0/24"])),
        (8, ranges(&[])),
    ]))
    .unwrap();
    assert!(ask());
    edge.set_sources(&BTreeMap::from([
        (7, ranges(&["198.51.100.0/24"])),
        (8, ranges(&["203.0.113.0/24"])),
    ]))
    .unwrap();
    assert!(!ask());
    assert_eq!(world.nodes[0].counted(Reason::SourceRange), 1);
}

#[test]
fn affinity_keeps_a_client_with_its_backend() {
    let mut world = World::new();
    let pods: Vec<_> = (0..4).map(|number| world.nodes[0].pod(&format!("p{number}"))).collect();
    let _servers: Vec<_> = pods.iter().map(|pod| pod.serve(8080, &pod.uid)).collect();
    let backends: Vec<SocketAddr> = pods.iter().map(|pod| at(pod.v4(), 8080)).collect();
    let service = at(world.nodes[0].address(), 30080);
    let ask = |world: &World| -> BTreeSet<String> {
        world.outside(|| (0..16).map(|_| ask_tcp(service).unwrap().server).collect())
    };
    let mut offer = Offer::node_port(30080, TCP, &backends);
    world.nodes[0].offer(std::slice::from_ref(&offer));
    assert!(
        ask(&world).len() > 1,
        "sixteen choices among four do not all fall on one"
    );
    offer.affinity = 3600;
    world.nodes[0].offer(std::slice::from_ref(&offer));
    let kept = ask(&world);
    assert_eq!(kept.len(), 1);
    // Without its backend the client gets another one, and stays there.
    offer.backends.retain(|backend| {
        pods.iter()
            .all(|pod| pod.v4() != backend.ip() || !kept.contains(&pod.uid))
    });
    assert_eq!(offer.backends.len(), 3);
    world.nodes[0].offer(std::slice::from_ref(&offer));
    let other = ask(&world);
    assert_eq!(other.len(), 1);
    assert_ne!(other, kept);
}

#[test]
fn affinity_ends_when_the_client_stays_away() {
    let mut world = World::new();
    let pods: Vec<_> = (0..4).map(|number| world.nodes[0].pod(&format!("p{number}"))).collect();
    let _servers: Vec<_> = pods.iter().map(|pod| pod.serve(8080, &pod.uid)).collect();
    let backends: Vec<SocketAddr> = pods.iter().map(|pod| at(pod.v4(), 8080)).collect();
    let service = at(world.nodes[0].address(), 30080);
    let mut offer = Offer::node_port(30080, TCP, &backends);
    offer.affinity = 10_800;
    world.nodes[0].offer(std::slice::from_ref(&offer));
    let ask = |away: u64| {
        let servers = (0..16).map(|_| {
            let server = world.outside(|| ask_tcp(service).unwrap().server);
            world.nodes[0].age_clients(Duration::from_secs(away));
            server
        });
        servers.collect::<BTreeSet<String>>()
    };
    assert_eq!(ask(10_790).len(), 1, "each use begins the time anew");
    assert!(
        ask(10_800).len() > 1,
        "sixteen choices among four do not all fall on one"
    );
}

/// The kernel forgets the least recently used: an open connection that is used outlasts any number of others.
#[test]
fn with_more_connections_than_entries_new_and_busy_ones_work() {
    let limits = EdgeLimits {
        streams: 1_024,
        ..EdgeLimits::default()
    };
    let mut world = World::limited(Attach::probe(), limits);
    let near = world.nodes[0].pod("near");
    let _near = near.serve(8080, "near");
    world.nodes[0].offer(&[Offer::node_port(30080, TCP, &[at(near.v4(), 8080)])]);
    let service = at(world.nodes[0].address(), 30080);
    world.outside(|| {
        let (mut busy, _) = connect(service).unwrap();
        let mut idle: Vec<_> = (0..20)
            .flat_map(|_| {
                let some: Vec<_> = (0..40).map(|_| connect(service).unwrap().0).collect();
                echo(&mut busy).unwrap();
                some
            })
            .collect();
        assert!(world.nodes[0].streams() <= 1_024);
        assert_eq!(world.nodes[0].counted(Reason::MapFull), 0);
        let lost = idle.iter_mut().filter_map(|stream| echo(stream).err()).count();
        assert!(lost > 0, "800 connections have 1,600 entries");
        assert!(
            world.nodes[0].counted(Reason::UnknownConnection) > 0,
            "what is lost is counted"
        );
        echo(&mut busy).unwrap();
        ask_tcp(service).unwrap();
    });
}

#[test]
fn datagrams_leave_a_backend_that_is_gone_and_connections_stay() {
    let mut world = World::new();
    let (one, two) = (world.nodes[0].pod("one"), world.nodes[1].pod("two"));
    let (_one, _two) = (one.serve(8080, "one"), two.serve(8080, "two"));
    let offers = |pod: &edge_support::Pod| [TCP, UDP].map(|p| Offer::node_port(30080, p, &[at(pod.v4(), 8080)]));
    world.nodes[0].offer(&offers(&one));
    let service = at(world.nodes[0].address(), 30080);
    let (mut stream, _) = world.outside(|| connect(service)).unwrap();
    let socket = world.outside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.connect(service).unwrap();
    assert_eq!(ask_on(&socket, 10).unwrap().server, "one");
    world.nodes[0].offer(&offers(&two));
    assert_eq!(ask_on(&socket, 10).unwrap().server, "two");
    echo(&mut stream).unwrap();
    assert_eq!(world.outside(|| ask_tcp(service)).unwrap().server, "two");
}

#[test]
fn a_direct_flow_with_the_ports_of_a_services_flow_does_not_hang() {
    let mut world = World::new();
    let client = world.nodes[0].pod("client");
    let (near, far) = (world.nodes[0].pod("near"), world.nodes[1].pod("far"));
    let (_near, _far) = (near.serve(8080, "near"), far.serve(8080, "far"));
    let service = address("10.96.0.1:80");
    let mut port = 40_000;
    for pod in [&near, &far] {
        let direct = at(pod.v4(), 8080);
        world.nodes[0].offer(&[
            Offer::cluster(service, TCP, &[direct]),
            Offer::cluster(service, UDP, &[direct]),
        ]);
        for closing in [Closing::Graceful, Closing::Reset, Closing::Never] {
            port += 1;
            client.inside(|| {
                let mut through = connect_from(port, service, Closing::Reset).unwrap();
                echo(&mut through).unwrap();
                let open = closing.end(through);
                let mut second = connect_from(port, direct, Closing::Reset).unwrap();
                echo(&mut second).unwrap();
                if let Some(mut through) = open {
                    echo(&mut through).unwrap();
                    echo(&mut second).unwrap();
                }
            });
        }
        // Datagrams of one socket to the service and to its backend.
        client.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            for to in [service, direct, service, direct] {
                socket.send_to(b"?", to).unwrap();
                assert_eq!(socket.recv_from(&mut [0; 64]).unwrap().1, to);
            }
        });
    }
}

#[test]
fn entries_go_with_their_connections() {
    let mut world = World::new();
    let (near, far) = (world.nodes[0].pod("near"), world.nodes[1].pod("far"));
    let (_near, _far) = (near.serve(8080, "near"), far.serve(8080, "far"));
    let service = at(world.nodes[0].address(), 30080);
    for pod in [&near, &far] {
        world.nodes[0].offer(&[Offer::node_port(30080, TCP, &[at(pod.v4(), 8080)])]);
        for closing in [Closing::Graceful, Closing::Reset] {
            world.outside(|| {
                let (stream, _) = connect(service).unwrap();
                assert!(world.nodes[0].streams() > 0);
                closing.end(stream);
            });
            let deadline = Instant::now() + PATIENCE;
            while world.nodes[0].streams() > 0 {
                assert!(Instant::now() < deadline, "{} entries stay", world.nodes[0].streams());
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn sctp_gets_its_backend_with_a_right_checksum() {
    let mut world = World::new();
    let (near, far) = (world.nodes[0].pod("near"), world.nodes[1].pod("far"));
    let service = at(world.nodes[0].address(), 30080);
    for pod in [&near, &far] {
        world.nodes[0].offer(&[Offer::node_port(30080, SCTP, &[at(pod.v4(), 8080)])]);
        let listener = pod.inside(sctp::Raw::open);
        let client = world.outside(sctp::Raw::open);
        client.send(service, &sctp::packet(5000, 30080));
        let (from, packet) = listener.receive();
        assert!(sctp::is_intact(&packet), "{packet:?}");
        assert_eq!(packet[2..4], 8080_u16.to_be_bytes());
        // And back.
        let to = u16::from_be_bytes([packet[0], packet[1]]);
        listener.send(SocketAddr::new(from, 0), &sctp::packet(8080, to));
        let (from, packet) = client.receive();
        assert!(sctp::is_intact(&packet), "{packet:?}");
        assert_eq!(
            (from, &packet[..4]),
            (
                service.ip(),
                &[30080_u16.to_be_bytes(), 5000_u16.to_be_bytes()].concat()[..]
            )
        );
    }
}

#[test]
fn with_direct_return_the_backends_node_answers_the_client() {
    let mut world = World::new();
    let far = world.nodes[1].pod("far");
    let _far = far.serve(8080, "far");
    let service = address("198.51.100.1:80");
    world.ip("r", "route add 198.51.100.1 via 192.0.2.1\n");
    for node in &mut world.nodes {
        let offers = [TCP, UDP].map(|p| Offer::external(service, p, &[at(far.v4(), 8080)]).flags(flag::DIRECT_RETURN));
        node.offer(&offers);
    }
    let answer = world.outside(|| ask_tcp(service)).unwrap();
    assert_eq!(
        answer.client.ip().to_string(),
        CLIENT,
        "the client's own address arrives"
    );
    let answer = world.outside(|| ask_udp(service, 3000)).unwrap();
    assert_eq!(answer.client.ip().to_string(), CLIENT);
    assert_eq!(world.nodes[0].counted(Reason::Masqueraded), 0);
    // Where nodes are not all on one link, replies come back the way they went.
    world.nodes[0].neighbours(false);
    let answer = world.outside(|| ask_tcp(service)).unwrap();
    assert_eq!(answer.client.ip(), world.nodes[0].address());
}

#[test]
fn pods_use_node_ports_and_external_addresses_too() {
    let mut world = World::new();
    let (client, far) = (world.nodes[0].pod("client"), world.nodes[1].pod("far"));
    let _far = far.serve(8080, "far");
    let backend = at(far.v4(), 8080);
    let mut offers = [
        Offer::node_port(30080, TCP, &[backend]),
        Offer::external(address("198.51.100.1:80"), TCP, &[backend]),
    ];
    for offer in &mut offers {
        offer.scope = scope::INSIDE;
    }
    world.nodes[0].offer(&offers);
    for service in [at(world.nodes[0].address(), 30080), address("198.51.100.1:80")] {
        assert_eq!(client.inside(|| ask_tcp(service)).unwrap().client.ip(), client.v4());
    }
    // The other node's node port, from here.
    let near = world.nodes[0].pod("near");
    let _near = near.serve(8080, "near");
    world.nodes[1].offer(&[Offer::node_port(30080, TCP, &[at(near.v4(), 8080)])]);
    let answer = client.inside(|| ask_tcp(at(world.nodes[1].address(), 30080))).unwrap();
    assert_eq!(
        (answer.server.as_str(), answer.client.ip()),
        ("near", world.nodes[1].address())
    );
}
