//! The names of Kubernetes' DNS specification 1.1.0, asked one by one.

use std::str::FromStr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::*;
use crate::dns::ZoneConfig;

fn zone() -> Zone {
    let service = |name: &str, spec: Value| -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).unwrap()
    };
    let ports =
        json!([{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let services = [
        service(
            "web",
            json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ports": ports}),
        ),
        service(
            "db",
            json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": ports}),
        ),
        service("empty", json!({"clusterIP": "None", "clusterIPs": ["None"]})),
        service(
            "outside",
            json!({"type": "ExternalName", "externalName": "www.example.com"}),
        ),
        service(
            "inside",
            json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"}),
        ),
        service("unassigned", json!({"clusterIP": "", "ports": ports})),
    ];
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "db-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": ["10.244.0.7"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.244.0.8"], "conditions": {}},
            {"addresses": ["10.244.0.9"], "hostname": "db-2", "conditions": {"ready": false}},
        ],
    }))
    .unwrap();
    let ranges = vec!["10.96.0.0/16".parse().unwrap(), "10.244.0.0/16".parse().unwrap()];
    Zone::compute(
        &ZoneConfig {
            domain: "cluster.local".to_owned(),
            ranges,
        },
        &services,
        &[slice],
    )
}

fn ask(name: &str, kind: RecordType) -> Answer {
    zone().answer(&Query::query(Name::from_str(name).unwrap(), kind), 0)
}

/// The answers as text; panics when the name does not exist or is not ours.
fn answers(name: &str, kind: RecordType) -> Vec<String> {
    match ask(name, kind) {
        Answer::Records { answers, authority, .. } => {
            assert_eq!(
                answers.is_empty(),
                authority.is_some(),
                "{name}: no data comes with the SOA"
            );
            let mut texts: Vec<String> = answers.iter().map(|record| record.data.to_string()).collect();
            texts.sort();
            texts
        }
        other => panic!("{name}: {other:?}"),
    }
}

fn does_not_exist(name: &str) {
    let answer = ask(name, RecordType::A);
    let Answer::NoSuchName { authority } = &answer else {
        panic!("{name}: {answer:?}")
    };
    assert_eq!(authority.record_type(), RecordType::SOA);
    assert_eq!(authority.name.to_string(), "cluster.local.");
    assert_eq!(answer.code(), ResponseCode::NXDomain);
}

#[test]
fn a_service_has_its_address() {
    assert_eq!(answers("web.shop.svc.cluster.local.", RecordType::A), ["10.96.0.5"]);
    assert_eq!(answers("WEB.Shop.SVC.cluster.LOCAL.", RecordType::A), ["10.96.0.5"]);
    assert!(answers("web.shop.svc.cluster.local.", RecordType::AAAA).is_empty());
    assert!(answers("web.shop.svc.cluster.local.", RecordType::MX).is_empty());
}

#[test]
fn a_headless_service_has_its_ready_hosts() {
    assert_eq!(
        answers("db.shop.svc.cluster.local.", RecordType::A),
        ["10.244.0.7", "10.244.0.8"]
    );
    assert_eq!(
        answers("db-0.db.shop.svc.cluster.local.", RecordType::A),
        ["10.244.0.7"]
    );
    assert_eq!(
        answers("10-244-0-8.db.shop.svc.cluster.local.", RecordType::A),
        ["10.244.0.8"]
    );
    does_not_exist("db-2.db.shop.svc.cluster.local.");
    assert!(answers("empty.shop.svc.cluster.local.", RecordType::A).is_empty());
}

#[test]
fn addresses_rotate() {
    let zone = zone();
    let query = Query::query(Name::from_str("db.shop.svc.cluster.local.").unwrap(), RecordType::A);
    let first = |rotation| match zone.answer(&query, rotation) {
        Answer::Records { answers, .. } => answers[0].data.to_string(),
        other => panic!("{other:?}"),
    };
    assert_ne!(first(0), first(1));
    assert_eq!(first(0), first(2));
}

#[test]
fn ports_have_srv_records_with_their_targets() {
    let web = answers("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV);
    assert_eq!(web, ["0 100 80 web.shop.svc.cluster.local."]);
    let db = answers("_http._tcp.db.shop.svc.cluster.local.", RecordType::SRV);
    let expected = [
        "0 100 8080 10-244-0-8.db.shop.svc.cluster.local.",
        "0 100 8080 db-0.db.shop.svc.cluster.local.",
    ];
    assert_eq!(db, expected);
    let Answer::Records { additionals, .. } = ask("_http._tcp.db.shop.svc.cluster.local.", RecordType::SRV) else {
        panic!("records expected");
    };
    assert_eq!(additionals.len(), 2, "the targets' addresses come along");
    assert_eq!(
        answers("web.shop.svc.cluster.local.", RecordType::SRV).len(),
        2,
        "all ports"
    );
    assert!(answers("_tcp.web.shop.svc.cluster.local.", RecordType::SRV).is_empty());
    does_not_exist("_http._udp.web.shop.svc.cluster.local.");
    does_not_exist("_smtp._tcp.web.shop.svc.cluster.local.");
}

#[test]
fn pods_have_names_made_of_their_addresses() {
    assert_eq!(
        answers("10-244-0-7.shop.pod.cluster.local.", RecordType::A),
        ["10.244.0.7"]
    );
    does_not_exist("10-244-0-300.shop.pod.cluster.local.");
    does_not_exist("01-2-3-4.shop.pod.cluster.local.");
}

#[test]
fn addresses_lead_back_to_names() {
    let ptr = |name: &str| answers(name, RecordType::PTR);
    assert_eq!(ptr("5.0.96.10.in-addr.arpa."), ["web.shop.svc.cluster.local."]);
    assert_eq!(ptr("7.0.244.10.in-addr.arpa."), ["db-0.db.shop.svc.cluster.local."]);
    does_not_exist("99.0.96.10.in-addr.arpa.");
    assert_eq!(ask("8.8.8.8.in-addr.arpa.", RecordType::PTR), Answer::NotOurs);
}

#[test]
fn external_names_are_aliases() {
    let Answer::Alias { record, target } = ask("outside.shop.svc.cluster.local.", RecordType::A) else {
        panic!("an alias expected");
    };
    assert_eq!(record.data.to_string(), "www.example.com.");
    assert_eq!(target.to_string(), "www.example.com.");
    assert_eq!(
        answers("outside.shop.svc.cluster.local.", RecordType::CNAME),
        ["www.example.com."]
    );
    let followed = answers("inside.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(followed, ["10.96.0.5", "web.shop.svc.cluster.local."]);
}

#[test]
fn names_between_exist_and_others_do_not() {
    for name in [
        "cluster.local.",
        "svc.cluster.local.",
        "pod.cluster.local.",
        "shop.svc.cluster.local.",
    ] {
        assert!(answers(name, RecordType::A).is_empty(), "{name}");
    }
    for name in [
        "nothing.shop.svc.cluster.local.",
        "web.nowhere.svc.cluster.local.",
        "nowhere.svc.cluster.local.",
    ] {
        does_not_exist(name);
    }
    does_not_exist("x.y.z.web.shop.svc.cluster.local.");
    does_not_exist("www.example.com.cluster.local.");
    does_not_exist("unassigned.shop.svc.cluster.local.");
    assert_eq!(ask("www.example.com.", RecordType::A), Answer::NotOurs);
    assert_eq!(ask(".", RecordType::NS), Answer::NotOurs);
    assert_eq!(answers("cluster.local.", RecordType::SOA).len(), 1);
    let version = answers("dns-version.cluster.local.", RecordType::TXT);
    assert!(version[0].contains("1.1.0"), "{version:?}");
}

#[test]
fn a_zone_without_a_domain_owns_nothing() {
    let query = Query::query(Name::from_str("web.shop.svc.cluster.local.").unwrap(), RecordType::A);
    assert_eq!(Zone::default().answer(&query, 0), Answer::NotOurs);
}
