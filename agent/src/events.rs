//! Events that operators see with `kubectl describe`: what the agent did to a pod and why.
//!
//! Recording never blocks and never fails its caller. Repeated events are counted in one object, and a source that
//! repeats itself too fast is silenced for a while, as client-go's event correlator does.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::client::PatchKind;
use crate::pod::api::Api;

/// Events that wait to be sent; more are dropped.
const QUEUE: usize = 256;
/// Distinct events that are remembered for counting.
const REMEMBERED: usize = 1024;

/// Good news or bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Things went as they should.
    Normal,
    /// Someone may want to look.
    Warning,
}

/// An event about an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// Good or bad.
    pub kind: Kind,
    /// `Started`, `BackOff`, …
    pub reason: String,
    /// For people.
    pub message: String,
    /// The involved object's reference.
    pub about: About,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct About {
    /// `Pod`, `Node` or `Service`.
    pub kind: &'static str,
    /// Its namespace; empty for nodes.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The part of it, e.g. `spec.containers{web}`.
    pub field_path: String,
}

impl About {
    /// The pod, or one of its containers.
    #[must_use]
    pub fn pod(pod: &Pod, container: Option<&str>) -> Self {
        let meta = &pod.metadata;
        let field_path = container.map(|name| {
            let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
            let list = if init.into_iter().any(|c| c.name == name) {
                "initContainers"
            } else {
                "containers"
            };
            format!("spec.{list}{{{name}}}")
        });
        About {
            kind: "Pod",
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            field_path: field_path.unwrap_or_default(),
        }
    }
}

/// Takes events from anywhere in the agent.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Event>,
}

impl Recorder {
    /// Starts the task that sends events in the name of `node`.
    #[must_use]
    pub fn start(api: Arc<dyn Api>, node: &str) -> Self {
        let (queue, mut events) = mpsc::channel(QUEUE);
        let mut sink = Sink {
            api,
            node: node.to_owned(),
            sent: HashMap::new(),
            serial: 0,
        };
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                sink.send(event).await;
            }
        });
        Recorder { queue }
    }

    /// Records an event about a pod or one of its containers.
    pub fn pod(&self, pod: &Pod, container: Option<&str>, kind: Kind, reason: &str, message: impl Into<String>) {
        self.record(Event {
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            about: About::pod(pod, container),
        });
    }

    /// Records an event.
    pub fn record(&self, event: Event) {
        tracing::debug!(
            pod = event.about.name,
            reason = event.reason,
            message = event.message,
            "event"
        );
        let _ = self.queue.try_send(event);
    }
}

struct Sent {
    path: String,
    count: u32,
}

struct Sink {
    api: Arc<dyn Api>,
    node: String,
    sent: HashMap<Event, Sent>,
    serial: u32,
}

impl Sink {
    async fn send(&mut self, event: Event) {
        let now = Timestamp::now();
        if let Some(sent) = self.sent.get_mut(&event) {
            sent.count += 1;
            let patch = json!({"count": sent.count, "lastTimestamp": seconds(now)});
            if self.api.patch(sent.path.clone(), PatchKind::Merge, patch).await.is_ok() {
                return;
            }
        }
        if self.sent.len() >= REMEMBERED {
            self.sent.clear();
        }
        self.serial = self.serial.wrapping_add(1);
        let name = event_name(&event, now, self.serial);
        let namespace = if event.about.namespace.is_empty() {
            "default"
        } else {
            &event.about.namespace
        };
        let collection = format!("/api/v1/namespaces/{namespace}/events");
        match self
            .api
            .create(collection.clone(), body(&event, &self.node, &name, namespace, now))
            .await
        {
            Ok(_) => {
                self.sent.insert(
                    event,
                    Sent {
                        path: format!("{collection}/{name}"),
                        count: 1,
                    },
                );
            }
            Err(error) => tracing::debug!(%error, reason = event.reason, "an event was not accepted"),
        }
    }
}

fn event_name(event: &Event, now: Timestamp, serial: u32) -> String {
    let stamp = u64::try_from(now.as_nanosecond())
        .unwrap_or(0)
        .wrapping_add(u64::from(serial));
    format!("{}.{stamp:016x}", event.about.name)
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn body(event: &Event, node: &str, name: &str, namespace: &str, now: Timestamp) -> Value {
    let about = &event.about;
    let mut involved = json!({"apiVersion": "v1", "kind": about.kind, "name": about.name, "uid": about.uid});
    if !about.namespace.is_empty() {
        involved["namespace"] = json!(about.namespace);
    }
    if !about.field_path.is_empty() {
        involved["fieldPath"] = json!(about.field_path);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": involved,
        "reason": event.reason,
        "message": event.message,
        "type": match event.kind { Kind::Normal => "Normal", Kind::Warning => "Warning" },
        "source": {"component": "kubelet", "host": node},
        "reportingComponent": "kubelet",
        "reportingInstance": node,
        "firstTimestamp": seconds(now),
        "lastTimestamp": seconds(now),
        "eventTime": null,
        "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_name_the_container_and_the_node() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}}))
        .unwrap();
        let about = About::pod(&pod, Some("i"));
        assert_eq!(about.field_path, "spec.initContainers{i}");
        let event = Event {
            kind: Kind::Warning,
            reason: "BackOff".into(),
            message: "m".into(),
            about,
        };
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let name = event_name(&event, now, 1);
        let body = body(&event, "n1", &name, "ns", now);
        assert_eq!(body["involvedObject"]["uid"], "u");
        assert_eq!(body["firstTimestamp"], "2027-01-15T08:00:00Z");
        assert_eq!(body["source"]["host"], "n1");
        assert_ne!(name, event_name(&event, now, 2), "names differ in the same instant");
    }
}
