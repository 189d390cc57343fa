//! What the kernel sees of services' sockets: real connections through the real programs, in a host of the test's own.
//!
//! Nothing here is about how long anything takes: counts, bytes, kinds of failure and relations only.

mod support;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps;
use hull_agent::observe::names::Names;
use hull_agent::observe::snapshot::{Seen, named};
use hull_agent::observe::trace::{self, Asked, Node, Trace};
use hull_agent::observe::{ObserveConfig, Observer, unload};
use hull_agent::proxy::{Algorithm, Backend, Frontend};
use hull_ebpf_types::{LAYOUT, Load, Member, ORIGINS, Origin};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use support::proxy::{Balanced, apply, balanced, in_force, tcp};
use support::{Host, PATIENCE, Server, ask_tcp, loopback};

const ADDRESS: &str = "10.96.0.1:80";

fn observer(host: &Host) -> Observer {
    Observer::load(&ObserveConfig::new(&host.bpf_dir(), &host.cgroup)).unwrap()
}

/// Everything seen, by backend.
fn seen(observer: &Observer) -> HashMap<String, Seen> {
    let views = named(&observer.observed().unwrap(), &Names::default());
    views.into_iter().map(|view| (view.backend, view.seen)).collect()
}

/// What was seen of one backend.
fn of(observer: &Observer, backend: SocketAddr) -> Seen {
    seen(observer).remove(&backend.to_string()).unwrap_or_default()
}

/// Waits until the kernel has seen what the test has done: the last packets of a connection go their own way.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "{what} did not come to pass");
        thread::yield_now();
    }
}

fn to(addresses: &[SocketAddr]) -> Balanced {
    Balanced {
        backends: addresses.iter().map(|address| Backend::new(*address)).collect(),
        ..Balanced::default()
    }
}

fn service() -> Service {
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]});
    serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec})).unwrap()
}

fn asked(last: usize, after: u64) -> Asked {
    Asked {
        namespace: "shop".to_owned(),
        service: "web".to_owned(),
        port: None,
        client: None,
        last,
        after,
    }
}

fn traced(observer: &Observer, asked: &Asked, slices: &[EndpointSlice]) -> Trace {
    let service = service();
    let node = Node {
        name: "n1",
        names: &Names::of([&service]),
        pods: &HashMap::new(),
        service: Some(&service),
        slices,
    };
    trace::trace(observer, asked, &node).unwrap()
}

fn failure(seen: &Seen, kind: &str) -> u64 {
    seen.failures.get(kind).copied().unwrap_or_default()
}

#[test]
fn connections_and_bytes_of_each_backend_are_counted_and_no_others() {
    let host = Host::enter();
    let (one, two) = (Server::tcp(loopback(2), "one"), Server::tcp(loopback(3), "two"));
    let service: Frontend = tcp(ADDRESS);
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[&one, &two]))]);
    let observer = observer(&host);

    let mut asked = HashMap::<String, u64>::new();
    for _ in 0..40 {
        *asked.entry(ask_tcp(service.address).unwrap()).or_default() += 1;
    }
    for _ in 0..5 {
        assert_eq!(ask_tcp(one.address).unwrap(), "one");
    }
    for (name, server) in [("one", &one), ("two", &two)] {
        eventually("every connection ends", || of(&observer, server.address).open == 0);
        let seen = of(&observer, server.address);
        assert_eq!(
            (seen.opened, seen.connect.count()),
            (asked[name], asked[name]),
            "{name}"
        );
        assert_eq!((seen.failed(), seen.retransmits, seen.sent), (0, 0, 0), "{name}");
        // "one 127.0.0.1:45678": the ports may have fewer digits.
        let (least, most) = (seen.opened * 15, seen.opened * 19);
        assert!(
            (least..=most).contains(&seen.received),
            "{name}: {} bytes",
            seen.received
        );
        assert!(seen.connect.quantile(0.99) >= seen.connect.quantile(0.5));
        assert!(
            seen.smoothed > 0,
            "{name}: the balancer learns how long a connect takes"
        );
    }
}

#[test]
fn bytes_are_exact_in_both_directions() {
    let host = Host::enter();
    let listener = TcpListener::bind(SocketAddr::from(loopback(2))).unwrap();
    let backend = listener.local_addr().unwrap();
    let service = tcp(ADDRESS);
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, to(&[backend]))]);
    let observer = observer(&host);
    for close_first in [true, false] {
        let before = of(&observer, backend);
        let mut client = TcpStream::connect(service.address).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[1; 3_000]).unwrap();
        server.read_exact(&mut [0; 3_000]).unwrap();
        server.write_all(&[2; 70_000]).unwrap();
        client.read_exact(&mut [0; 70_000]).unwrap();
        assert_eq!(of(&observer, backend).open, 1);
        if close_first {
            drop(client);
            assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
            drop(server);
        } else {
            drop(server);
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
            drop(client);
        }
        eventually("all is counted", || {
            let since = of(&observer, backend).since(&before);
            (since.sent, since.received) == (3_000, 70_000)
        });
        assert_eq!(of(&observer, backend).open, 0);
    }
    assert!(of(&observer, backend).rtt.count() > 0, "round trips were sampled");
}

#[test]
fn failures_are_told_apart() {
    let host = Host::enter();
    let nobody = TcpListener::bind(SocketAddr::from(loopback(2)))
        .unwrap()
        .local_addr()
        .unwrap();
    let rude = TcpListener::bind(SocketAddr::from(loopback(3))).unwrap();
    let rude_address = rude.local_addr().unwrap();
    let deaf = Deaf::new();
    let (refusing, resetting, silent) = (tcp("10.96.0.1:80"), tcp("10.96.0.1:81"), tcp("10.96.0.1:82"));
    let mut proxy = host.proxy();
    let services = [
        (refusing, to(&[nobody])),
        (resetting, to(&[rude_address])),
        (silent, to(&[deaf.address])),
    ];
    apply(&mut proxy, services);
    let observer = observer(&host);

    let error = TcpStream::connect(refusing.address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(failure(&of(&observer, nobody), "refused"), 1);

    let mut client = TcpStream::connect(resetting.address).unwrap();
    let (server, _) = rude.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let seen = of(&observer, rude_address);
    assert_eq!((failure(&seen, "reset"), seen.opened, seen.open), (1, 1, 0));

    let given_up = TcpStream::connect_timeout(&silent.address, Duration::from_millis(50));
    assert_eq!(given_up.unwrap_err().kind(), ErrorKind::TimedOut);
    eventually("the client gives up", || {
        failure(&of(&observer, deaf.address), "abandoned") == 1
    });

    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::sockopt::set_tcp_user_timeout(&socket, 100).unwrap();
    let error = rustix::net::connect(&socket, &silent.address).unwrap_err();
    assert_eq!(error, rustix::io::Errno::TIMEDOUT);
    let seen = of(&observer, deaf.address);
    assert_eq!((failure(&seen, "timedOut"), seen.opened), (1, 0));
    // What never answers must not look attractive to a balancer by latency.
    assert!(seen.smoothed > 0);

    let lines = traced(&observer, &asked(10, 0), &[]).diary;
    assert!(
        lines.iter().any(|line| line.failure.as_deref() == Some("refused")),
        "{lines:?}"
    );
}

/// A server whose queue of connections is full: it answers no SYN.
struct Deaf {
    address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Deaf {
    fn new() -> Deaf {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(loopback(4))).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(50));
        let queued = std::iter::from_fn(|| connect().ok()).take(8).collect();
        Deaf {
            address,
            _listener: listener,
            _queued: queued,
        }
    }
}

#[test]
fn the_balancer_sees_connections_come_and_go() {
    let host = Host::enter();
    let listener = TcpListener::bind(SocketAddr::from(loopback(2))).unwrap();
    let backend = listener.local_addr().unwrap();
    let service = tcp(ADDRESS);
    let mut proxy = host.proxy();
    let balanced = Balanced {
        algorithm: Algorithm::LeastConnections,
        ..to(&[backend])
    };
    apply(&mut proxy, [(service, balanced)]);
    let observer = observer(&host);
    let member = Member {
        service: 1,
        endpoint: Backend::new(backend).endpoint,
    };
    let counted = maps::Map::HashMap(in_force(&host.bpf_dir(), "load"));
    let counted: maps::HashMap<_, Member, Load> = maps::HashMap::try_from(counted).unwrap();
    let open = || counted.get(&member, 0).unwrap().open;
    let mut clients: Vec<TcpStream> = (0..5).map(|_| TcpStream::connect(service.address).unwrap()).collect();
    assert_eq!((open(), of(&observer, backend).open), (5, 5));
    clients.truncate(2);
    assert_eq!((open(), of(&observer, backend).open), (2, 2));
    clients.clear();
    assert_eq!((open(), of(&observer, backend).open), (0, 0));
}

/// Cookies of the sockets that have a place.
fn places(host: &Host) -> Vec<u64> {
    let path = host.bpf_dir().join(format!("origins_v{LAYOUT}"));
    let map = maps::Map::Array(maps::MapData::from_pin(path).unwrap());
    let places: maps::Array<_, Origin> = maps::Array::try_from(map).unwrap();
    let places = (0..ORIGINS).map(|place| places.get(&place, 0).unwrap());
    let taken = places.inspect(|place| assert_eq!(place.cookie == 0, place.claim == 0));
    taken.map(|place| place.cookie).filter(|cookie| *cookie != 0).collect()
}

#[test]
fn a_socket_gives_its_place_back_when_it_is_closed_and_its_connection_is_gone() {
    let host = Host::enter();
    let listener = TcpListener::bind(SocketAddr::from(loopback(2))).unwrap();
    let backend = listener.local_addr().unwrap();
    let service = tcp(ADDRESS);
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, to(&[backend]))]);
    let one = TcpStream::connect(service.address).unwrap();
    assert_eq!(places(&host).len(), 1);
    drop(one);
    assert_eq!(places(&host).len(), 0, "nobody observes: closing is enough");
    drop(listener.accept().unwrap());

    let observer = observer(&host);
    let mut one = TcpStream::connect(service.address).unwrap();
    let (server, _) = listener.accept().unwrap();
    one.set_nonblocking(true).unwrap();
    while one.write(&[0; 65_536]).is_ok() {}
    drop(one);
    assert_eq!(places(&host).len(), 1, "there is something to send yet");
    drop(server);
    eventually("the end of the connection", || places(&host).is_empty());

    let mut one = TcpStream::connect(service.address).unwrap();
    drop(listener.accept().unwrap());
    assert_eq!(one.read(&mut [0]).unwrap(), 0);
    rustix::net::shutdown(&one, rustix::net::Shutdown::Write).unwrap();
    eventually("the end of the connection", || of(&observer, backend).open == 0);
    drop(one);
    eventually("the end of the socket", || places(&host).is_empty());
    assert_eq!(of(&observer, backend).opened, 2);
}

#[test]
fn a_socket_whose_place_is_taken_is_known_all_the_same() {
    let host = Host::enter();
    let listener = TcpListener::bind(SocketAddr::from(loopback(2))).unwrap();
    let backend = listener.local_addr().unwrap();
    let service = tcp(ADDRESS);
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, to(&[backend]))]);
    let observer = observer(&host);
    let path = host.bpf_dir().join(format!("origins_v{LAYOUT}"));
    let map = maps::Map::Array(maps::MapData::from_pin(path).unwrap());
    let mut origins: maps::Array<_, Origin> = maps::Array::try_from(map).unwrap();
    for place in 0..ORIGINS {
        let stranger = Origin {
            cookie: u64::MAX,
            claim: 1,
            ..Origin::default()
        };
        origins.set(place, stranger, 0).unwrap();
    }
    let client = TcpStream::connect(service.address).unwrap();
    assert_eq!(client.peer_addr().unwrap(), service.address);
    drop(listener.accept().unwrap());
    assert_eq!(of(&observer, backend).open, 1);
    drop(client);
    eventually("the end of the connection", || of(&observer, backend).open == 0);
    assert_eq!(origins.get(&7, 0).unwrap().claim, 1, "nobody's place was touched");
}

#[test]
fn nothing_is_lost_while_no_agent_runs_nor_when_the_next_one_comes() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let backend = server.address;
    let service = tcp(ADDRESS);
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, to(&[backend]))]);
    let first = observer(&host);
    let held = TcpStream::connect(service.address).unwrap();
    assert_eq!(of(&first, backend).open, 1);
    drop((first, proxy));
    ask_tcp(service.address).unwrap();
    let second = observer(&host);
    let seen = of(&second, backend);
    assert_eq!((seen.opened, seen.open), (2, 1));
    drop(held);
    assert_eq!(of(&second, backend).open, 0);
    eventually("begin and end of two connections are in the diary", || {
        traced(&second, &asked(10, 0), &[]).diary.len() == 4
    });
    drop(second);
    unload(&host.bpf_dir()).unwrap();
    assert!(!host.bpf_dir().join("observe").exists());
    drop(TcpStream::connect(service.address).unwrap());
    assert_eq!(of(&observer(&host), backend), Seen::default(), "a new beginning");
}

#[test]
fn a_backend_is_forgotten_when_it_is_gone_and_its_last_connection_is() {
    let host = Host::enter();
    let (leaving, staying) = (Server::tcp(loopback(2), "leaving"), Server::tcp(loopback(3), "staying"));
    let service = tcp(ADDRESS);
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[&leaving, &staying]))]);
    let observer = observer(&host);
    let listener = TcpListener::bind(SocketAddr::from(loopback(4))).unwrap();
    let held_address = listener.local_addr().unwrap();
    let mut three = balanced(&[&leaving, &staying]);
    three.backends.push(Backend::new(held_address));
    apply(&mut proxy, [(service, three)]);
    let mut held = None;
    while seen(&observer).len() < 3 {
        let client = TcpStream::connect(service.address).unwrap();
        if of(&observer, held_address).open > 0 && held.is_none() {
            held = Some(client);
        }
    }
    assert_eq!(observer.sweep().unwrap(), 0);
    assert_eq!(seen(&observer).len(), 3, "all are the service's");

    apply(&mut proxy, [(service, balanced(&[&staying]))]);
    eventually("only the held connection is left", || {
        of(&observer, leaving.address).open == 0
    });
    assert_eq!(observer.sweep().unwrap(), 1, "one is in use");
    let mut left: Vec<String> = seen(&observer).into_keys().collect();
    left.sort();
    assert_eq!(left, [staying.address.to_string(), held_address.to_string()]);

    drop(held);
    assert_eq!(observer.sweep().unwrap(), 0);
    assert_eq!(seen(&observer).len(), 1);
}

#[test]
fn the_diary_tells_what_became_of_the_last_connections() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let service = tcp(ADDRESS);
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[&server]))]);
    let observer = observer(&host);
    let client = TcpStream::connect(service.address).unwrap();
    let own = client.local_addr().unwrap();
    let trace = traced(&observer, &asked(10, 0), &[]);
    let [line] = &trace.diary[..] else {
        panic!("{:?}", trace.diary)
    };
    assert_eq!((line.event.as_str(), &line.client), ("opened", &own.to_string()));
    assert_eq!(
        (&line.asked, &line.backend),
        (&ADDRESS.to_owned(), &server.address.to_string())
    );
    drop(client);
    eventually("the end is written", || {
        !traced(&observer, &asked(10, trace.newest), &[]).diary.is_empty()
    });
    let after = traced(&observer, &asked(10, trace.newest), &[]);
    assert_eq!(
        (after.diary[0].event.as_str(), after.diary[0].socket),
        ("closed", line.socket)
    );

    // A busy backend does not fill the diary: the rest is counted, not written.
    for _ in 0..300 {
        ask_tcp(service.address).unwrap();
    }
    let opened = |trace: Trace| trace.diary.iter().filter(|line| line.event == "opened").count() as u64;
    let written = opened(traced(&observer, &asked(10_000, trace.newest), &[]));
    let left_out = observer.health().unwrap().unwritten;
    assert_eq!((written + left_out, left_out > 0), (300, true));
    assert_eq!(
        traced(&observer, &asked(7, 0), &[]).diary.len(),
        7,
        "no more than asked for"
    );
}

#[test]
fn a_trace_shows_the_kernels_tables_and_who_is_left_out() {
    let host = Host::enter();
    let server = Server::tcp(loopback(2), "one");
    let service = tcp(ADDRESS);
    let mut proxy = host.proxy();
    apply(&mut proxy, [(service, balanced(&[&server]))]);
    let observer = observer(&host);
    ask_tcp(service.address).unwrap();
    let slice = json!({"addressType": "IPv4", "endpoints": [
        {"addresses": ["127.0.0.2"], "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-1"}},
        {"addresses": ["127.0.0.3"], "conditions": {"ready": false}},
    ]});
    let slices = [serde_json::from_value(slice).unwrap()];
    let [view] = &traced(&observer, &asked(0, 0), &slices).frontends[..] else {
        panic!("one address");
    };
    assert_eq!(
        (view.address.as_str(), view.verdict.as_str(), view.translated),
        (ADDRESS, "sent to the only backend", 1)
    );
    let [candidate] = &view.candidates[..] else {
        panic!("{view:?}");
    };
    assert_eq!(
        (candidate.backend.clone(), candidate.pod.as_deref()),
        (server.address.to_string(), Some("shop/web-1"))
    );
    assert!(candidate.latency > 0);
    assert!(
        view.excluded.len() == 1 && view.excluded[0].reason.starts_with("not ready"),
        "{view:?}"
    );

    apply(&mut proxy, [(service, to(&[]))]);
    ask_tcp(service.address).unwrap_err();
    let trace = traced(&observer, &asked(0, 0), &[]);
    assert!(trace.frontends[0].verdict.contains("no endpoints"), "{trace:?}");
    assert_eq!(trace.frontends[0].refused, 1);
    apply(&mut proxy, []);
    let trace = traced(&observer, &asked(0, 0), &[]);
    assert!(
        trace.frontends[0].verdict.contains("not in the kernel's tables"),
        "{trace:?}"
    );
}

mod measuring {
    use super::*;
    use hull_agent::network::namespaces::Kind;
    use hull_agent::observe::bench::plan::{Path, Schedule, Talk};
    use hull_agent::observe::bench::{Exchange, Job, Measured, Target, run};

    /// Echoes on every connection; each answer waits for `pause` to say how long.
    fn echo(pause: impl Fn(u64) -> Duration + Send + Sync + 'static) -> SocketAddr {
        let listener = TcpListener::bind(SocketAddr::from(loopback(2))).unwrap();
        let address = listener.local_addr().unwrap();
        let pause = Arc::new(pause);
        let count = Arc::new(std::sync::atomic::AtomicU64::new(0));
        thread::spawn(move || {
            // Ends with the test's process; it holds nothing but its socket.
            for stream in listener.incoming().flatten() {
                let (pause, count) = (Arc::clone(&pause), Arc::clone(&count));
                thread::spawn(move || {
                    let (mut reader, mut writer) = (&stream, &stream);
                    let mut buffer = [0; 64];
                    while let Ok(read @ 1..) = reader.read(&mut buffer) {
                        thread::sleep(pause(count.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
                        if writer.write_all(&buffer[..read]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    fn target(path: Path, address: SocketAddr) -> Target {
        Target {
            path,
            addresses: vec![address],
            exchange: Exchange::new(&Talk::Echo("0123456789".to_owned()), "x", false),
        }
    }

    fn job(host: &Host, targets: Vec<Target>, schedule: Schedule, connections: u32, milliseconds: u64) -> Job {
        // As from a pod: the threads begin in the process's namespace and move.
        let path = host.netns_dir().join("host").join("net");
        assert!(path.exists(), "{:?} of {:?}", path, Kind::Net);
        Job {
            targets,
            schedule,
            connections,
            duration: Duration::from_millis(milliseconds),
            namespace: Some(std::fs::File::open(path).unwrap().as_fd().try_clone_to_owned().unwrap()),
        }
    }

    fn count(measured: &Measured) -> [u64; 3] {
        [&measured.connect, &measured.first_byte, &measured.round_trip].map(|hdr| hdr.count())
    }

    #[test]
    fn a_rate_gives_every_path_the_same_number_of_operations() {
        let host = Host::enter();
        let backend = echo(|_| Duration::ZERO);
        let service = tcp(ADDRESS);
        let mut proxy = host.proxy();
        apply(&mut proxy, [(service, to(&[backend]))]);
        let targets = vec![target(Path::Pod, backend), target(Path::ClusterIp, service.address)];
        let measured = run(&job(&host, targets, Schedule::Rate(100), 4, 1_600)).unwrap();
        for one in &measured {
            assert_eq!((count(one), one.rounds.len()), ([80; 3], 4), "{:?}", one.failures);
            assert!(one.failures.is_empty() && one.unstarted == 0);
            assert!(one.rounds.iter().flatten().all(|median| *median > 0));
        }
        // The threads are outside the test's cgroup until they come in: only then would the service be found.
        let text = format!("{:?}", measured[1].failures);
        assert_eq!(text, "{}");
    }

    #[test]
    fn operations_due_during_a_stall_are_late_though_they_were_fast() {
        let host = Host::enter();
        // One answer takes 300 ms; with a single client, whatever is due meanwhile has to wait.
        let backend = echo(|number| Duration::from_millis(if number == 20 { 300 } else { 0 }));
        let measured = run(&job(
            &host,
            vec![target(Path::Pod, backend)],
            Schedule::Rate(100),
            1,
            1_000,
        ))
        .unwrap();
        let late: u64 = measured[0]
            .first_byte
            .buckets()
            .iter()
            .filter(|(value, _)| *value > 50_000_000)
            .map(|(_, count)| count)
            .sum();
        assert!(
            late > 5,
            "{late} of {} operations were late",
            measured[0].first_byte.count()
        );
        assert_eq!(measured[0].connect.count() + measured[0].unstarted, 100);
    }

    #[test]
    fn what_fails_is_counted_by_why() {
        let host = Host::enter();
        let nobody = TcpListener::bind(SocketAddr::from(loopback(2)))
            .unwrap()
            .local_addr()
            .unwrap();
        let measured = run(&job(&host, vec![target(Path::Pod, nobody)], Schedule::Rate(50), 2, 200)).unwrap();
        assert_eq!(measured[0].failures.get("refused"), Some(&10));
        assert_eq!(count(&measured[0]), [0; 3]);
        let closed = run(&job(&host, vec![target(Path::Pod, nobody)], Schedule::Closed, 2, 200)).unwrap();
        assert!(closed[0].failures["refused"] > 10, "as fast as they fail");
    }

    /// Not a test: prints what observing costs a connect, by taking the program off and putting it on again in turn.
    /// `cargo nextest run --release -p hull-agent --test observe --run-ignored only --no-capture`
    #[test]
    #[ignore = "a measurement, for a quiet machine"]
    fn cost_of_observing() {
        const ROUNDS: usize = 40;
        const CONNECTS: usize = 2_000;
        let host = Host::enter();
        let server = Server::tcp(loopback(2), "one");
        let service = tcp(ADDRESS);
        let mut proxy = host.proxy();
        apply(&mut proxy, [(service, balanced(&[&server]))]);
        let median = || {
            let mut times: Vec<u64> = (0..CONNECTS)
                .map(|_| {
                    let begin = Instant::now();
                    let stream = TcpStream::connect(service.address).unwrap();
                    let took = u64::try_from(begin.elapsed().as_nanos()).unwrap();
                    drop(stream);
                    took
                })
                .collect();
            times.sort_unstable();
            times[CONNECTS / 2]
        };
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let observer = observer(&host);
            with.push(median());
            drop(observer);
            unload(&host.bpf_dir()).unwrap();
            without.push(median());
        }
        let found = hull_agent::observe::bench::overhead(&with, &without).unwrap();
        let middle = |values: &mut Vec<u64>| {
            values.sort_unstable();
            values[ROUNDS / 2]
        };
        println!(
            "connect p50 {} ns with, {} ns without: {:.4}x [{:.4}, {:.4}]",
            middle(&mut with),
            middle(&mut without),
            found.ratio,
            found.low,
            found.high
        );
    }
}
