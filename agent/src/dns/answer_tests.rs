//! The names of Kubernetes' DNS specification 1.1.0, asked one by one; replies are read by another implementation.

use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{self, RData, RecordType};
use k8s_openapi::api::core::v1::Service;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::dns::reply::Transport;
use crate::dns::{Change, ZoneConfig};
use crate::proxy::Slice;

fn change(name: &str, spec: Value, slices: &[Value]) -> Change {
    let service: Service = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
    let slice = |slice: &Value| Slice::new(&serde_json::from_value(slice.clone()).unwrap(), "node").unwrap();
    let slices: Vec<Slice> = slices.iter().map(slice).collect();
    (
        "shop".to_owned(),
        name.to_owned(),
        ServiceRecords::new(&service, &slices),
    )
}

fn slice(kind: &str, port: i32, endpoints: Value) -> Value {
    json!({"metadata": {}, "addressType": kind, "endpoints": endpoints,
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}]})
}

fn empty_zone() -> Zone {
    let ranges = ["10.96.0.0/16", "10.244.0.0/16", "fd00:10:96::/112", "fd00:10:244::/64"];
    let config = ZoneConfig {
        domain: "cluster.local".to_owned(),
        ranges: ranges.map(|range| range.parse().unwrap()).to_vec(),
    };
    Zone::new(&config, vec!["10.96.0.10".parse().unwrap()]).unwrap()
}

fn zone() -> Zone {
    let ports =
        json!([{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let pods = slice(
        "IPv4",
        8080,
        json!([
            {"addresses": ["10.244.0.7"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.244.0.8"], "conditions": {}},
            {"addresses": ["10.244.0.9"], "hostname": "db-2", "conditions": {"ready": false}},
        ]),
    );
    let pods6 = slice(
        "IPv6",
        8080,
        json!([{"addresses": ["fd00:10:244::7"], "hostname": "db-0"}]),
    );
    let plain = json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ports": ports});
    let dual = json!({"clusterIP": "10.96.0.6", "clusterIPs": ["10.96.0.6", "fd00:10:96::6"], "ports": ports});
    let headless = json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": ports});
    let alias = |target: &str| json!({"type": "ExternalName", "externalName": target});
    let unready = slice(
        "IPv4",
        80,
        json!([{"addresses": ["10.244.0.20"], "conditions": {"ready": false}}]),
    );
    let zone = empty_zone();
    zone.replace(vec![
        change(
            "web",
            plain,
            &[slice("IPv4", 8080, json!([{"addresses": ["10.244.0.30"]}]))],
        ),
        change("dual", dual, &[]),
        change("db", headless.clone(), &[pods, pods6]),
        change("empty", headless.clone(), std::slice::from_ref(&unready)),
        change(
            "early",
            json!({"clusterIP": "None", "publishNotReadyAddresses": true}),
            &[unready],
        ),
        change("outside", alias("www.example.com"), &[]),
        change("inside", alias("web.shop.svc.cluster.local"), &[]),
        change("nowhere", alias("missing.shop.svc.cluster.local"), &[]),
        change("circle", alias("circle.shop.svc.cluster.local"), &[]),
        change("unassigned", json!({"clusterIP": "", "ports": ports}), &[]),
    ]);
    zone
}

/// The bytes of a question.
fn question(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut query = Query::query(rr::Name::from_ascii(name).unwrap(), kind);
    query.set_query_class(rr::DNSClass::IN);
    message.add_query(query);
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn ask_zone(zone: &Zone, message: &[u8], transport: Transport, rotation: usize) -> (Verdict, Vec<u8>) {
    let request = Request::parse(message).unwrap();
    let mut out = Vec::new();
    let mut reply = Reply::new(&mut out, &request, transport);
    let verdict = zone.answer(&request, &mut reply, rotation);
    match &verdict {
        Verdict::Answered(code) => reply.finish(*code, true),
        _ => reply.finish(code::NOERROR, false),
    }
    (verdict, out)
}

fn ask(name: &str, kind: RecordType) -> Message {
    let (verdict, reply) = ask_zone(&zone(), &question(name, kind, None), Transport::Udp, 0);
    assert!(matches!(verdict, Verdict::Answered(_)), "{name}: {verdict:?}");
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(
        reply.queries[0].name().to_string(),
        name,
        "upper and lower case come back"
    );
    reply
}

/// The answers as text, sorted; panics when the name does not exist.
fn answers(name: &str, kind: RecordType) -> Vec<String> {
    let reply = ask(name, kind);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
    let soa = reply
        .authorities
        .iter()
        .any(|record| record.record_type() == RecordType::SOA);
    assert_eq!(reply.answers.is_empty(), soa, "{name}: no data comes with the SOA");
    let mut texts: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
    texts.sort();
    texts
}

fn does_not_exist_of(name: &str, kind: RecordType, zone: &str) {
    let reply = ask(name, kind);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
    let soa = &reply.authorities[0];
    assert_eq!((soa.record_type(), soa.ttl), (RecordType::SOA, TTL));
    assert_eq!(soa.name.to_string().to_ascii_lowercase(), zone, "{name}");
}

fn does_not_exist(name: &str) {
    does_not_exist_of(name, RecordType::A, "cluster.local.");
}

#[test]
fn a_service_has_its_addresses() {
    assert_eq!(answers("web.shop.svc.cluster.local.", RecordType::A), ["10.96.0.5"]);
    assert_eq!(answers("WEB.Shop.SVC.cluster.LOCAL.", RecordType::A), ["10.96.0.5"]);
    assert!(answers("web.shop.svc.cluster.local.", RecordType::AAAA).is_empty());
    assert!(answers("web.shop.svc.cluster.local.", RecordType::MX).is_empty());
    assert!(answers("web.shop.svc.cluster.local.", RecordType::HTTPS).is_empty());
    assert_eq!(answers("dual.shop.svc.cluster.local.", RecordType::A), ["10.96.0.6"]);
    assert_eq!(
        answers("dual.shop.svc.cluster.local.", RecordType::AAAA),
        ["fd00:10:96::6"]
    );
    let reply = ask("web.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(reply.answers[0].ttl, TTL);
    assert_eq!(reply.answers[0].name.to_string(), "web.shop.svc.cluster.local.");
}

#[test]
fn a_headless_service_has_its_ready_hosts() {
    assert_eq!(
        answers("db.shop.svc.cluster.local.", RecordType::A),
        ["10.244.0.7", "10.244.0.8"]
    );
    assert_eq!(
        answers("db.shop.svc.cluster.local.", RecordType::AAAA),
        ["fd00:10:244::7"]
    );
    assert_eq!(
        answers("db-0.db.shop.svc.cluster.local.", RecordType::A),
        ["10.244.0.7"]
    );
    assert_eq!(
        answers("db-0.db.shop.svc.cluster.local.", RecordType::AAAA),
        ["fd00:10:244::7"]
    );
    assert_eq!(
        answers("10-244-0-8.db.shop.svc.cluster.local.", RecordType::A),
        ["10.244.0.8"]
    );
    assert!(answers("10-244-0-8.db.shop.svc.cluster.local.", RecordType::AAAA).is_empty());
    does_not_exist("db-2.db.shop.svc.cluster.local.");
    does_not_exist("10-244-0-7.db.shop.svc.cluster.local.");
    does_not_exist("empty.shop.svc.cluster.local.");
    assert_eq!(answers("early.shop.svc.cluster.local.", RecordType::A), ["10.244.0.20"]);
}

#[test]
fn pods_of_any_service_have_names_below_it() {
    assert_eq!(
        answers("10-244-0-30.web.shop.svc.cluster.local.", RecordType::A),
        ["10.244.0.30"]
    );
    does_not_exist("10-244-0-31.web.shop.svc.cluster.local.");
}

#[test]
fn addresses_rotate() {
    let zone = zone();
    let message = question("db.shop.svc.cluster.local.", RecordType::A, None);
    let first = |rotation| {
        let (_, reply) = ask_zone(&zone, &message, Transport::Udp, rotation);
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(reply.answers.len(), 2);
        reply.answers[0].data.to_string()
    };
    let order: Vec<String> = (0..4).map(first).collect();
    assert!(order.contains(&"10.244.0.7".to_owned()) && order.contains(&"10.244.0.8".to_owned()));
}

#[test]
fn ports_have_srv_records_with_their_targets() {
    let web = answers("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV);
    assert_eq!(web, ["0 100 80 web.shop.svc.cluster.local."]);
    assert_eq!(answers("_HTTP._TCP.web.shop.svc.cluster.local.", RecordType::SRV), web);
    let db = answers("_http._tcp.db.shop.svc.cluster.local.", RecordType::SRV);
    let expected = [
        "0 33 8080 10-244-0-8.db.shop.svc.cluster.local.",
        "0 33 8080 db-0.db.shop.svc.cluster.local.",
    ];
    assert_eq!(db, expected);
    let reply = ask("_http._tcp.db.shop.svc.cluster.local.", RecordType::SRV);
    let mut targets: Vec<String> = reply
        .additionals
        .iter()
        .map(|record| format!("{} {}", record.name, record.data))
        .collect();
    targets.sort();
    let expected = [
        "10-244-0-8.db.shop.svc.cluster.local. 10.244.0.8",
        "db-0.db.shop.svc.cluster.local. 10.244.0.7",
        "db-0.db.shop.svc.cluster.local. fd00:10:244::7",
    ];
    assert_eq!(targets, expected, "the targets' addresses come along");
    assert_eq!(
        answers("web.shop.svc.cluster.local.", RecordType::SRV).len(),
        2,
        "all ports"
    );
    assert_eq!(answers("db-0.db.shop.svc.cluster.local.", RecordType::SRV).len(), 1);
    assert_eq!(
        answers("_http._tcp.web.shop.svc.cluster.local.", RecordType::A),
        ["10.96.0.5"]
    );
    assert!(answers("_tcp.web.shop.svc.cluster.local.", RecordType::SRV).is_empty());
    does_not_exist("_http._udp.web.shop.svc.cluster.local.");
    does_not_exist("_smtp._tcp.web.shop.svc.cluster.local.");
    does_not_exist("http.tcp.web.shop.svc.cluster.local.");
    does_not_exist("_http._tcp.empty.shop.svc.cluster.local.");
}

#[test]
fn pods_have_names_made_of_their_addresses() {
    assert_eq!(
        answers("10-244-0-7.shop.pod.cluster.local.", RecordType::A),
        ["10.244.0.7"]
    );
    assert!(answers("10-244-0-7.shop.pod.cluster.local.", RecordType::AAAA).is_empty());
    assert_eq!(
        answers("fd00-10-244--7.shop.pod.cluster.local.", RecordType::AAAA),
        ["fd00:10:244::7"]
    );
    does_not_exist("10-244-0-300.shop.pod.cluster.local.");
    does_not_exist("01-2-3-4.shop.pod.cluster.local.");
    does_not_exist("web.shop.pod.cluster.local.");
    does_not_exist("x.10-244-0-7.shop.pod.cluster.local.");
}

#[test]
fn addresses_lead_back_to_names() {
    let ptr = |name: &str| answers(name, RecordType::PTR);
    assert_eq!(ptr("5.0.96.10.in-addr.arpa."), ["web.shop.svc.cluster.local."]);
    assert_eq!(ptr("7.0.244.10.in-addr.arpa."), ["db-0.db.shop.svc.cluster.local."]);
    assert_eq!(
        ptr("8.0.244.10.in-addr.arpa."),
        ["10-244-0-8.db.shop.svc.cluster.local."]
    );
    assert_eq!(
        ptr("30.0.244.10.in-addr.arpa."),
        ["10-244-0-30.web.shop.svc.cluster.local."]
    );
    let six = |last: &str, net: &str| format!("{last}{}.{net}.0.1.0.0.0.0.d.f.ip6.arpa.", ".0".repeat(19));
    assert_eq!(ptr(&six("6", "6.9.0.0")), ["dual.shop.svc.cluster.local."]);
    assert_eq!(ptr(&six("7", "4.4.2.0")), ["db-0.db.shop.svc.cluster.local."]);
    assert!(answers("5.0.96.10.in-addr.arpa.", RecordType::A).is_empty());
    does_not_exist_of("99.0.96.10.in-addr.arpa.", RecordType::PTR, "in-addr.arpa.");
    does_not_exist_of(&six("9", "6.9.0.0"), RecordType::PTR, "ip6.arpa.");
    let elsewhere = question("8.8.8.8.in-addr.arpa.", RecordType::PTR, None);
    assert!(matches!(
        ask_zone(&zone(), &elsewhere, Transport::Udp, 0).0,
        Verdict::NotOurs
    ));
}

#[test]
fn external_names_are_aliases() {
    let message = question("outside.shop.svc.cluster.local.", RecordType::A, None);
    let (verdict, reply) = ask_zone(&zone(), &message, Transport::Udp, 0);
    let Verdict::Alias(target) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(target.as_bytes(), b"\x03www\x07example\x03com\0");
    assert!(
        reply.ends_with(target.as_bytes()),
        "its name is the last thing in the reply"
    );
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.answers[0].data.to_string(), "www.example.com.");
    assert_eq!(
        answers("outside.shop.svc.cluster.local.", RecordType::CNAME),
        ["www.example.com."]
    );
    let followed = answers("inside.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(followed, ["10.96.0.5", "web.shop.svc.cluster.local."]);
    let reply = ask("inside.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(reply.answers[1].name.to_string(), "web.shop.svc.cluster.local.");
    let reply = ask("inside.shop.svc.cluster.local.", RecordType::AAAA);
    assert_eq!(
        (reply.answers.len(), reply.authorities.len()),
        (1, 1),
        "an alias of what has no such record"
    );
    let reply = ask("nowhere.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(
        (reply.answers.len(), reply.metadata.response_code),
        (1, ResponseCode::NXDomain)
    );
    let reply = ask("circle.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    does_not_exist("x.outside.shop.svc.cluster.local.");
}

#[test]
fn names_between_exist_and_others_do_not() {
    for name in [
        "cluster.local.",
        "svc.cluster.local.",
        "pod.cluster.local.",
        "dns.cluster.local.",
        "shop.svc.cluster.local.",
        "shop.pod.cluster.local.",
    ] {
        assert!(answers(name, RecordType::A).is_empty(), "{name}");
    }
    for name in [
        "nothing.shop.svc.cluster.local.",
        "web.nowhere.svc.cluster.local.",
        "nowhere.svc.cluster.local.",
        "x.y.z.web.shop.svc.cluster.local.",
        "www.example.com.cluster.local.",
        "unassigned.shop.svc.cluster.local.",
        "*.shop.svc.cluster.local.",
        "*.db.shop.svc.cluster.local.",
        "any.dns.cluster.local.",
    ] {
        does_not_exist(name);
    }
    for name in ["www.example.com.", ".", "local.", "mycluster.local."] {
        let message = question(name, RecordType::A, None);
        assert!(
            matches!(ask_zone(&zone(), &message, Transport::Udp, 0).0, Verdict::NotOurs),
            "{name}"
        );
    }
}

#[test]
fn the_zone_tells_about_itself() {
    let soa = answers("cluster.local.", RecordType::SOA);
    assert!(
        soa[0].starts_with("ns.dns.cluster.local. hostmaster.cluster.local. "),
        "{soa:?}"
    );
    assert_eq!(answers("cluster.local.", RecordType::NS), ["ns.dns.cluster.local."]);
    let reply = ask("cluster.local.", RecordType::NS);
    assert_eq!(reply.additionals[0].name.to_string(), "ns.dns.cluster.local.");
    assert_eq!(answers("ns.dns.cluster.local.", RecordType::A), ["10.96.0.10"]);
    let reply = ask("dns-version.cluster.local.", RecordType::TXT);
    assert_eq!(reply.answers[0].ttl, VERSION_TTL);
    let RData::TXT(text) = &reply.answers[0].data else {
        panic!("{reply:?}")
    };
    assert_eq!(text.txt_data.as_ref(), [b"1.1.0".as_slice().into()]);
}

#[test]
fn a_question_for_everything_gets_little() {
    for name in ["web.shop.svc.cluster.local.", "cluster.local.", "svc.cluster.local."] {
        let reply = ask(name, RecordType::ANY);
        let kinds: Vec<RecordType> = reply.answers.iter().map(rr::Record::record_type).collect();
        assert_eq!(kinds, [RecordType::HINFO], "{name}");
    }
    does_not_exist_of("nothing.shop.svc.cluster.local.", RecordType::ANY, "cluster.local.");
}

#[test]
fn nothing_is_called_missing_before_the_services_are_known() {
    let zone = empty_zone();
    let verdict = |name: &str, kind| ask_zone(&zone, &question(name, kind, None), Transport::Udp, 0).0;
    assert!(matches!(
        verdict("web.shop.svc.cluster.local.", RecordType::A),
        Verdict::NotReady
    ));
    assert!(matches!(
        verdict("5.0.96.10.in-addr.arpa.", RecordType::PTR),
        Verdict::NotReady
    ));
    assert!(matches!(verdict("www.example.com.", RecordType::A), Verdict::NotOurs));
    zone.replace(Vec::new());
    assert!(matches!(
        verdict("web.shop.svc.cluster.local.", RecordType::A),
        Verdict::Answered(code::NXDOMAIN)
    ));
}

/// A headless service with so many hosts, half of them named.
fn crowd(hosts: u32) -> Zone {
    let endpoint = |n: u32| match n % 2 {
        0 => json!({"addresses": [Ipv4Addr::from(0x0af4_0000 + n).to_string()]}),
        _ => json!({"addresses": [Ipv4Addr::from(0x0af4_0000 + n).to_string()], "hostname": format!("pod-{n}")}),
    };
    let endpoints: Vec<Value> = (0..hosts).map(endpoint).collect();
    let zone = empty_zone();
    zone.replace(vec![change(
        "crowd",
        json!({"clusterIP": "None"}),
        &[slice("IPv4", 80, json!(endpoints))],
    )]);
    zone
}

#[test]
fn large_answers_fill_what_the_client_can_take() {
    let zone = crowd(300);
    let reply = |payload, transport, kind| {
        let message = question("crowd.shop.svc.cluster.local.", kind, payload);
        ask_zone(&zone, &message, transport, 7).1
    };
    for (payload, limit) in [(None, 512), (Some(1232), 1232), (Some(100), 512), (Some(65535), 4096)] {
        let bytes = reply(payload, Transport::Udp, RecordType::A);
        assert!(
            bytes.len() <= limit && bytes.len() + 32 > limit,
            "{payload:?}: {}",
            bytes.len()
        );
        let message = Message::from_vec(&bytes).unwrap();
        assert!(message.metadata.truncation && message.answers.len() > 20);
        assert_eq!(message.edns.is_some(), payload.is_some());
    }
    let whole = Message::from_vec(&reply(None, Transport::Tcp, RecordType::A)).unwrap();
    assert!(!whole.metadata.truncation && whole.answers.len() == 300);
    let whole = Message::from_vec(&reply(None, Transport::Tcp, RecordType::SRV)).unwrap();
    assert_eq!(
        (whole.answers.len(), whole.additionals.len(), whole.metadata.truncation),
        (300, 300, false)
    );
}

#[test]
fn what_exceeds_a_message_is_cut_off_not_broken() {
    let zone = crowd(5000);
    let message = question("crowd.shop.svc.cluster.local.", RecordType::SRV, Some(4096));
    let (_, bytes) = ask_zone(&zone, &message, Transport::Tcp, 0);
    let reply = Message::from_vec(&bytes).unwrap();
    assert!(reply.metadata.truncation && reply.answers.len() > 500 && bytes.len() <= 65_535);
}

#[test]
fn records_that_are_merely_useful_are_left_out_in_silence() {
    let message = question("_http._tcp.crowd.shop.svc.cluster.local.", RecordType::SRV, None);
    let (_, bytes) = ask_zone(&crowd(7), &message, Transport::Udp, 0);
    let reply = Message::from_vec(&bytes).unwrap();
    assert_eq!(reply.answers.len(), 7);
    assert!(!reply.metadata.truncation && reply.additionals.len() == 3 && bytes.len() <= 512);
}

proptest! {
    #[test]
    fn every_name_gets_a_readable_reply(labels in proptest::collection::vec("[a-z0-9][a-z0-9-]{0,10}|_tcp|_http|svc|pod|shop|web|db|outside", 0..7),
        kind in 0u16..260, payload in proptest::option::of(0u16..5000)) {
        let name = format!("{}.cluster.local.", labels.join("."));
        let name = name.trim_start_matches('.');
        let message = question(name, RecordType::from(kind), payload);
        if Request::parse(&message).is_ok() {
            let (_, reply) = ask_zone(&zone(), &message, Transport::Udp, 3);
            prop_assert!(Message::from_vec(&reply).is_ok(), "{name} {kind}");
        }
    }
}
