//! Replica sets in a simulated cluster.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::controllers::memory::World;

fn set(replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web", "v": "1"}, "annotations": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i", "unknownField": 1}]}}},
    })
}

fn world() -> World {
    World::new(vec![Box::new(ReplicaSets::of_replica_sets())])
}

fn status(world: &World) -> Value {
    world.memory.get(REPLICA_SETS, "d", "web").unwrap().value()["status"].clone()
}

#[test]
fn creates_what_is_missing_and_counts_it() {
    let mut world = world();
    world.memory.put(REPLICA_SETS, "d", set(3));
    world.settle();
    assert_eq!(
        status(&world),
        json!({"replicas": 3, "fullyLabeledReplicas": 3, "observedGeneration": 1})
    );
    world.converge();
    assert_eq!(status(&world)["availableReplicas"], 3);
    let pod = &world.memory.values("pods")[0];
    assert_eq!(pod["metadata"]["ownerReferences"][0]["controller"], true);
    assert_eq!(pod["metadata"]["annotations"], json!({"a": "b"}));
    assert_eq!(pod["spec"]["containers"][0]["unknownField"], 1);
    assert!(
        world
            .notices
            .iter()
            .filter(|(reason, _)| reason == "SuccessfulCreate")
            .count()
            == 3
    );
    assert!(
        world.notices[0].1.starts_with("Created pod: web-"),
        "{:?}",
        world.notices
    );
}

#[test]
fn a_lost_pod_is_replaced_and_a_surplus_goes_unready_first() {
    let mut world = world();
    world.memory.put(REPLICA_SETS, "d", set(3));
    world.converge();
    let name = world.memory.objects("pods")[1].name.clone();
    world.memory.remove("pods", "d", &name);
    world.settle();
    assert_eq!(world.memory.objects("pods").len(), 3);
    world
        .memory
        .patch(REPLICA_SETS, "d", "web", &json!({"spec": {"replicas": 2}}));
    world.converge();
    let left = world.memory.values("pods");
    assert_eq!(left.len(), 2);
    assert!(
        left.iter().all(|p| p["status"]["phase"] == "Running"),
        "the replacement was not ready and went"
    );
}

#[test]
fn adopts_orphans_and_releases_strangers() {
    let mut world = world();
    world.memory.put(
        "pods",
        "d",
        json!({"metadata": {"name": "orphan", "labels": {"app": "web", "v": "1"}}}),
    );
    world.memory.put(REPLICA_SETS, "d", set(2));
    world.settle();
    assert_eq!(world.memory.objects("pods").len(), 2, "the orphan counts");
    assert!(!world.memory.get("pods", "d", "orphan").unwrap().index.owners.is_empty());
    world.memory.patch(
        "pods",
        "d",
        "orphan",
        &json!({"metadata": {"labels": {"app": "debug"}}}),
    );
    world.settle();
    assert!(
        world.memory.get("pods", "d", "orphan").unwrap().index.owners.is_empty(),
        "released"
    );
    assert_eq!(world.memory.objects("pods").len(), 3, "and replaced");
}

#[test]
fn available_only_after_min_ready_seconds() {
    let mut world = world();
    let mut value = set(1);
    value["spec"]["minReadySeconds"] = 10.into();
    world.memory.put(REPLICA_SETS, "d", value);
    world.converge();
    assert_eq!(status(&world)["readyReplicas"], 1);
    assert_eq!(status(&world)["availableReplicas"], Value::Null);
    world.advance(Duration::from_secs(9));
    assert_eq!(status(&world)["availableReplicas"], Value::Null);
    world.advance(Duration::from_secs(2));
    assert_eq!(status(&world)["availableReplicas"], 1);
}

#[test]
fn a_refused_create_becomes_a_condition_and_is_retried() {
    let mut world = world();
    world.refuse = Box::new(|write| matches!(write, Write::Create { .. }).then(|| "exceeded quota".to_owned()));
    world.memory.put(REPLICA_SETS, "d", set(1));
    world.advance(Duration::from_secs(1));
    let condition = status(&world)["conditions"][0].clone();
    assert_eq!(
        (&condition["reason"], &condition["message"]),
        (&json!("FailedCreate"), &json!("exceeded quota"))
    );
    world.refuse = Box::new(|_| None);
    world.advance(Duration::from_secs(120));
    assert_eq!(status(&world)["conditions"], Value::Null);
    assert_eq!(status(&world)["replicas"], 1);
}

#[test]
fn terminal_and_terminating_pods_do_not_count() {
    let mut world = world();
    world.memory.put(REPLICA_SETS, "d", set(1));
    world.converge();
    let name = world.memory.objects("pods")[0].name.clone();
    world
        .memory
        .patch("pods", "d", &name, &json!({"status": {"phase": "Failed"}}));
    world.settle();
    assert_eq!(world.memory.objects("pods").len(), 2);
}
