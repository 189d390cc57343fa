//! What services get, keep and give back.

use serde_json::{Value, json};

use super::*;

const ONE: &str = "10.96.0.0/16";
const TWO: &str = "10.96.0.0/16,fd00::/112";

/// No objects beside the services: but the address 10.96.0.99 is somebody's, and there is a range that was added.
struct Objects;

impl Others for Objects {
    fn follows_a_service(&self, address: IpAddr) -> Option<bool> {
        (address.to_string() == "10.96.0.99").then_some(false)
    }

    fn ranges(&self) -> Vec<ServiceRange> {
        vec!["10.200.0.0/28".parse().unwrap()]
    }
}

fn allocator(ranges: &str) -> ServiceAllocator {
    let allocator = ServiceAllocator::new(ranges.parse().unwrap());
    allocator.held.lock().loaded = true;
    allocator
}

fn give(allocator: &ServiceAllocator, old: Option<&Value>, service: &mut Value, seed: u32) -> Result<(), String> {
    let mut reservation = allocator.reservation(&Objects, owner(service));
    match reservation.fill(old, service, seed) {
        Ok(()) => {
            reservation.keep();
            Ok(())
        }
        Err(Refusal::Fields(errors)) => Err(errors[0].to_string()),
        Err(Refusal::Exhausted(why)) => Err(why),
    }
}

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec})
}

fn held(allocator: &ServiceAllocator) -> (usize, usize) {
    let held = allocator.held.lock();
    (held.addresses.len(), held.ports.len())
}

#[test]
fn every_address_of_a_small_range_is_given_once() {
    let allocator = allocator("10.0.0.0/28");
    let mut seen = std::collections::HashSet::new();
    for number in 0..12 {
        let mut new = service(&format!("s{number}"), json!({"type": "ClusterIP"}));
        give(&allocator, None, &mut new, number * 7919).unwrap();
        assert!(seen.insert(text(&new, "/spec/clusterIP").to_owned()));
    }
    for number in 0..12 {
        let mut new = service(&format!("t{number}"), json!({"type": "ClusterIP"}));
        give(&allocator, None, &mut new, number).unwrap();
        assert!(text(&new, "/spec/clusterIP").starts_with("10.200.0."), "{new}");
    }
    let refused = give(&allocator, None, &mut service("last", json!({"type": "ClusterIP"})), 1).unwrap_err();
    assert!(refused.contains("is full"), "{refused}");
    assert!(!seen.contains("10.0.0.10") && !seen.contains("10.0.0.1"));
}

#[test]
fn a_taken_address_is_refused_and_a_failed_write_gives_back() {
    let allocator = allocator(ONE);
    let with = |name, spec: Value| {
        let mut spec = spec;
        spec["clusterIPs"] = json!([spec["clusterIP"]]);
        service(name, spec)
    };
    let mut theirs = with("theirs", json!({"type": "ClusterIP", "clusterIP": "10.96.0.99"}));
    let refused = give(&allocator, None, &mut theirs, 0).unwrap_err();
    assert!(refused.contains("already allocated"), "{refused}");
    let mut added = with("added", json!({"type": "ClusterIP", "clusterIP": "10.200.0.5"}));
    give(&allocator, None, &mut added, 0).unwrap();
    allocator.free("d/added", &["10.200.0.5".parse().unwrap()], &[]);
    let mut a = with("a", json!({"type": "ClusterIP", "clusterIP": "10.96.0.7"}));
    give(&allocator, None, &mut a, 0).unwrap();
    let mut b = with("b", json!({"type": "ClusterIP", "clusterIP": "10.96.0.7"}));
    assert_eq!(
        give(&allocator, None, &mut b, 0).unwrap_err(),
        "spec.clusterIPs: Invalid value: [\"10.96.0.7\"]: failed to allocate IP 10.96.0.7: provided IP is already allocated"
    );
    let mut c = with(
        "c",
        json!({"type": "NodePort", "clusterIP": "10.96.0.8", "ports": [{"nodePort": 1}]}),
    );
    assert_eq!(
        give(&allocator, None, &mut c, 0).unwrap_err(),
        "spec.ports[0].nodePort: Invalid value: 1: provided port is not in the valid range. The range of valid ports is 30000-32767"
    );
    assert_eq!(held(&allocator), (1, 0));
    let mut outside = with("d", json!({"type": "ClusterIP", "clusterIP": "10.97.0.8"}));
    assert!(
        give(&allocator, None, &mut outside, 0)
            .unwrap_err()
            .contains("is not in the valid range. The range of valid IPs is 10.96.0.0/16")
    );
}

#[test]
fn two_families_come_and_go() {
    let allocator = allocator(TWO);
    let mut dual = service("a", json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack"}));
    give(&allocator, None, &mut dual, 5).unwrap();
    let addresses = dual["spec"]["clusterIPs"].as_array().unwrap().clone();
    assert_eq!(dual["spec"]["clusterIP"], addresses[0]);
    assert!(
        addresses[0].as_str().unwrap().starts_with("10.96.") && addresses[1].as_str().unwrap().starts_with("fd00::")
    );
    assert_eq!(held(&allocator), (2, 0));

    let mut single = dual.clone();
    single["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    give(&allocator, Some(&dual), &mut single, 5).unwrap();
    assert_eq!(single["spec"]["clusterIPs"], json!([addresses[0]]));
    assert_eq!(held(&allocator), (1, 0));

    let mut again = single.clone();
    again["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
    give(&allocator, Some(&single), &mut again, 5).unwrap();
    assert_eq!(again["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(held(&allocator), (2, 0));

    let mut name = service("a", json!({"type": "ExternalName", "externalName": "x.y"}));
    give(&allocator, Some(&again), &mut name, 0).unwrap();
    assert_eq!(name["spec"].get("clusterIP"), None);
    assert_eq!(held(&allocator), (0, 0));
}

#[test]
fn node_ports_come_from_the_upper_part_and_go_with_the_type() {
    let allocator = allocator(ONE);
    let mut new = service(
        "a",
        json!({"type": "NodePort", "ports": [
            {"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 81, "nodePort": 30007}, {"port": 82},
        ]}),
    );
    give(&allocator, None, &mut new, 7).unwrap();
    let ports: Vec<_> = new["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| port["nodePort"].clone())
        .collect();
    assert_eq!(ports, [30093, 30093, 30007, 30094], "one number for both protocols");
    assert_eq!(held(&allocator), (1, 3));

    let mut taken = service(
        "b",
        json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30093}]}),
    );
    assert!(
        give(&allocator, None, &mut taken, 7)
            .unwrap_err()
            .ends_with("30093: provided port is already allocated")
    );
    let mut internal = new.clone();
    internal["spec"]["type"] = json!("ClusterIP");
    for port in internal["spec"]["ports"].as_array_mut().unwrap() {
        port.as_object_mut().unwrap().remove("nodePort");
    }
    give(&allocator, Some(&new), &mut internal, 7).unwrap();
    assert_eq!(held(&allocator), (1, 0));
}

#[test]
fn load_balancers_get_what_they_need_and_no_more() {
    let allocator = allocator(ONE);
    let mut plain = service(
        "a",
        json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
    );
    give(&allocator, None, &mut plain, 9).unwrap();
    assert_eq!(plain["spec"]["ports"][0].get("nodePort"), None);
    assert_eq!(plain["spec"]["healthCheckNodePort"], 30095);
    let mut cluster = plain.clone();
    cluster["spec"]["externalTrafficPolicy"] = json!("Cluster");
    cluster["spec"].as_object_mut().unwrap().remove("healthCheckNodePort");
    cluster["spec"]["allocateLoadBalancerNodePorts"] = json!(true);
    give(&allocator, Some(&plain), &mut cluster, 9).unwrap();
    assert_eq!(cluster["spec"]["ports"][0]["nodePort"], 30096);
    assert_eq!(held(&allocator), (1, 1));
}

#[test]
fn headless_services_take_no_address() {
    let allocator = allocator(TWO);
    let mut headless = service(
        "a",
        json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}),
    );
    give(&allocator, None, &mut headless, 0).unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(headless["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(held(&allocator), (0, 0));
}
