//! Notices that a node's agent has gone silent, and taints nodes by their conditions. Kubernetes: "Nodes", heartbeats.
//!
//! Silence is measured on our monotonic clock, from when a renewed lease or heartbeat was last seen here: neither a wrong
//! clock on the node nor a jump of ours makes a node unready. If no node at all is ready, the fault is more likely ours:
//! then nothing is evicted (Kubernetes' full disruption mode).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::taints::{NO_EXECUTE, NO_SCHEDULE, NOT_READY, UNREACHABLE, UNSCHEDULABLE};
use super::{NODES, Node, node};
use crate::cache::{Event, Object};
use crate::controllers::controller::{Context, Controller, Key, Notice, Outcome};
use crate::controllers::pods::pod;
use crate::controllers::recorder::seconds;
use crate::controllers::view::View;

const LEASES: &str = "coordination.k8s.io/leases";
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Silence after which a node is not ready unless told otherwise (`--node-monitor-grace-period`).
pub const GRACE: Duration = Duration::from_secs(40);
/// A node that has not said anything yet gets this much more.
const STARTUP_GRACE: Duration = Duration::from_secs(20);
/// Conditions that become Unknown.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions that taint when they are True.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// The controller, with what it has heard of each node.
pub struct NodeLifecycle {
    grace: Duration,
    heard: HashMap<Arc<str>, Heard>,
}

#[derive(PartialEq, Eq)]
struct Sign {
    lease: Option<Timestamp>,
    heartbeat: Option<Timestamp>,
}

struct Heard {
    sign: Sign,
    at: Duration,
}

#[derive(Deserialize)]
struct Lease {
    spec: LeaseSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaseSpec {
    renew_time: Option<Timestamp>,
}

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        let object = &event.object;
        if &*object.resource == NODES {
            add(Key::of(object));
            let ready = |object: &Arc<Object>| node(object).is_some_and(|n| n.is_ready());
            if event
                .previous
                .as_ref()
                .is_none_or(|previous| ready(previous) != ready(object))
            {
                view.list(NODES, None).iter().for_each(|other| add(Key::of(other)));
            }
        } else if &*object.resource == LEASES && &*object.namespace == LEASE_NAMESPACE {
            add(Key::new(NODES, "", object.name.clone()));
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let object = context.view.get(NODES, "", &key.name);
        let Some((object, node)) = object.and_then(|o| node(&o).map(|n| (o, n))) else {
            self.heard.remove(&key.name);
            return outcome;
        };
        let silence = self.listen(context, key, &node);
        let silent = node.condition("Ready").is_empty();
        let grace = self.grace + if silent { STARTUP_GRACE } else { Duration::ZERO };
        match grace.checked_sub(silence).filter(|left| !left.is_zero()) {
            Some(left) => outcome.requeue(left),
            None => {
                if give_up(context, &object, &node, &mut outcome) {
                    return outcome;
                }
            }
        }
        taint(context, &object, &node, &mut outcome);
        if node.condition("Ready") == "Unknown" {
            mark_pods_not_ready(context, &key.name, &mut outcome);
        }
        outcome
    }
}

impl NodeLifecycle {
    /// A node is given up after so long a silence.
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            heard: HashMap::new(),
        }
    }

    /// How long nothing new has been heard of the node.
    fn listen(&mut self, context: &Context<'_>, key: &Key, node: &Node) -> Duration {
        let lease = context.view.get(LEASES, LEASE_NAMESPACE, &key.name);
        let lease = lease
            .and_then(|l| l.typed::<Lease>().ok())
            .and_then(|l| l.spec.renew_time);
        let ready = node.status.conditions.iter().find(|c| c.kind == "Ready");
        let sign = Sign {
            lease,
            heartbeat: ready.and_then(|c| c.last_heartbeat_time),
        };
        let now = context.now.monotonic;
        match self.heard.get(&key.name) {
            Some(heard) if heard.sign == sign => now.saturating_sub(heard.at),
            _ => {
                self.heard.insert(key.name.clone(), Heard { sign, at: now });
                Duration::ZERO
            }
        }
    }
}

/// Set the conditions of a silent node to Unknown. Returns whether there was anything to set.
fn give_up(context: &Context<'_>, object: &Object, node: &Node, outcome: &mut Outcome) -> bool {
    if CONDITIONS.iter().all(|kind| node.condition(kind) == "Unknown") {
        return false;
    }
    let mut value = object.value();
    if !value["status"]["conditions"].is_array() {
        value["status"]["conditions"] = json!([]);
    }
    let time = seconds(context.now.wall);
    for kind in CONDITIONS {
        let list = value["status"]["conditions"].as_array_mut();
        let Some(list) = list else { return false };
        let at = list.iter().position(|c| c["type"] == kind);
        let (reason, message) = match at {
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let mut condition = at.map_or_else(|| json!({"type": kind}), |at| list.remove(at));
        if condition["status"] != "Unknown" {
            condition["status"] = "Unknown".into();
            condition["reason"] = reason.into();
            condition["message"] = message.into();
            condition["lastTransitionTime"] = time.as_str().into();
        }
        list.push(condition);
    }
    outcome.update(object, Some("status"), value);
    if node.is_ready() {
        let message = format!("Node {} status is now: NodeNotReady", object.name);
        outcome.notices.push(Notice::normal(object, "NodeNotReady", message));
    }
    true
}

/// The taints that the node's state calls for: key and effect.
fn wanted(node: &Node, evict: bool) -> Vec<(&'static str, &'static str)> {
    let unready = match node.condition("Ready") {
        "True" => None,
        "Unknown" => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    };
    let mut wanted = Vec::new();
    if let Some(key) = unready {
        wanted.push((key, NO_SCHEDULE));
        if evict {
            wanted.push((key, NO_EXECUTE));
        }
    }
    wanted.extend(
        PRESSURES
            .iter()
            .filter(|(c, _)| node.condition(c) == "True")
            .map(|(_, key)| (*key, NO_SCHEDULE)),
    );
    if node.spec.unschedulable {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    wanted
}

fn is_ours(key: &str) -> bool {
    [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key) || PRESSURES.iter().any(|(_, ours)| *ours == key)
}

fn taint(context: &Context<'_>, object: &Object, node: &Node, outcome: &mut Outcome) {
    let evict = context
        .view
        .list(NODES, None)
        .iter()
        .any(|o| super::node(o).is_some_and(|n| n.is_ready()));
    let wanted = wanted(node, evict);
    let has = |key: &str, effect: &str| node.spec.taints.iter().any(|t| t.key == key && t.effect == effect);
    let missing = wanted
        .iter()
        .filter(|(key, effect)| !has(key, effect))
        .collect::<Vec<_>>();
    let is_stale = |key: &str, effect: &str| is_ours(key) && !wanted.contains(&(key, effect));
    let any_stale = node.spec.taints.iter().any(|t| is_stale(&t.key, &t.effect));
    if missing.is_empty() && !any_stale {
        return;
    }
    let mut value = object.value();
    let mut taints = value["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let text = |taint: &Value, field: &str| taint[field].as_str().unwrap_or_default().to_owned();
    taints.retain(|taint| !is_stale(&text(taint, "key"), &text(taint, "effect")));
    for (key, effect) in missing {
        taints.push(json!({"key": key, "effect": effect, "timeAdded": seconds(context.now.wall)}));
    }
    if taints.is_empty() {
        value["spec"].as_object_mut().and_then(|spec| spec.remove("taints"));
    } else {
        value["spec"]["taints"] = taints.into();
    }
    outcome.update(object, None, value);
}

/// Services must not send anyone to a node that may be dead.
fn mark_pods_not_ready(context: &Context<'_>, node: &str, outcome: &mut Outcome) {
    for object in context.view.pods_on_node(node) {
        if !pod(&object).is_some_and(|p| p.is_ready()) {
            continue;
        }
        let mut value = object.value();
        let conditions = value["status"]["conditions"].as_array_mut().into_iter().flatten();
        for condition in conditions.filter(|c| c["type"] == "Ready") {
            condition["status"] = "False".into();
            condition["lastTransitionTime"] = seconds(context.now.wall).into();
        }
        outcome.update(&object, Some("status"), value);
        outcome
            .notices
            .push(Notice::warning(&object, "NodeNotReady", "Node is not ready"));
    }
}
