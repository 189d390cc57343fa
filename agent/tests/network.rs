//! The pod network on a host of the test's own: two pods, the host, and a service between them.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};

use hull_agent::network::namespaces::{Kind, Pinned};
use hull_agent::network::{NetworkConfig, PodAddress, PodNetwork, Transport, add_local_address, remove_local_address};
use hull_agent::proxy::{Frontend, Protocol};
use support::proxy::{apply, balanced};
use support::{Host, Server, ask_connected, ask_tcp};

fn network(host: &Host) -> PodNetwork {
    let run_dir = host.dir.path().join("run");
    PodNetwork::new(&NetworkConfig {
        pod_cidrs: vec!["10.244.7.0/24".parse().unwrap()],
        run_dir,
        mtu: Some(1400),
        node_ip: None,
        transport: Transport::Auto,
    })
    .unwrap()
}

struct Pod {
    pinned: Pinned,
    address: PodAddress,
    ip: Ipv4Addr,
    node: Ipv4Addr,
}

fn pod(host: &Host, network: &PodNetwork, name: &str) -> Pod {
    let pinned = host.pin(name, Some(name));
    let address = network.setup(name, &pinned.path(Kind::Net)).unwrap();
    let (IpAddr::V4(ip), IpAddr::V4(node)) = (address.ips[0], address.node_addresses[0]) else {
        panic!("no IPv4: {address:?}")
    };
    Pod {
        pinned,
        address,
        ip,
        node,
    }
}

fn at(ip: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(ip, port)
}

fn interface_exists(name: &str) -> bool {
    fs::read_to_string("/proc/thread-self/net/dev")
        .unwrap()
        .contains(&format!("{name}:"))
}

#[test]
fn host_and_pods_reach_each_other() {
    let host = Host::enter();
    let network = network(&host);
    let (a, b) = (pod(&host, &network, "pod-a"), pod(&host, &network, "pod-b"));
    assert_eq!(a.ip, Ipv4Addr::new(10, 244, 7, 2));
    assert_eq!(b.ip, Ipv4Addr::new(10, 244, 7, 3));
    assert_eq!(a.node, Ipv4Addr::new(10, 244, 7, 1));

    let server = host.inside(&b.pinned, || Server::tcp(at(b.ip, 8080), "b"));
    let on_host = Server::tcp(at(a.node, 9090), "host");
    let peer = |address: SocketAddr| TcpStream::connect(address).unwrap().local_addr().unwrap().ip();

    assert_eq!(ask_tcp(server.address).unwrap(), "b", "host to pod");
    assert_eq!(
        peer(server.address),
        a.node,
        "the host speaks as the node's address in the pod range"
    );
    host.inside(&a.pinned, || {
        assert_eq!(ask_tcp(server.address).unwrap(), "b", "pod to pod");
        assert_eq!(peer(server.address), a.ip, "nothing is translated");
        assert_eq!(ask_tcp(on_host.address).unwrap(), "host", "pod to host");
    });
    host.inside(&b.pinned, || {
        assert_eq!(ask_tcp(server.address).unwrap(), "b", "pod to itself")
    });
}

#[test]
fn pods_reach_each_other_through_a_service() {
    let host = Host::enter();
    let network = network(&host);
    let (a, b) = (pod(&host, &network, "pod-a"), pod(&host, &network, "pod-b"));
    let tcp = host.inside(&b.pinned, || Server::tcp(at(b.ip, 8080), "b"));
    let udp = host.inside(&b.pinned, || Server::udp(at(b.ip, 5353), "b"));
    let address: SocketAddr = "10.96.0.7:80".parse().unwrap();
    let service = |protocol, server: &Server| (Frontend::inside(address, protocol), balanced(&[server]));
    let mut proxy = host.proxy();
    apply(&mut proxy, [service(Protocol::Tcp, &tcp), service(Protocol::Udp, &udp)]);

    assert_eq!(ask_tcp(address).unwrap(), "b", "from the host");
    host.inside(&a.pinned, || {
        assert_eq!(ask_tcp(address).unwrap(), "b", "from another pod")
    });
    host.inside(&b.pinned, || {
        assert_eq!(ask_tcp(address).unwrap(), "b", "from the backend itself")
    });

    // A resolver-like socket in a pod learns that its backend is gone.
    let socket = host.inside(&a.pinned, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(address).unwrap();
        assert_eq!(ask_connected(&socket).unwrap(), "b");
        socket
    });
    let report = proxy.apply(&BTreeMap::default()).unwrap();
    assert_eq!(report.destroyed, 1);
    assert!(socket.take_error().unwrap().is_some());
}

#[test]
fn a_pod_cannot_speak_for_another() {
    let host = Host::enter();
    let network = network(&host);
    let (a, b) = (pod(&host, &network, "pod-a"), pod(&host, &network, "pod-b"));
    let on_host = UdpSocket::bind(at(a.node, 9090)).unwrap();
    on_host.set_nonblocking(true).unwrap();
    host.inside(&a.pinned, || {
        add_local_address(b.ip).unwrap();
        let spoofed = UdpSocket::bind(at(b.ip, 0)).unwrap();
        spoofed.send_to(b"spoofed", at(a.node, 9090)).unwrap();
        let honest = UdpSocket::bind(at(a.ip, 0)).unwrap();
        honest.send_to(b"honest", at(a.node, 9090)).unwrap();
    });
    // On one path packets keep their order: what came is all that comes.
    let mut buffer = [0; 16];
    let (length, _) = on_host.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"honest");
    assert!(on_host.recv_from(&mut buffer).is_err());
}

#[test]
fn a_restarted_agent_knows_its_pods_and_teardown_leaves_nothing() {
    let host = Host::enter();
    let first = network(&host);
    let a = pod(&host, &first, "pod-a");
    drop(first);

    let network = network(&host);
    assert_eq!(network.pods(), ["pod-a"]);
    assert_eq!(network.address("pod-a"), Some(a.address.clone()));
    let again = network.setup("pod-a", &a.pinned.path(Kind::Net)).unwrap();
    assert_eq!(again, a.address, "setting up again repairs and changes nothing");
    let server = host.inside(&a.pinned, || Server::tcp(at(a.ip, 80), "a"));
    assert_eq!(ask_tcp(server.address).unwrap(), "a");

    network.teardown("pod-a").unwrap();
    network.teardown("pod-a").unwrap();
    network.teardown("never-set-up").unwrap();
    assert!(!interface_exists(&again.host_interface));
    assert!(network.pods().is_empty());
    let next = pod(&host, &network, "pod-b");
    assert_ne!(next.ip, a.ip, "a freed address rests");
    network.shutdown().unwrap();
    assert!(!interface_exists(&next.address.host_interface));
    assert_eq!(fs::read_dir(host.dir.path().join("run/network")).unwrap().count(), 0);
    assert!(
        UdpSocket::bind(at(a.node, 0)).is_err(),
        "the node's own address is gone"
    );
}

#[test]
fn namespaces_are_pinned_once_and_removed_completely() {
    let host = Host::enter();
    let pinned = host.pin("pod", Some("web-0"));
    let identity = |kind| {
        fs::metadata(pinned.path(kind))
            .map(|m| std::os::unix::fs::MetadataExt::ino(&m))
            .unwrap()
    };
    let before: Vec<u64> = [Kind::Net, Kind::Ipc, Kind::Uts].map(identity).to_vec();
    host.pin("pod", Some("other"));
    assert_eq!(
        [Kind::Net, Kind::Ipc, Kind::Uts].map(identity).to_vec(),
        before,
        "existing pins are kept"
    );
    assert_eq!(hostname_in(&pinned), "web-0");
    assert_ne!(hostname_in(&pinned), hostname());
    host.inside(&pinned, || {
        assert!(
            UdpSocket::bind("127.0.0.1:0")
                .unwrap()
                .send_to(b"x", "127.0.0.1:9")
                .is_ok(),
            "lo is up"
        );
    });

    let dir = host.netns_dir().join("pod");
    pinned.remove().unwrap();
    pinned.remove().unwrap();
    assert!(!dir.exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.to_str().unwrap()));
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn hostname_in(pinned: &Pinned) -> String {
    let file = fs::File::open(pinned.path(Kind::Uts)).unwrap();
    std::thread::spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::HostNameAndNISDomainName);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind).unwrap();
        hostname()
    })
    .join()
    .unwrap()
}

#[test]
fn node_local_addresses_come_and_go() {
    let _host = Host::enter();
    let address = Ipv4Addr::new(169, 254, 20, 10);
    assert!(UdpSocket::bind(at(address, 53)).is_err());
    add_local_address(address).unwrap();
    add_local_address(address).unwrap();
    assert!(UdpSocket::bind(at(address, 53)).is_ok());
    remove_local_address(address).unwrap();
    remove_local_address(address).unwrap();
    assert!(UdpSocket::bind(at(address, 53)).is_err());
}

#[test]
fn a_node_with_other_ranges_keeps_the_pods_it_has() {
    let host = Host::enter();
    let with = |ranges: &[&str]| {
        PodNetwork::new(&NetworkConfig {
            pod_cidrs: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            run_dir: host.dir.path().join("run"),
            mtu: Some(1400),
            node_ip: None,
            transport: Transport::Auto,
        })
        .unwrap()
    };
    let old = with(&["10.244.7.0/24"]);
    let a = pod(&host, &old, "pod-a");
    drop(old);

    let network = with(&["10.244.9.0/24", "fd00:9::/64"]);
    let b = pod(&host, &network, "pod-b");
    assert_eq!(
        b.address.ips,
        ["10.244.9.2".parse::<IpAddr>().unwrap(), "fd00:9::2".parse().unwrap()]
    );
    assert!(
        UdpSocket::bind(at(a.node, 0)).is_err(),
        "the node's address in the old range is gone"
    );
    let server = host.inside(&a.pinned, || Server::tcp(at(a.ip, 80), "a"));
    assert_eq!(ask_tcp(server.address).unwrap(), "a", "host to the old pod");
    host.inside(&b.pinned, || {
        assert_eq!(ask_tcp(server.address).unwrap(), "a", "new pod to the old one")
    });
    drop(server);
    network.shutdown().unwrap();
    assert!(!interface_exists(&a.address.host_interface) && !interface_exists(&b.address.host_interface));
}
