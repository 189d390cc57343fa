//! The decision: a pod and a cluster come in, a node or the reasons against every node come out.
//!
//! Filters run in the order of Kubernetes' default plugins and a node's first refusal is its reason; scores have the same
//! weights. Ties are broken by a hash of pod and node, so that equal inputs always give equal decisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::affinity;
use super::amounts::Amounts;
use super::cluster::{Cluster, NodeInfo};
use super::pod::PodInfo;
use super::topology::{Rules, rules, siblings};
use crate::controllers::node::taints::{
    NO_EXECUTE, NO_SCHEDULE, PREFER_NO_SCHEDULE, UNSCHEDULABLE, tolerates, untolerated,
};

/// Up to so many nodes every one is looked at; in larger clusters a share of them is enough.
const LOOK_AT_LEAST: usize = 100;

/// Why a pod fits nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unschedulable(pub String);

/// Why one node was refused.
struct Refusal {
    reasons: Vec<String>,
    /// Removing other pods from the node might help.
    preemptable: bool,
}

impl Refusal {
    fn new(reason: impl Into<String>, preemptable: bool) -> Self {
        Self {
            reasons: vec![reason.into()],
            preemptable,
        }
    }
}

/// Choose a node. `start` rotates where a large cluster is looked at first.
///
/// # Errors
/// [`Unschedulable`], with Kubernetes' wording, if no node will do.
pub fn decide(cluster: &Cluster, pod: &PodInfo, start: usize) -> Result<Arc<str>, Unschedulable> {
    let total = cluster.nodes().count();
    if total == 0 {
        return Err(Unschedulable("no nodes available to schedule pods".to_owned()));
    }
    let rules = rules(cluster, pod);
    let enough = enough(total);
    let (mut feasible, mut refusals) = (Vec::new(), Vec::new());
    let start = start % total;
    for node in cluster.nodes().skip(start).chain(cluster.nodes().take(start)) {
        match refuse(pod, node, &rules) {
            None => feasible.push(node),
            Some(refusal) => refusals.push(refusal),
        }
        if feasible.len() == enough {
            break;
        }
    }
    match feasible.as_slice() {
        [] => Err(Unschedulable(message(total, &refusals))),
        [only] => Ok(only.name.clone()),
        several => Ok(best(pod, several, &rules)),
    }
}

/// How many feasible nodes are enough to choose from: 100, or between 50 and 5 percent.
fn enough(total: usize) -> usize {
    let percent = 50usize.saturating_sub(total / 125).max(5);
    (total * percent / 100).max(LOOK_AT_LEAST)
}

fn refuse(pod: &PodInfo, node: &NodeInfo, rules: &Rules<'_>) -> Option<Refusal> {
    if node.unschedulable && !tolerates_cordon(pod) {
        return Some(Refusal::new("node(s) were unschedulable", false));
    }
    if !pod.node.is_empty() && *pod.node != *node.name {
        return Some(Refusal::new("node(s) didn't match the requested node name", false));
    }
    if let Some(taint) = untolerated(&node.taints, &pod.tolerations, &[NO_SCHEDULE, NO_EXECUTE]) {
        let value = taint.value.as_deref().unwrap_or_default();
        return Some(Refusal::new(
            format!("node(s) had untolerated taint {{{}: {value}}}", taint.key),
            false,
        ));
    }
    if !affinity::allows(pod, node) {
        return Some(Refusal::new("node(s) didn't match Pod's node affinity/selector", false));
    }
    let taken = |port| {
        node.pods
            .values()
            .flat_map(|p| &p.ports)
            .any(|other| other.conflicts(port))
    };
    if pod.ports.iter().any(taken) {
        return Some(Refusal::new(
            "node(s) didn't have free ports for the requested pod ports",
            true,
        ));
    }
    fit(pod, node).or_else(|| rules.refuse(node).map(|(reason, helps)| Refusal::new(reason, helps)))
}

fn tolerates_cordon(pod: &PodInfo) -> bool {
    let taint = k8s_openapi::api::core::v1::Taint {
        key: UNSCHEDULABLE.to_owned(),
        effect: NO_SCHEDULE.to_owned(),
        ..Default::default()
    };
    pod.tolerations.iter().any(|t| tolerates(t, &taint))
}

fn fit(pod: &PodInfo, node: &NodeInfo) -> Option<Refusal> {
    let mut reasons = Vec::new();
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.capacity {
        reasons.push("Too many pods".to_owned());
    }
    let lacking = node.allocatable.lacking(&node.requested, &pod.requests);
    reasons.extend(lacking.iter().map(|name| format!("Insufficient {name}")));
    let never = Amounts::default();
    let preemptable = node.allocatable.lacking(&never, &pod.requests).is_empty();
    (!reasons.is_empty()).then_some(Refusal { reasons, preemptable })
}

/// `0/3 nodes are available: …`, as kube-scheduler says it.
fn message(total: usize, refusals: &[Refusal]) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for reason in refusals.iter().flat_map(|r| &r.reasons) {
        *counts.entry(reason).or_default() += 1;
    }
    let helpful = refusals.iter().filter(|r| r.preemptable).count();
    let preemption = BTreeMap::from([
        ("No preemption victims found for incoming pod", helpful),
        ("Preemption is not helpful for scheduling", refusals.len() - helpful),
    ]);
    let list = |counts: &BTreeMap<&str, usize>| {
        let listed = counts.iter().filter(|(_, count)| **count > 0);
        let mut listed = listed
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect::<Vec<_>>();
        listed.sort();
        format!("0/{total} nodes are available: {}.", listed.join(", "))
    };
    format!("{} preemption: {}", list(&counts), list(&preemption))
}

/// The scores of one node before they are put on a common scale.
struct Raw {
    prefers_not: i64,
    node_affinity: i64,
    pod_affinity: i64,
    crowd: i64,
    siblings: i64,
    fixed: i64,
}

fn best(pod: &PodInfo, nodes: &[&NodeInfo], rules: &Rules<'_>) -> Arc<str> {
    let raw = nodes.iter().map(|node| raw(pod, node, rules)).collect::<Vec<_>>();
    let scale = |of: fn(&Raw) -> i64| {
        let least = raw.iter().map(of).min().unwrap_or(0);
        let most = raw.iter().map(of).max().unwrap_or(0);
        move |raw: &Raw| {
            if most == least {
                0
            } else {
                100 * (of(raw) - least) / (most - least)
            }
        }
    };
    let (taints, node_affinity) = (scale(|r| -r.prefers_not), scale(|r| r.node_affinity));
    let (pod_affinity, crowd, siblings) = (scale(|r| r.pod_affinity), scale(|r| -r.crowd), scale(|r| -r.siblings));
    let score =
        |r: &Raw| 3 * taints(r) + 2 * node_affinity(r) + 2 * pod_affinity(r) + 2 * crowd(r) + 2 * siblings(r) + r.fixed;
    let ranked = nodes
        .iter()
        .zip(&raw)
        .map(|(node, r)| (score(r), lot(pod, node), &node.name));
    ranked.max().map(|(_, _, name)| name.clone()).unwrap_or_default()
}

fn raw(pod: &PodInfo, node: &NodeInfo, rules: &Rules<'_>) -> Raw {
    let avoided = node.taints.iter().filter(|t| t.effect == PREFER_NO_SCHEDULE);
    let avoided = avoided
        .filter(|taint| !pod.tolerations.iter().any(|t| tolerates(t, taint)))
        .count();
    Raw {
        prefers_not: i64::try_from(avoided).unwrap_or(i64::MAX),
        node_affinity: affinity::preference(pod, node),
        pod_affinity: rules.attraction(node),
        crowd: rules.crowd(node),
        siblings: siblings(pod, node),
        fixed: room(pod, node) + image_locality(pod, node),
    }
}

/// Least allocated and balanced allocation, each 0 to 100.
fn room(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let permille = |used: i64, capacity: i64| match capacity {
        ..=0 => 1000,
        _ => (i128::from(used.max(0)) * 1000 / i128::from(capacity)).min(1000) as i64,
    };
    let cpu = permille(node.weight.cpu + pod.weight.cpu, node.allocatable.cpu);
    let memory = permille(node.weight.memory + pod.weight.memory, node.allocatable.memory);
    let least_allocated = (2000 - cpu - memory) / 20;
    let balanced = (1000 - (cpu - memory).abs() / 2) / 10;
    least_allocated + balanced
}

/// 0 to 100 for images that are there already: nothing below 23 MB, all from 1 GB per container.
fn image_locality(pod: &PodInfo, node: &NodeInfo) -> i64 {
    const LEAST: i64 = 23 << 20;
    const MOST: i64 = 1000 << 20;
    let containers = i64::try_from(pod.images.len()).unwrap_or(1).max(1);
    let there: i64 = pod.images.iter().filter_map(|image| size(node, image)).sum();
    100 * (there.clamp(LEAST, MOST * containers) - LEAST) / (MOST * containers - LEAST)
}

fn size(node: &NodeInfo, image: &str) -> Option<i64> {
    let tagged = image.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    let name = if tagged {
        image.to_owned()
    } else {
        format!("{image}:latest")
    };
    let docker = if name.contains('/') {
        format!("docker.io/{name}")
    } else {
        format!("docker.io/library/{name}")
    };
    node.images.get(&name).or_else(|| node.images.get(&docker)).copied()
}

/// A number that is different for each pod and node, and always the same (FNV-1a).
fn lot(pod: &PodInfo, node: &NodeInfo) -> u64 {
    let bytes = pod.uid.bytes().chain([0]).chain(node.name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}
