//! Nodes in a simulated cluster: silence, taints, eviction, healing.

use std::time::Duration;

use serde_json::{Value, json};

use super::cidr::NodeRanges;
use super::eviction::TaintEviction;
use super::lifecycle::NodeLifecycle;
use super::taints::{NO_EXECUTE, NO_SCHEDULE};
use super::*;
use crate::controllers::memory::World;
use crate::controllers::view::View;

const SECOND: Duration = Duration::from_secs(1);

fn world(nodes: &[&str]) -> World {
    let cluster = "10.244.0.0/16,fd00:244::/48".parse().unwrap();
    let mut world = World::new(vec![
        Box::new(NodeLifecycle::new(SECOND * 40)),
        Box::<TaintEviction>::default(),
        Box::new(NodeRanges { cluster }),
    ]);
    for name in nodes {
        let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"});
        world.memory.put(
            NODES,
            "",
            json!({"metadata": {"name": name}, "status": {"conditions": [ready]}}),
        );
    }
    world.settle();
    world
}

/// Let time pass while these nodes renew their leases every 10 s.
fn run(world: &mut World, alive: &[&str], time: Duration) {
    for _ in 0..time.as_secs() / 10 {
        for name in alive {
            let renewed = world.memory.wall.to_string();
            let lease = json!({"metadata": {"name": name}, "spec": {"renewTime": renewed}});
            world.memory.put("coordination.k8s.io/leases", "kube-node-lease", lease);
        }
        world.advance(SECOND * 10);
    }
}

fn pod_on(world: &mut World, name: &str, node: &str, tolerations: Value) {
    let ready = json!([{"type": "Ready", "status": "True"}]);
    world.memory.put(
        "pods",
        "d",
        json!({"metadata": {"name": name},
        "spec": {"nodeName": node, "tolerations": tolerations}, "status": {"phase": "Running", "conditions": ready}}),
    );
}

fn get(world: &World, name: &str) -> Node {
    node(&world.memory.get(NODES, "", name).unwrap()).unwrap()
}

fn taint_list(world: &World, name: &str) -> Vec<(String, String)> {
    get(world, name)
        .spec
        .taints
        .into_iter()
        .map(|t| (t.key, t.effect))
        .collect()
}

fn is_going(world: &World, pod: &str) -> bool {
    world
        .memory
        .get("pods", "d", pod)
        .is_none_or(|p| p.value()["metadata"]["deletionTimestamp"].is_string())
}

#[test]
fn a_silent_node_is_tainted_evicted_and_healed() {
    let mut world = world(&["a", "b"]);
    let toleration = json!([{"key": taints::UNREACHABLE, "operator": "Exists", "effect": NO_EXECUTE,
        "tolerationSeconds": 300}]);
    pod_on(&mut world, "patient", "b", toleration);
    pod_on(&mut world, "forever", "b", json!([{"operator": "Exists"}]));
    run(&mut world, &["a", "b"], SECOND * 120);
    assert!(get(&world, "b").is_ready());
    run(&mut world, &["a"], SECOND * 20);
    assert!(get(&world, "b").is_ready(), "the last lease is 30 s old");
    run(&mut world, &["a"], SECOND * 20);
    assert_eq!(get(&world, "b").condition("Ready"), "Unknown");
    let unreachable = |effect: &str| (taints::UNREACHABLE.to_owned(), effect.to_owned());
    assert_eq!(
        taint_list(&world, "b"),
        [unreachable(NO_SCHEDULE), unreachable(NO_EXECUTE)]
    );
    assert!(taint_list(&world, "a").is_empty());
    let pod = world.memory.get("pods", "d", "patient").unwrap().value();
    assert_eq!(
        pod["status"]["conditions"][0]["status"], "False",
        "services must not use it"
    );
    run(&mut world, &["a"], SECOND * 280);
    assert!(!is_going(&world, "patient"));
    run(&mut world, &["a"], SECOND * 40);
    assert!(is_going(&world, "patient"));
    assert!(!is_going(&world, "forever"));
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True",
        "lastHeartbeatTime": world.memory.wall.to_string()}]}});
    world.memory.patch(NODES, "", "b", &ready);
    world.settle();
    assert!(taint_list(&world, "b").is_empty());
}

#[test]
fn healing_in_time_saves_the_pod() {
    let mut world = world(&["a", "b"]);
    let toleration = json!([{"operator": "Exists", "effect": NO_EXECUTE, "tolerationSeconds": 100}]);
    pod_on(&mut world, "p", "b", toleration);
    run(&mut world, &["a"], SECOND * 100);
    assert!(!taint_list(&world, "b").is_empty());
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True",
        "lastHeartbeatTime": world.memory.wall.to_string()}]}});
    world.memory.patch(NODES, "", "b", &ready);
    run(&mut world, &["a", "b"], SECOND * 300);
    assert!(!is_going(&world, "p"));
}

#[test]
fn a_jump_of_the_wall_clock_changes_nothing() {
    let mut world = world(&["a", "b"]);
    run(&mut world, &["a", "b"], SECOND * 20);
    world.memory.wall = "2038-01-20T00:00:00Z".parse().unwrap();
    run(&mut world, &["a", "b"], SECOND * 60);
    world.memory.wall = "2020-01-01T00:00:00Z".parse().unwrap();
    run(&mut world, &["a", "b"], SECOND * 60);
    assert!(get(&world, "a").is_ready() && get(&world, "b").is_ready());
}

#[test]
fn without_any_ready_node_nothing_is_evicted() {
    let mut world = world(&["a"]);
    pod_on(&mut world, "p", "a", json!([]));
    run(&mut world, &[], SECOND * 600);
    assert_eq!(get(&world, "a").condition("Ready"), "Unknown");
    assert_eq!(
        taint_list(&world, "a"),
        [(taints::UNREACHABLE.to_owned(), NO_SCHEDULE.to_owned())]
    );
    assert!(!is_going(&world, "p"));
}

#[test]
fn cordon_and_foreign_taints() {
    let mut world = world(&["a"]);
    let foreign = json!({"key": "mine", "value": "x", "effect": NO_SCHEDULE});
    world.memory.patch(
        NODES,
        "",
        "a",
        &json!({"spec": {"unschedulable": true, "taints": [foreign]}}),
    );
    world.settle();
    assert_eq!(taint_list(&world, "a").len(), 2);
    world
        .memory
        .patch(NODES, "", "a", &json!({"spec": {"unschedulable": null}}));
    world.settle();
    assert_eq!(taint_list(&world, "a"), [("mine".to_owned(), NO_SCHEDULE.to_owned())]);
}

#[test]
fn every_node_gets_a_range_of_its_own() {
    let mut world = world(&["a", "b", "c"]);
    let range = |world: &World, name: &str| get(world, name).spec.pod_cidr;
    assert_eq!(
        ["a", "b", "c"].map(|n| range(&world, n)),
        ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]
    );
    world.memory.remove(NODES, "", "b");
    world.memory.put(NODES, "", json!({"metadata": {"name": "d"}}));
    world.settle();
    assert_eq!(range(&world, "d"), "10.244.1.0/24", "a free range is used again");
    assert_eq!(
        get(&world, "d").spec.pod_cidrs,
        ["10.244.1.0/24", "fd00:244:0:1::/64"],
        "one of each family"
    );
}
