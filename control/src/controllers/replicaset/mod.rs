//! Replica sets, and replication controllers, their predecessors: exactly so many pods of a template. Kubernetes: "ReplicaSet",
//! "ReplicationController".
//!
//! The view reads its own writes and a key is never reconciled while its writes are under way, so the count of pods seen
//! is the count there is: no set of pending expectations is needed to never create too many.

mod rank;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSetSpec;
use k8s_openapi::api::core::v1::ReplicationControllerSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::{Value, json};

use super::controller::{Announce, Context, Controller, Key, Notice, Operation, Outcome, Write, delete};
use super::labels;
use super::metadata::{Metadata, add_owner, controller_reference, metadata, remove_owners};
use super::pods::{Pod, pod};
use super::recorder::seconds;
use super::view::View;
use crate::cache::{Event, Object};

const REPLICA_SETS: &str = "apps/replicasets";
/// Replication controllers.
pub const REPLICATION_CONTROLLERS: &str = "replicationcontrollers";
/// At most so many pods are created or deleted in one step.
const BURST: usize = 500;

/// What the two kinds differ in.
#[derive(Clone, Copy)]
struct Kind {
    resource: &'static str,
    version: &'static str,
    kind: &'static str,
    controller: &'static str,
}

/// The controller of one of the two kinds.
pub struct ReplicaSets(Kind);

impl ReplicaSets {
    /// Of replica sets.
    pub const fn of_replica_sets() -> Self {
        Self(Kind {
            resource: REPLICA_SETS,
            version: "apps/v1",
            kind: "ReplicaSet",
            controller: "replicaset-controller",
        })
    }

    /// Of replication controllers.
    pub const fn of_replication_controllers() -> Self {
        Self(Kind {
            resource: REPLICATION_CONTROLLERS,
            version: "v1",
            kind: "ReplicationController",
            controller: "replication-controller",
        })
    }
}

/// A decoded replica set.
struct Set {
    object: Arc<Object>,
    meta: Metadata,
    spec: ReplicaSetSpec,
}

#[derive(Deserialize)]
struct Body<S> {
    metadata: Metadata,
    spec: S,
}

impl Set {
    fn new(object: Arc<Object>) -> Option<Self> {
        let body: Body<ReplicaSetSpec> = if &*object.resource == REPLICATION_CONTROLLERS {
            let body: Body<ReplicationControllerSpec> = object.typed().ok()?;
            Body {
                metadata: body.metadata,
                spec: as_replica_set(body.spec),
            }
        } else {
            object.typed().ok()?
        };
        Some(Self {
            object,
            meta: body.metadata,
            spec: body.spec,
        })
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }
}

impl Kind {
    fn owner(&self, set: &Set) -> Value {
        controller_reference(self.version, self.kind, &set.meta.name, &set.meta.uid)
    }
}

/// The selector of a replication controller is a map of labels; all else is the same.
fn as_replica_set(spec: ReplicationControllerSpec) -> ReplicaSetSpec {
    ReplicaSetSpec {
        min_ready_seconds: spec.min_ready_seconds,
        replicas: spec.replicas,
        selector: LabelSelector {
            match_labels: spec.selector,
            ..LabelSelector::default()
        },
        template: spec.template,
    }
}

impl Controller for ReplicaSets {
    fn name(&self) -> &'static str {
        self.0.controller
    }

    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        match &*event.object.resource {
            resource if resource == self.0.resource => add(Key::of(&event.object)),
            "pods" => {
                let mut owned = false;
                for object in std::iter::once(&event.object).chain(&event.previous) {
                    if object.index.owners.is_empty() {
                        continue;
                    }
                    if let Some(owner) = metadata(object).controller().filter(|o| o.kind == self.0.kind) {
                        add(Key::new(self.0.resource, object.namespace.clone(), owner.name.as_str()));
                        owned = true;
                    }
                }
                if !owned && event.object.index.owners.is_empty() {
                    self.adopters(view, &event.object, add);
                }
            }
            _ => {}
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let object = context.view.get(self.0.resource, &key.namespace, &key.name);
        let Some(set) = object.and_then(Set::new) else {
            return outcome;
        };
        let pods = self.claim(context.view, &set, &mut outcome);
        if set.meta.deletion_timestamp.is_none() && outcome.operations.is_empty() {
            self.resize(context, &set, &pods, &mut outcome);
        }
        write_status(context, &set, &pods, &mut outcome);
        outcome
    }
}

type Pods = Vec<(Arc<Object>, Pod)>;

impl ReplicaSets {
    /// Replica sets that may adopt a pod without an owner.
    fn adopters(&self, view: &dyn View, pod: &Object, add: &mut dyn FnMut(Key)) {
        for object in view.list(self.0.resource, Some(&pod.namespace)) {
            if let Some(set) = Set::new(object.clone())
                && labels::matches(Some(&set.spec.selector), pod)
            {
                add(Key::of(&object));
            }
        }
    }

    /// The set's active pods. Adoption and release come as operations; the next step sees the result.
    fn claim(&self, view: &dyn View, set: &Set, outcome: &mut Outcome) -> Pods {
        let mut mine = Vec::new();
        let alive = set.meta.deletion_timestamp.is_none();
        for object in view.dependents(&set.meta.uid) {
            let Some(pod) = Some(&object).filter(|o| &*o.resource == "pods").and_then(|o| pod(o)) else {
                continue;
            };
            if pod.metadata.controller().is_none_or(|o| o.uid != set.meta.uid) || !pod.is_active() {
                continue;
            }
            if labels::matches(Some(&set.spec.selector), &*object) {
                mine.push((object, pod));
            } else if alive {
                let mut released = object.value();
                remove_owners(&mut released, |uid| uid == set.meta.uid);
                outcome.update(&object, None, released);
            }
        }
        if alive {
            self.adopt(view, set, outcome);
        }
        mine
    }

    fn adopt(&self, view: &dyn View, set: &Set, outcome: &mut Outcome) {
        for object in view.list("pods", Some(&set.object.namespace)) {
            if !labels::matches(Some(&set.spec.selector), &*object) || owned_by(&object, &set.meta.uid) {
                continue;
            }
            if pod(&object).is_some_and(|p| p.is_active() && p.metadata.controller().is_none()) {
                let mut adopted = object.value();
                add_owner(&mut adopted, self.0.owner(set));
                outcome.update(&object, None, adopted);
            }
        }
    }

    fn resize(&self, context: &Context<'_>, set: &Set, pods: &Pods, outcome: &mut Outcome) {
        let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
        for _ in pods.len()..wanted.min(pods.len() + BURST) {
            outcome.operations.push(self.creation(set));
        }
        if pods.len() > wanted {
            let surplus = (pods.len() - wanted).min(BURST);
            let nodes = relatives_by_node(context.view, set);
            for victim in rank::rank(pods.clone(), &nodes, context.now.wall)
                .into_iter()
                .take(surplus)
            {
                outcome.operations.push(deletion(set, &victim.object));
            }
        }
    }

    fn creation(&self, set: &Set) -> Operation {
        let mut template = set.object.value()["spec"]["template"].take();
        let mut meta = json!({
            "generateName": format!("{}-", set.meta.name),
            "namespace": &*set.object.namespace,
            "ownerReferences": [self.0.owner(set)],
        });
        for field in ["labels", "annotations", "finalizers"] {
            let value = template["metadata"][field].take();
            if !value.is_null() {
                meta[field] = value;
            }
        }
        let spec = template["spec"].take();
        Operation {
            write: Write::Create {
                resource: "pods".into(),
                namespace: set.object.namespace.clone(),
                object: json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}),
            },
            announce: Some(Box::new(Announce {
                success: Notice::normal(&set.object, "SuccessfulCreate", "Created pod: {}"),
                failure: Notice::warning(&set.object, "FailedCreate", "Error creating: {}"),
            })),
        }
    }
}

fn owned_by(object: &Object, uid: &str) -> bool {
    object.index.owners.iter().any(|owner| &**owner == uid)
}

/// Active pods of all replica sets with the same owner, counted by node.
fn relatives_by_node(view: &dyn View, set: &Set) -> HashMap<String, usize> {
    let siblings = match set.meta.controller() {
        Some(owner) => view.dependents(&owner.uid),
        None => vec![set.object.clone()],
    };
    let mut nodes = HashMap::new();
    for sibling in siblings.iter().filter(|s| s.resource == set.object.resource) {
        let dependents = view.dependents(&sibling.index.uid);
        let pods = dependents
            .iter()
            .filter(|o| &*o.resource == "pods")
            .filter_map(|o| pod(o));
        for pod in pods.filter(Pod::is_active) {
            *nodes.entry(pod.spec.node_name).or_insert(0) += 1;
        }
    }
    nodes
}

fn deletion(set: &Set, victim: &Object) -> Operation {
    Operation {
        write: delete(victim, None, None),
        announce: Some(Box::new(Announce {
            success: Notice::normal(&set.object, "SuccessfulDelete", "Deleted pod: {}"),
            failure: Notice::warning(&set.object, "FailedDelete", "Error deleting: {}"),
        })),
    }
}

fn write_status(context: &Context<'_>, set: &Set, pods: &Pods, outcome: &mut Outcome) {
    let now = context.now.wall;
    let template_labels = set
        .spec
        .template
        .as_ref()
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.labels.clone());
    let template_labels = template_labels.unwrap_or_default();
    let (mut labelled, mut ready, mut available) = (0, 0, 0);
    for (object, pod) in pods {
        labelled += i64::from(labels::contains(&template_labels, &**object));
        ready += i64::from(pod.is_ready());
        match pod.until_available(set.min_ready_seconds(), now) {
            Some(Duration::ZERO) => available += 1,
            Some(left) => outcome.requeue(left + Duration::from_millis(1)),
            None => {}
        }
    }
    let mut value = set.object.value();
    let mut status = json!({"replicas": pods.len(), "observedGeneration": set.meta.generation});
    for (field, count) in [
        ("fullyLabeledReplicas", labelled),
        ("readyReplicas", ready),
        ("availableReplicas", available),
    ] {
        if count != 0 {
            status[field] = count.into();
        }
    }
    if let Some(conditions) = conditions(&value["status"], context.failure, now) {
        status["conditions"] = conditions;
    }
    if value["status"] != status {
        value["status"] = status;
        outcome.update(&set.object, Some("status"), value);
    }
}

/// `ReplicaFailure` while writes are refused; other conditions are kept.
fn conditions(status: &Value, failure: Option<&str>, now: Timestamp) -> Option<Value> {
    let mut list = status["conditions"].as_array().cloned().unwrap_or_default();
    let at = list.iter().position(|c| c["type"] == "ReplicaFailure");
    match (failure, at) {
        (Some(_), Some(_)) | (None, None) => {}
        (Some(message), None) => list.push(json!({
            "type": "ReplicaFailure",
            "status": "True",
            "reason": "FailedCreate",
            "message": message,
            "lastTransitionTime": seconds(now),
        })),
        (None, Some(at)) => drop(list.remove(at)),
    }
    (!list.is_empty()).then_some(Value::Array(list))
}
