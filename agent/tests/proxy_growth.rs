//! Maps that grow under clients, agents that are killed while they do, and what it costs before anything is there.

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hull_agent::proxy::{Algorithm, Backend, Frontend, Group, Protocol, Proxy, ProxyConfig, ServiceName};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::proxy::{Balanced, apply, balanced, in_force, present, tcp};
use support::{Host, Server, ask_tcp, loopback};

/// Services of this test are many; their backends are nowhere.
fn numbered(number: u32) -> (ServiceName, Vec<Group>) {
    let frontend = Frontend::inside(
        SocketAddr::from((Ipv4Addr::from(0x0a70_0000 + number), 80)),
        Protocol::Tcp,
    );
    let backend = Backend::new(SocketAddr::from((Ipv4Addr::from(0x0af4_0000 + number), 8080)));
    let name = ServiceName::new("many", &number.to_string());
    (name, vec![Group::simple(frontend, [backend])])
}

fn add(proxy: &mut Proxy, numbers: std::ops::Range<u32>) {
    let services: Vec<_> = numbers.map(numbered).collect();
    let changes = services.iter().map(|(name, groups)| (name, groups.as_slice()));
    let report = proxy.update(changes).unwrap();
    assert_eq!(report.rejected, []);
}

fn capacity(proxy: &Proxy, map: &str) -> u32 {
    let fills = proxy.usage().maps;
    fills.iter().find(|fill| fill.map == map).unwrap().capacity
}

/// Connects to a service all the time; says how often, or which connection failed and why.
struct Client {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<std::io::Result<u64>>,
}

impl Client {
    /// The thread inherits the test's namespace and cgroup.
    fn start(service: SocketAddr) -> Client {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut connections = 0;
            while !stopped.load(Ordering::Relaxed) {
                TcpStream::connect(service)
                    .map_err(|error| std::io::Error::other(format!("connection {connections}: {error}")))?;
                connections += 1;
            }
            Ok(connections)
        });
        Client { stop, thread }
    }

    fn connections(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap()
    }
}

/// A connection that stays open.
struct Flow {
    client: TcpStream,
    server: TcpStream,
}

impl Flow {
    fn open(listener: &TcpListener, service: SocketAddr) -> Flow {
        let client = TcpStream::connect(service).unwrap();
        let (server, _) = listener.accept().unwrap();
        Flow { client, server }
    }

    fn goes_on(&mut self, service: SocketAddr) {
        self.client.write_all(b"?").unwrap();
        let mut byte = [0];
        self.server.read_exact(&mut byte).unwrap();
        self.server.write_all(b"!").unwrap();
        self.client.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!");
        assert_eq!(self.client.peer_addr().unwrap(), service);
    }
}

#[test]
fn a_hundred_thousand_services_come_while_clients_connect() {
    const ALL: u32 = 100_000;
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "old");
    let listener = TcpListener::bind(loopback(3)).unwrap();
    let (old, open) = (tcp("10.96.0.1:80"), tcp("10.96.0.2:80"));
    let mut proxy = host.proxy();
    let to_open = Balanced {
        backends: vec![Backend::new(listener.local_addr().unwrap())],
        ..Balanced::default()
    };
    apply(&mut proxy, [(old, balanced(&[&server])), (open, to_open)]);
    let mut flow = Flow::open(&listener, open.address);
    let client = Client::start(old.address);

    let mut sizes = BTreeSet::from([capacity(&proxy, "services")]);
    for begin in (0..ALL).step_by(2_000) {
        add(&mut proxy, begin..begin + 2_000);
        sizes.insert(capacity(&proxy, "services"));
        flow.goes_on(open.address);
    }

    let connections = client.connections();
    assert!(connections > 0);
    assert!(sizes.len() >= 7, "grown through {sizes:?}");
    let counters = proxy.counters(&old).unwrap().unwrap();
    assert_eq!(
        counters.translated, connections,
        "no client is forgotten when the counters grow"
    );
    assert_eq!(proxy.services().count(), ALL as usize + 2);

    // A service that came last is served like the first; and what grew is understood by the next agent.
    let last = tcp("10.96.0.3:80");
    let name = ServiceName::new("test", "last");
    let group = [Group::simple(last, [Backend::new(server.address)])];
    proxy.update([(&name, group.as_slice())]).unwrap();
    assert_eq!(ask_tcp(last.address).unwrap(), "old");
    drop(proxy);
    let proxy = host.proxy();
    assert_eq!(proxy.services().count(), ALL as usize + 3);
    assert_eq!(capacity(&proxy, "slots"), 1 << 18);
    let whole = proxy.services().all(|(_, backends)| backends.len() == 1);
    assert!(whole, "every service has its backend");
    flow.goes_on(open.address);
}

/// Set for a test's other process: where its host is, as the test that started it has it.
const CHILD: &str = "HULL_TEST_GROWING_CHILD";

/// The proxy of the test that started this process, if one did.
fn of_parent() -> Option<Proxy> {
    let place = std::env::var(CHILD).ok()?;
    let mut parts = place.split(' ').map(PathBuf::from);
    let mut next = || parts.next().unwrap();
    Some(Proxy::load(ProxyConfig::new(&next(), &next(), &next())).unwrap())
}

/// Adds services until it is killed, and says before each step how many there are.
fn grow_until_killed(mut proxy: Proxy) -> ! {
    let mut count = u32::try_from(proxy.services().count()).unwrap() - 1;
    loop {
        println!("{count}");
        add(&mut proxy, count..count + 400);
        count += 400;
    }
}

/// A test of this program in another process, on the same host.
struct Other(Child);

impl Other {
    fn start(host: &Host, test: &str) -> Other {
        let place = [host.bpf_dir(), host.cgroup.clone(), host.netns_dir()].map(|path| path.display().to_string());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, place.join(" "))
            .stdout(Stdio::piped())
            .spawn();
        Other(child.unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The identifier of the map of services in force: another one once a growth is done.
fn identifier(bpf_dir: &Path) -> u32 {
    in_force(bpf_dir, "services").info().unwrap().id()
}

#[test]
fn agents_killed_while_maps_grow_leave_whole_maps() {
    if let Some(proxy) = of_parent() {
        grow_until_killed(proxy);
    }
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "old");
    let old = tcp("10.96.0.1:80");
    let mut proxy = host.proxy();
    apply(&mut proxy, [(old, balanced(&[&server]))]);
    drop(proxy);
    let client = Client::start(old.address);
    // A growth takes some milliseconds, most of them in the exchange itself: killed in all parts of it.
    let mut grown = 0;
    for round in 0..8 {
        let before = identifier(&host.bpf_dir());
        let mut child = Other::start(&host, "agents_killed_while_maps_grow_leave_whole_maps");
        let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        for line in lines {
            // Lines of the test harness are no numbers.
            let Ok(count) = line.unwrap().trim().parse::<u32>() else {
                continue;
            };
            let next = capacity_that_is_left(count + 400);
            if next != capacity_that_is_left(count) {
                let until = Instant::now() + Duration::from_millis(3 * round);
                while Instant::now() < until {
                    thread::yield_now();
                }
                break;
            }
        }
        child.kill();
        grown += u32::from(identifier(&host.bpf_dir()) != before);
        let mut proxy = host.proxy();
        let broken = proxy.services().find(|(_, backends)| backends.len() != 1);
        assert_eq!(broken, None, "round {round}");
        // What was prepared and never put in force is removed, what is in force stays.
        let count = u32::try_from(proxy.services().count()).unwrap() - 1;
        let mut desired: support::proxy::Tables = (0..count).map(numbered).collect();
        desired.extend(support::proxy::tables([(old, balanced(&[&server]))]));
        assert_eq!(proxy.apply(&desired).unwrap().changed, 0);
        let fills = proxy.usage().maps;
        for fill in fills.iter().filter(|fill| ["services", "slots"].contains(&fill.map)) {
            assert_eq!(fill.entries, count + 1, "{fill:?}");
        }
        assert_eq!(ask_tcp(old.address).unwrap(), "old");
    }
    assert!(grown > 0, "no growth was even finished");
    assert!(client.connections() > 0);
}

/// Which size a map with so many elements has: it changes where it grows.
fn capacity_that_is_left(entries: u32) -> u32 {
    // One is another service's, three quarters are filled.
    ((entries + 1) * 4 / 3).next_power_of_two().max(1024)
}

/// No map can be made while every descriptor that the process may have is in use.
fn without_descriptors<T>(task: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::Nofile);
    let few = Rlimit {
        current: Some(64),
        ..before
    };
    setrlimit(Resource::Nofile, few).unwrap();
    let taken: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let result = task();
    drop(taken);
    setrlimit(Resource::Nofile, before).unwrap();
    result
}

#[test]
fn a_map_that_cannot_grow_is_reported_and_grows_as_soon_as_it_can() {
    const TEST: &str = "a_map_that_cannot_grow_is_reported_and_grows_as_soon_as_it_can";
    let Some(mut proxy) = of_parent() else {
        // Limits are a process's.
        let host = Host::enter();
        let mut other = Other::start(&host, TEST);
        let mut said = String::new();
        other.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(other.0.wait().unwrap().success(), "{said}");
        return;
    };
    let (services, more): (Vec<_>, Vec<_>) = ((0..700).map(numbered).collect(), (700..1400).map(numbered).collect());
    let update = |proxy: &mut Proxy, all: &[(ServiceName, Vec<Group>)]| {
        let changes = all.iter().map(|(name, groups)| (name, groups.as_slice()));
        proxy.update(changes).unwrap()
    };
    assert_eq!(update(&mut proxy, &services).rejected, []);
    let report = without_descriptors(|| update(&mut proxy, &more));
    // What there was room for is served, the rest is named, and why.
    assert_eq!(proxy.services().count(), 1024);
    assert_eq!(
        (report.rejected.len(), proxy.usage().rejected),
        (1400 - 1024, 1400 - 1024)
    );
    let reason = &report.rejected[0].reason;
    assert!(
        reason.contains("cannot grow from 1024 to 2048 elements: Too many open files"),
        "{reason}"
    );

    assert_eq!(update(&mut proxy, &[numbered(1400)]).rejected, []);
    assert_eq!((proxy.services().count(), proxy.usage().rejected), (1401, 0));
}

#[test]
fn what_nobody_uses_takes_no_memory() {
    let host = Host::enter();
    let mut proxy = host.proxy();
    let at_rest = memory(&host.bpf_dir());
    assert!(at_rest < 256 * 1024, "{at_rest} bytes for maps that grow and are empty");

    let server = Server::tcp(loopback(2), "one");
    let weighed = Balanced {
        algorithm: Algorithm::LeastConnections,
        affinity: 60,
        ..balanced(&[&server])
    };
    apply(&mut proxy, [(tcp("10.96.0.1:80"), weighed)]);
    assert_eq!(ask_tcp("10.96.0.1:80".parse().unwrap()).unwrap(), "one");
    assert!(memory(&host.bpf_dir()) > at_rest, "what is needed is there");
}

/// Bytes that the maps behind outer maps take, as the kernel has them in fdinfo.
fn memory(bpf_dir: &Path) -> u64 {
    let names = [
        "services",
        "slots",
        "tables",
        "members",
        "addresses",
        "counters",
        "load",
        "affinity",
    ];
    let maps = names.iter().filter_map(|name| present(bpf_dir, name));
    maps.map(|map| {
        use std::os::fd::{AsFd as _, AsRawFd as _};
        let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        let text = std::fs::read_to_string(path).unwrap();
        let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap();
        bytes.trim().parse::<u64>().unwrap()
    })
    .sum()
}
