//! Decisions over clusters built from plain objects.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::decide::{Unschedulable, decide};
use super::pod::PodInfo;
use super::queue::Queue;
use crate::controllers::memory::Memory;

fn node(name: &str, patch: Value) -> Value {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    json_patch::merge(&mut node, &patch);
    node
}

fn pod(name: &str, spec: Value) -> Arc<PodInfo> {
    labelled(name, json!({"app": "web"}), spec)
}

fn labelled(name: &str, labels: Value, mut spec: Value) -> Arc<PodInfo> {
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "c", "image": "web"}]);
    }
    let object = json!({"metadata": {"name": name, "labels": labels}, "spec": spec});
    PodInfo::new(&Memory::default().put("pods", "d", object)).unwrap()
}

fn wants(resources: Value) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": resources}}]})
}

fn cluster(nodes: &[Value]) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.put_node(&Memory::default().put("nodes", "", node.clone()));
    }
    cluster
}

fn place(cluster: &mut Cluster, pod: &Arc<PodInfo>) -> String {
    let node = decide(cluster, pod, 0).unwrap();
    cluster.place(pod.clone(), &node);
    node.to_string()
}

fn refusal(cluster: &Cluster, pod: &PodInfo) -> String {
    decide(cluster, pod, 0).unwrap_err().0
}

const NO_VICTIMS: &str = "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
const NO_HELP: &str = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";

#[test]
fn an_empty_cluster() {
    let nowhere = Unschedulable("no nodes available to schedule pods".to_owned());
    assert_eq!(decide(&Cluster::default(), &pod("p", json!({})), 0), Err(nowhere));
}

#[test]
fn refusals_are_worded_as_by_kubernetes() {
    let taint = |key: &str, value: &str| json!({"key": key, "value": value, "effect": "NoSchedule"});
    for (patch, spec, expected, preemption) in [
        (json!({}), wants(json!({"cpu": "5"})), "1 Insufficient cpu", NO_HELP),
        (
            json!({}),
            wants(json!({"cpu": "5", "memory": "9Gi"})),
            "1 Insufficient cpu, 1 Insufficient memory",
            NO_HELP,
        ),
        (
            json!({"status": {"allocatable": {"pods": "0"}}}),
            json!({}),
            "1 Too many pods",
            NO_VICTIMS,
        ),
        (
            json!({"spec": {"unschedulable": true}}),
            json!({}),
            "1 node(s) were unschedulable",
            NO_HELP,
        ),
        (
            json!({"spec": {"taints": [taint("gpu", "yes")]}}),
            json!({}),
            "1 node(s) had untolerated taint {gpu: yes}",
            NO_HELP,
        ),
        (
            json!({}),
            json!({"nodeSelector": {"disk": "ssd"}}),
            "1 node(s) didn't match Pod's node affinity/selector",
            NO_HELP,
        ),
    ] {
        let cluster = cluster(&[node("n1", patch)]);
        let message = format!("0/1 nodes are available: {expected}. {preemption}");
        assert_eq!(refusal(&cluster, &pod("p", spec)), message);
    }
}

#[test]
fn what_is_used_up_could_be_preempted() {
    let mut cluster = cluster(&[node("n1", json!({}))]);
    place(&mut cluster, &pod("a", wants(json!({"cpu": "3"}))));
    let message = refusal(&cluster, &pod("b", wants(json!({"cpu": "2"}))));
    assert_eq!(
        message,
        format!("0/1 nodes are available: 1 Insufficient cpu. {NO_VICTIMS}")
    );
    cluster.remove_pod(&pod("a", json!({})).key);
    assert_eq!(place(&mut cluster, &pod("b", wants(json!({"cpu": "2"})))), "n1");
}

#[test]
fn host_ports_conflict_by_address() {
    let port = |port: i32, address: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": port, "hostIP": address}]}]});
    let mut cluster = cluster(&[node("n1", json!({}))]);
    place(&mut cluster, &pod("a", port(80, "127.0.0.1")));
    place(&mut cluster, &pod("b", port(80, "127.0.0.2")));
    let message = refusal(&cluster, &pod("c", port(80, "")));
    assert!(
        message.contains("1 node(s) didn't have free ports for the requested pod ports"),
        "{message}"
    );
    place(&mut cluster, &pod("d", port(81, "")));
}

#[test]
fn tolerations_and_preferences() {
    let tainted = |effect: &str| json!({"spec": {"taints": [{"key": "k", "effect": effect}]}});
    let mut hard = cluster(&[node("n1", tainted("NoSchedule"))]);
    assert_eq!(
        place(
            &mut hard,
            &pod("p", json!({"tolerations": [{"key": "k", "operator": "Exists"}]}))
        ),
        "n1"
    );
    let mut soft = cluster(&[node("n1", tainted("PreferNoSchedule")), node("n2", json!({}))]);
    for i in 0..3 {
        assert_eq!(place(&mut soft, &pod(&format!("p{i}"), json!({}))), "n2");
    }
}

#[test]
fn node_affinity_with_every_operator() {
    let labels = json!({"metadata": {"labels": {"zone": "a", "cores": "8"}}});
    let cluster = cluster(&[node("n1", labels)]);
    let fits = |field: &str, key: &str, operator: &str, values: Value| {
        let term = json!({field: [{"key": key, "operator": operator, "values": values}]});
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [term]}}});
        decide(&cluster, &pod("p", json!({"affinity": affinity})), 0).is_ok()
    };
    let labels = "matchExpressions";
    assert!(fits(labels, "zone", "In", json!(["a", "b"])));
    assert!(!fits(labels, "zone", "NotIn", json!(["a"])));
    assert!(fits(labels, "missing", "NotIn", json!(["a"])));
    assert!(fits(labels, "zone", "Exists", json!([])));
    assert!(!fits(labels, "zone", "DoesNotExist", json!([])));
    assert!(fits(labels, "cores", "Gt", json!(["4"])));
    assert!(!fits(labels, "cores", "Gt", json!(["8"])));
    assert!(fits(labels, "cores", "Lt", json!(["9"])));
    assert!(!fits(labels, "zone", "Lt", json!(["9"])));
    assert!(fits("matchFields", "metadata.name", "In", json!(["n1"])));
    assert!(!fits("matchFields", "metadata.name", "In", json!(["n2"])));
    let empty =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}});
    assert!(
        decide(&cluster, &pod("p", json!({"affinity": empty})), 0).is_err(),
        "an empty term matches nothing"
    );
}

#[test]
fn preferred_node_affinity_decides_among_equals() {
    let mut cluster = cluster(&["a", "b", "c"].map(|zone| node(zone, json!({"metadata": {"labels": {"zone": zone}}}))));
    let term = json!({"weight": 50, "preference": {"matchExpressions":
        [{"key": "zone", "operator": "In", "values": ["b"]}]}});
    let affinity = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}});
    assert_eq!(place(&mut cluster, &pod("p", json!({"affinity": affinity}))), "b");
}

fn term(app: &str) -> Value {
    json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "kubernetes.io/hostname"}])
}

#[test]
fn anti_affinity_works_both_ways() {
    let mut cluster = cluster(&[node("n1", json!({})), node("n2", json!({}))]);
    let alone =
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term("web")}}});
    let first = place(&mut cluster, &pod("a", alone.clone()));
    let second = place(&mut cluster, &pod("b", alone.clone()));
    assert_ne!(first, second);
    let message = refusal(&cluster, &pod("c", json!({})));
    assert!(
        message.contains("2 node(s) didn't satisfy existing pods anti-affinity rules"),
        "{message}"
    );
    let other = labelled("d", json!({"app": "db"}), alone);
    let message = refusal(&cluster, &other);
    assert!(
        message.contains("2 node(s) didn't match pod anti-affinity rules"),
        "{message}"
    );
}

#[test]
fn affinity_joins_and_the_first_may_be_alone() {
    let mut cluster = cluster(&[node("n1", json!({})), node("n2", json!({})), node("n3", json!({}))]);
    let near =
        |app: &str| json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term(app)}}});
    let message = refusal(&cluster, &pod("x", near("db")));
    assert!(
        message.contains("3 node(s) didn't match pod affinity rules"),
        "{message}"
    );
    let home = place(&mut cluster, &pod("a", near("web")));
    for name in ["b", "c"] {
        assert_eq!(place(&mut cluster, &pod(name, near("web"))), home);
    }
}

#[test]
fn spread_constraints_bound_the_skew() {
    let zones = ["a", "a", "b"];
    let nodes = zones
        .iter()
        .enumerate()
        .map(|(i, zone)| node(&format!("n{i}"), json!({"metadata": {"labels": {"zone": zone}}})));
    let mut cluster = cluster(&nodes.collect::<Vec<_>>());
    let spec = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
    let placed = (0..6)
        .map(|i| place(&mut cluster, &pod(&format!("p{i}"), spec.clone())))
        .collect::<Vec<_>>();
    assert_eq!(placed.iter().filter(|n| *n == "n2").count(), 3, "{placed:?}");
}

#[test]
fn replicas_spread_over_nodes() {
    let mut cluster = cluster(&["a", "b", "c"].map(|name| node(name, json!({}))));
    let owner = json!([{"uid": "r", "controller": true, "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r"}]);
    let mut used = std::collections::BTreeMap::<String, i32>::new();
    for i in 0..9 {
        let object = json!({"metadata": {"name": format!("p{i}"), "ownerReferences": owner},
            "spec": {"containers": [{"name": "c"}]}});
        let pod = PodInfo::new(&Memory::default().put("pods", "d", object)).unwrap();
        *used.entry(place(&mut cluster, &pod)).or_default() += 1;
    }
    assert!(used.values().all(|count| *count == 3), "{used:?}");
}

#[test]
fn the_node_that_has_the_image_wins() {
    let image = json!({"status": {"images": [{"names": ["docker.io/library/web:latest"], "sizeBytes": 900_000_000}]}});
    let mut cluster = cluster(&[node("a", json!({})), node("b", image), node("c", json!({}))]);
    assert_eq!(place(&mut cluster, &pod("p", json!({}))), "b");
}

#[test]
fn higher_priority_first_and_back_off_until_something_changes() {
    let mut queue = Queue::default();
    let second = Duration::from_secs(1);
    queue.put(pod("low", json!({"priority": 1})));
    queue.put(pod("high", json!({"priority": 9})));
    let high = queue.pop(Duration::ZERO).unwrap();
    assert_eq!(&*high.key.name, "high");
    queue.unschedulable(&high.key, Duration::ZERO);
    queue.put(high.clone());
    assert_eq!(&*queue.pop(Duration::ZERO).unwrap().key.name, "low");
    assert!(queue.pop(second).is_none(), "nothing changed");
    queue.changed();
    assert_eq!(&*queue.pop(second).unwrap().key.name, "high");
    queue.unschedulable(&high.key, second);
    assert_eq!(queue.next_due(), Some(second * 301));
    queue.remove(&high.key);
    assert_eq!(queue.next_due(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nodes_never_get_more_than_they_have(
        nodes in proptest::collection::vec((1..8u32, 1..5u32), 1..6),
        steps in proptest::collection::vec((0..3000u32, any::<bool>()), 1..80),
    ) {
        let described = nodes.iter().enumerate().map(|(i, (cpu, pods))| {
            let allocatable = json!({"cpu": cpu.to_string(), "memory": "64Gi", "pods": pods.to_string()});
            node(&format!("n{i}"), json!({"status": {"allocatable": allocatable}}))
        });
        let mut cluster = cluster(&described.collect::<Vec<_>>());
        let mut placed = Vec::new();
        for (i, (cpu, remove)) in steps.into_iter().enumerate() {
            let pod = pod(&format!("p{i}"), wants(json!({"cpu": format!("{cpu}m")})));
            let fits = cluster.nodes().any(|n| {
                n.requested.cpu + i64::from(cpu) <= n.allocatable.cpu && (n.pods.len() as i64) < n.capacity
            });
            match decide(&cluster, &pod, i) {
                Ok(node) => {
                    prop_assert!(fits);
                    cluster.place(pod.clone(), &node);
                    placed.push(pod);
                }
                Err(_) => prop_assert!(!fits, "there was room"),
            }
            if remove && !placed.is_empty() {
                let gone = placed.remove(i % placed.len());
                cluster.remove_pod(&gone.key);
            }
            for node in cluster.nodes() {
                let used: i64 = node.pods.values().map(|p| p.requests.cpu).sum();
                prop_assert_eq!(used, node.requested.cpu);
                prop_assert!(used <= node.allocatable.cpu);
                prop_assert!(node.pods.len() as i64 <= node.capacity);
            }
        }
    }
}
