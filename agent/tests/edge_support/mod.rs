//! A small world for the packet programs: a client outside, a router, two nodes on one link, pods on the nodes; all of
//! them network namespaces, with real traffic between them. Everything goes with the test.
//!
//! ```text
//! client 203.0.113.7 ── router ─┬─ node 1: 192.0.2.1, pods 10.244.1.0/24
//!                               └─ node 2: 192.0.2.2, pods 10.244.2.0/24
//! ```
#![allow(dead_code, reason = "every test crate uses another part")]

mod offers;
pub mod sctp;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hull_agent::network::namespaces::{self, Kind, Pinned};
use hull_agent::network::{NetworkConfig, PodNetwork, Transport};
use hull_agent::proxy::edge::{self, Attach, Edge, EdgeConfig, EdgeLimits, EdgePod, EdgeView};
use hull_agent::proxy::{self, Proxy, ProxyConfig};
use hull_ebpf_types::Affinity;
use hull_ebpf_types::edge::{Reason, Track, Tuple, Visitor};
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};

#[allow(unused_imports, reason = "every test crate uses another part")]
pub use offers::{Offer, SCTP, TCP, UDP};

pub const PATIENCE: Duration = Duration::from_secs(5);
pub const CLIENT: &str = "203.0.113.7";
pub const CLIENT6: &str = "2001:db8:c::7";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Runs iproute2 commands in a network namespace.
fn ip(namespace: &str, commands: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), commands).unwrap();
    let output = Command::new("ip")
        .args(["-netns", namespace, "-batch"])
        .arg(file.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{commands}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs `task` in a thread inside the namespace.
pub fn within<T: Send>(path: &str, task: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(path).unwrap();
    namespaces::within(&namespace, || Ok(task())).unwrap()
}

pub struct World {
    name: String,
    pub client: String,
    pub router: String,
    pub nodes: Vec<Node>,
}

pub struct Node {
    pub number: u8,
    pub namespace: String,
    pub dir: tempfile::TempDir,
    pub cgroup: PathBuf,
    pub network: PodNetwork,
    pub proxy: Option<Proxy>,
    pub edge: Option<Edge>,
    pub attach: Attach,
    limits: EdgeLimits,
    /// Of the edge's maps; another one than the usual is an upgrade.
    pub layout: u32,
    pods: Vec<Pinned>,
    generation: u32,
    neighbours: bool,
}

/// A pod that runs outside of the cgroup that socket programs see, as a pod with its own kernel would.
pub struct Pod {
    pub namespace: String,
    pub addresses: Vec<IpAddr>,
    pub edge: EdgePod,
    pub uid: String,
}

fn path(namespace: &str) -> String {
    format!("/run/netns/{namespace}")
}

impl World {
    pub fn new() -> World {
        World::with(Attach::probe())
    }

    pub fn with(attach: Attach) -> World {
        World::limited(attach, EdgeLimits::default())
    }

    /// With maps of the nodes' edges that hold so much.
    pub fn limited(attach: Attach, limits: EdgeLimits) -> World {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("edge{}x{number}", std::process::id());
        let mut world = World {
            client: path(&format!("{name}c")),
            router: path(&format!("{name}r")),
            nodes: Vec::new(),
            name,
        };
        world.build();
        for number in [1, 2] {
            let node = world.node(number, attach, limits);
            world.nodes.push(node);
        }
        world
    }

    fn build(&self) {
        let name = &self.name;
        for suffix in ["c", "r", "1", "2"] {
            let status = Command::new("ip")
                .args(["netns", "add", &format!("{name}{suffix}")])
                .status();
            assert!(status.unwrap().success());
        }
        // Link-local addresses work at once: before that no neighbour would be asked for.
        for suffix in ["c", "r", "1", "2"] {
            within(&path(&format!("{name}{suffix}")), || {
                fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
            });
        }
        ip(
            &format!("{name}r"),
            &format!(
                "link set lo up\n\
                 link add br0 type bridge\n\
                 addr add 192.0.2.254/24 dev br0\n\
                 addr add 2001:db8:1::fe/64 dev br0 nodad\n\
                 link set br0 up\n\
                 link add c type veth peer name eth0 netns {name}c\n\
                 addr add 203.0.113.254/24 dev c\n\
                 addr add 2001:db8:c::fe/64 dev c nodad\n\
                 link set c up\n\
                 link add n1 type veth peer name eth0 netns {name}1\n\
                 link set n1 master br0 up\n\
                 link add n2 type veth peer name eth0 netns {name}2\n\
                 link set n2 master br0 up\n"
            ),
        );
        within(&self.router, || {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        ip(
            &format!("{name}c"),
            &format!(
                "link set lo up\n\
                 link set eth0 up\n\
                 addr add {CLIENT}/24 dev eth0\n\
                 addr add {CLIENT6}/64 dev eth0 nodad\n\
                 route add default via 203.0.113.254\n\
                 route add default via 2001:db8:c::fe\n"
            ),
        );
        for (own, other) in [(1, 2), (2, 1)] {
            ip(
                &format!("{name}{own}"),
                &format!(
                    "link set lo up\n\
                     link set eth0 up\n\
                     addr add 192.0.2.{own}/24 dev eth0\n\
                     addr add 2001:db8:1::{own}/64 dev eth0 nodad\n\
                     route add default via 192.0.2.254\n\
                     route add default via 2001:db8:1::fe\n\
                     route add 10.244.{other}.0/24 via 192.0.2.{other}\n\
                     route add fd00:{other}::/64 via 2001:db8:1::{other}\n"
                ),
            );
        }
    }

    fn node(&self, number: u8, attach: Attach, limits: EdgeLimits) -> Node {
        let namespace = path(&format!("{}{number}", self.name));
        let dir = tempfile::tempdir().unwrap();
        let cgroup = cgroup2_mount().join(format!("hull-{}{number}", self.name));
        fs::create_dir_all(&cgroup).unwrap();
        let network = within(&namespace, || {
            PodNetwork::new(&NetworkConfig {
                pod_cidrs: vec![
                    format!("10.244.{number}.0/24").parse().unwrap(),
                    format!("fd00:{number}::/64").parse().unwrap(),
                ],
                run_dir: dir.path().join("run"),
                mtu: None,
                node_ip: None,
                transport: Transport::Direct,
            })
            .unwrap()
        });
        let mut node = Node {
            number,
            namespace,
            dir,
            cgroup,
            network,
            proxy: None,
            edge: None,
            attach,
            limits,
            layout: hull_ebpf_types::edge::LAYOUT,
            pods: Vec::new(),
            generation: 0,
            neighbours: true,
        };
        node.start();
        node
    }

    /// Runs `task` as a process of the client's machine.
    pub fn outside<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        within(&self.client, task)
    }

    /// iproute2 commands on the client's machine, the router, or a node.
    pub fn ip(&self, suffix: &str, commands: &str) {
        ip(&format!("{}{suffix}", self.name), commands);
    }
}

impl Node {
    pub fn bpf_dir(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    pub fn address(&self) -> IpAddr {
        format!("192.0.2.{}", self.number).parse().unwrap()
    }

    pub fn address6(&self) -> IpAddr {
        format!("2001:db8:1::{}", self.number).parse().unwrap()
    }

    /// Loads both proxies as a starting agent does.
    pub fn start(&mut self) {
        let (bpf, netns) = (self.bpf_dir(), self.dir.path().join("netns"));
        let (cgroup, attach, limits, layout) = (self.cgroup.clone(), self.attach, self.limits, self.layout);
        let view = self.view();
        let (proxy, edge) = within(&self.namespace, || {
            let proxy = Proxy::load(ProxyConfig::new(&bpf, &cgroup, &netns)).unwrap();
            let mut config = EdgeConfig::new(&bpf);
            config.attach = attach;
            config.limits = limits;
            config.layout = layout;
            let edge = Edge::load(config).unwrap();
            edge.apply(&view).unwrap();
            (proxy, edge)
        });
        self.proxy = Some(proxy);
        self.edge = Some(edge);
    }

    /// Whether all other nodes are said to be on the node's link.
    pub fn neighbours(&mut self, neighbours: bool) {
        self.neighbours = neighbours;
        let view = self.view();
        within(&self.namespace, || self.edge().apply(&view).unwrap());
    }

    pub fn view(&self) -> EdgeView {
        EdgeView {
            gateways: self.network.node_addresses().to_vec(),
            cluster: ["10.244.0.0/16", "fd00::/16", "192.0.2.0/24", "2001:db8:1::/64"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            neighbours: self.neighbours,
            ..EdgeView::default()
        }
    }

    fn map<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> aya::maps::HashMap<aya::maps::MapData, K, V> {
        let pin = self.bpf_dir().join(format!("{name}_v{}", self.layout));
        let map = aya::maps::Map::LruHashMap(aya::maps::MapData::from_pin(pin).unwrap());
        aya::maps::HashMap::try_from(map).unwrap()
    }

    /// How many entries of TCP there are.
    pub fn streams(&self) -> usize {
        self.map::<Tuple, Track>("edge_streams").keys().count()
    }

    /// As if so much time had passed since clients with affinity were last seen.
    pub fn age_clients(&self, time: Duration) {
        let mut map = self.map::<Visitor, Affinity>("edge_affinity");
        let clients: Vec<(Visitor, Affinity)> = map.iter().map(Result::unwrap).collect();
        assert_ne!(clients.len(), 0);
        for (visitor, mut affinity) in clients {
            affinity.used = affinity.used.wrapping_sub(time.as_nanos() as u64);
            map.insert(visitor, affinity, 0).unwrap();
        }
    }

    fn pinned(&self, prefix: &str) -> usize {
        let entries = fs::read_dir(self.bpf_dir()).unwrap();
        entries
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with(prefix)
            })
            .count()
    }

    /// Pinned links of packet programs.
    pub fn links(&self) -> usize {
        self.pinned("tcx_")
    }

    /// Pinned maps of packet programs.
    pub fn pins(&self) -> usize {
        self.pinned("edge_")
    }

    /// Filters of packet programs on the node's uplink and pods.
    pub fn filters(&self) -> usize {
        within(&self.namespace, || {
            let links = run("ip", &["-o", "link"]);
            let names = links
                .lines()
                .filter_map(|line| line.split(": ").nth(1)?.split('@').next());
            let shown = names
                .flat_map(|name| ["ingress", "egress"].map(|hook| run("tc", &["filter", "show", "dev", name, hook])));
            shown.map(|text| text.matches("direct-action").count()).sum()
        })
    }

    /// As after kill -9: the descriptors are closed, nothing is undone.
    pub fn kill(&mut self) {
        self.proxy = None;
        self.edge = None;
    }

    /// Makes these the only services of the node.
    pub fn offer(&mut self, offers: &[Offer]) {
        self.generation += 1;
        let addresses = [self.address(), self.address6()];
        offers::write(&self.bpf_dir(), &addresses, offers, self.generation);
    }

    /// How often something was counted.
    pub fn counted(&self, reason: Reason) -> u64 {
        self.edge().reasons().unwrap()[reason as usize]
    }

    pub fn edge(&self) -> &Edge {
        self.edge.as_ref().unwrap()
    }

    pub fn pod(&mut self, name: &str) -> Pod {
        let uid = format!("{name}-{}", self.number);
        let pinned = Pinned::create(&self.dir.path().join("netns").join(&uid), &[Kind::Net], None).unwrap();
        let namespace = pinned.path(Kind::Net);
        let address = within(&self.namespace, || self.network.setup(&uid, &namespace).unwrap());
        self.pods.push(pinned);
        let edge = EdgePod {
            interface: address.host_interface.clone(),
            addresses: address.ips.clone(),
            mac: address.mac(),
        };
        within(&self.namespace, || self.edge().attach_pod(&edge).unwrap());
        Pod {
            namespace: namespace.to_string_lossy().into_owned(),
            addresses: address.ips,
            edge,
            uid,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let (bpf, network) = (self.bpf_dir(), &self.network);
        within(&self.namespace, || {
            let _ = network.shutdown();
            let _ = edge::unload(&bpf);
            let _ = proxy::unload(&bpf);
        });
        for pod in &self.pods {
            let _ = pod.remove();
        }
        let _ = fs::remove_dir(&self.cgroup);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.nodes.clear();
        for suffix in ["c", "r", "1", "2"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &format!("{}{suffix}", self.name)])
                .status();
        }
    }
}

impl Pod {
    pub fn v4(&self) -> IpAddr {
        *self.addresses.iter().find(|ip| ip.is_ipv4()).unwrap()
    }

    pub fn v6(&self) -> IpAddr {
        *self.addresses.iter().find(|ip| ip.is_ipv6()).unwrap()
    }

    /// Runs `task` as a process of the pod.
    pub fn inside<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        within(&self.namespace, task)
    }

    /// Answers `<name> <client's address>` to TCP and UDP clients on both families, for as long as the result lives.
    pub fn serve(&self, port: u16, name: &str) -> Server {
        Server::start(&self.namespace, port, name)
    }
}

pub struct Server {
    stop: mpsc::Sender<()>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(namespace: &str, port: u16, name: &str) -> Server {
        let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
        let (tcp, udp) = within(namespace, || {
            (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
        });
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (stop, stopped) = mpsc::channel::<()>();
        let (stop_udp, stopped_udp) = mpsc::channel::<()>();
        let (first, second) = (name.to_owned(), name.to_owned());
        let streams = thread::spawn(move || {
            // Holds the other thread's end: both stop together.
            let _stop = stop_udp;
            accept(&tcp, &stopped, &first);
        });
        let datagrams = thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !matches!(stopped_udp.try_recv(), Err(mpsc::TryRecvError::Disconnected)) {
                if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    let mut answer = format!("{second} {}", plain(from)).into_bytes();
                    answer.resize(answer.len().max(length), b' ');
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        Server {
            stop,
            threads: vec![streams, datagrams],
        }
    }
}

/// Every connection says who it is from, then echoes.
fn accept(listener: &TcpListener, stopped: &mpsc::Receiver<()>, name: &str) {
    loop {
        match listener.accept() {
            Ok((mut stream, from)) => {
                let name = name.to_owned();
                thread::spawn(move || {
                    stream.set_nonblocking(false).unwrap();
                    let _ = stream.write_all(format!("{name} {}\n", plain(from)).as_bytes());
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..length]).is_err() {
                            return;
                        }
                    }
                });
            }
            Err(_) => {
                if !matches!(
                    stopped.recv_timeout(Duration::from_millis(5)),
                    Err(mpsc::RecvTimeoutError::Timeout)
                ) {
                    return;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let (stop, _) = mpsc::channel();
        drop(std::mem::replace(&mut self.stop, stop));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// An IPv4 client of an IPv6 socket, as IPv4.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What a server says: its name, and which client it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub server: String,
    pub client: SocketAddr,
}

fn parse(text: &str) -> Answer {
    let (server, client) = text.trim().split_once(' ').unwrap();
    Answer {
        server: server.to_owned(),
        client: client.parse().unwrap(),
    }
}

/// One connection: what the server says first. The stream is still open.
pub fn connect(to: SocketAddr) -> std::io::Result<(TcpStream, Answer)> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\n") {
        if stream.read(&mut byte)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        text.push(byte[0]);
    }
    Ok((stream, parse(&String::from_utf8(text).unwrap())))
}

/// One connection, and that it carries data both ways.
pub fn ask_tcp(to: SocketAddr) -> std::io::Result<Answer> {
    let (mut stream, answer) = connect(to)?;
    echo(&mut stream)?;
    Ok(answer)
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    Graceful,
    Reset,
    Never,
}

impl Closing {
    /// Ends the stream, and waits for the other side's end where it has one; gives back one that goes on.
    pub fn end(self, mut stream: TcpStream) -> Option<TcpStream> {
        match self {
            Closing::Graceful => {
                sockopt::set_socket_linger(&stream, None).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                while stream.read(&mut [0; 64]).unwrap() > 0 {}
                None
            }
            Closing::Reset => {
                sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                None
            }
            Closing::Never => Some(stream),
        }
    }
}

/// One connection from a port that is used again; with a reset it leaves nothing behind in the client's kernel.
pub fn connect_from(port: u16, to: SocketAddr, closing: Closing) -> std::io::Result<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if closing == Closing::Reset {
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    }
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    rustix::net::bind(&socket, &SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, port)))?;
    rustix::net::connect(&socket, &to)?;
    let mut stream = TcpStream::from(socket);
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    Ok(stream)
}

/// Runs a program and gives back what it says.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Whether an echo request is answered; icmp(7) ping sockets, which pods and root may open.
pub fn ping(to: IpAddr) -> std::io::Result<bool> {
    let (family, protocol, request, answered) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
    };
    // A thread is not a process of the namespace's only group: without ping sockets, a raw one does.
    let (socket, raw) = match rustix::net::socket(family, SocketType::DGRAM, Some(protocol)) {
        Ok(socket) => (socket, false),
        Err(_) => (rustix::net::socket(family, SocketType::RAW, Some(protocol))?, true),
    };
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    rustix::net::connect(&socket, &SocketAddr::new(to, 0))?;
    // Type, code, checksum (the kernel's for ping sockets and IPv6), identifier, sequence number.
    let mut packet = [request, 0, 0, 0, 0x12, 0x34, 0, 1];
    if raw && to.is_ipv4() {
        let sum = !(0x0800_u16 + 0x1234 + 1);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    // Once: the first packet has to arrive, however new interfaces and neighbours are.
    rustix::net::send(&socket, &packet, rustix::net::SendFlags::empty())?;
    let mut buffer = [0; 256];
    // A raw socket sees its own request, too, when the answer comes over loopback.
    while let Ok((length, _)) = rustix::net::recv(&socket, &mut buffer[..], rustix::net::RecvFlags::empty()) {
        let header = if raw && to.is_ipv4() {
            usize::from(buffer[0] & 15) * 4
        } else {
            0
        };
        if length > header && buffer[header] == answered {
            return Ok(true);
        }
    }
    Ok(false)
}

pub fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"there and back")?;
    let mut back = [0; 14];
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"there and back");
    Ok(())
}

/// One datagram of `length` bytes and its answer, from a connected socket.
pub fn ask_udp(to: SocketAddr, length: usize) -> std::io::Result<Answer> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    ask_on(&socket, length)
}

pub fn ask_on(socket: &UdpSocket, length: usize) -> std::io::Result<Answer> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&vec![b'?'; length])?;
    let mut buffer = vec![0; 65_536];
    let got = socket.recv(&mut buffer)?;
    assert!(got >= length, "{got} of {length} bytes came back");
    Ok(parse(&String::from_utf8_lossy(&buffer[..got])))
}

fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .expect("a cgroup2 mount");
    line.split(' ').nth(4).unwrap().into()
}
