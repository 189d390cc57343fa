//! The DNS server over real sockets, in a network namespace of the test's own, with a resolver made for the test.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::str::FromStr;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hull_agent::dns::{self, Config, Handle, Zone, ZoneConfig};
use hull_agent::network::add_local_address;
use serde_json::json;
use support::{Host, PATIENCE};

const LISTEN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 20, 10), 53);
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// The server, on a thread with its own runtime.
struct Running {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    handle: Handle,
}

impl Running {
    fn start(host: &Host, resolv_conf: &str) -> Running {
        let path = host.dir.path().join("resolv.conf");
        std::fs::write(&path, resolv_conf).unwrap();
        let config = Config {
            listen: LISTEN,
            resolv_conf: path,
            exclude: vec![Ipv4Addr::new(10, 96, 0, 10).into()],
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
        let handle = start.recv().unwrap();
        Running {
            stop: Some(stop),
            thread: Some(thread),
            handle,
        }
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

fn zone(backends: u8) -> Zone {
    let endpoints: Vec<_> = (0..backends)
        .map(|n| json!({"addresses": [format!("10.244.0.{n}")]}))
        .collect();
    let service = json!({"metadata": {"name": "db", "namespace": "shop"}, "spec": {"clusterIP": "None"}});
    let alias = json!({"metadata": {"name": "out", "namespace": "shop"},
        "spec": {"type": "ExternalName", "externalName": "www.example.com"}});
    let slice = json!({"metadata": {"name": "db-x", "namespace": "shop",
        "labels": {"kubernetes.io/service-name": "db"}}, "addressType": "IPv4", "endpoints": endpoints});
    let config = ZoneConfig {
        domain: "cluster.local".to_owned(),
        ranges: Vec::new(),
    };
    let services = [
        serde_json::from_value(service).unwrap(),
        serde_json::from_value(alias).unwrap(),
    ];
    Zone::compute(&config, &services, &[serde_json::from_value(slice).unwrap()])
}

fn question(name: &str, edns: bool) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), RecordType::A));
    if edns {
        let mut extension = Edns::new();
        extension.set_max_payload(4096);
        message.set_edns(extension);
    }
    message
}

fn ask_udp(message: &Message) -> Message {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(LISTEN).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send(&message.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(reply.metadata.id, message.metadata.id);
    reply
}

fn ask_tcp(message: &Message) -> Message {
    let mut stream = TcpStream::connect(LISTEN).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let bytes = message.to_vec().unwrap();
    stream
        .write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat())
        .unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).unwrap();
    Message::from_vec(&reply).unwrap()
}

/// A resolver that knows one address; stops with the host.
fn upstream() -> std::thread::JoinHandle<usize> {
    add_local_address(UPSTREAM).unwrap();
    let socket = UdpSocket::bind((UPSTREAM, 53)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let mut answered = 0;
        loop {
            let (length, client) = socket.recv_from(&mut buffer).unwrap();
            if &buffer[..length] == b"stop" {
                return answered;
            }
            let mut reply = Message::from_vec(&buffer[..length]).unwrap().into_response();
            let name = reply.queries[0].name().clone();
            reply.add_answer(Record::from_rdata(
                name,
                60,
                RData::A(A(Ipv4Addr::new(198, 51, 100, 7))),
            ));
            // Someone guesses: another id, another answer. It must not be believed.
            let mut forged = reply.clone();
            forged.metadata.id ^= 1;
            forged.answers.clear();
            socket.send_to(&forged.to_vec().unwrap(), client).unwrap();
            socket.send_to(&reply.to_vec().unwrap(), client).unwrap();
            answered += 1;
        }
    })
}

fn stop_upstream(thread: std::thread::JoinHandle<usize>) -> usize {
    UdpSocket::bind("0.0.0.0:0")
        .unwrap()
        .send_to(b"stop", SocketAddr::from((UPSTREAM, 53)))
        .unwrap();
    thread.join().unwrap()
}

#[test]
fn answers_from_the_zone_over_both_transports() {
    let host = Host::enter();
    let server = Running::start(&host, "");
    server.handle.update(zone(2));
    for reply in [
        ask_udp(&question("db.shop.svc.cluster.local.", false)),
        ask_tcp(&question("db.shop.svc.cluster.local.", false)),
    ] {
        assert_eq!(reply.answers.len(), 2);
        assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
    }
    let missing = ask_udp(&question("nothing.shop.svc.cluster.local.", true));
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities[0].record_type(), RecordType::SOA);
    assert!(missing.edns.is_some());
    server.handle.update(zone(5));
    assert_eq!(ask_udp(&question("db.shop.svc.cluster.local.", false)).answers.len(), 5);
}

#[test]
fn large_answers_are_truncated_over_udp_and_whole_over_tcp() {
    let host = Host::enter();
    let server = Running::start(&host, "");
    server.handle.update(zone(60));
    let plain = ask_udp(&question("db.shop.svc.cluster.local.", false));
    assert!(plain.metadata.truncation && plain.answers.is_empty());
    let extended = ask_udp(&question("db.shop.svc.cluster.local.", true));
    assert!(!extended.metadata.truncation);
    assert_eq!(extended.answers.len(), 60);
    assert_eq!(
        ask_tcp(&question("db.shop.svc.cluster.local.", false)).answers.len(),
        60
    );
}

#[test]
fn the_rest_is_forwarded_but_never_to_itself() {
    let host = Host::enter();
    let resolver = upstream();
    let server = Running::start(
        &host,
        &format!(
            "nameserver {}\nnameserver 10.96.0.10\nnameserver {UPSTREAM}\n",
            LISTEN.ip()
        ),
    );
    server.handle.update(zone(1));
    let reply = ask_udp(&question("www.example.com.", true));
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].data.to_string(), "198.51.100.7");
    let alias = ask_udp(&question("out.shop.svc.cluster.local.", false));
    assert_eq!(alias.answers.len(), 2, "the alias and what it leads to");
    ask_udp(&question("db.shop.svc.cluster.local.", false));
    assert_eq!(
        stop_upstream(resolver),
        2,
        "the cluster's names are not asked for outside"
    );
}

#[test]
fn without_a_resolver_the_failure_is_told_at_once() {
    let host = Host::enter();
    let server = Running::start(&host, &format!("nameserver {}\n", LISTEN.ip()));
    server.handle.update(zone(1));
    let reply = ask_udp(&question("www.example.com.", false));
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn nonsense_neither_crashes_nor_silences_the_server() {
    let host = Host::enter();
    let server = Running::start(&host, "");
    server.handle.update(zone(1));
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(LISTEN).unwrap();
    for junk in [
        b"".as_slice(),
        b"x",
        b"\x12\x34\x01\0\xff\xff",
        &[0xff; 600],
        &[0xc0; 64],
    ] {
        socket.send(junk).unwrap();
    }
    let mut stream = TcpStream::connect(LISTEN).unwrap();
    stream.write_all(&[0, 3, 1, 2]).unwrap();
    drop(stream);
    assert_eq!(ask_udp(&question("db.shop.svc.cluster.local.", false)).answers.len(), 1);
}

#[test]
fn the_listener_address_is_released() {
    let host = Host::enter();
    drop(Running::start(&host, ""));
    assert!(UdpSocket::bind(LISTEN).is_ok(), "a restarting server finds its address");
    dns::release(LISTEN).unwrap();
    assert!(UdpSocket::bind(LISTEN).is_err());
}
