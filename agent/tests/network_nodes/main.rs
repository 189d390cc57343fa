//! The network between nodes: pods on three hosts, of which `a` and `b` share a link and `c` is behind a router.
//!
//! Everything is inside of namespaces of the test's own.

mod lan;
#[path = "../support/mod.rs"]
mod support;
mod traffic;

use std::net::IpAddr;
use std::sync::Arc;
use std::thread;

use hull_agent::network::namespaces::{self, Kind};
use hull_agent::network::{NodeRoute, Transport};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use lan::{Lan, Node, Pod, outer, range, run};
use support::PATIENCE;
use traffic::{Echo, Stream, packet};

const IPV4: [bool; 1] = [true];
const IPV6: [bool; 1] = [false];
const DUAL: [bool; 2] = [true, false];

/// Every pod reaches every other one and every host, by addresses of both ends, with packets up to the MTU of the way.
fn all_reach_each_other(pods: &[&Pod<'_>]) {
    let servers: Vec<Vec<Echo>> = pods.iter().map(|pod| pod.serve()).collect();
    for from in pods {
        for (other, to) in pods
            .iter()
            .flat_map(|pod| pod.ips.iter().map(move |ip| (&pod.node.route, *ip)))
        {
            let mtu = way_mtu(from, other);
            let own = from.ip(to.is_ipv4());
            from.inside(|| {
                let mut stream = Stream::open(to).unwrap();
                assert_eq!(stream.seen, own, "nothing is translated");
                stream.exchange();
                if to != own {
                    assert_eq!(packet(to, mtu).unwrap(), mtu, "{own} to {to}");
                    let error = packet(to, mtu + 1).unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{own} to {to}");
                }
            });
            from.node.inside(|| {
                let mut stream = Stream::open(to).unwrap();
                let seen = stream.seen;
                assert!(
                    from.node.network.node_addresses().contains(&seen),
                    "host to pod: {seen}"
                );
                stream.exchange();
                assert_eq!(packet(to, mtu).unwrap(), mtu, "host to {to}");
            });
        }
    }
    drop(servers);
    for pod in pods {
        assert_eq!(pod.node.fragments(), 0, "host {}", pod.node.route.name);
    }
}

/// What a packet from a pod to a node's pods may be long: less than the link's only through a tunnel.
fn way_mtu(from: &Pod<'_>, to: &NodeRoute) -> usize {
    let own = &from.node.route;
    let link = |node: &NodeRoute| match node.addresses[0] {
        IpAddr::V4(address) => u16::from(address.octets()[2]),
        IpAddr::V6(address) => address.segments()[2],
    };
    let through_tunnel = match from.node.lan.transport {
        Transport::Auto => link(own) != link(to),
        Transport::Direct => false,
        Transport::Vxlan => own != to,
    };
    let narrowed = from.node.lan.transport == Transport::Vxlan;
    match (through_tunnel || narrowed, own.addresses[0].is_ipv4()) {
        (false, _) => 1500,
        (true, true) => 1450,
        (true, false) => 1430,
    }
}

#[test]
fn pods_of_all_hosts_reach_each_other_over_both_families() {
    let lan = Lan::new(&DUAL, &DUAL, Transport::Auto);
    let (a, b, c) = (lan.node("a", 1, 1), lan.node("b", 1, 2), lan.node("c", 2, 3));
    for node in [&a, &b, &c] {
        assert_eq!(node.network.mtu(), 1500, "as wide as the link");
        node.apply(&[&a, &b, &c]);
        assert_eq!(node.apply(&[&c, &b, &a]), (0, 0), "nothing is written twice");
    }
    all_reach_each_other(&[&a.pod("p"), &a.pod("q"), &b.pod("r"), &c.pod("s")]);
    let routes = a.routes();
    assert!(routes.contains("10.244.2.0/24 via 192.0.1.2 dev eth0"), "{routes}");
    assert!(
        routes.contains("fd00:244:2::/64 via 2001:db8:1::2 dev eth0"),
        "{routes}"
    );
    assert!(
        routes.contains("10.244.3.0/24 via 10.244.3.1 dev hull.vxlan4"),
        "{routes}"
    );
    assert!(
        routes.contains("fd00:244:3::/64 via fd00:244:3::1 dev hull.vxlan4"),
        "{routes}"
    );
}

#[test]
fn without_ipv4_everything_works_the_same() {
    let lan = Lan::new(&IPV6, &IPV6, Transport::Auto);
    let (a, b, c) = (lan.node("a", 1, 1), lan.node("b", 1, 2), lan.node("c", 2, 3));
    for node in [&a, &b, &c] {
        assert_eq!(node.network.mtu(), 1500);
        node.apply(&[&a, &b, &c]);
    }
    all_reach_each_other(&[&a.pod("p"), &b.pod("q"), &c.pod("r")]);
}

#[test]
fn ipv4_pods_reach_each_other_over_ipv6_hosts() {
    let lan = Lan::new(&IPV6, &IPV4, Transport::Auto);
    let (a, b, c) = (lan.node("a", 1, 1), lan.node("b", 1, 2), lan.node("c", 2, 3));
    for node in [&a, &b, &c] {
        node.apply(&[&a, &b, &c]);
    }
    all_reach_each_other(&[&a.pod("p"), &b.pod("q"), &c.pod("r")]);
    let routes = a.routes();
    assert!(
        routes.contains("10.244.2.0/24 via inet6 2001:db8:1::2 dev eth0"),
        "{routes}"
    );
}

#[test]
fn either_way_can_be_demanded() {
    let lan = Lan::new(&DUAL, &DUAL, Transport::Vxlan);
    let (a, b) = (lan.node("a", 1, 1), lan.node("b", 1, 2));
    a.apply(&[&a, &b]);
    b.apply(&[&a, &b]);
    all_reach_each_other(&[&a.pod("p"), &b.pod("q")]);
    assert!(a.routes().contains("10.244.2.0/24 via 10.244.2.1 dev hull.vxlan4"));
    drop((a, b));
    drop(lan);

    let lan = Lan::new(&DUAL, &DUAL, Transport::Direct);
    let (a, b, c) = (lan.node("a", 1, 1), lan.node("b", 1, 2), lan.node("c", 2, 3));
    assert_eq!(a.network.mtu(), 1500, "nothing is wrapped");
    let changes = a.apply_routes(&[b.route.clone(), c.route.clone()]);
    assert_eq!(changes.problems.len(), 2, "{:?}", changes.problems);
    b.apply(&[&a, &b]);
    all_reach_each_other(&[&a.pod("p"), &b.pod("q")]);
    assert!(!a.routes().contains("vxlan"));
}

#[test]
fn a_restart_keeps_traffic_and_nodes_come_move_and_go() {
    let lan = Lan::new(&DUAL, &DUAL, Transport::Auto);
    let (mut a, b, c) = (lan.node("a", 1, 1), lan.node("b", 1, 2), lan.node("c", 2, 3));
    // What somebody else has set up stays, also where it looks like ours.
    a.inside(|| run("ip route add 10.99.0.0/16 via 192.0.1.2 dev eth0 proto 104"));
    for node in [&a, &b, &c] {
        node.apply(&[&a, &b, &c]);
    }
    let (near, far) = (b.pod("near"), c.pod("far"));
    let servers = [near.serve(), far.serve()];
    let pod = a.pod("p").namespace;
    let mut streams: Vec<Stream> = lan.router.inside(&pod, || {
        let ips = near.ips.iter().chain(&far.ips);
        ips.map(|ip| Stream::open(*ip).unwrap()).collect()
    });

    let (network, fabric) = a.inside(|| lan.start(&a.route));
    assert_eq!(network.pods(), ["p"]);
    (a.network, a.fabric) = (network, fabric);
    assert_eq!(
        a.apply(&[&a, &b, &c]),
        (0, 0),
        "a new agent finds what the old one made"
    );
    streams.iter_mut().for_each(Stream::exchange);

    // c gets another address on its link: the way there changes, and connections survive.
    c.inside(|| join_also(&outer(true, 2, 33), &outer(false, 2, 33)));
    let moved = NodeRoute {
        addresses: vec![outer(true, 2, 33), outer(false, 2, 33)],
        ..c.route.clone()
    };
    for node in [&a, &b] {
        let changes = node.apply_routes(&[a.route.clone(), b.route.clone(), moved.clone()]);
        assert_eq!((changes.put, changes.removed), (1, 0), "one forwarding entry");
    }
    streams.iter_mut().for_each(Stream::exchange);

    // b gets another range: the old one leads nowhere.
    let other = NodeRoute {
        pod_cidrs: vec![range(true, 22), range(false, 22)],
        ..b.route.clone()
    };
    let changes = a.apply_routes(&[other, moved]);
    assert_eq!((changes.put, changes.removed), (2, 2));
    let routes = a.routes();
    assert!(
        !routes.contains("10.244.2.0") && !routes.contains("fd00:244:2:"),
        "{routes}"
    );
    assert!(routes.contains("10.244.22.0/24 via 192.0.1.2 dev eth0"), "{routes}");

    // All others leave.
    a.apply_routes(&[]);
    let routes = a.routes();
    assert!(
        !routes.contains("vxlan") && !routes.contains("10.244.22.0") && !routes.contains("fd00:244:3"),
        "{routes}"
    );
    assert!(routes.contains("10.99.0.0/16"), "{routes}");
    assert!(
        routes.contains("unreachable 10.244.1.0/24") && routes.contains("unreachable fd00:244:1::/64"),
        "{routes}"
    );
    drop(servers);
    a.inside(|| a.network.shutdown().unwrap());
}

fn join_also(ipv4: &IpAddr, ipv6: &IpAddr) {
    run(&format!("ip addr add {ipv4}/24 dev eth0"));
    run(&format!("ip addr add {ipv6}/64 dev eth0 nodad"));
}

#[test]
fn a_pod_that_is_gone_is_unreachable_at_once() {
    let lan = Lan::new(&DUAL, &DUAL, Transport::Auto);
    let (a, c) = (lan.node("a", 1, 1), lan.node("c", 2, 3));
    a.apply(&[&a, &c]);
    c.apply(&[&a, &c]);
    let pod = a.pod("p");
    for gone in ["10.244.3.77", "fd00:244:1::77"] {
        let error = pod.inside(|| {
            Stream::open(gone.parse().unwrap())
                .err()
                .and_then(|error| error.raw_os_error())
        });
        assert!(
            matches!(error, Some(libc::EHOSTUNREACH | libc::ENETUNREACH)),
            "{gone}: {error:?}"
        );
    }
}

/// Waits until the host's routes are as `wanted` says: the kernel tells of every change.
fn await_routes(node: &Node<'_>, wanted: impl Fn(&str) -> bool) {
    let mut monitor = Socket::new(NETLINK_ROUTE).unwrap();
    monitor.bind(&SocketAddr::new(0, 0)).unwrap();
    for group in [7, 11] {
        // RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE
        monitor.add_membership(group).unwrap();
    }
    let patience = rustix::event::Timespec {
        tv_sec: PATIENCE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    loop {
        let routes = node.routes();
        if wanted(&routes) {
            return;
        }
        let mut fds = [rustix::event::PollFd::new(&monitor, rustix::event::PollFlags::IN)];
        let ready = rustix::event::poll(&mut fds, Some(&patience)).unwrap();
        assert_eq!(ready, 1, "{routes}");
        monitor.recv_from_full().unwrap();
    }
}

#[test]
fn an_interface_that_comes_back_gets_its_routes_back() {
    let lan = Lan::new(&DUAL, &DUAL, Transport::Auto);
    let (a, b) = (lan.node("a", 1, 1), lan.node("b", 1, 2));
    b.apply(&[&a, &b]);
    let (pod, other) = (a.pod("p"), b.pod("q"));
    let _servers = other.serve();
    let (nodes, receiver) = tokio::sync::watch::channel(Vec::new());
    let fabric = Arc::clone(&a.fabric);
    a.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        thread::scope(|scope| {
            let namespace = &a.namespace;
            let following = scope.spawn(move || {
                namespaces::within(&namespaces::open(&namespace.path(Kind::Net)).unwrap(), || {
                    Ok(runtime.block_on(fabric.follow(receiver)))
                })
            });
            nodes.send(vec![b.route.clone()]).unwrap();
            await_routes(&a, |routes| routes.contains("10.244.2.0/24 via 192.0.1.2"));
            run("ip link set eth0 down");
            await_routes(&a, |routes| !routes.contains("10.244.2.0/24 via 192.0.1.2"));
            run("ip link set eth0 up");
            run("ip addr add 2001:db8:1::1/64 dev eth0 nodad");
            await_routes(&a, |routes| routes.contains("10.244.2.0/24 via 192.0.1.2"));
            await_routes(&a, |routes| routes.contains("fd00:244:2::/64 via 2001:db8:1::2"));
            for to in &other.ips {
                pod.inside(|| Stream::open(*to).unwrap().exchange());
            }
            run("ip route del 10.244.2.0/24");
            await_routes(&a, |routes| routes.contains("10.244.2.0/24 via 192.0.1.2"));
            drop(nodes);
            following.join().unwrap().unwrap().unwrap();
        });
    });
}
