//! Sending a pod's status to the API: only what changed, one request at a time, the interesting news at once.
//!
//! A pod that merely comes to life is reported a little later than it happens, because "Running" usually follows
//! within milliseconds and makes the report superfluous.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::api;
use super::host::Host;
use super::state::PodState;
use super::status;
use super::worker::Message;
use crate::client::{ClientError, PatchKind};

/// How long a status that only says "coming" is held back.
const HOLD_BACK: Duration = Duration::from_millis(150);
/// Pauses between attempts after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Fields of the status that are reset when the new status has none.
const RESET: [&str; 3] = ["reason", "message", "initContainerStatuses"];

/// The publisher of one pod.
pub struct Publisher {
    host_ips: Vec<IpAddr>,
    sent: PodStatus,
    sending: Option<PodStatus>,
    held_since: Option<Timestamp>,
    retry_at: Option<Timestamp>,
    failures: u32,
    stopped: bool,
}

impl Publisher {
    /// Starts from what the API has.
    #[must_use]
    pub fn new(pod: &Pod, host_ips: &[IpAddr]) -> Self {
        Publisher {
            host_ips: host_ips.to_vec(),
            sent: pod.status.clone().unwrap_or_default(),
            sending: None,
            held_since: None,
            retry_at: None,
            failures: 0,
            stopped: false,
        }
    }

    /// Takes over conditions that others write.
    pub fn observe(&mut self, pod: &Pod) {
        let scheduled = |status: &PodStatus| {
            status
                .conditions
                .iter()
                .flatten()
                .find(|condition| condition.type_ == "PodScheduled")
                .cloned()
        };
        if let Some(theirs) = pod.status.as_ref().and_then(scheduled)
            && scheduled(&self.sent).as_ref() != Some(&theirs)
        {
            let own = self.sent.conditions.get_or_insert_default();
            own.retain(|condition| condition.type_ != "PodScheduled");
            own.push(theirs);
        }
    }

    /// The pod is gone, or ended before this node's memory begins: nothing is sent any more.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Sends the status if it is news. Returns when to call again at the latest.
    pub fn publish(
        &mut self,
        host: &Arc<Host>,
        pod: &Arc<Pod>,
        state: &PodState,
        sender: &mpsc::UnboundedSender<Message>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if self.stopped || self.sending.is_some() || state.finishing {
            return None;
        }
        if let Some(retry_at) = self.retry_at.filter(|at| now < *at) {
            return Some(retry_at);
        }
        let status = status::compute(pod, state, &self.sent, &self.host_ips, now);
        if same(&status, &self.sent) {
            self.held_since = None;
            return None;
        }
        if only_coming(&status) {
            let due = *self.held_since.get_or_insert(now) + HOLD_BACK;
            if now < due {
                return Some(due);
            }
        }
        self.held_since = None;
        self.retry_at = None;
        let patch = patch(pod, &status);
        self.sending = Some(status);
        let (host, path, sender) = (Arc::clone(host), status_path(pod), sender.clone());
        tokio::spawn(async move {
            let result = host.api.patch(path, PatchKind::Strategic, patch).await;
            let _ = sender.send(Message::Sent(result.map(drop)));
        });
        None
    }

    /// A request came back. That the Pod object is gone is the watch's news, not this one's.
    pub fn sent(&mut self, result: Result<(), ClientError>, now: Timestamp) {
        let status = self.sending.take();
        match result {
            Ok(()) => {
                self.sent = status.unwrap_or_default();
                self.failures = 0;
            }
            Err(error) if error.is_not_found() => self.sent = status.unwrap_or_default(),
            Err(error) => {
                let delay = (RETRY.0 * 2u32.saturating_pow(self.failures.min(10))).min(RETRY.1);
                self.failures += 1;
                self.retry_at = Some(now + delay);
                tracing::warn!(%error, retry_in = ?delay, "the status of a pod was not accepted");
            }
        }
    }

    /// The patch for the status of a pod that ends now, if it was not sent yet.
    #[must_use]
    pub fn last_patch(&self, pod: &Pod, state: &PodState, now: Timestamp) -> Option<Value> {
        if self.stopped {
            return None;
        }
        let status = status::compute(pod, state, &self.sent, &self.host_ips, now);
        (!same(&status, &self.sent)).then(|| patch(pod, &status))
    }
}

/// Sends the last status and deletes the Pod object for good; repeats until the API server has done it.
pub async fn finish(host: &Host, pod: &Pod, last: Option<Value>) {
    let mut last = last;
    let mut delay = RETRY.0;
    let meta = &pod.metadata;
    let path = api::path(
        meta.namespace.as_deref().unwrap_or_default(),
        "pods",
        meta.name.as_deref().unwrap_or_default(),
    );
    let options = json!({
        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
        "preconditions": {"uid": meta.uid},
    });
    loop {
        if let Some(patch) = last.take() {
            match host
                .api
                .patch(status_path(pod), PatchKind::Strategic, patch.clone())
                .await
            {
                Err(error) if error.status.is_none() => last = Some(patch),
                _ => {}
            }
        }
        if last.is_none() {
            match host.api.delete(path.clone(), options.clone()).await {
                Ok(_) => return,
                Err(error) if error.is_not_found() || error.is_conflict() => return,
                Err(error) => tracing::warn!(pod = path, %error, "the pod was not deleted; trying again"),
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY.1);
    }
}

fn status_path(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let path = api::path(
        meta.namespace.as_deref().unwrap_or_default(),
        "pods",
        meta.name.as_deref().unwrap_or_default(),
    );
    format!("{path}/status")
}

fn patch(pod: &Pod, status: &PodStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        for name in RESET {
            fields.entry(name).or_insert(Value::Null);
        }
    }
    json!({"metadata": {"uid": pod.metadata.uid}, "status": value})
}

/// Whether `status` says nothing that `sent` does not; other writers' conditions do not count.
fn same(status: &PodStatus, sent: &PodStatus) -> bool {
    let conditions_same = status.conditions.iter().flatten().all(|condition| {
        sent.conditions.iter().flatten().any(|other| {
            other.type_ == condition.type_
                && other.status == condition.status
                && other.reason == condition.reason
                && other.message == condition.message
        })
    });
    conditions_same
        && status.phase == sent.phase
        && status.container_statuses == sent.container_statuses
        && status.init_container_statuses == sent.init_container_statuses
        && status.pod_ips == sent.pod_ips
        && status.host_ips == sent.host_ips
        && status.start_time == sent.start_time
        && status.qos_class == sent.qos_class
        && status.reason == sent.reason
        && status.message == sent.message
}

/// Whether the status only says that the pod is on its way.
fn only_coming(status: &PodStatus) -> bool {
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    let coming = |reason: Option<&str>| matches!(reason, Some("ContainerCreating" | "PodInitializing"));
    status.phase.as_deref() == Some("Pending")
        && all.into_iter().all(|container| {
            let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
            waiting.is_some_and(|waiting| coming(waiting.reason.as_deref()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    fn status(phase: &str, state: Value) -> PodStatus {
        from_value(
            json!({"phase": phase, "containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": state}]}),
        )
        .unwrap()
    }

    #[test]
    fn only_a_pod_without_news_is_held_back() {
        assert!(only_coming(&status(
            "Pending",
            json!({"waiting": {"reason": "ContainerCreating"}})
        )));
        assert!(!only_coming(&status(
            "Pending",
            json!({"waiting": {"reason": "ErrImagePull"}})
        )));
        assert!(!only_coming(&status("Running", json!({"running": {}}))));
        assert!(!only_coming(&status("Pending", json!({"terminated": {"exitCode": 0}}))));
    }

    #[test]
    fn conditions_of_others_make_no_difference() {
        let own = status("Running", json!({"running": {}}));
        let mut sent = own.clone();
        sent.conditions = Some(vec![
            from_value(json!({"type": "example.com/gate", "status": "True"})).unwrap(),
        ]);
        assert!(same(&own, &sent));
        assert!(!same(&status("Pending", json!({"running": {}})), &sent));
    }

    #[test]
    fn fields_that_went_away_are_reset() {
        let pod: Pod = from_value(json!({"metadata": {"uid": "u"}})).unwrap();
        let patch = patch(&pod, &status("Running", json!({"running": {}})));
        assert_eq!(patch["metadata"]["uid"], "u");
        assert!(patch["status"]["reason"].is_null());
        assert!(patch["status"].as_object().unwrap().contains_key("reason"));
    }
}
