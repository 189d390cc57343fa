//! Evicts pods from nodes with `NoExecute` taints, as their tolerations allow. Kubernetes: "Taint based evictions".
//!
//! `tolerationSeconds` count on the monotonic clock from when the taint was first seen here.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Taint, Toleration};
use serde::Deserialize;

use super::taints::{NO_EXECUTE, tolerates};
use super::{NODES, node};
use crate::cache::{Event, Object};
use crate::controllers::controller::{Context, Controller, Key, Notice, Outcome};
use crate::controllers::metadata::metadata;
use crate::controllers::view::View;

/// The controller, with since when each pod has been under a taint.
#[derive(Default)]
pub struct TaintEviction {
    since: HashMap<Key, (Box<str>, Duration)>,
}

#[derive(Deserialize)]
struct Pod {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    #[serde(default)]
    tolerations: Vec<Toleration>,
}

impl Controller for TaintEviction {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        match &*event.object.resource {
            "pods" => add(Key::of(&event.object)),
            NODES => {
                let before = event.previous.as_ref().map(|o| no_execute(o));
                if before.is_none_or(|before| before != no_execute(&event.object)) {
                    view.pods_on_node(&event.object.name)
                        .iter()
                        .for_each(|p| add(Key::of(p)));
                }
            }
            _ => {}
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let object = context.view.get("pods", &key.namespace, &key.name);
        let Some(object) = object.filter(|o| metadata(o).deletion_timestamp.is_none()) else {
            self.since.remove(key);
            return outcome;
        };
        let Some(time) = self.time_left(context, key, &object) else {
            return outcome;
        };
        if time.is_zero() {
            self.since.remove(key);
            outcome.delete(&object, None);
            let message = format!("Marking for deletion Pod {}/{}", key.namespace, key.name);
            outcome
                .notices
                .push(Notice::normal(&object, "TaintManagerEviction", message));
        } else {
            outcome.requeue(time);
        }
        outcome
    }
}

impl TaintEviction {
    /// How long the pod may still stay; `None`: for ever.
    fn time_left(&mut self, context: &Context<'_>, key: &Key, object: &Object) -> Option<Duration> {
        let pod: Option<Pod> = object.typed().ok();
        let placed = pod.and_then(|pod| pod.spec.node_name.map(|node| (node, pod.spec.tolerations)));
        let taints = placed.and_then(|(node, tolerations)| {
            let taints = no_execute(&*context.view.get(NODES, "", &node)?);
            (!taints.is_empty()).then_some((taints, tolerations))
        });
        let Some((taints, tolerations)) = taints else {
            self.since.remove(key);
            return None;
        };
        let now = context.now.monotonic;
        let since = self
            .since
            .entry(key.clone())
            .or_insert_with(|| (object.index.uid.clone(), now));
        if since.0 != object.index.uid {
            *since = (object.index.uid.clone(), now);
        }
        let stay = tolerated_for(&taints, &tolerations)?;
        Some((since.1 + stay).saturating_sub(now))
    }
}

fn no_execute(object: &Object) -> Vec<Taint> {
    let taints = node(object).map(|n| n.spec.taints).unwrap_or_default();
    taints.into_iter().filter(|t| t.effect == NO_EXECUTE).collect()
}

/// The shortest of the times for which the taints are tolerated; `None`: for ever.
fn tolerated_for(taints: &[Taint], tolerations: &[Toleration]) -> Option<Duration> {
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if matching.peek().is_none() {
            return Some(Duration::ZERO);
        }
        for seconds in matching.filter_map(|t| t.toleration_seconds) {
            let time = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            shortest = Some(shortest.map_or(time, |s| s.min(time)));
        }
    }
    shortest
}
