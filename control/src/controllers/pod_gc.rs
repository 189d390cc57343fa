//! Pods that nobody else will ever remove. Kubernetes: "Pod garbage collection".
//!
//! Those of nodes that no longer exist, terminating ones that were never placed, those stuck on nodes declared out of
//! service, and the oldest finished ones beyond a limit.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::controller::{Context, Controller, Key, Outcome};
use super::node::{NODES, node};
use super::pods::{Pod, pod};
use super::view::View;
use crate::cache::{Event, EventKind, Object};

const SWEEP: Duration = Duration::from_secs(20);
/// How long a node must be missing before its pods are taken for lost.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Finished pods that are kept (`--terminated-pod-gc-threshold`).
const KEEP_FINISHED: usize = 12_500;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The controller, with since when each missing node has been missing.
#[derive(Default)]
pub struct PodGc {
    missing: HashMap<String, Duration>,
}

fn sweep() -> Key {
    Key::new("pods", "", "")
}

impl Controller for PodGc {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn start(&self) -> Vec<Key> {
        vec![sweep()]
    }

    fn keys(&self, _view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        if &*event.object.resource == NODES && event.kind == EventKind::Deleted {
            add(sweep());
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, _key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        outcome.requeue(SWEEP);
        let nodes = context.view.list(NODES, None);
        let known = nodes.iter().map(|n| n.name.to_string()).collect::<HashSet<_>>();
        let is_out = |o: &&Arc<Object>| node(o).is_some_and(|n| n.spec.taints.iter().any(|t| t.key == OUT_OF_SERVICE));
        let out = nodes
            .iter()
            .filter(is_out)
            .map(|n| n.name.to_string())
            .collect::<HashSet<_>>();
        let pods = context
            .view
            .list("pods", None)
            .into_iter()
            .filter_map(|o| pod(&o).map(|p| (o, p)));
        let pods = pods.collect::<Vec<_>>();
        let lost = self.lost(context.now.monotonic, &known, &pods);
        for (object, pod) in &pods {
            let node = &pod.spec.node_name;
            if lost.contains(node) || (pod.is_terminating() && (node.is_empty() || out.contains(node))) {
                outcome.kill(object);
            }
        }
        let mut finished = pods
            .iter()
            .filter(|(_, p)| p.is_terminal() && !p.is_terminating())
            .collect::<Vec<_>>();
        finished.sort_by_key(|(_, p)| p.metadata.creation_timestamp);
        let surplus = finished.len().saturating_sub(KEEP_FINISHED);
        finished
            .iter()
            .take(surplus)
            .for_each(|(object, _)| outcome.kill(object));
        outcome
    }
}

impl PodGc {
    /// Nodes that pods name and that have been missing for long enough.
    fn lost(&mut self, now: Duration, known: &HashSet<String>, pods: &[(Arc<Object>, Pod)]) -> HashSet<String> {
        let named = pods
            .iter()
            .map(|(_, p)| &p.spec.node_name)
            .filter(|n| !n.is_empty() && !known.contains(*n));
        let named = named.cloned().collect::<HashSet<_>>();
        self.missing.retain(|node, _| named.contains(node));
        for node in named {
            self.missing.entry(node).or_insert(now);
        }
        let long = self
            .missing
            .iter()
            .filter(|(_, since)| now.saturating_sub(**since) >= QUARANTINE);
        long.map(|(node, _)| node.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::memory::World;
    use serde_json::json;

    #[test]
    fn pods_of_a_vanished_node_go_after_a_while() {
        let mut world = World::new(vec![Box::<PodGc>::default()]);
        world.memory.put(NODES, "", json!({"metadata": {"name": "a"}}));
        for (name, node) in [("here", "a"), ("lost", "b")] {
            world.memory.put(
                "pods",
                "d",
                json!({"metadata": {"name": name}, "spec": {"nodeName": node}}),
            );
        }
        let going = json!({"metadata": {"name": "never", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}});
        world.memory.put("pods", "d", going);
        world.advance(Duration::from_secs(30));
        let names = |world: &World| {
            world
                .memory
                .objects("pods")
                .iter()
                .map(|p| p.name.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&world), ["here", "lost"]);
        world.advance(Duration::from_secs(30));
        assert_eq!(names(&world), ["here"]);
    }
}
