//! Deployments: rollouts by replica sets, history, progress. Kubernetes: "Deployments".
//!
//! One reconcile takes one step; the events of what it wrote lead to the next. A deployment's own metadata and status are
//! never written in the same step, so the two writes cannot conflict.

mod hash;
mod replica_sets;
mod rollout;
mod spec;
mod status;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use self::replica_sets::{REVISION, ReplicaSet, build, split};
use self::rollout::Rollout;
use self::spec::Deployment;
use super::controller::{Announce, Context, Controller, Key, Notice, Operation, Outcome, Write};
use super::metadata::{Metadata, add_owner, controller_reference, metadata, remove_owners};
use super::view::View;
use super::{labels, pods};
use crate::cache::{Event, EventKind};
use crate::registry::Propagation;

const DEPLOYMENTS: &str = "apps/deployments";
const REPLICA_SETS: &str = "apps/replicasets";

/// The controller.
pub struct Deployments;

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        match &*event.object.resource {
            DEPLOYMENTS => add(Key::of(&event.object)),
            REPLICA_SETS => {
                for object in std::iter::once(&event.object).chain(&event.previous) {
                    owner_key(&metadata(object), &object.namespace, add);
                }
                if event.object.index.owners.is_empty() {
                    adopters(view, event, add);
                }
            }
            "pods" if event.kind == EventKind::Deleted => {
                let Some(owner) = metadata(&event.object).controller().cloned() else {
                    return;
                };
                if let Some(set) = view.get(REPLICA_SETS, &event.object.namespace, &owner.name) {
                    owner_key(&metadata(&set), &set.namespace, add);
                }
            }
            _ => {}
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let object = context.view.get(DEPLOYMENTS, &key.namespace, &key.name);
        let Some(deployment) = object.and_then(Deployment::new) else {
            return outcome;
        };
        if labels::is_empty(&deployment.label_selector) {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            outcome
                .notices
                .push(Notice::warning(&deployment.object, "SelectingAll", message));
            return outcome;
        }
        let sets = claim(context.view, &deployment, &mut outcome);
        if outcome.operations.is_empty() {
            step(context, deployment, sets, &mut outcome);
        }
        outcome
    }
}

fn owner_key(meta: &Metadata, namespace: &str, add: &mut dyn FnMut(Key)) {
    if let Some(owner) = meta
        .controller()
        .filter(|o| o.kind == "Deployment" && o.api_version.starts_with("apps/"))
    {
        add(Key::new(DEPLOYMENTS, namespace, owner.name.as_str()));
    }
}

/// Deployments that may adopt a replica set without an owner.
fn adopters(view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
    for object in view.list(DEPLOYMENTS, Some(&event.object.namespace)) {
        if let Some(deployment) = Deployment::new(object.clone())
            && labels::matches(Some(&deployment.label_selector), &*event.object)
        {
            add(Key::of(&object));
        }
    }
}

/// The deployment's replica sets. Adoption and release come as operations; the step after them sees the result.
fn claim(view: &dyn View, deployment: &Deployment, outcome: &mut Outcome) -> Vec<ReplicaSet> {
    let mut mine = Vec::new();
    for object in view.list(REPLICA_SETS, Some(&deployment.namespace)) {
        let meta = metadata(&object);
        let selected = labels::matches(Some(&deployment.label_selector), &*object);
        match meta.controller() {
            Some(owner) if owner.uid == deployment.meta.uid && selected => mine.push(ReplicaSet::new(object)),
            Some(owner) if owner.uid == deployment.meta.uid && deployment.meta.deletion_timestamp.is_none() => {
                let mut released = object.value();
                remove_owners(&mut released, |uid| uid == deployment.meta.uid);
                outcome.update(&object, None, released);
            }
            None if selected && meta.deletion_timestamp.is_none() && deployment.meta.deletion_timestamp.is_none() => {
                let mut adopted = object.value();
                let (name, uid) = (&deployment.meta.name, &deployment.meta.uid);
                add_owner(&mut adopted, controller_reference("apps/v1", "Deployment", name, uid));
                outcome.update(&object, None, adopted);
            }
            _ => {}
        }
    }
    mine
}

fn step(context: &Context<'_>, deployment: Deployment, sets: Vec<ReplicaSet>, outcome: &mut Outcome) {
    let (new, old) = split(sets, &deployment);
    let mut rollout = Rollout { deployment, new, old };
    let mut collisions = rollout.deployment.status.collision_count.unwrap_or(0);
    let before = status::counts(&rollout);
    if rollout.deployment.meta.deletion_timestamp.is_none() {
        let scaling = rollout.is_scaling_event();
        let revision = rollout.old.iter().map(ReplicaSet::revision).max().unwrap_or(0) + 1;
        if let Some(new) = &mut rollout.new {
            new.synchronise(&rollout.deployment, revision);
        }
        if rollout.deployment.paused || scaling {
            rollout.resize();
        } else {
            let may_create = if rollout.deployment.recreate {
                rollout.recreate(old_pods_running(context.view, &rollout.old))
            } else {
                true
            };
            if rollout.new.is_some() && !rollout.deployment.recreate {
                rollout.roll();
            } else if rollout.new.is_none() && may_create {
                collisions += create(context.view, &mut rollout, collisions, revision);
            }
        }
        clean_up(&rollout, before.is_complete(&rollout.deployment), outcome);
    }
    let revised = write_sets(&rollout, outcome);
    if !revised {
        let (status, recheck) = status::status(&rollout, before, collisions, context.now.wall);
        write_status(&rollout.deployment, status, outcome);
        outcome.requeue_after = recheck;
    }
}

/// Give the rollout a new replica set; returns one if its name is taken, so that the next try has another name.
fn create(view: &dyn View, rollout: &mut Rollout, collisions: i32, revision: i64) -> i32 {
    let hash = hash::template_hash(&rollout.deployment.template, collisions);
    let mut new = build(&rollout.deployment, &hash, revision);
    if view
        .get(REPLICA_SETS, &rollout.deployment.namespace, new.name())
        .is_some()
    {
        return 1;
    }
    new.scale(rollout.new_size(), &rollout.deployment);
    rollout.new = Some(new);
    0
}

fn old_pods_running(view: &dyn View, old: &[ReplicaSet]) -> bool {
    old.iter().any(|set| {
        let dependents = view.dependents(&set.meta.uid);
        let mut pods = dependents
            .iter()
            .filter(|o| &*o.resource == "pods")
            .filter_map(|o| pods::pod(o));
        pods.any(|pod| !pod.is_terminal())
    })
}

/// Forget the oldest replica sets beyond the history limit, once nothing of them is left.
fn clean_up(rollout: &Rollout, complete: bool, outcome: &mut Outcome) {
    if !(complete || rollout.deployment.paused) {
        return;
    }
    let mut alive = rollout
        .old
        .iter()
        .filter(|r| r.meta.deletion_timestamp.is_none())
        .collect::<Vec<_>>();
    let surplus = alive.len().saturating_sub(rollout.deployment.history_limit);
    alive.sort_by_key(|r| r.revision());
    for set in alive.into_iter().take(surplus) {
        let observed = set.value["status"]["observedGeneration"].as_i64().unwrap_or(0);
        let empty = set.replicas() == 0 && set.status("replicas") == 0 && set.meta.generation <= observed;
        if let Some(object) = set.object.as_ref().filter(|_| empty && !set.changed) {
            outcome.delete(object, Some(Propagation::Background));
        }
    }
}

/// Emit what changed. Returns whether the deployment's revision annotation was among it.
fn write_sets(rollout: &Rollout, outcome: &mut Outcome) -> bool {
    let deployment = &rollout.deployment;
    for set in rollout.old.iter().chain(&rollout.new).filter(|r| r.changed) {
        let write = match &set.object {
            None => Write::Create {
                resource: REPLICA_SETS.into(),
                namespace: deployment.object.namespace.clone(),
                object: set.value.clone(),
            },
            Some(object) => Write::Update {
                key: Key::of(object),
                subresource: None,
                object: set.value.clone(),
            },
        };
        let announce = announce(deployment, set).map(Box::new);
        outcome.operations.push(Operation { write, announce });
    }
    let Some(new) = rollout.new.as_ref().filter(|r| r.object.is_some()) else {
        return false;
    };
    let revision = new.revision().to_string();
    let deleted = deployment.meta.deletion_timestamp.is_some();
    if deleted || deployment.meta.annotations.get(REVISION) == Some(&revision) {
        return false;
    }
    let mut value = deployment.object.value();
    if !value["metadata"]["annotations"].is_object() {
        value["metadata"]["annotations"] = json!({});
    }
    value["metadata"]["annotations"][REVISION] = revision.into();
    outcome.update(&deployment.object, None, value);
    true
}

fn announce(deployment: &Deployment, set: &ReplicaSet) -> Option<Announce> {
    let (from, to) = set.scaled?;
    let (object, name) = (&deployment.object, set.name());
    let direction = if from < to { "up" } else { "down" };
    let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
    let failure = match set.object {
        None => (
            "ReplicaSetCreateError",
            format!("Failed to create new replica set \"{name}\": {{}}"),
        ),
        Some(_) => (
            "ReplicaSetUpdateError",
            format!("Failed to scale replica set \"{name}\": {{}}"),
        ),
    };
    Some(Announce {
        success: Notice::normal(object, "ScalingReplicaSet", message),
        failure: Notice::warning(object, failure.0, failure.1),
    })
}

fn write_status(deployment: &Deployment, status: Value, outcome: &mut Outcome) {
    let mut value = deployment.object.value();
    if value["status"] != status {
        value["status"] = status;
        outcome.update(&deployment.object, Some("status"), value);
    }
}
