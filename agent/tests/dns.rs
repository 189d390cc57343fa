//! The DNS server over real sockets, in a network namespace of the test's own, with resolvers made for the test and with
//! clients that others wrote (dig, the C library).

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hull_agent::dns::{self, Change, Config, Handle, ServiceRecords, ZoneConfig};
use hull_agent::network::add_local_address;
use hull_agent::proxy::Slice;
use serde_json::{Value, json};
use support::{Host, PATIENCE};

const LISTEN: &str = "169.254.20.10:53";
const LISTEN6: &str = "[fd68:756c:6c00::a9fe:140a]:53";
const CLUSTER: &str = "10.96.0.10";

fn listen() -> SocketAddr {
    LISTEN.parse().unwrap()
}

fn listen6() -> SocketAddr {
    LISTEN6.parse().unwrap()
}

/// The server, on a thread with its own runtime.
struct Running {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    handle: Handle,
    resolv_conf: std::path::PathBuf,
}

impl Running {
    fn start(host: &Host, resolv_conf: &str) -> Running {
        std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "0").unwrap();
        let path = host.dir.path().join("resolv.conf");
        std::fs::write(&path, resolv_conf).unwrap();
        let config = Config {
            listen: vec![listen(), listen6()],
            resolv_conf: path.clone(),
            cluster: vec![CLUSTER.parse().unwrap()],
            zone: ZoneConfig {
                domain: "cluster.local".to_owned(),
                ranges: vec!["10.244.0.0/16".parse().unwrap()],
            },
        };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (started, start) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let server = dns::Server::bind(config).await.unwrap();
                started.send(server.handle()).unwrap();
                tokio::select! { () = server.run() => {}, _ = stopped => {} }
            });
        });
        let handle: Handle = start.recv().unwrap();
        handle.replace(vec![headless(2), alias()]);
        Running {
            stop: Some(stop),
            thread: Some(thread),
            handle,
            resolv_conf: path,
        }
    }

    fn metric(&self, line: &str) -> String {
        let mut text = String::new();
        self.handle.write_metrics(&mut text);
        let found = text
            .lines()
            .find_map(|other| other.strip_prefix(line))
            .unwrap_or_default();
        found.trim().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn change(name: &str, spec: Value, endpoints: Value) -> Change {
    let service = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
    let slice = json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]});
    let slice = Slice::new(&serde_json::from_value(slice).unwrap(), "node").unwrap();
    (
        "shop".to_owned(),
        name.to_owned(),
        ServiceRecords::new(&service, [&slice]),
    )
}

/// The service `db.shop` with so many hosts.
fn headless(hosts: usize) -> Change {
    let address = |n: usize| json!({"addresses": [format!("10.244.{}.{}", n / 256, n % 256)]});
    change("db", json!({"clusterIP": "None"}), (0..hosts).map(address).collect())
}

fn alias() -> Change {
    change(
        "out",
        json!({"type": "ExternalName", "externalName": "www.example.com"}),
        json!([]),
    )
}

fn question(name: &str, payload: Option<u16>) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if let Some(payload) = payload {
        let mut extension = Edns::new();
        extension.set_max_payload(payload);
        message.set_edns(extension);
    }
    message
}

fn ask_udp(server: SocketAddr, message: &Message) -> Message {
    let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send(&message.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 8192];
    let length = socket.recv(&mut buffer).unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(reply.metadata.id, message.metadata.id);
    assert_eq!(
        reply.queries[0].name().to_string(),
        message.queries[0].name().to_string()
    );
    reply
}

fn ask(name: &str) -> Message {
    ask_udp(listen(), &question(name, None))
}

fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().unwrap();
    [&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat()
}

fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask_tcp(server: SocketAddr, message: &Message) -> Message {
    let mut stream = connect(server);
    stream.write_all(&framed(message)).unwrap();
    Message::from_vec(&read_framed(&mut stream).unwrap()).unwrap()
}

/// A resolver that knows one address for every name; names that begin with `big` only over TCP, with `missing` none.
/// Ends with the test's process: nothing else reaches its namespace.
fn resolver(address: &str) -> Arc<AtomicUsize> {
    let address: IpAddr = address.parse().unwrap();
    add_local_address(address).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let (socket, listener) = (
        UdpSocket::bind((address, 53)).unwrap(),
        TcpListener::bind((address, 53)).unwrap(),
    );
    let count = asked.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::SeqCst);
            let reply = resolve(&buffer[..length], address, false);
            // Someone guesses: another id, another answer. It must not be believed.
            let mut forged = reply.clone();
            forged.metadata.id ^= 1;
            forged.answers.clear();
            socket.send_to(&forged.to_vec().unwrap(), client).unwrap();
            socket.send_to(&reply.to_vec().unwrap(), client).unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let question = read_framed(&mut stream).unwrap();
            stream.write_all(&framed(&resolve(&question, address, true))).unwrap();
        }
    });
    asked
}

fn resolve(question: &[u8], resolver: IpAddr, tcp: bool) -> Message {
    let mut reply = Message::from_vec(question).unwrap().into_response();
    let name = reply.queries[0].name().clone();
    let text = name.to_string();
    let count = match () {
        () if text.starts_with("missing") => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            return reply;
        }
        () if text.starts_with("big") && !tcp => {
            reply.metadata.truncation = true;
            return reply;
        }
        () if text.starts_with("big") => 100,
        () => 1,
    };
    let IpAddr::V4(resolver) = resolver else {
        panic!("an IPv4 resolver")
    };
    for _ in 0..count {
        reply.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A(resolver))));
    }
    reply
}

/// Waits until `done`, which the kernel's events lead to, for as long as a test may take.
fn eventually(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "it does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn answers_over_both_transports_and_families() {
    let host = Host::enter();
    let server = Running::start(&host, "");
    let known = question("DB.shop.svc.cluster.local.", None);
    for address in [listen(), listen6()] {
        for reply in [ask_udp(address, &known), ask_tcp(address, &known)] {
            assert_eq!(reply.answers.len(), 2);
            assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
        }
    }
    let missing = ask_udp(listen(), &question("nothing.shop.svc.cluster.local.", Some(4096)));
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities[0].record_type(), RecordType::SOA);
    assert!(missing.edns.is_some());
    server.handle.apply(vec![headless(5)]);
    assert_eq!(ask("db.shop.svc.cluster.local.").answers.len(), 5);
    server.handle.apply(vec![("shop".to_owned(), "db".to_owned(), None)]);
    assert_eq!(
        ask("db.shop.svc.cluster.local.").metadata.response_code,
        ResponseCode::NXDomain
    );
    assert_eq!(server.metric("hull_dns_requests_total{proto=\"tcp\",type=\"A\"}"), "2");
    assert_eq!(server.metric("hull_dns_responses_total{rcode=\"NXDOMAIN\"}"), "2");
}

#[test]
fn large_answers_are_cut_off_over_udp_and_whole_over_tcp() {
    let host = Host::enter();
    let server = Running::start(&host, "");
    server.handle.apply(vec![headless(400)]);
    let plain = ask("db.shop.svc.cluster.local.");
    assert!(plain.metadata.truncation && plain.answers.len() > 20);
    let extended = ask_udp(listen(), &question("db.shop.svc.cluster.local.", Some(4096)));
    assert!(extended.metadata.truncation && extended.answers.len() > 200);
    assert_eq!(
        ask_tcp(listen6(), &question("db.shop.svc.cluster.local.", None))
            .answers
            .len(),
        400
    );
}

#[test]
fn a_connection_takes_many_questions_at_once_in_pieces() {
    let host = Host::enter();
    let asked = resolver("192.0.2.53");
    let _server = Running::start(&host, "nameserver 192.0.2.53\n");
    let mut stream = connect(listen());
    let names = [
        "www.example.com.",
        "db.shop.svc.cluster.local.",
        "other.example.com.",
        "db.shop.svc.cluster.local.",
    ];
    let questions: Vec<Message> = names.iter().map(|name| question(name, None)).collect();
    let bytes: Vec<u8> = questions.iter().flat_map(framed).collect();
    for piece in bytes.chunks(7) {
        stream.write_all(piece).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut ids: Vec<u16> = (0..4)
        .map(|_| {
            let reply = Message::from_vec(&read_framed(&mut stream).unwrap()).unwrap();
            assert!(!reply.answers.is_empty());
            reply.metadata.id
        })
        .collect();
    assert!(read_framed(&mut stream).is_err(), "closed after the last reply");
    let mut expected: Vec<u16> = questions.iter().map(|message| message.metadata.id).collect();
    ids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ids, expected);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[test]
fn the_rest_is_forwarded_once_and_never_to_itself() {
    let host = Host::enter();
    let asked = resolver("192.0.2.53");
    let own = listen().ip();
    let server = Running::start(
        &host,
        &format!("nameserver {own}\nnameserver {CLUSTER}\nnameserver 192.0.2.53\n"),
    );
    let reply = ask_udp(listen(), &question("www.example.com.", Some(1232)));
    assert_eq!(reply.answers[0].data.to_string(), "192.0.2.53");
    assert!(reply.edns.is_some() && !reply.metadata.authoritative);
    let again = ask_udp(listen6(), &question("WWW.example.COM.", Some(1232)));
    assert_eq!(again.answers.len(), 1);
    let alias = ask("out.shop.svc.cluster.local.");
    let texts: Vec<String> = alias
        .answers
        .iter()
        .map(|record| format!("{} {}", record.name, record.data))
        .collect();
    assert_eq!(
        texts,
        [
            "out.shop.svc.cluster.local. www.example.com.",
            "www.example.com. 192.0.2.53"
        ]
    );
    ask("db.shop.svc.cluster.local.");
    assert_eq!(
        asked.load(Ordering::SeqCst),
        1,
        "asked once; the cluster's names are not asked for outside"
    );
    assert_eq!(server.metric("hull_dns_cache_hits_total"), "2");
    let big = ask_tcp(listen(), &question("big.example.com.", None));
    assert_eq!(big.answers.len(), 100, "what is cut off is fetched over TCP");
    assert!(ask("big.example.com.").metadata.truncation);
    assert_eq!(
        ask("missing.example.com.").metadata.response_code,
        ResponseCode::NXDomain
    );
    let mut iterative = question("www.example.com.", None);
    iterative.metadata.recursion_desired = false;
    assert_eq!(
        ask_udp(listen(), &iterative).metadata.response_code,
        ResponseCode::Refused
    );
}

#[test]
fn a_silent_resolver_delays_little_and_none_at_all_is_told() {
    let host = Host::enter();
    // Bound, so that nothing refuses; nobody reads.
    add_local_address("192.0.2.1".parse::<IpAddr>().unwrap()).unwrap();
    let silent = UdpSocket::bind("192.0.2.1:53").unwrap();
    resolver("192.0.2.2");
    let server = Running::start(&host, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n");
    for name in ["a.example.com.", "b.example.com."] {
        assert_eq!(ask(name).answers[0].data.to_string(), "192.0.2.2");
    }
    std::fs::write(&server.resolv_conf, "nameserver 192.0.2.1\n").unwrap();
    drop(silent);
    eventually(|| ask("a.example.com.").metadata.response_code == ResponseCode::ServFail);
    assert_eq!(
        ask("db.shop.svc.cluster.local.").answers.len(),
        2,
        "the cluster's own names do not suffer"
    );
}

#[test]
fn a_change_of_the_resolvers_is_followed() {
    let host = Host::enter();
    for address in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        resolver(address);
    }
    let server = Running::start(&host, "nameserver 192.0.2.1\n");
    let from = |address: &str| {
        ask("www.example.com.")
            .answers
            .first()
            .is_some_and(|a| a.data.to_string() == address)
    };
    assert!(from("192.0.2.1"));
    std::fs::write(&server.resolv_conf, "nameserver 192.0.2.2\n").unwrap();
    eventually(|| from("192.0.2.2"));
    let new = server.resolv_conf.with_extension("new");
    std::fs::write(&new, "nameserver 192.0.2.3\n").unwrap();
    std::fs::rename(&new, &server.resolv_conf).unwrap();
    eventually(|| from("192.0.2.3"));
}

#[test]
fn without_a_resolver_the_failure_is_told_at_once() {
    let host = Host::enter();
    let _server = Running::start(&host, &format!("nameserver {}\n", listen().ip()));
    assert_eq!(ask("www.example.com.").metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn nonsense_neither_crashes_nor_silences_the_server() {
    let host = Host::enter();
    let _server = Running::start(&host, "");
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(listen()).unwrap();
    let huge = [0x41; 9000];
    for junk in [
        b"".as_slice(),
        b"x",
        b"\x12\x34\x01\0\xff\xff",
        &[0xff; 600],
        &[0xc0; 64],
        &huge,
    ] {
        socket.send(junk).unwrap();
    }
    let mut stream = connect(listen());
    stream.write_all(&[0, 3, 1, 2]).unwrap();
    drop(stream);
    // One client opens all the connections it may, and says nothing; another one is served.
    let idle: Vec<TcpStream> = (0..40).map(|_| connect(listen())).collect();
    let other = "169.254.20.11".parse::<Ipv4Addr>().unwrap();
    add_local_address(other).unwrap();
    let server = listen();
    let bound = rustix_bind(other, server);
    let mut stream = bound;
    stream
        .write_all(&framed(&question("db.shop.svc.cluster.local.", None)))
        .unwrap();
    assert_eq!(
        Message::from_vec(&read_framed(&mut stream).unwrap())
            .unwrap()
            .answers
            .len(),
        2
    );
    drop(idle);
    assert_eq!(ask("db.shop.svc.cluster.local.").answers.len(), 2);
}

/// A connection from an address of the test's choice.
fn rustix_bind(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((from, 0))).unwrap();
    connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn clients_of_others_understand_the_answers() {
    let host = Host::enter();
    let server = Running::start(&host, "");
    server.handle.apply(vec![
        headless(300),
        change(
            "web",
            json!({"clusterIP": "10.96.0.5", "ports": [{"name": "http", "port": 80}]}),
            json!([]),
        ),
    ]);
    let dig = |arguments: &str| {
        let server = format!("@{}", listen().ip());
        let output = Command::new("dig")
            .arg(server)
            .args(arguments.split(' '))
            .output()
            .expect("dig of dnsutils");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        dig("+short _http._tcp.web.shop.svc.cluster.local SRV"),
        "0 100 80 web.shop.svc.cluster.local.\n"
    );
    assert_eq!(dig("+short dns-version.cluster.local TXT"), "\"1.1.0\"\n");
    assert_eq!(
        dig("+short db.shop.svc.cluster.local A").lines().count(),
        300,
        "dig asks again over TCP"
    );
    assert!(dig("+edns=1 +noednsneg web.shop.svc.cluster.local").contains("BADVERS"));
    assert!(dig("cluster.local AXFR").contains("Transfer failed"));
    assert!(dig("web.shop.svc.cluster.local CH TXT").contains("REFUSED"));
    assert!(dig("+dnssec web.shop.svc.cluster.local").contains("flags: do"));
    let resolv_conf = host.dir.path().join("pod.conf");
    let text = format!(
        "nameserver {}\nsearch shop.svc.cluster.local svc.cluster.local\noptions ndots:5\n",
        listen().ip()
    );
    std::fs::write(&resolv_conf, text).unwrap();
    let script = format!(
        "mount --bind {} /etc/resolv.conf && getent -s dns ahosts web",
        resolv_conf.display()
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.starts_with("10.96.0.5"),
        "{text} {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_listener_addresses_are_released() {
    let host = Host::enter();
    drop(Running::start(&host, ""));
    for address in [listen(), listen6()] {
        assert!(
            UdpSocket::bind(address).is_ok(),
            "a restarting server finds its address"
        );
        dns::release(address.ip()).unwrap();
        assert!(UdpSocket::bind(address).is_err());
    }
}
