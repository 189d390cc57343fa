//! The end of a namespace: its content goes, then the `kubernetes` finalizer, then the namespace.
//!
//! Kubernetes: "Namespaces", deletion. Pods go first (ordered namespace deletion), so that nothing they depend on is taken
//! from under them. What remains is told in the namespace's conditions.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::controller::{Context, Controller, Key, Outcome};
use super::metadata::metadata;
use super::recorder::seconds;
use super::view::View;
use crate::cache::{Event, EventKind, Object};
use crate::registry::Propagation;
use crate::schema;

const NAMESPACES: &str = "namespaces";
const FINALIZER: &str = "kubernetes";
/// Before a look at what came of deletions.
const SETTLE: Duration = Duration::from_millis(20);
/// Between looks at content that does not go.
const RECHECK: Duration = Duration::from_secs(15);

/// The controller.
pub struct Namespaces;

impl Controller for Namespaces {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        let object = &event.object;
        if &*object.resource == NAMESPACES {
            add(Key::of(object));
        } else if !object.namespace.is_empty() && event.kind != EventKind::Modified {
            let namespace = view.get(NAMESPACES, "", &object.namespace);
            if namespace.is_some_and(|n| metadata(&n).deletion_timestamp.is_some()) {
                add(Key::new(NAMESPACES, "", object.namespace.clone()));
            }
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(object) = context.view.get(NAMESPACES, "", &key.name) else {
            return outcome;
        };
        if metadata(&object).deletion_timestamp.is_none() {
            return outcome;
        }
        let remaining = remove_content(context.view, &key.name, &mut outcome);
        if remaining.is_empty() {
            finalize(&object, &mut outcome);
        } else {
            // Deletions of events are not watched, so look for the result of one's own.
            let busy = !outcome.operations.is_empty();
            report(context, &object, &remaining, &mut outcome);
            outcome.requeue(if busy { SETTLE } else { RECHECK });
        }
        outcome
    }
}

/// Delete what is in the namespace; returns what there is, by resource.
fn remove_content(view: &dyn View, namespace: &str, outcome: &mut Outcome) -> BTreeMap<String, Vec<Vec<String>>> {
    let mut remaining = BTreeMap::new();
    let stored = schema::resources()
        .iter()
        .filter(|r| r.namespaced && r.storage && r.conversion.is_none());
    let pods_left = !view.list("pods", Some(namespace)).is_empty();
    for resource in stored {
        let objects = view.list(resource.key, Some(namespace));
        if objects.is_empty() {
            continue;
        }
        let finalizers = objects.iter().map(|object| {
            let meta = metadata(object);
            if meta.deletion_timestamp.is_none() && (resource.key == "pods" || !pods_left) {
                outcome.delete(object, Some(Propagation::Background));
            }
            meta.finalizers
        });
        let name = match resource.group {
            "" => resource.plural.to_owned(),
            group => format!("{}.{group}", resource.plural),
        };
        remaining.insert(name, finalizers.collect());
    }
    remaining
}

fn finalize(namespace: &Object, outcome: &mut Outcome) {
    let mut value = namespace.value();
    let Some(finalizers) = value["spec"]["finalizers"]
        .as_array_mut()
        .filter(|f| f.iter().any(|f| f == FINALIZER))
    else {
        return outcome.delete(namespace, None);
    };
    finalizers.retain(|f| f != FINALIZER);
    outcome.update(namespace, Some("finalize"), value);
}

fn report(
    context: &Context<'_>,
    namespace: &Object,
    remaining: &BTreeMap<String, Vec<Vec<String>>>,
    outcome: &mut Outcome,
) {
    let content = remaining
        .iter()
        .map(|(name, objects)| format!("{name} has {} resource instances", objects.len()));
    let content = format!(
        "Some resources are remaining: {}",
        content.collect::<Vec<_>>().join(", ")
    );
    let mut held = BTreeMap::<&str, usize>::new();
    for finalizer in remaining.values().flatten().flatten() {
        *held.entry(finalizer).or_default() += 1;
    }
    let held = held
        .iter()
        .map(|(name, count)| format!("{name} in {count} resource instances"))
        .collect::<Vec<_>>();
    let finalizers = match held.is_empty() {
        true => (
            "False",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished".to_owned(),
        ),
        false => (
            "True",
            "SomeFinalizersRemain",
            format!(
                "Some content in the namespace has finalizers remaining: {}",
                held.join(", ")
            ),
        ),
    };
    let mut value = namespace.value();
    let before = value["status"]["conditions"].clone();
    let time = seconds(context.now.wall);
    let conditions = [
        ("NamespaceContentRemaining", ("True", "SomeResourcesRemain", content)),
        ("NamespaceFinalizersRemaining", finalizers),
    ];
    let conditions = conditions.map(|(kind, (status, reason, message))| {
        let same = before
            .as_array()
            .into_iter()
            .flatten()
            .find(|c| c["type"] == kind && c["status"] == status);
        let since = same.map_or_else(|| time.as_str().into(), |c| c["lastTransitionTime"].clone());
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
    });
    let conditions = Value::from(conditions.to_vec());
    if before != conditions {
        value["status"]["conditions"] = conditions;
        outcome.update(namespace, Some("status"), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::memory::World;

    fn world() -> World {
        let mut world = World::new(vec![Box::new(Namespaces)]);
        world.memory.put(
            NAMESPACES,
            "",
            json!({"metadata": {"name": "d"}, "spec": {"finalizers": ["kubernetes"]}}),
        );
        world.memory.put("configmaps", "d", json!({"metadata": {"name": "c"}}));
        world.memory.put(
            "pods",
            "d",
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}}),
        );
        world
            .memory
            .put("configmaps", "other", json!({"metadata": {"name": "c"}}));
        world
    }

    #[test]
    fn a_living_namespace_keeps_its_content() {
        let mut world = world();
        world.settle();
        assert!(world.memory.get("configmaps", "d", "c").is_some());
    }

    #[test]
    fn content_goes_pods_first_then_the_namespace() {
        let mut world = world();
        world.settle();
        world.memory.delete(&Key::new(NAMESPACES, "", "d"), "", None, None);
        world.settle();
        assert!(
            world.memory.get("configmaps", "d", "c").is_some(),
            "the pod may still need it"
        );
        let namespace = world.memory.get(NAMESPACES, "", "d").unwrap().value();
        assert_eq!(
            namespace["status"]["conditions"][0]["type"],
            "NamespaceContentRemaining"
        );
        world.run_pods();
        world.settle();
        assert!(world.memory.get("configmaps", "d", "c").is_none());
        assert!(world.memory.get(NAMESPACES, "", "d").is_none());
        assert!(world.memory.get("configmaps", "other", "c").is_some());
    }
}
