//! Deployments with their replica sets in a simulated cluster.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::controllers::memory::{Memory, World};
use crate::controllers::replicaset::ReplicaSets;

fn deployment(replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "annotations": {"team": "x"}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}},
    })
}

fn world() -> World {
    World::new(vec![Box::new(Deployments), Box::new(ReplicaSets::of_replica_sets())])
}

fn get(world: &World) -> Value {
    world.memory.get(DEPLOYMENTS, "d", "web").unwrap().value()
}

fn condition(world: &World, kind: &str) -> Value {
    let value = get(world);
    let list = value["status"]["conditions"].as_array().unwrap();
    list.iter().find(|c| c["type"] == kind).cloned().unwrap_or_default()
}

fn set_image(world: &mut World, image: &str) {
    let template = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    world.memory.patch(DEPLOYMENTS, "d", "web", &template);
}

fn sizes(world: &World) -> Vec<(String, i64)> {
    let mut all = world.memory.values(REPLICA_SETS);
    all.sort_by_key(|s| {
        s["metadata"]["annotations"][REVISION]
            .as_str()
            .unwrap()
            .parse::<i32>()
            .unwrap()
    });
    let image = |s: &Value| {
        s["spec"]["template"]["spec"]["containers"][0]["image"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    all.iter()
        .map(|s| (image(s), s["spec"]["replicas"].as_i64().unwrap()))
        .collect()
}

#[test]
fn comes_up_and_reports_it() {
    let mut world = world();
    world.memory.put(DEPLOYMENTS, "d", deployment(3, "v1"));
    world.settle();
    assert_eq!(condition(&world, "Available")["status"], "False");
    assert_eq!(condition(&world, "Progressing")["status"], "True");
    world.converge();
    let value = get(&world);
    let status = &value["status"];
    for field in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
        assert_eq!(status[field], 3, "{field}");
    }
    assert_eq!(status["unavailableReplicas"], Value::Null);
    assert_eq!(condition(&world, "Available")["reason"], "MinimumReplicasAvailable");
    assert_eq!(condition(&world, "Progressing")["reason"], "NewReplicaSetAvailable");
    assert_eq!(value["metadata"]["annotations"][REVISION], "1");
    let set = &world.memory.values(REPLICA_SETS)[0];
    let hash = set["metadata"]["labels"]["pod-template-hash"].as_str().unwrap();
    assert_eq!(set["metadata"]["name"], format!("web-{hash}"));
    assert_eq!(set["spec"]["selector"]["matchLabels"]["pod-template-hash"], hash);
    assert_eq!(set["metadata"]["annotations"]["team"], "x");
    assert_eq!(
        set["metadata"]["annotations"]["deployment.kubernetes.io/max-replicas"],
        "4"
    );
    let scaled = (
        "ScalingReplicaSet".to_owned(),
        format!("Scaled up replica set web-{hash} from 0 to 3"),
    );
    assert!(world.notices.contains(&scaled), "{:?}", world.notices);
}

#[test]
fn rolls_to_a_new_template_and_back() {
    let mut world = world();
    world.memory.put(DEPLOYMENTS, "d", deployment(3, "v1"));
    world.converge();
    set_image(&mut world, "v2");
    world.settle();
    assert_eq!(get(&world)["status"]["observedGeneration"], 2);
    assert_eq!(
        get(&world)["status"]["updatedReplicas"],
        1,
        "one above replicas, none may be missing"
    );
    world.converge();
    assert_eq!(sizes(&world), [("v1".to_owned(), 0), ("v2".to_owned(), 3)]);
    assert_eq!(get(&world)["metadata"]["annotations"][REVISION], "2");
    set_image(&mut world, "v1");
    world.converge();
    assert_eq!(
        sizes(&world),
        [("v2".to_owned(), 0), ("v1".to_owned(), 3)],
        "the old replica set is used again"
    );
    assert_eq!(get(&world)["metadata"]["annotations"][REVISION], "3");
    let history = world.memory.values(REPLICA_SETS);
    let back = history.iter().find(|s| s["spec"]["replicas"] == 3).unwrap();
    assert_eq!(back["metadata"]["annotations"][replica_sets::REVISION_HISTORY], "1");
    assert_eq!(condition(&world, "Progressing")["reason"], "NewReplicaSetAvailable");
}

#[test]
fn recreate_never_runs_both_templates() {
    let mut world = world();
    let mut value = deployment(3, "v1");
    value["spec"]["strategy"] = json!({"type": "Recreate"});
    world.memory.put(DEPLOYMENTS, "d", value);
    world.converge();
    set_image(&mut world, "v2");
    let mixed = Rc::new(Cell::new(false));
    let seen = mixed.clone();
    world.watch = Box::new(move |memory: &Memory| {
        let pods = memory.values("pods");
        let with = |image: &str| pods.iter().any(|p| p["spec"]["containers"][0]["image"] == image);
        seen.set(seen.get() || (with("v1") && with("v2")));
    });
    world.converge();
    assert!(!mixed.get());
    assert_eq!(sizes(&world), [("v1".to_owned(), 0), ("v2".to_owned(), 3)]);
}

#[test]
fn a_paused_rollout_stands_still_but_scales_proportionally() {
    let mut world = world();
    let mut value = deployment(10, "v1");
    value["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}});
    world.memory.put(DEPLOYMENTS, "d", value);
    world.converge();
    set_image(&mut world, "v2");
    world.settle();
    assert_eq!(sizes(&world), [("v1".to_owned(), 8), ("v2".to_owned(), 5)]);
    world
        .memory
        .patch(DEPLOYMENTS, "d", "web", &json!({"spec": {"paused": true}}));
    world.converge();
    assert_eq!(sizes(&world), [("v1".to_owned(), 8), ("v2".to_owned(), 5)]);
    assert_eq!(condition(&world, "Progressing")["reason"], "DeploymentPaused");
    world
        .memory
        .patch(DEPLOYMENTS, "d", "web", &json!({"spec": {"replicas": 15}}));
    world.converge();
    assert_eq!(
        sizes(&world),
        [("v1".to_owned(), 11), ("v2".to_owned(), 7)],
        "the documentation's example"
    );
    world
        .memory
        .patch(DEPLOYMENTS, "d", "web", &json!({"spec": {"paused": false}}));
    world.converge();
    assert_eq!(sizes(&world), [("v1".to_owned(), 0), ("v2".to_owned(), 15)]);
}

#[test]
fn a_stuck_rollout_misses_its_deadline() {
    let mut world = world();
    world.memory.put(DEPLOYMENTS, "d", deployment(1, "v1"));
    world.converge();
    world.memory.patch(
        DEPLOYMENTS,
        "d",
        "web",
        &json!({"spec": {"progressDeadlineSeconds": 60}}),
    );
    set_image(&mut world, "missing");
    world.advance(Duration::from_secs(58));
    assert_eq!(condition(&world, "Progressing")["status"], "True");
    world.advance(Duration::from_secs(5));
    let progressing = condition(&world, "Progressing");
    assert_eq!(
        (&progressing["status"], &progressing["reason"]),
        (&json!("False"), &json!("ProgressDeadlineExceeded"))
    );
    assert_eq!(
        get(&world)["status"]["availableReplicas"],
        1,
        "the old pod still serves"
    );
    set_image(&mut world, "v3");
    world.converge();
    assert_eq!(condition(&world, "Progressing")["reason"], "NewReplicaSetAvailable");
}

#[test]
fn history_is_limited() {
    let mut world = world();
    let mut value = deployment(1, "v0");
    value["spec"]["revisionHistoryLimit"] = 2.into();
    world.memory.put(DEPLOYMENTS, "d", value);
    for version in 1..6 {
        world.converge();
        set_image(&mut world, &format!("v{version}"));
    }
    world.converge();
    assert_eq!(
        sizes(&world).iter().map(|s| s.0.as_str()).collect::<Vec<_>>(),
        ["v3", "v4", "v5"]
    );
}

#[test]
fn a_taken_name_leads_to_another_hash() {
    let mut world = world();
    let template = deployment(1, "v1")["spec"]["template"].clone();
    let name = format!("web-{}", hash::template_hash(&template, 0));
    let stranger = json!({"metadata": {"name": name, "labels": {"app": "else"}},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "else"}}, "template": {}}});
    world.memory.put(REPLICA_SETS, "d", stranger);
    world.memory.put(DEPLOYMENTS, "d", deployment(1, "v1"));
    world.converge();
    assert_eq!(get(&world)["status"]["collisionCount"], 1);
    assert_eq!(get(&world)["status"]["availableReplicas"], 1);
}

#[test]
fn an_orphaned_replica_set_is_adopted() {
    let mut world = world();
    world.memory.put(DEPLOYMENTS, "d", deployment(2, "v1"));
    world.converge();
    let name = world.memory.objects(REPLICA_SETS)[0].name.clone();
    world.memory.remove(DEPLOYMENTS, "d", "web");
    world.memory.patch(
        REPLICA_SETS,
        "d",
        &name,
        &json!({"metadata": {"ownerReferences": null}}),
    );
    let pods = world
        .memory
        .objects("pods")
        .iter()
        .map(|p| p.name.clone())
        .collect::<Vec<_>>();
    world.memory.put(DEPLOYMENTS, "d", deployment(2, "v1"));
    world.converge();
    assert_eq!(world.memory.objects(REPLICA_SETS).len(), 1);
    assert_eq!(
        world
            .memory
            .objects("pods")
            .iter()
            .map(|p| p.name.clone())
            .collect::<Vec<_>>(),
        pods
    );
}

/// Available and all pods that count.
fn census(memory: &Memory) -> (i32, i32) {
    let pods = memory
        .objects("pods")
        .iter()
        .filter_map(|o| pods::pod(o))
        .filter(pods::Pod::is_active)
        .collect::<Vec<_>>();
    let ready = pods.iter().filter(|p| p.is_ready()).count();
    (i32::try_from(ready).unwrap(), i32::try_from(pods.len()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_rolling_update_keeps_its_bounds_and_converges(
        replicas in 0..12i32,
        surge in prop_oneof![(0..4i32).prop_map(Value::from), (0..100i32).prop_map(|p| format!("{p}%").into())],
        unavailable in prop_oneof![(0..4i32).prop_map(Value::from), (0..100i32).prop_map(|p| format!("{p}%").into())],
        order in proptest::collection::vec(any::<u16>(), 400),
        versions in 1..4usize,
    ) {
        let mut world = world();
        let mut value = deployment(replicas, "v0");
        value["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        world.memory.put(DEPLOYMENTS, "d", value);
        world.converge();
        let bounds = Deployment::new(world.memory.get(DEPLOYMENTS, "d", "web").unwrap()).unwrap();
        let (least, most) = (bounds.min_available(), replicas + bounds.max_surge());
        world.watch = Box::new(move |memory| {
            let (available, all) = census(memory);
            assert!(available >= least, "{available} available, {least} wanted");
            assert!(all <= most, "{all} pods, {most} allowed");
        });
        let mut order = order.into_iter();
        for version in 0..versions {
            set_image(&mut world, &format!("v{}", version + 1));
            for choice in order.by_ref() {
                let pods = world.memory.objects("pods");
                if choice % 2 == 0 && !pods.is_empty() {
                    world.run_pod(&pods[usize::from(choice / 2) % pods.len()]);
                } else {
                    world.step();
                }
                if choice % 97 == 0 && version + 1 < versions {
                    break;
                }
            }
        }
        world.converge();
        let last = format!("v{versions}");
        prop_assert!(world.memory.values("pods").iter().all(|p| p["spec"]["containers"][0]["image"] == *last));
        prop_assert_eq!(census(&world.memory), (replicas, replicas));
    }
}
