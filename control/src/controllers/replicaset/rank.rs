//! Which pods of a replica set go first when it shrinks.
//!
//! Kubernetes' order (`ActivePodsWithRanks`): unassigned, pending, unready, cheaper by `pod-deletion-cost`, on a node with
//! more of its relatives, ready for a shorter time, restarted more often, younger. Ages compare by their logarithm, so that
//! age alone does not always pick the newest.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::cache::Object;
use crate::controllers::pods::Pod;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// A pod and how many of its relatives share its node.
pub struct Candidate {
    /// The pod.
    pub pod: Pod,
    /// As stored.
    pub object: Arc<Object>,
    /// Relatives on the same node, itself included.
    pub crowd: usize,
}

/// Order candidates so that the first are to be deleted first. `nodes` counts relatives by node.
pub fn rank(pods: Vec<(Arc<Object>, Pod)>, nodes: &HashMap<String, usize>, now: Timestamp) -> Vec<Candidate> {
    let crowd = |pod: &Pod| nodes.get(&pod.spec.node_name).copied().unwrap_or(0);
    let candidate = |(object, pod): (Arc<Object>, Pod)| Candidate {
        crowd: crowd(&pod),
        pod,
        object,
    };
    let mut candidates = pods.into_iter().map(candidate).collect::<Vec<_>>();
    candidates.sort_by(|a, b| compare(a, b, now));
    candidates
}

fn compare(a: &Candidate, b: &Candidate, now: Timestamp) -> Ordering {
    let (x, y) = (&a.pod, &b.pod);
    let by_readiness = || {
        let both = x.is_ready() && y.is_ready();
        if both {
            youngest_first(x.ready_since(), y.ready_since(), now)
        } else {
            Ordering::Equal
        }
    };
    let assigned = |p: &Pod| !p.spec.node_name.is_empty();
    assigned(x)
        .cmp(&assigned(y))
        .then_with(|| phase(x).cmp(&phase(y)))
        .then_with(|| x.is_ready().cmp(&y.is_ready()))
        .then_with(|| cost(x).cmp(&cost(y)))
        .then_with(|| b.crowd.cmp(&a.crowd))
        .then_with(by_readiness)
        .then_with(|| y.restarts().cmp(&x.restarts()))
        .then_with(|| youngest_first(x.metadata.creation_timestamp, y.metadata.creation_timestamp, now))
        .then_with(|| x.metadata.uid.cmp(&y.metadata.uid))
}

fn phase(pod: &Pod) -> u8 {
    match pod.status.phase.as_str() {
        "" | "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn cost(pod: &Pod) -> i32 {
    pod.metadata
        .annotations
        .get(DELETION_COST)
        .and_then(|c| c.parse().ok())
        .unwrap_or(0)
}

fn youngest_first(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let magnitude = |time: Option<Timestamp>| {
        let age = time.map_or(0, |t| now.duration_since(t).as_secs());
        u64::try_from(age)
            .ok()
            .filter(|age| *age > 0)
            .map_or(0, |age| age.ilog2() + 1)
    };
    magnitude(a).cmp(&magnitude(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::memory::Memory;
    use serde_json::{Value, json};

    /// The names of pods, each described by a patch, in the order they would be deleted.
    fn order(pods: &[(&str, Value)]) -> Vec<String> {
        let mut memory = Memory::default();
        let mut nodes = HashMap::new();
        for (name, patch) in pods {
            let mut pod = json!({
                "metadata": {"name": name, "uid": name, "creationTimestamp": "1970-01-01T00:00:00Z"},
                "spec": {"nodeName": "n1"},
                "status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}]},
            });
            json_patch::merge(&mut pod, patch);
            *nodes
                .entry(pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned())
                .or_insert(0) += 1;
            memory.put("pods", "d", pod);
        }
        let all = memory
            .objects("pods")
            .into_iter()
            .map(|o| (o.clone(), crate::controllers::pods::pod(&o).unwrap()));
        let now = Timestamp::from_second(1000).unwrap();
        rank(all.collect(), &nodes, now)
            .into_iter()
            .map(|c| c.pod.metadata.name)
            .collect()
    }

    #[test]
    fn each_criterion_in_turn() {
        let plain = json!({});
        let first = |patch: Value| order(&[("a", plain.clone()), ("b", patch)])[0].clone();
        assert_eq!(first(json!({"spec": {"nodeName": ""}})), "b", "unassigned");
        assert_eq!(first(json!({"status": {"phase": "Pending"}})), "b", "pending");
        assert_eq!(first(json!({"status": {"conditions": []}})), "b", "unready");
        assert_eq!(
            first(json!({"metadata": {"annotations": {DELETION_COST: "-1"}}})),
            "b",
            "cheaper"
        );
        assert_eq!(
            first(json!({"metadata": {"annotations": {DELETION_COST: "1"}}})),
            "a",
            "dearer"
        );
        assert_eq!(
            first(json!({"status": {"containerStatuses": [{"restartCount": 3}]}})),
            "b",
            "restarted"
        );
        assert_eq!(
            first(json!({"metadata": {"creationTimestamp": "1970-01-01T00:16:00Z"}})),
            "b",
            "younger"
        );
        assert_eq!(
            first(json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:01Z"}})),
            "a",
            "same magnitude"
        );
    }

    #[test]
    fn the_crowded_node_gives_up_first() {
        let on = |node: &str| json!({"spec": {"nodeName": node}});
        assert_eq!(
            order(&[("a", on("n1")), ("b", on("n2")), ("c", on("n2"))]),
            ["b", "c", "a"]
        );
    }
}
