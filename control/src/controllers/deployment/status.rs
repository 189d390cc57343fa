//! A deployment's status: counts, and the conditions Available, Progressing and ReplicaFailure with Kubernetes' wording.
//!
//! Follows kubernetes/pkg/controller/deployment/{progress,sync}.go. A condition's `lastTransitionTime` changes only with
//! its status; `lastUpdateTime` is what the progress deadline counts from.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DeploymentCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::replica_sets::ReplicaSet;
use super::rollout::Rollout;
use super::spec::Deployment;

const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// The counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods of all replica sets.
    pub replicas: i32,
    /// Pods of the new one.
    pub updated: i32,
    /// Ready pods.
    pub ready: i32,
    /// Available pods.
    pub available: i32,
    /// Wanted but not available.
    pub unavailable: i32,
}

/// Count over the replica sets as stored.
pub fn counts(rollout: &Rollout) -> Counts {
    let stored = || rollout.old.iter().chain(&rollout.new);
    let sum = |field: &str| stored().map(|r| r.status(field)).sum::<i32>();
    let available = sum("availableReplicas");
    let wanted: i32 = stored().map(ReplicaSet::replicas).sum();
    Counts {
        replicas: sum("replicas"),
        updated: rollout.new.as_ref().map_or(0, |r| r.status("replicas")),
        ready: sum("readyReplicas"),
        available,
        unavailable: (wanted - available).max(0),
    }
}

impl Counts {
    /// The rollout is over.
    pub fn is_complete(&self, deployment: &Deployment) -> bool {
        let wanted = deployment.replicas;
        self.updated == wanted && self.replicas == wanted && self.available == wanted
    }

    fn progressed_from(&self, before: &Counts) -> bool {
        self.updated > before.updated
            || self.replicas - self.updated < before.replicas - before.updated
            || self.ready > before.ready
            || self.available > before.available
    }
}

/// The new status and when to look again because of the progress deadline.
pub fn status(rollout: &Rollout, counts: Counts, collisions: i32, now: Timestamp) -> (Value, Option<Duration>) {
    let deployment = &rollout.deployment;
    let mut conditions = Conditions {
        list: deployment.status.conditions.clone().unwrap_or_default(),
        now,
    };
    available(&mut conditions, counts, deployment);
    progressing(&mut conditions, rollout, counts);
    replica_failure(&mut conditions, rollout);
    let recheck = deadline(&conditions, deployment, counts);
    let mut status = json!({"observedGeneration": deployment.meta.generation});
    for (field, count) in [
        ("replicas", counts.replicas),
        ("updatedReplicas", counts.updated),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
        ("unavailableReplicas", counts.unavailable),
        ("collisionCount", collisions),
    ] {
        if count != 0 {
            status[field] = count.into();
        }
    }
    status["conditions"] = serde_json::to_value(conditions.list).unwrap_or_default();
    (status, recheck)
}

struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn get(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|c| c.type_.as_deref() == Some(kind))
    }

    fn reason(&self, kind: &str) -> Option<&str> {
        self.get(kind)?.reason.as_deref()
    }

    fn remove(&mut self, kind: &str) {
        self.list.retain(|c| c.type_.as_deref() != Some(kind));
    }

    /// Set it, unless status and reason are the same already.
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let same = self.get(kind).is_some_and(|c| c.status.as_deref() == Some(status));
        if same && self.reason(kind) == Some(reason) {
            return;
        }
        self.replace(kind, status, reason, message);
    }

    fn replace(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let now = Time(Timestamp::from_second(self.now.as_second()).unwrap_or(self.now));
        let since = self.get(kind).filter(|c| c.status.as_deref() == Some(status));
        let since = since
            .and_then(|c| c.last_transition_time.clone())
            .unwrap_or_else(|| now.clone());
        self.remove(kind);
        self.list.push(DeploymentCondition {
            type_: Some(kind.to_owned()),
            status: Some(status.to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_update_time: Some(now),
            last_transition_time: Some(since),
        });
    }
}

fn available(conditions: &mut Conditions, counts: Counts, deployment: &Deployment) {
    let (status, reason, message) = if counts.available >= deployment.min_available() {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    conditions.set("Available", status, reason, message.to_owned());
}

fn progressing(conditions: &mut Conditions, rollout: &Rollout, counts: Counts) {
    const KIND: &str = "Progressing";
    let deployment = &rollout.deployment;
    if deployment.progress_deadline.is_none() {
        conditions.remove(KIND);
        return;
    }
    if deployment.paused {
        conditions.set(KIND, "Unknown", "DeploymentPaused", "Deployment is paused".to_owned());
        return;
    }
    if conditions.reason(KIND) == Some("DeploymentPaused") {
        conditions.set(KIND, "Unknown", "DeploymentResumed", "Deployment is resumed".to_owned());
    }
    start_of_rollout(conditions, rollout, counts);
    if conditions.reason(KIND) == Some(COMPLETE) && counts.replicas == counts.updated {
        return;
    }
    let subject = match &rollout.new {
        Some(new) => format!("ReplicaSet \"{}\"", new.name()),
        None => format!("Deployment \"{}\"", deployment.meta.name),
    };
    if counts.is_complete(deployment) {
        conditions.set(
            KIND,
            "True",
            COMPLETE,
            format!("{subject} has successfully progressed."),
        );
    } else if counts.progressed_from(&stored(deployment)) {
        conditions.replace(KIND, "True", "ReplicaSetUpdated", format!("{subject} is progressing."));
    } else if timed_out(conditions, deployment) {
        conditions.set(
            KIND,
            "False",
            TIMED_OUT,
            format!("{subject} has timed out progressing."),
        );
    }
}

/// A rollout that begins restarts the progress deadline.
fn start_of_rollout(conditions: &mut Conditions, rollout: &Rollout, counts: Counts) {
    let Some(new) = &rollout.new else { return };
    let quoted = format!("\"{}\"", new.name());
    let current = conditions.get("Progressing");
    let about_it = current
        .and_then(|c| c.message.as_deref())
        .is_some_and(|m| m.contains(&quoted));
    if new.object.is_none() {
        conditions.set(
            "Progressing",
            "True",
            "NewReplicaSetCreated",
            format!("Created new replica set {quoted}"),
        );
    } else if current.is_none() || (!about_it && !counts.is_complete(&rollout.deployment)) {
        let kept = matches!(conditions.reason("Progressing"), Some("DeploymentResumed" | TIMED_OUT));
        if !kept {
            conditions.set(
                "Progressing",
                "True",
                "FoundNewReplicaSet",
                format!("Found new replica set {quoted}"),
            );
        }
    }
}

fn stored(deployment: &Deployment) -> Counts {
    let status = &deployment.status;
    Counts {
        replicas: status.replicas.unwrap_or(0),
        updated: status.updated_replicas.unwrap_or(0),
        ready: status.ready_replicas.unwrap_or(0),
        available: status.available_replicas.unwrap_or(0),
        unavailable: status.unavailable_replicas.unwrap_or(0),
    }
}

fn time_left(conditions: &Conditions, deployment: &Deployment) -> Option<jiff::SignedDuration> {
    let since = conditions.get("Progressing")?.last_update_time.as_ref()?.0;
    let deadline = jiff::SignedDuration::from_secs(deployment.progress_deadline?.into());
    Some(deadline - conditions.now.duration_since(since))
}

fn timed_out(conditions: &Conditions, deployment: &Deployment) -> bool {
    match conditions.reason("Progressing") {
        None | Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        Some(_) => time_left(conditions, deployment).is_some_and(|left| left.is_negative() || left.is_zero()),
    }
}

fn deadline(conditions: &Conditions, deployment: &Deployment, counts: Counts) -> Option<Duration> {
    let settled = matches!(conditions.reason("Progressing"), None | Some(COMPLETE | TIMED_OUT));
    if settled || deployment.paused || counts.is_complete(deployment) {
        return None;
    }
    let left = time_left(conditions, deployment)?.max(jiff::SignedDuration::ZERO);
    Some(Duration::try_from(left).ok()? + Duration::from_secs(1))
}

/// Lift a replica set's failure to create pods into the deployment.
fn replica_failure(conditions: &mut Conditions, rollout: &Rollout) {
    let failure = rollout.new.iter().chain(&rollout.old).find_map(|r| {
        let list = r.value["status"]["conditions"].as_array()?;
        list.iter()
            .find(|c| c["type"] == "ReplicaFailure" && c["status"] == "True")
            .cloned()
    });
    match failure {
        Some(failure) => {
            let text = |field: &str| failure[field].as_str().unwrap_or_default().to_owned();
            conditions.set("ReplicaFailure", "True", &text("reason"), text("message"));
        }
        None => conditions.remove("ReplicaFailure"),
    }
}
