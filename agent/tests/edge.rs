//! The packet programs in the kernel: clients outside, pods and nodes as network namespaces, real traffic.

mod edge_support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;

use edge_support::{CLIENT, CLIENT6, Offer, Pod, Server, TCP, UDP, World, ask_tcp, ask_udp, connect, echo};
use hull_agent::proxy::{Backend, Fill, Frontend, Group, Protocol, ServiceName};

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn client() -> IpAddr {
    CLIENT.parse().unwrap()
}

#[test]
fn pods_on_one_node_and_on_two_reach_each_other_with_their_own_addresses() {
    let mut world = World::new();
    let (a, b) = (world.nodes[0].pod("a"), world.nodes[0].pod("b"));
    let c = world.nodes[1].pod("c");
    let (_b, _c) = (b.serve(80, "b"), c.serve(80, "c"));
    for (server, name) in [(&b, "b"), (&c, "c")] {
        for (own, other) in [(a.v4(), server.v4()), (a.v6(), server.v6())] {
            let answer = a.inside(|| ask_tcp(at(other, 80))).unwrap();
            assert_eq!((answer.server.as_str(), answer.client.ip()), (name, own));
            // Larger than the MTU: in fragments.
            let answer = a.inside(|| ask_udp(at(other, 80), 4000)).unwrap();
            assert_eq!((answer.server.as_str(), answer.client.ip()), (name, own));
        }
    }
}

#[test]
fn a_client_outside_reaches_a_node_port_wherever_the_backend_is() {
    let mut world = World::new();
    let (near, far) = (world.nodes[0].pod("near"), world.nodes[1].pod("far"));
    let (_near, _far) = (near.serve(8080, "near"), far.serve(8080, "far"));
    let service = at(world.nodes[0].address(), 30080);
    for (pod, name) in [(&near, "near"), (&far, "far")] {
        for protocol in [TCP, UDP] {
            world.nodes[0].offer(&[Offer::node_port(30080, protocol, &[at(pod.v4(), 8080)])]);
            let answer = world.outside(|| match protocol {
                TCP => ask_tcp(service),
                _ => ask_udp(service, 4000),
            });
            let answer = answer.unwrap();
            assert_eq!(answer.server, name);
            if name == "near" {
                assert_eq!(answer.client.ip(), client(), "the client's address is kept");
            } else {
                assert_eq!(answer.client.ip(), world.nodes[0].address());
            }
        }
    }
}

#[test]
fn pods_reach_the_world_with_their_nodes_address() {
    let mut world = World::new();
    let pod = world.nodes[0].pod("a");
    let _server = Server::start(&world.client, 8080, "world");
    let (to, to6) = (at(client(), 8080), at(CLIENT6.parse().unwrap(), 8080));
    for (to, own) in [(to, world.nodes[0].address()), (to6, world.nodes[0].address6())] {
        let answer = pod.inside(|| ask_tcp(to)).unwrap();
        assert_eq!(answer.client.ip(), own);
        assert!(answer.client.port() >= 61_000, "{answer:?}");
        let answer = pod.inside(|| ask_udp(to, 4000)).unwrap();
        assert_eq!(answer.client.ip(), own);
    }
    let ports: BTreeSet<u16> = (0..20)
        .map(|_| pod.inside(|| connect(to)).unwrap().1.client.port())
        .collect();
    assert_eq!(ports.len(), 20, "every connection has a port of its own");
}

/// A connection from outside to a pod on another node, and one of a pod to the world. Fields end in their order.
struct Flows {
    inward: TcpStream,
    outward: TcpStream,
    _servers: [Server; 2],
    pod: Pod,
    _far: Pod,
    service: SocketAddr,
    world: World,
}

impl Flows {
    fn open() -> Flows {
        let mut world = World::new();
        let far = world.nodes[1].pod("far");
        let pod = world.nodes[0].pod("a");
        let servers = [far.serve(8080, "far"), Server::start(&world.client, 8080, "world")];
        let service = at(world.nodes[0].address(), 30080);
        world.nodes[0].offer(&[Offer::node_port(30080, TCP, &[at(far.v4(), 8080)])]);
        let (inward, _) = world.outside(|| connect(service)).unwrap();
        let (outward, _) = pod.inside(|| connect(at(client(), 8080))).unwrap();
        Flows {
            inward,
            outward,
            _servers: servers,
            pod,
            _far: far,
            service,
            world,
        }
    }

    /// The open ones do, and new ones can be made.
    fn go_on(&mut self) {
        echo(&mut self.inward).unwrap();
        echo(&mut self.outward).unwrap();
        self.world.outside(|| ask_tcp(self.service)).unwrap();
        self.pod.inside(|| ask_tcp(at(client(), 8080))).unwrap();
    }
}

#[test]
fn connections_survive_an_agent_that_is_killed_and_started_again() {
    let mut flows = Flows::open();

    flows.world.nodes[0].kill();
    flows.go_on();

    flows.world.nodes[0].start();
    flows.go_on();
}

#[test]
fn connections_survive_an_upgrade_with_another_layout() {
    let mut flows = Flows::open();

    let node = &mut flows.world.nodes[0];
    node.kill();
    node.layout += 1;
    node.start();
    edge_support::within(&node.namespace, || {
        node.edge().adopt(std::slice::from_ref(&flows.pod.edge)).unwrap();
    });
    assert_eq!(
        node.streams(),
        4 + 2,
        "one is masqueraded on its way through, one only on its way out"
    );
    flows.go_on();
}

#[test]
fn connections_survive_service_maps_that_grow() {
    let mut flows = Flows::open();
    // A new agent knows what is in the maps, and goes on from there.
    flows.world.nodes[0].kill();
    flows.world.nodes[0].start();
    let (stop, stopped) = mpsc::channel::<()>();
    let (client, service) = (flows.world.client.clone(), flows.service);
    let asking = thread::spawn(move || {
        edge_support::within(&client, move || {
            let mut asked = 0;
            while matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Empty)) {
                ask_tcp(service).map_err(|error| (asked, error))?;
                asked += 1;
            }
            Ok::<u32, (u32, std::io::Error)>(asked)
        })
    });

    let node = &mut flows.world.nodes[0];
    let proxy = node.proxy.as_mut().unwrap();
    let before = proxy.usage().maps;
    for number in 0..5_000_u32 {
        let [.., high, low] = number.to_be_bytes();
        let frontend = Frontend::inside(at([10, 97, high, low].into(), 80), Protocol::Udp);
        let backends = [1, 2].map(|last| Backend::new(at([10, 99, high, last].into(), 8080)));
        let name = ServiceName::new("many", &number.to_string());
        let group = [Group::simple(frontend, backends)];
        assert_eq!(proxy.update([(&name, group.as_slice())]).unwrap().rejected, []);
    }
    for map in ["services", "slots", "members"] {
        let capacity = |fills: &[Fill]| fills.iter().find(|fill| fill.map == map).unwrap().capacity;
        assert!(
            capacity(&proxy.usage().maps) >= 4 * capacity(&before),
            "{map} has grown"
        );
    }

    drop(stop);
    let asked = asking.join().unwrap().unwrap();
    assert!(asked > 0);
    flows.go_on();
}
