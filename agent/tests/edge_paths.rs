//! Pods' way to the world and back, what routers say of it, and how the programs come and go on interfaces.

mod edge_support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use edge_support::{
    CLIENT, CLIENT6, Offer, PATIENCE, Pod, Server, TCP, UDP, World, ask_on, ask_tcp, ask_udp, connect, ping, within,
};
use hull_agent::proxy::edge::{self, Attach, EdgePod, EdgeView, PortRange};
use hull_ebpf_types::edge::Reason;

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn client() -> [IpAddr; 2] {
    [CLIENT, CLIENT6].map(|text| text.parse().unwrap())
}

/// Sends more than fits into one packet and gets it back.
fn much(mut stream: TcpStream) {
    const LENGTH: usize = 200_000;
    let mut back = stream.try_clone().unwrap();
    let reader = thread::spawn(move || {
        let mut left = LENGTH;
        let mut buffer = [0; 16_384];
        while left > 0 {
            left -= back.read(&mut buffer).unwrap();
        }
    });
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&vec![b'x'; LENGTH]).unwrap();
    reader.join().unwrap();
}

#[test]
fn a_narrow_link_on_the_way_is_found_out_by_everyone() {
    let mut world = World::new();
    let pod = world.nodes[0].pod("pod");
    let (near, far) = (world.nodes[0].pod("near"), world.nodes[1].pod("far"));
    let (_near, _far) = (near.serve(8080, "near"), far.serve(8080, "far"));
    let _world = Server::start(&world.client, 8080, "world");
    // Only the router knows: what is too large for the client's link is answered with ICMP.
    world.ip("r", "link set c mtu 1300\n");
    for (family, address) in client().into_iter().enumerate() {
        much(pod.inside(|| connect(at(address, 8080))).unwrap().0);
        for server in [&near, &far] {
            let backend = at(if family == 0 { server.v4() } else { server.v6() }, 8080);
            world.nodes[0].offer(&[Offer::node_port(30080, TCP, &[backend])]);
            let node = &world.nodes[0];
            let service = at(if family == 0 { node.address() } else { node.address6() }, 30080);
            much(world.outside(|| connect(service)).unwrap().0);
        }
    }
}

#[test]
fn a_node_tells_its_pods_what_its_own_link_is_too_narrow_for() {
    let mut world = World::new();
    let (pod, far) = (world.nodes[0].pod("pod"), world.nodes[1].pod("far"));
    let _far = far.serve(8080, "far");
    // Both: what comes back would be lost on a link of which one end is narrower.
    for node in ["1", "2"] {
        world.ip(node, "link set eth0 mtu 1300\n");
    }
    for address in &far.addresses {
        let known = pod.inside(|| {
            much(connect(at(*address, 8080)).unwrap().0);
            edge_support::run("ip", &["route", "get", &address.to_string()])
        });
        assert!(
            known.contains("mtu 1300"),
            "also what the kernel sends many packets at once: {known}"
        );
    }
}

#[test]
fn ports_that_nobody_listens_on_are_told_through_every_translation() {
    let mut world = World::new();
    let pod = world.nodes[0].pod("pod");
    let (near, far) = (world.nodes[0].pod("near"), world.nodes[1].pod("far"));
    for address in client() {
        let refused = pod.inside(|| ask_udp(at(address, 9), 10)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    for server in [&near, &far] {
        world.nodes[0].offer(&[Offer::node_port(30080, UDP, &[at(server.v4(), 9)])]);
        let service = at(world.nodes[0].address(), 30080);
        let refused = world.outside(|| ask_udp(service, 10)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        world.nodes[0].offer(&[Offer::node_port(30080, UDP, &[at(server.v6(), 9)])]);
        let service = at(world.nodes[0].address6(), 30080);
        let refused = world.outside(|| ask_udp(service, 10)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
}

/// Sends with so many hops, and gives back what the network says to it (ip(7) IP_RECVERR).
fn expire(to: SocketAddr, hops: u32) -> Option<i32> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives during the call.
    let set = unsafe {
        let value = (&raw const on).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_RECVERR, value, 4)
    };
    assert_eq!(set, 0);
    socket.set_ttl(hops).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send(b"?").unwrap();
    socket.recv(&mut [0; 64]).unwrap_err().raw_os_error()
}

#[test]
fn a_route_that_is_too_long_is_told_through_every_translation() {
    let mut world = World::new();
    let (near, far) = (world.nodes[0].pod("near"), world.nodes[1].pod("far"));
    let (_near, _far) = (near.serve(8080, "near"), far.serve(8080, "far"));
    let service = at(world.nodes[0].address(), 30080);
    // The router takes one hop, each node one: the packet ends on the last node.
    for (server, hops) in [(&near, 2), (&far, 2), (&far, 3)] {
        world.nodes[0].offer(&[Offer::node_port(30080, UDP, &[at(server.v4(), 8080)])]);
        let said = world.outside(|| expire(service, hops));
        assert_eq!(said, Some(libc::EHOSTUNREACH), "{hops} hops to {}", server.uid);
        let answer = world.outside(|| ask_udp(service, 10)).unwrap();
        assert_eq!(
            answer.server,
            server.uid.split('-').next().unwrap(),
            "all the others go on"
        );
    }
}

#[test]
fn pods_ping_the_world_and_each_other() {
    let mut world = World::new();
    let (one, two) = (world.nodes[0].pod("one"), world.nodes[0].pod("two"));
    let far = world.nodes[1].pod("far");
    for address in client() {
        assert!(one.inside(|| ping(address)).unwrap(), "{address}");
    }
    for address in [&two, &far].into_iter().flat_map(|pod| &pod.addresses) {
        let answered = one.inside(|| ping(*address));
        assert!(matches!(answered, Ok(true)), "{address}: {answered:?}");
    }
    assert!(one.inside(|| ping(world.nodes[0].address())).unwrap(), "its own node");
    let node = &world.nodes[0];
    assert!(
        within(&node.namespace, || ping(one.v4())).unwrap(),
        "the node reaches its pod"
    );
    assert!(node.counted(Reason::Masqueraded) >= 2);
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    let mut world = World::new();
    let (one, two) = (world.nodes[0].pod("one"), world.nodes[0].pod("two"));
    let _two = two.serve(8080, "two");
    for (family, own) in [(0, "10.244.1.99/32"), (1, "fd00:1::99/128")] {
        let to = at(if family == 0 { two.v4() } else { two.v6() }, 8080);
        let foreign: IpAddr = own.split('/').next().unwrap().parse().unwrap();
        one.inside(|| {
            edge_support::run("ip", &["addr", "add", own, "dev", "eth0", "nodad"]);
            let socket = UdpSocket::bind(at(foreign, 0)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            socket.send(b"?").unwrap();
            assert!(socket.recv(&mut [0; 64]).is_err());
        });
    }
    assert_eq!(world.nodes[0].counted(Reason::SpoofedSource), 2);
    assert_eq!(
        one.inside(|| ask_tcp(at(two.v4(), 8080))).unwrap().client.ip(),
        one.v4()
    );
}

#[test]
fn a_client_that_reaches_pods_directly_sees_their_own_addresses() {
    let mut world = World::new();
    let pod = world.nodes[0].pod("pod");
    let _pod = pod.serve(8080, "pod");
    world.ip(
        "r",
        "route add 10.244.1.0/24 via 192.0.2.1\nroute add fd00:1::/64 via 2001:db8:1::1\n",
    );
    for (address, own) in [(pod.v4(), client()[0]), (pod.v6(), client()[1])] {
        assert_eq!(world.outside(|| ask_tcp(at(address, 8080))).unwrap().client.ip(), own);
        assert_eq!(
            world.outside(|| ask_udp(at(address, 8080), 3000)).unwrap().client.ip(),
            own
        );
    }
    // The same ports once through a node port and once not, at the same time.
    world.nodes[0].offer(&[Offer::node_port(30080, UDP, &[at(pod.v4(), 8080)])]);
    let (service, direct) = (at(world.nodes[0].address(), 30080), at(pod.v4(), 8080));
    world.outside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for to in [service, direct, service, direct] {
            socket.send_to(b"?", to).unwrap();
            assert_eq!(socket.recv_from(&mut [0; 64]).unwrap().1, to);
        }
    });
}

#[test]
fn ports_are_never_shared_and_never_taken_from_the_nodes_own_sockets() {
    let mut world = World::new();
    let pod = world.nodes[0].pod("pod");
    let _server = Server::start(&world.client, 8080, "world");
    let to = at(client()[0], 8080);
    let first = 62_000;
    let view = EdgeView {
        ports: PortRange { first, count: 4 },
        ..world.nodes[0].view()
    };
    let node = &world.nodes[0];
    within(&node.namespace, || node.edge().apply(&view).unwrap());
    // One of the four is the node's own, to the very same place.
    let own = within(&node.namespace, || {
        edge_support::connect_from(first + 1, to, edge_support::Closing::Reset)
    })
    .unwrap();
    let streams: Vec<_> = (0..3).map(|_| pod.inside(|| connect(to)).unwrap()).collect();
    let mut ports: Vec<u16> = streams.iter().map(|(_, answer)| answer.client.port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [first, first + 2, first + 3]);
    let more = pod.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(to).unwrap();
        assert!(ask_on(&socket, 1).is_ok(), "datagrams have ports of their own");
        TcpStream::connect_timeout(&to, Duration::from_millis(300))
    });
    assert!(more.is_err());
    assert!(node.counted(Reason::PortsExhausted) > 0);
    // What has ended gives its port to the next.
    for (stream, _) in streams {
        edge_support::Closing::Reset.end(stream);
    }
    assert!(pod.inside(|| ask_tcp(to)).is_ok());
    drop(own);
}

#[test]
fn everything_works_with_filters_where_there_are_no_links() {
    let mut world = World::with(Attach::Clsact);
    let (near, far) = (world.nodes[0].pod("near"), world.nodes[1].pod("far"));
    let (_near, _far) = (near.serve(8080, "near"), far.serve(8080, "far"));
    let _world = Server::start(&world.client, 8080, "world");
    let service = at(world.nodes[0].address(), 30080);
    world.nodes[0].offer(&[Offer::node_port(30080, TCP, &[at(far.v4(), 8080)])]);
    let (mut stream, answer) = world.outside(|| connect(service)).unwrap();
    assert_eq!(answer.server, "far");
    assert_eq!(near.inside(|| ask_tcp(at(far.v4(), 8080))).unwrap().server, "far");
    assert_eq!(
        near.inside(|| ask_tcp(at(client()[0], 8080))).unwrap().client.ip(),
        world.nodes[0].address()
    );
    world.nodes[0].kill();
    edge_support::echo(&mut stream).unwrap();
    world.nodes[0].start();
    edge_support::echo(&mut stream).unwrap();
    assert_eq!(
        world.nodes[0].filters(),
        2 + 2,
        "a new agent replaces filters and adds none"
    );
    within(&world.nodes[0].namespace, || {
        edge::unload(&world.nodes[0].bpf_dir()).unwrap()
    });
    assert_eq!(world.nodes[0].filters(), 0);
}

#[test]
fn an_interface_that_appears_is_served() {
    let mut world = World::new();
    let pod = world.nodes[0].pod("pod");
    let _pod = pod.serve(8080, "pod");
    world.nodes[0].offer(&[Offer::external(
        "198.51.100.1:80".parse().unwrap(),
        TCP,
        &[at(pod.v4(), 8080)],
    )]);
    let namespace = world.nodes[0].namespace.clone();
    let edge = std::sync::Arc::new(world.nodes[0].edge.take().unwrap());
    let view = world.nodes[0].view();
    // The namespace is that of the thread that opens the sockets and lists the interfaces.
    let (nodes, receiver) = tokio::sync::watch::channel(Vec::new());
    let following = {
        let (edge, namespace) = (std::sync::Arc::clone(&edge), namespace.clone());
        thread::spawn(move || {
            within(&namespace, || {
                let mut builder = tokio::runtime::Builder::new_current_thread();
                let runtime = builder.enable_all().build().unwrap();
                runtime.block_on(edge.follow(view, receiver)).unwrap();
            });
        })
    };
    nodes.send(Vec::new()).unwrap();
    // A second link to the router.
    world.ip(
        "r",
        &format!(
            "link add second type veth peer name eth1 netns {}\naddr add 192.0.3.254/24 dev second\nlink set second up\n\
             route add 198.51.100.1 via 192.0.3.1\n",
            namespace.rsplit('/').next().unwrap()
        ),
    );
    world.ip("1", "addr add 192.0.3.1/24 dev eth1\nlink set eth1 up\n");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = world
            .outside(|| TcpStream::connect_timeout(&"198.51.100.1:80".parse().unwrap(), Duration::from_millis(100)));
        if asked.is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "not served");
    }
    drop(nodes);
    following.join().unwrap();
}

#[test]
fn a_new_agent_forgets_pods_that_are_gone() {
    let mut world = World::new();
    let (stays, goes) = (world.nodes[0].pod("stays"), world.nodes[0].pod("goes"));
    let _stays = stays.serve(8080, "stays");
    world.nodes[0].kill();
    let node = &world.nodes[0];
    within(&node.namespace, || node.network.teardown(&goes.uid).unwrap());
    world.nodes[0].start();
    let node = &world.nodes[0];
    let pods = |pods: &[&Pod]| pods.iter().map(|pod| pod.edge.clone()).collect::<Vec<EdgePod>>();
    within(&node.namespace, || node.edge().adopt(&pods(&[&stays, &goes])).unwrap());
    assert_eq!(
        (node.links(), node.filters()),
        (2, 2),
        "two programs on the uplink, two at the pod"
    );
    let other = world.nodes[0].pod("other");
    assert_eq!(
        other.inside(|| ask_tcp(at(stays.v4(), 8080))).unwrap().client.ip(),
        other.v4()
    );
    let node = &world.nodes[0];
    within(&node.namespace, || {
        node.edge().detach_pod(&other.edge.interface).unwrap()
    });
    assert_eq!(node.filters(), 2);
    // And unloading leaves nothing.
    within(&node.namespace, || edge::unload(&node.bpf_dir()).unwrap());
    assert_eq!((node.links(), node.filters(), node.pins()), (0, 0, 0));
}
