//! The rules of Kubernetes' proxy, one by one, on objects as the API server stores them.

use std::collections::BTreeSet;

use super::*;
use serde_json::{Value, json};

fn node() -> NodeView {
    NodeView {
        name: "n1".to_owned(),
        zone: Some("east".to_owned()),
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        addresses: vec!["192.0.2.1".parse().unwrap()],
        ..NodeView::default()
    }
}

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})).unwrap()
}

fn web(changes: Value) -> Value {
    let mut spec = json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "type": "ClusterIP",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "web"}]});
    for (key, value) in changes.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

fn slice(endpoints: Value) -> Slice {
    slice_of("IPv4", endpoints, json!({}))
}

fn slice_of(kind: &str, endpoints: Value, annotations: Value) -> Slice {
    let slice = json!({
        "metadata": {"name": "web-x", "namespace": "shop", "annotations": annotations},
        "addressType": kind,
        "ports": [{"name": "metrics", "port": 9000, "protocol": "TCP"}, {"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    });
    Slice::new(&serde_json::from_value(slice).unwrap(), "n1").unwrap()
}

fn endpoint(address: &str, node: &str, conditions: Value) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
}

fn ready(address: &str) -> Value {
    endpoint(address, "n1", json!({"ready": true}))
}

fn remote(address: &str) -> Value {
    endpoint(address, "n2", json!({"ready": true}))
}

fn hinted(mut endpoint: Value, hints: Value) -> Value {
    endpoint["hints"] = hints;
    endpoint
}

fn zone(name: &str) -> Value {
    json!({"forZones": [{"name": name}]})
}

/// Where the clients of a frontend are sent.
fn backends(groups: &[Group], scope: Scope, address: &str) -> Option<Vec<String>> {
    let address: SocketAddr = address.parse().unwrap();
    let leads = |group: &&Group| {
        let mut frontends = group.frontends.iter().map(|exposed| exposed.frontend);
        frontends.any(|frontend| frontend.address == address && frontend.scope == scope)
    };
    let group = groups.iter().find(leads)?;
    Some(
        group
            .backends
            .iter()
            .map(|backend| backend.address().to_string())
            .collect(),
    )
}

fn flags(groups: &[Group], scope: Scope, address: &str) -> u32 {
    let address: SocketAddr = address.parse().unwrap();
    let mut all = groups.iter().flat_map(|group| &group.frontends);
    all.find(|exposed| exposed.frontend.address == address && exposed.frontend.scope == scope)
        .unwrap()
        .flags
}

fn groups(spec: Value, endpoints: Value) -> Vec<Group> {
    compute(&service(spec), [slice(endpoints)].iter(), &node())
}

fn backends_for(endpoints: Value) -> Vec<String> {
    backends(&groups(web(json!({})), endpoints), Scope::Inside, "10.96.0.5:80").unwrap()
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
        endpoint("10.244.0.1", "n1", json!({"ready": false})),
        endpoint("10.244.0.2", "n1", json!({}))
    ]);
    assert_eq!(backends_for(endpoints), ["10.244.0.2:8080"]);
}

#[test]
fn terminating_endpoints_serve_only_while_none_is_ready() {
    let terminating = |address: &str, serving: bool| {
        let conditions = json!({"ready": false, "serving": serving, "terminating": true});
        endpoint(address, "n1", conditions)
    };
    let (draining, done) = (terminating("10.244.0.1", true), terminating("10.244.0.3", false));
    assert_eq!(backends_for(json!([draining, done])), ["10.244.0.1:8080"]);
    assert_eq!(
        backends_for(json!([draining, done, ready("10.244.0.2")])),
        ["10.244.0.2:8080"]
    );
}

#[test]
fn one_address_in_two_slices_is_one_backend() {
    let slices = [slice(json!([ready("10.244.0.1")])), slice(json!([ready("10.244.0.1")]))];
    let groups = compute(&service(web(json!({}))), slices.iter(), &node());
    assert_eq!(
        backends(&groups, Scope::Inside, "10.96.0.5:80").unwrap(),
        ["10.244.0.1:8080"]
    );
}

#[test]
fn a_service_without_endpoints_and_ports_that_nobody_serves_are_there_to_refuse() {
    let groups = compute(&service(web(json!({}))), [].iter(), &node());
    assert_eq!(backends(&groups, Scope::Inside, "10.96.0.5:80"), Some(vec![]));
    assert_eq!(backends(&groups, Scope::Inside, "10.96.0.5:0"), Some(vec![]));
    assert_eq!(flags(&groups, Scope::Inside, "10.96.0.5:0"), flag::UNSERVED);
}

#[test]
fn what_has_no_address_of_ours_is_not_balanced() {
    let with = |changes: Value| groups(web(changes), json!([ready("10.244.0.1")]));
    for changes in [
        json!({"clusterIP": "None", "clusterIPs": ["None"], "externalIPs": ["192.0.2.1"]}),
        json!({"clusterIP": "", "clusterIPs": []}),
        json!({"type": "ExternalName", "externalIPs": ["192.0.2.1"]}),
        // Someone else's address must not be taken over, however it came into the object.
        json!({"clusterIP": "8.8.8.8", "clusterIPs": ["8.8.8.8"]}),
    ] {
        assert_eq!(with(changes), []);
    }
    let mut elsewhere = service(web(json!({})));
    assert_ne!(
        compute(&elsewhere, [].iter(), &node()),
        [],
        "else the labels are not what decides"
    );
    for (label, value) in NOT_OURS.into_iter().zip(["other", ""]) {
        elsewhere.metadata.labels = Some([(label.to_owned(), value.to_owned())].into());
        assert_eq!(compute(&elsewhere, [].iter(), &node()), [], "{label}");
    }
}

#[test]
fn external_addresses_are_rewritten_for_the_nodes_own_clients_only_if_they_are_the_clusters() {
    let external =
        json!({"externalIPs": ["8.8.8.8", "192.0.2.1", "127.0.0.1", "169.254.169.254", "10.96.0.9", "224.0.0.1"]});
    let groups = groups(web(external), json!([ready("10.244.0.1")]));
    let all: BTreeSet<(String, Scope)> = groups
        .iter()
        .flat_map(|group| &group.frontends)
        .map(|exposed| (exposed.frontend.address.to_string(), exposed.frontend.scope))
        .collect();
    let expected = [
        ("10.96.0.5:0", Scope::Inside),
        ("10.96.0.5:80", Scope::Inside),
        ("192.0.2.1:80", Scope::Inside),
        ("192.0.2.1:80", Scope::Outside),
        ("8.8.8.8:80", Scope::Outside),
    ];
    assert_eq!(all, expected.map(|(address, scope)| (address.to_owned(), scope)).into());
    let owned = NodeView {
        external_cidrs: vec!["8.8.8.0/24".parse().unwrap()],
        ..node()
    };
    let service = service(web(json!({"externalIPs": ["8.8.8.8"]})));
    let groups = compute(&service, [].iter(), &owned);
    assert_eq!(backends(&groups, Scope::Inside, "8.8.8.8:80"), Some(vec![]));
}

fn balancer(changes: Value, ingress: Value) -> Vec<Group> {
    let mut spec = web(json!({"type": "LoadBalancer", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}));
    for (key, value) in changes.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let service = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}}});
    let slice = slice(json!([ready("10.244.0.1"), remote("10.244.1.1")]));
    compute(&serde_json::from_value(service).unwrap(), [slice].iter(), &node())
}

#[test]
fn node_ports_and_load_balancers_addresses_are_served_inside_and_outside() {
    let groups = balancer(
        json!({}),
        json!([{"ip": "198.51.100.7"}, {"ip": "198.51.100.8", "ipMode": "Proxy"}]),
    );
    let both = Some(vec!["10.244.0.1:8080".to_owned(), "10.244.1.1:8080".to_owned()]);
    for scope in [Scope::Inside, Scope::Outside] {
        assert_eq!(backends(&groups, scope, "0.0.0.0:30080"), both);
        assert_eq!(backends(&groups, scope, "198.51.100.7:80"), both);
        assert_eq!(
            backends(&groups, scope, "198.51.100.8:80"),
            None,
            "its packets must pass it"
        );
    }
    assert_eq!(backends(&groups, Scope::Outside, "10.96.0.5:80"), None);
    assert_eq!(flags(&groups, Scope::Outside, "0.0.0.0:30080"), flag::NODE_PORT);
    assert_eq!(flags(&groups, Scope::Outside, "198.51.100.7:80"), flag::EXTERNAL);
}

#[test]
fn the_external_policy_local_keeps_what_comes_from_outside_on_the_node() {
    let groups = balancer(
        json!({"externalTrafficPolicy": "Local"}),
        json!([{"ip": "198.51.100.7"}]),
    );
    for address in ["0.0.0.0:30080", "198.51.100.7:80"] {
        assert_eq!(backends(&groups, Scope::Outside, address).unwrap(), ["10.244.0.1:8080"]);
        assert_eq!(
            backends(&groups, Scope::Inside, address).unwrap().len(),
            2,
            "as if the cluster's address"
        );
        assert_ne!(flags(&groups, Scope::Outside, address) & flag::LOCAL, 0);
    }
    let mut spec = web(json!({"type": "NodePort", "externalTrafficPolicy": "Local"}));
    spec["ports"][0]["nodePort"] = json!(30080);
    let groups = compute(&service(spec), [slice(json!([remote("10.244.1.1")]))].iter(), &node());
    let flags = flags(&groups, Scope::Outside, "0.0.0.0:30080");
    assert_ne!(flags & flag::ELSEWHERE, 0, "dropped, not refused");
}

#[test]
fn source_ranges_bind_the_load_balancers_address_only() {
    let groups = balancer(
        json!({"loadBalancerSourceRanges": ["203.0.113.7/24", "nonsense", "2001:db8::/32"]}),
        json!([{"ip": "198.51.100.7"}]),
    );
    let group = groups.iter().find(|group| !group.sources.is_empty()).unwrap();
    assert_eq!(group.sources, ["203.0.113.0/24".parse().unwrap()]);
    for exposed in group.frontends.iter() {
        let balancer = exposed.frontend.address.to_string() == "198.51.100.7:80";
        assert_eq!(exposed.restricted, balancer, "{}", exposed.frontend);
    }
    assert_ne!(flags(&groups, Scope::Inside, "198.51.100.7:80") & flag::BY_PACKET, 0);
}

#[test]
fn the_internal_policy_local_keeps_clients_of_the_clusters_address_on_the_node() {
    let local = web(json!({"internalTrafficPolicy": "Local"}));
    let both = json!([ready("10.244.0.1"), remote("10.244.1.1")]);
    let groups = groups(local, both);
    assert_eq!(
        backends(&groups, Scope::Inside, "10.96.0.5:80").unwrap(),
        ["10.244.0.1:8080"]
    );
}

#[test]
fn zone_hints_count_when_all_have_them_and_one_is_for_this_zone() {
    let east = hinted(remote("10.244.0.1"), zone("east"));
    let west = hinted(remote("10.244.0.2"), zone("west"));
    assert_eq!(backends_for(json!([east, west])), ["10.244.0.1:8080"]);
    assert_eq!(backends_for(json!([west])), ["10.244.0.2:8080"], "none for this zone");
    let both = backends_for(json!([east, west, remote("10.244.0.3")]));
    assert_eq!(both.len(), 3, "one without a hint");
    let unready = endpoint("10.244.0.4", "n2", json!({"ready": false}));
    assert_eq!(
        backends_for(json!([east, west, unready])),
        ["10.244.0.1:8080"],
        "only ready ones are asked"
    );
}

#[test]
fn node_hints_come_before_zone_hints() {
    let hints = |node: &str| json!({"forZones": [{"name": "east"}], "forNodes": [{"name": node}]});
    let here = hinted(ready("10.244.0.1"), hints("n1"));
    let there = hinted(remote("10.244.0.2"), hints("n2"));
    assert_eq!(backends_for(json!([here, there])), ["10.244.0.1:8080"]);
    let elsewhere = hinted(remote("10.244.0.3"), hints("n3"));
    assert_eq!(
        backends_for(json!([there, elsewhere])).len(),
        2,
        "none for this node: the zone's"
    );
}

#[test]
fn affinity_has_its_time_out() {
    let with = |config: Value| {
        let spec = web(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}));
        groups(spec, json!([]))[0].affinity
    };
    assert_eq!(with(json!({"clientIP": {"timeoutSeconds": 60}})), 60);
    assert_eq!(with(json!({"clientIP": {}})), DEFAULT_AFFINITY_SECONDS);
    assert_eq!(with(Value::Null), DEFAULT_AFFINITY_SECONDS);
}

#[test]
fn each_family_has_its_own_backends() {
    let spec = web(
        json!({"clusterIPs": ["10.96.0.5", "fd00:96::5"], "ipFamilies": ["IPv4", "IPv6"], "type": "NodePort",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
    );
    let v6 = slice_of("IPv6", json!([ready("fd00::1")]), json!({}));
    let slices = [slice(json!([ready("10.244.0.1")])), v6];
    let groups = compute(&service(spec), slices.iter(), &node());
    for address in ["[fd00:96::5]:80", "[::]:30080"] {
        assert_eq!(backends(&groups, Scope::Inside, address).unwrap(), ["[fd00::1]:8080"]);
    }
    for address in ["10.96.0.5:80", "0.0.0.0:30080"] {
        assert_eq!(backends(&groups, Scope::Inside, address).unwrap(), ["10.244.0.1:8080"]);
    }
}

#[test]
fn sctp_is_in_the_tables() {
    let spec = web(json!({"ports": [{"port": 80, "protocol": "SCTP", "name": "http"}]}));
    assert_eq!(groups(spec, json!([]))[0].name.protocol, Protocol::Sctp);
}

#[test]
fn annotations_choose_algorithm_weights_and_direct_return() {
    let annotated = |name: &str, value: &str| {
        let mut service = service(web(json!({"externalIPs": ["192.0.2.1"]})));
        service.metadata.annotations = Some([(name.to_owned(), value.to_owned())].into());
        service
    };
    let weights = json!({WEIGHTS: "{\"10.244.0.1\": 3, \"10.244.0.2\": 9999}"});
    let endpoints = json!([ready("10.244.0.1"), ready("10.244.0.2"), ready("10.244.0.3")]);
    let slices = [slice_of("IPv4", endpoints, weights)];
    let maglev = compute(&annotated(BALANCE, "maglev"), slices.iter(), &node());
    assert_eq!(maglev[0].algorithm, Algorithm::Maglev);
    let weights: Vec<u32> = maglev[0].backends.iter().map(|backend| backend.weight).collect();
    assert_eq!(weights, [3, 256, 1]);
    let unknown = annotated(BALANCE, "best");
    assert_eq!(algorithm(&unknown), Err("best"));
    assert_eq!(
        compute(&unknown, slices.iter(), &node())[0].algorithm,
        Algorithm::Random
    );
    let direct = compute(&annotated(FORWARDING, "direct-return"), slices.iter(), &node());
    assert_ne!(flags(&direct, Scope::Outside, "192.0.2.1:80") & flag::DIRECT_RETURN, 0);
}

#[test]
fn the_clusters_dns_address_leads_to_the_node() {
    let node = NodeView {
        dns: vec![DnsRedirect {
            cluster: "10.96.0.10".parse().unwrap(),
            local: "169.254.20.10:53".parse().unwrap(),
        }],
        ..node()
    };
    let groups = dns(&node);
    assert_eq!(groups.len(), 2, "UDP and TCP");
    assert_eq!(
        backends(&groups, Scope::Inside, "10.96.0.10:53").unwrap(),
        ["169.254.20.10:53"]
    );
    let spec = web(json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
        "ports": [{"port": 53, "protocol": "UDP"}, {"port": 9153, "name": "metrics"}]}));
    let groups = compute(&service(spec), [].iter(), &node);
    assert_eq!(
        backends(&groups, Scope::Inside, "10.96.0.10:53"),
        None,
        "a service has no say in it"
    );
    assert!(backends(&groups, Scope::Inside, "10.96.0.10:9153").is_some());
}
