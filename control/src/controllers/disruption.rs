//! Pod disruption budgets: how many pods of an application may be evicted now. Kubernetes: "Specifying a Disruption
//! Budget"; the eviction API (`registry/eviction.rs`) subtracts what it granted and notes it in `disruptedPods` until the
//! pod is seen to go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::controller::{Context, Controller, Key, Notice, Outcome};
use super::intstr::{Round, scaled};
use super::labels::matches;
use super::metadata::{OwnerReference, metadata};
use super::pods::{Pod, pod};
use super::replicaset::REPLICATION_CONTROLLERS;
use super::view::View;
use crate::cache::{Event, Object};
use crate::registry::time_text;

/// The resource.
pub const BUDGETS: &str = "policy/poddisruptionbudgets";
const REPLICA_SETS: &str = "apps/replicasets";
const DEPLOYMENTS: &str = "apps/deployments";
/// A pod that was evicted and is not seen to go after this time stays (`DeletionTimeout`).
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);

const UNMANAGED: &str = "Some of the pods are not managed by a controller, so how many there should be is not known for them; \
    only `minAvailable` as a number counts them.";

/// The controller.
pub struct Disruption;

impl Controller for Disruption {
    fn name(&self) -> &'static str {
        "disruption"
    }

    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        let object = &event.object;
        match &*object.resource {
            BUDGETS => add(Key::of(object)),
            "pods" => {
                for budget in view.list(BUDGETS, Some(&object.namespace)) {
                    let selects = |object: &Object| selector(&budget).is_some_and(|s| matches(Some(&s), object));
                    if selects(object) || event.previous.as_deref().is_some_and(selects) {
                        add(Key::of(&budget));
                    }
                }
            }
            REPLICA_SETS | REPLICATION_CONTROLLERS | DEPLOYMENTS
                if replicas(event.previous.as_deref()) != replicas(Some(object)) =>
            {
                let budgets = view.list(BUDGETS, Some(&object.namespace));
                budgets.iter().for_each(|budget| add(Key::of(budget)));
            }
            _ => {}
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(object) = context.view.get(BUDGETS, &key.namespace, &key.name) else {
            return outcome;
        };
        let Ok(budget) = object.typed::<PodDisruptionBudget>() else {
            return outcome;
        };
        let spec = budget.spec.clone().unwrap_or_default();
        let pods = selected(context.view, &key.namespace, &spec);
        let disrupted = disrupted(&budget, &pods, context.now.wall, &mut outcome);
        let mut value = object.value();
        let mut unmanaged = Vec::new();
        let status = match expected(context.view, &key.namespace, &spec, &pods, &mut unmanaged) {
            Ok((expected, desired)) => {
                let numbers = Numbers::of(&pods, &disrupted, expected, desired);
                let reason = match numbers.allowed > 0 {
                    true => "SufficientPods",
                    false => "InsufficientPods",
                };
                numbers.status(&value, &disrupted, (reason, ""), context.now.wall)
            }
            Err(message) => {
                let reason = "CalculateExpectedPodCountFailed";
                outcome.notices.push(Notice::warning(&object, reason, message.clone()));
                let numbers = Numbers {
                    allowed: 0,
                    ..Numbers::said(&value)
                };
                numbers.status(&value, &disrupted, ("SyncFailed", &message), context.now.wall)
            }
        };
        if !unmanaged.is_empty() {
            let message = format!("{UNMANAGED} They are: {}.", unmanaged.join(", "));
            outcome.notices.push(Notice::warning(&object, "UnmanagedPods", message));
        }
        if value["status"] != status {
            value["status"] = status;
            outcome.update(&object, Some("status"), value);
        }
        outcome
    }
}

fn selector(budget: &Object) -> Option<LabelSelector> {
    budget.typed::<PodDisruptionBudget>().ok()?.spec?.selector
}

fn replicas(object: Option<&Object>) -> Option<i64> {
    object?.value()["spec"]["replicas"].as_i64()
}

/// Pods that a budget is about: those that have not ended.
fn selected(view: &dyn View, namespace: &str, spec: &PodDisruptionBudgetSpec) -> Vec<Pod> {
    let pods = view.list("pods", Some(namespace));
    let matching = pods.iter().filter(|object| matches(spec.selector.as_ref(), &***object));
    matching
        .filter_map(|object| pod(object))
        .filter(|pod| !pod.is_terminal())
        .collect()
}

/// Evictions that were granted and have not been seen to happen, with when; looks again when the first is given up.
fn disrupted(
    budget: &PodDisruptionBudget,
    pods: &[Pod],
    now: Timestamp,
    outcome: &mut Outcome,
) -> BTreeMap<String, Timestamp> {
    let granted = budget.status.as_ref().and_then(|status| status.disrupted_pods.clone());
    let mut waiting = BTreeMap::new();
    for (name, time) in granted.unwrap_or_default() {
        let Ok(time) = Timestamp::from_second(time.0.as_second()) else {
            continue;
        };
        let here = pods
            .iter()
            .any(|pod| pod.metadata.name == name && !pod.is_terminating());
        let left = Duration::try_from((time + DELETION_TIMEOUT).duration_since(now)).unwrap_or(Duration::ZERO);
        if here && !left.is_zero() {
            outcome.requeue(left);
            waiting.insert(name, time);
        }
    }
    waiting
}

/// How many pods there should be, and how many of them must be healthy.
fn expected(
    view: &dyn View,
    namespace: &str,
    spec: &PodDisruptionBudgetSpec,
    pods: &[Pod],
    unmanaged: &mut Vec<String>,
) -> Result<(i32, i32), String> {
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(unavailable), _) => {
            let expected = scale(view, namespace, pods, unmanaged)?;
            let allowed = scaled(unavailable, expected, Round::Up);
            Ok((expected, expected.saturating_sub(allowed).max(0)))
        }
        (None, Some(available @ IntOrString::Int(_))) => Ok((count(pods.len()), scaled(available, 0, Round::Up))),
        (None, Some(available)) => {
            let expected = scale(view, namespace, pods, unmanaged)?;
            Ok((expected, scaled(available, expected, Round::Up)))
        }
        (None, None) => Ok((count(pods.len()), 0)),
    }
}

/// Replicas of all controllers of the pods together. Pods that nobody replaces do not count, and are named.
fn scale(view: &dyn View, namespace: &str, pods: &[Pod], unmanaged: &mut Vec<String>) -> Result<i32, String> {
    let mut counted: BTreeSet<String> = BTreeSet::new();
    let mut total: i32 = 0;
    for pod in pods {
        let name = &pod.metadata.name;
        let Some(owner) = pod.metadata.controller() else {
            unmanaged.push(name.clone());
            continue;
        };
        let Some(found) = scaled_owner(view, namespace, owner) else {
            return Err(format!("found no controller ref for pod {name:?} that can be scaled"));
        };
        if counted.insert(found.uid().to_owned()) {
            let replicas = replicas(Some(&found)).and_then(|number| i32::try_from(number).ok());
            total = total.saturating_add(replicas.unwrap_or(1));
        }
    }
    Ok(total)
}

/// The replica set, or the deployment that it is of.
fn scaled_owner(view: &dyn View, namespace: &str, owner: &OwnerReference) -> Option<Arc<Object>> {
    let resource = match owner.kind.as_str() {
        "ReplicaSet" => REPLICA_SETS,
        "ReplicationController" => REPLICATION_CONTROLLERS,
        "Deployment" => DEPLOYMENTS,
        _ => return None,
    };
    let found = view.get(resource, namespace, &owner.name)?;
    if found.uid() != owner.uid {
        return None;
    }
    match metadata(&found).controller() {
        Some(above) => scaled_owner(view, namespace, above).or(Some(found)),
        None => Some(found),
    }
}

/// What the status says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Numbers {
    expected: i32,
    healthy: i32,
    desired: i32,
    allowed: i32,
}

impl Numbers {
    fn of(pods: &[Pod], disrupted: &BTreeMap<String, Timestamp>, expected: i32, desired: i32) -> Self {
        let stays = |pod: &&Pod| !pod.is_terminating() && !disrupted.contains_key(&pod.metadata.name);
        let healthy = pods.iter().filter(stays).filter(|pod| pod.is_ready()).count();
        let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
        let allowed = if expected <= 0 {
            0
        } else {
            healthy.saturating_sub(desired).max(0)
        };
        Self {
            expected,
            healthy,
            desired,
            allowed,
        }
    }

    /// What a budget's status says now.
    fn said(budget: &Value) -> Self {
        let number = |name: &str| {
            let number = budget["status"][name].as_i64().unwrap_or(0);
            i32::try_from(number).unwrap_or(0)
        };
        Self {
            expected: number("expectedPods"),
            healthy: number("currentHealthy"),
            desired: number("desiredHealthy"),
            allowed: number("disruptionsAllowed"),
        }
    }

    fn status(
        self,
        budget: &Value,
        disrupted: &BTreeMap<String, Timestamp>,
        (reason, message): (&str, &str),
        now: Timestamp,
    ) -> Value {
        let old = &budget["status"];
        let state = if self.allowed > 0 { "True" } else { "False" };
        let generation = &budget["metadata"]["generation"];
        let before = old["conditions"]
            .as_array()
            .and_then(|list| list.iter().find(|c| c["type"] == "DisruptionAllowed"));
        let since = match before {
            Some(condition) if condition["status"] == state => condition["lastTransitionTime"].clone(),
            _ => json!(time_text(now)),
        };
        let mut status = json!({
            "observedGeneration": generation,
            "disruptionsAllowed": self.allowed,
            "currentHealthy": self.healthy,
            "desiredHealthy": self.desired,
            "expectedPods": self.expected,
            "conditions": [{"type": "DisruptionAllowed", "status": state, "reason": reason, "message": message,
                "observedGeneration": generation, "lastTransitionTime": since}],
        });
        if !disrupted.is_empty() {
            let times = disrupted
                .iter()
                .map(|(name, time)| (name.clone(), json!(time_text(*time))));
            status["disruptedPods"] = Value::Object(times.collect());
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::memory::World;

    fn world(spec: Value, ready: usize, unready: usize) -> World {
        let mut world = World::new(vec![Box::new(Disruption)]);
        let deployment = json!({"metadata": {"name": "web", "uid": "d"}, "spec": {"replicas": ready + unready}});
        world.memory.put(DEPLOYMENTS, "d", deployment);
        let owner =
            |kind: &str, name: &str, uid: &str| json!([{"kind": kind, "name": name, "uid": uid, "controller": true}]);
        world.memory.put(
            REPLICA_SETS,
            "d",
            json!({"metadata": {"name": "web-1", "uid": "r",
            "ownerReferences": owner("Deployment", "web", "d")}, "spec": {"replicas": 1}}),
        );
        for number in 0..ready + unready {
            let state = if number < ready { "True" } else { "False" };
            world.memory.put(
                "pods",
                "d",
                json!({
                "metadata": {"name": format!("web-{number}"), "labels": {"app": "web"}, "namespace": "d",
                    "ownerReferences": owner("ReplicaSet", "web-1", "r")},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": state}]}}),
            );
        }
        let mut spec = spec;
        spec["selector"] = json!({"matchLabels": {"app": "web"}});
        world
            .memory
            .put(BUDGETS, "d", json!({"metadata": {"name": "b"}, "spec": spec}));
        world.settle();
        world
    }

    fn status(world: &World) -> Value {
        world.memory.get(BUDGETS, "d", "b").unwrap().value()["status"].clone()
    }

    fn numbers(world: &World) -> [i64; 4] {
        let status = status(world);
        ["expectedPods", "currentHealthy", "desiredHealthy", "disruptionsAllowed"]
            .map(|name| status[name].as_i64().unwrap())
    }

    #[test]
    fn budgets_are_numbers_or_parts_of_the_scale() {
        for (spec, ready, unready, expected) in [
            (json!({"minAvailable": 2}), 3, 0, [3, 3, 2, 1]),
            (json!({"minAvailable": 3}), 3, 0, [3, 3, 3, 0]),
            (json!({"minAvailable": "50%"}), 5, 0, [5, 5, 3, 2]),
            (json!({"maxUnavailable": 1}), 2, 1, [3, 2, 2, 0]),
            (json!({"maxUnavailable": 1}), 3, 0, [3, 3, 2, 1]),
            (json!({"maxUnavailable": "34%"}), 3, 0, [3, 3, 1, 2]),
            (json!({"maxUnavailable": 0}), 3, 0, [3, 3, 3, 0]),
            (json!({"maxUnavailable": 1}), 0, 0, [0, 0, 0, 0]),
        ] {
            assert_eq!(numbers(&world(spec.clone(), ready, unready)), expected, "{spec}");
        }
    }

    #[test]
    fn what_was_granted_counts_until_it_is_seen_or_given_up() {
        let mut world = world(json!({"minAvailable": 2}), 3, 0);
        let now = time_text(world.memory.wall);
        world.memory.patch(
            BUDGETS,
            "d",
            "b",
            &json!({"status": {"disruptionsAllowed": 0, "disruptedPods": {"web-0": now}}}),
        );
        world.settle();
        assert_eq!(numbers(&world), [3, 2, 2, 0]);
        assert_eq!(status(&world)["conditions"][0]["reason"], "InsufficientPods");
        world.memory.remove("pods", "d", "web-0");
        world.settle();
        assert_eq!(status(&world)["disruptedPods"], Value::Null);
        world
            .memory
            .patch(BUDGETS, "d", "b", &json!({"status": {"disruptedPods": {"web-1": now}}}));
        world.settle();
        assert_eq!(numbers(&world)[1], 1);
        world.advance(Duration::from_secs(121));
        assert_eq!(
            (numbers(&world)[1], &status(&world)["disruptedPods"]),
            (2, &Value::Null)
        );
    }

    #[test]
    fn replication_controllers_have_a_scale_and_bare_pods_have_none() {
        let mut world = World::new(vec![Box::new(Disruption)]);
        let owner = json!([{"kind": "ReplicationController", "name": "rc", "uid": "c", "controller": true}]);
        let rc = json!({"metadata": {"name": "rc", "uid": "c"}, "spec": {"replicas": 4}});
        world.memory.put(REPLICATION_CONTROLLERS, "d", rc);
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let pod = |name: &str, owners: &Value| {
            json!({"metadata": {"name": name, "labels": {"app": "web"}, "ownerReferences": owners},
                "status": {"phase": "Running", "conditions": ready}})
        };
        for name in ["a", "b", "c"] {
            world.memory.put("pods", "d", pod(name, &owner));
        }
        let spec = json!({"maxUnavailable": "50%", "selector": {"matchLabels": {"app": "web"}}});
        world
            .memory
            .put(BUDGETS, "d", json!({"metadata": {"name": "b"}, "spec": spec}));
        world.settle();
        assert_eq!(numbers(&world), [4, 3, 2, 1]);
        world.memory.put("pods", "d", pod("bare", &json!([])));
        world.settle();
        assert_eq!(numbers(&world)[0], 4, "it does not count");
        assert!(world.notices.iter().any(|(reason, _)| reason == "UnmanagedPods"));
        let job = json!([{"kind": "Job", "name": "j", "uid": "j", "controller": true}]);
        world.memory.put("pods", "d", pod("of-a-job", &job));
        world.settle();
        assert_eq!(numbers(&world)[3], 0);
        assert_eq!(status(&world)["conditions"][0]["reason"], "SyncFailed");
        world.memory.patch(
            BUDGETS,
            "d",
            "b",
            &json!({"spec": {"maxUnavailable": null, "minAvailable": 3}}),
        );
        world.settle();
        assert_eq!(numbers(&world), [5, 5, 3, 2], "a number needs no scale");
    }
}
