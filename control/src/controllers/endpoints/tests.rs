//! Endpoints of simulated services.

use serde_json::{Value, json};

use super::*;
use crate::controllers::memory::World;
use crate::controllers::view::View;

fn world(spec: Value) -> World {
    let mut world = World::new(vec![Box::new(EndpointSlices), Box::new(Endpoints)]);
    let service = json!({"metadata": {"name": "web", "labels": {"team": "x"}}, "spec": spec});
    world.memory.put(SERVICES, "d", service);
    world
}

fn plain() -> Value {
    json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.9",
        "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]})
}

fn add_pod(world: &mut World, name: &str, address: &str, port: i32, ready: bool) {
    let status = if ready { "True" } else { "False" };
    world.memory.put(
        "pods",
        "d",
        json!({
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": status}]},
        }),
    );
}

fn endpoints(world: &World) -> Vec<Value> {
    let slices = world.memory.values(SLICES);
    slices
        .iter()
        .flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default())
        .collect()
}

#[test]
fn a_pod_becomes_an_endpoint_with_all_its_particulars() {
    let mut world = world(plain());
    world.settle();
    assert_eq!(world.memory.values(SLICES).len(), 1, "an empty slice holds the place");
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    world.settle();
    let slices = world.memory.values(SLICES);
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0]["addressType"], "IPv4");
    assert_eq!(
        slices[0]["ports"],
        json!([{"name": "http", "protocol": "TCP", "port": 8080}])
    );
    assert_eq!(slices[0]["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    assert_eq!(slices[0]["metadata"]["labels"]["team"], "x");
    let endpoint = &endpoints(&world)[0];
    assert_eq!(endpoint["addresses"], json!(["10.244.0.2"]));
    assert_eq!(
        endpoint["conditions"],
        json!({"ready": true, "serving": true, "terminating": false})
    );
    assert_eq!(endpoint["nodeName"], "n1");
    assert_eq!(endpoint["targetRef"]["name"], "a");
    let legacy = world.memory.get("endpoints", "d", "web").unwrap().value();
    assert_eq!(legacy["subsets"][0]["addresses"][0]["ip"], "10.244.0.2");
    assert_eq!(legacy["subsets"][0]["ports"][0]["port"], 8080);
}

#[test]
fn readiness_and_termination_show() {
    let mut world = world(plain());
    add_pod(&mut world, "a", "10.244.0.2", 8080, false);
    world.settle();
    assert_eq!(endpoints(&world)[0]["conditions"]["ready"], false);
    let legacy = || world.memory.get("endpoints", "d", "web").unwrap().value();
    assert_eq!(legacy()["subsets"][0]["notReadyAddresses"][0]["ip"], "10.244.0.2");
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    world.memory.patch("pods", "d", "a", &going);
    world.settle();
    let conditions = endpoints(&world)[0]["conditions"].clone();
    assert_eq!(
        conditions,
        json!({"ready": false, "serving": true, "terminating": true})
    );
    world.memory.remove("pods", "d", "a");
    world.settle();
    assert!(endpoints(&world).is_empty());
    assert_eq!(
        world.memory.get("endpoints", "d", "web").unwrap().value()["subsets"],
        Value::Null
    );
}

#[test]
fn not_ready_addresses_are_published_on_request() {
    let mut spec = plain();
    spec["publishNotReadyAddresses"] = true.into();
    let mut world = world(spec);
    add_pod(&mut world, "a", "10.244.0.2", 8080, false);
    world.settle();
    assert_eq!(
        endpoints(&world)[0]["conditions"],
        json!({"ready": true, "serving": false, "terminating": false})
    );
}

#[test]
fn different_targets_of_a_named_port_get_slices_of_their_own() {
    let mut world = world(plain());
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    add_pod(&mut world, "b", "10.244.0.3", 9090, true);
    world.settle();
    let mut ports = world
        .memory
        .values(SLICES)
        .iter()
        .map(|s| s["ports"][0]["port"].clone())
        .collect::<Vec<_>>();
    ports.sort_by_key(Value::as_i64);
    assert_eq!(ports, [8080, 9090]);
}

#[test]
fn slices_hold_a_hundred_and_endpoints_stay_where_they_are() {
    let mut world = world(plain());
    for i in 0..150 {
        add_pod(&mut world, &format!("p{i:03}"), &format!("10.244.0.{i}"), 8080, true);
    }
    world.settle();
    let count = |s: &Value| s["endpoints"].as_array().map_or(0, Vec::len);
    let mut counts = world.memory.values(SLICES).iter().map(count).collect::<Vec<_>>();
    counts.sort_unstable();
    assert_eq!(counts, [50, 100]);
    let before = world.memory.objects(SLICES);
    world.memory.patch(
        "pods",
        "d",
        "p003",
        &json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
    );
    world.settle();
    let after = world.memory.objects(SLICES);
    let changed = before
        .iter()
        .zip(&after)
        .filter(|(b, a)| b.revision != a.revision)
        .count();
    assert_eq!(changed, 1, "one slice is rewritten");
}

#[test]
fn headless_members_have_names() {
    let mut spec = plain();
    spec["clusterIP"] = "None".into();
    let mut world = world(spec);
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    world.memory.patch(
        "pods",
        "d",
        "a",
        &json!({"spec": {"hostname": "one", "subdomain": "web"}}),
    );
    world.settle();
    assert_eq!(endpoints(&world)[0]["hostname"], "one");
    assert_eq!(world.memory.values(SLICES)[0]["metadata"]["labels"][HEADLESS], "");
}

#[test]
fn a_service_without_selector_is_left_to_its_user() {
    let mut world = world(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}));
    let mine = json!({"metadata": {"name": "web"}, "subsets": [{"addresses": [{"ip": "192.0.2.1"}]}]});
    world.memory.put("endpoints", "d", mine.clone());
    world.settle();
    assert!(world.memory.values(SLICES).is_empty());
    assert_eq!(
        world.memory.get("endpoints", "d", "web").unwrap().value()["subsets"],
        mine["subsets"]
    );
}

#[test]
fn a_pod_whose_labels_change_leaves() {
    let mut world = world(plain());
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    world.settle();
    world
        .memory
        .patch("pods", "d", "a", &json!({"metadata": {"labels": {"app": "debug"}}}));
    world.settle();
    assert!(endpoints(&world).is_empty());
}
