//! The rules of Kubernetes' proxy, one by one, on objects as the API server stores them.

use super::*;
use serde_json::{Value, json};

fn node() -> NodeView {
    NodeView {
        name: "n1".to_owned(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        dns: None,
    }
}

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})).unwrap()
}

fn web() -> Value {
    json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "type": "ClusterIP",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "web"}]})
}

fn slice(endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "metrics", "port": 9000, "protocol": "TCP"}, {"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    }))
    .unwrap()
}

fn endpoint(address: &str, conditions: Value) -> Value {
    json!({"addresses": [address], "nodeName": "n1", "conditions": conditions})
}

fn ready(address: &str) -> Value {
    endpoint(address, json!({"ready": true}))
}

fn backends_of(tables: &Tables, address: &str) -> Option<Vec<String>> {
    let frontend = Frontend {
        address: address.parse().unwrap(),
        protocol: Protocol::Tcp,
    };
    tables
        .services
        .get(&frontend)
        .map(|balanced| balanced.backends.iter().map(ToString::to_string).collect())
}

fn backends_for(endpoints: Value) -> Vec<String> {
    let tables = compute(&[service(web())], &[slice(endpoints)], &node());
    backends_of(&tables, "10.96.0.5:80").unwrap()
}

#[test]
fn a_named_target_port_is_found_in_the_slice() {
    assert_eq!(
        backends_for(json!([ready("10.244.0.2"), ready("10.244.0.1")])),
        ["10.244.0.1:8080", "10.244.0.2:8080"]
    );
}

#[test]
fn an_unready_endpoint_gets_no_traffic_and_unknown_counts_as_ready() {
    let endpoints = json!([
        endpoint("10.244.0.1", json!({"ready": false})),
        endpoint("10.244.0.2", json!({}))
    ]);
    assert_eq!(backends_for(endpoints), ["10.244.0.2:8080"]);
}

#[test]
fn terminating_endpoints_serve_only_while_none_is_ready() {
    let draining = endpoint(
        "10.244.0.1",
        json!({"ready": false, "serving": true, "terminating": true}),
    );
    let done = endpoint(
        "10.244.0.3",
        json!({"ready": false, "serving": false, "terminating": true}),
    );
    assert_eq!(backends_for(json!([draining, done])), ["10.244.0.1:8080"]);
    assert_eq!(
        backends_for(json!([draining, done, ready("10.244.0.2")])),
        ["10.244.0.2:8080"]
    );
}

#[test]
fn one_address_in_two_slices_is_one_backend() {
    let slices = [slice(json!([ready("10.244.0.1")])), slice(json!([ready("10.244.0.1")]))];
    let tables = compute(&[service(web())], &slices, &node());
    assert_eq!(backends_of(&tables, "10.96.0.5:80").unwrap(), ["10.244.0.1:8080"]);
}

#[test]
fn a_service_without_endpoints_is_there_to_refuse() {
    let tables = compute(&[service(web())], &[], &node());
    assert_eq!(backends_of(&tables, "10.96.0.5:80"), Some(vec![]));
}

#[test]
fn what_has_no_address_of_ours_is_not_balanced() {
    let with = |changes: Value| {
        let mut spec = web();
        for (key, value) in changes.as_object().unwrap() {
            spec[key] = value.clone();
        }
        compute(&[service(spec)], &[slice(json!([ready("10.244.0.1")]))], &node())
    };
    assert_eq!(
        with(json!({"clusterIP": "None", "clusterIPs": ["None"]})),
        Tables::default()
    );
    assert_eq!(with(json!({"clusterIP": "", "clusterIPs": []})), Tables::default());
    assert_eq!(with(json!({"type": "ExternalName"})), Tables::default());
    // Someone else's address must not be taken over, however it came into the object.
    assert_eq!(
        with(json!({"clusterIP": "8.8.8.8", "clusterIPs": ["8.8.8.8"]})),
        Tables::default()
    );
    assert_eq!(with(json!({"externalIPs": ["8.8.8.8"]})).services.len(), 1);
    assert_eq!(
        with(json!({"ports": [{"port": 80, "protocol": "SCTP", "name": "http"}]})),
        Tables::default()
    );
}

#[test]
fn a_service_of_another_proxy_is_left_to_it() {
    let mut service = service(web());
    service.metadata.labels = Some([(SERVICE_PROXY_NAME.to_owned(), "other".to_owned())].into());
    assert_eq!(compute(&[service], &[], &node()), Tables::default());
}

#[test]
fn local_traffic_stays_on_the_node() {
    let mut spec = web();
    spec["internalTrafficPolicy"] = json!("Local");
    let mut remote = ready("10.244.1.1");
    remote["nodeName"] = json!("n2");
    let tables = compute(
        &[service(spec)],
        &[slice(json!([ready("10.244.0.1"), remote]))],
        &node(),
    );
    assert_eq!(backends_of(&tables, "10.96.0.5:80").unwrap(), ["10.244.0.1:8080"]);
}

#[test]
fn affinity_has_its_time_out() {
    let with = |affinity: Value| {
        let mut spec = web();
        spec["sessionAffinity"] = json!("ClientIP");
        spec["sessionAffinityConfig"] = affinity;
        let tables = compute(&[service(spec)], &[], &node());
        tables.services.values().next().unwrap().affinity
    };
    assert_eq!(with(json!({"clientIP": {"timeoutSeconds": 60}})), Some(60));
    assert_eq!(with(json!({"clientIP": {}})), Some(DEFAULT_AFFINITY_SECONDS));
    assert_eq!(with(Value::Null), Some(DEFAULT_AFFINITY_SECONDS));
}

#[test]
fn another_namespace_or_address_family_is_not_mixed_in() {
    let mut foreign = slice(json!([ready("10.244.0.1")]));
    foreign.metadata.namespace = Some("other".to_owned());
    let mut v6 = slice(json!([ready("fd00::1")]));
    v6.address_type = "IPv6".to_owned();
    let tables = compute(&[service(web())], &[foreign, v6], &node());
    assert_eq!(backends_of(&tables, "10.96.0.5:80"), Some(vec![]));
}

#[test]
fn the_clusters_dns_address_leads_to_the_node() {
    let dns = DnsRedirect {
        cluster: Ipv4Addr::new(10, 96, 0, 10),
        local: "169.254.20.10:53".parse().unwrap(),
    };
    let tables = compute(
        &[],
        &[],
        &NodeView {
            dns: Some(dns),
            ..node()
        },
    );
    assert_eq!(backends_of(&tables, "10.96.0.10:53").unwrap(), ["169.254.20.10:53"]);
    assert_eq!(tables.services.len(), 2, "UDP and TCP");
}
