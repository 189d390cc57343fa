//! Drives the scheduler: events in, bindings out. One task; a pod is decided on as soon as its event is read.
//!
//! Bindings are written concurrently: the pod is counted on its node at once (assumed) and taken off again if the write
//! fails, so decisions never wait for the disk.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::json;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::decide::{Unschedulable, decide};
use super::pod::PodInfo;
use super::queue::Queue;
use crate::auth::User;
use crate::cache::{Event, EventKind, Expired, Object, Watcher};
use crate::controllers::controller::{Key, Notice};
use crate::controllers::recorder::Recorder;
use crate::controllers::system_user;
use crate::registry::{Binding, Patch, Registry, Status, WriteOptions};
use crate::schema;

const COMPONENT: &str = "default-scheduler";
const RESOURCES: [&str; 3] = ["nodes", "pods", "namespaces"];
/// Events taken in before waiting pods are looked at again.
const EVENT_BATCH: usize = 1024;

type Bound = (Arc<PodInfo>, Arc<str>, Result<Arc<Object>, Status>);

/// The state of the task.
pub struct Runner {
    registry: Arc<Registry>,
    recorder: Recorder,
    user: User,
    cluster: Cluster,
    queue: Queue,
    started: Instant,
    /// Where a large cluster is looked at first next time.
    rotation: usize,
    in_flight: FuturesUnordered<BoxFuture<'static, Bound>>,
    reports: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Runner {
    /// A runner that binds through `registry`.
    pub fn new(registry: Arc<Registry>, recorder: Recorder) -> Self {
        Self {
            registry,
            recorder,
            user: system_user("system:kube-scheduler"),
            cluster: Cluster::default(),
            queue: Queue::default(),
            started: Instant::now(),
            rotation: 0,
            in_flight: FuturesUnordered::new(),
            reports: FuturesUnordered::new(),
        }
    }

    /// Run until aborted.
    pub async fn run(mut self) {
        let mut watcher = self.list_and_watch();
        loop {
            self.serve();
            let due = self.queue.next_due().unwrap_or(Duration::from_secs(3600));
            let deadline = self.started + due;
            tokio::select! {
                event = watcher.next() => {
                    if self.take_in(&mut watcher, event).is_err() {
                        watcher = self.list_and_watch();
                    }
                }
                Some(bound) = self.in_flight.next() => self.finish(bound),
                Some(()) = self.reports.next() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    /// Start over from everything there is.
    fn list_and_watch(&mut self) -> Watcher {
        let cache = self.registry.cache().clone();
        let watcher = cache.watch_all(&RESOURCES);
        (self.cluster, self.queue) = (Cluster::default(), Queue::default());
        for resource in RESOURCES {
            for object in cache.snapshot(resource).iter().cloned() {
                let revision = object.revision;
                self.apply(&Event {
                    kind: EventKind::Added,
                    revision,
                    object,
                    previous: None,
                });
            }
        }
        watcher
    }

    fn take_in(&mut self, watcher: &mut Watcher, first: Result<Event, Expired>) -> Result<(), Expired> {
        self.apply(&first?);
        for _ in 1..EVENT_BATCH {
            match watcher.try_next()? {
                Some(event) => self.apply(&event),
                None => break,
            }
        }
        Ok(())
    }

    fn apply(&mut self, event: &Event) {
        let object = &event.object;
        match (&*object.resource, event.kind) {
            ("nodes", EventKind::Deleted) => self.cluster.remove_node(&object.name),
            ("nodes", _) => {
                let helps = self.cluster.put_node(object);
                helps.then(|| self.queue.changed());
            }
            ("namespaces", EventKind::Deleted) => self.cluster.remove_namespace(&object.name),
            ("namespaces", _) => self.cluster.put_namespace(object),
            ("pods", EventKind::Deleted) => self.forget(&Key::of(object)),
            ("pods", _) => self.apply_pod(object),
            _ => {}
        }
    }

    fn apply_pod(&mut self, object: &Object) {
        let Some(pod) = PodInfo::new(object) else { return };
        if pod.terminal {
            self.forget(&pod.key);
        } else if !pod.node.is_empty() {
            self.queue.remove(&pod.key);
            let news = self.cluster.place_of(&pod.key).is_none_or(|node| **node != *pod.node);
            let node = pod.node.clone();
            self.cluster.place(pod, &node);
            if news {
                self.queue.changed();
            }
        } else if pod.is_pending() {
            // An event from before a binding that is written already says nothing new.
            if self.cluster.place_of(&pod.key).is_none() || self.queue.contains(&pod.key) {
                self.queue.put(pod);
            }
        } else {
            self.queue.remove(&pod.key);
        }
    }

    fn forget(&mut self, key: &Key) {
        self.queue.remove(key);
        if self.cluster.remove_pod(key) {
            self.queue.changed();
        }
    }

    /// Decide on every pod that is due.
    fn serve(&mut self) {
        loop {
            let now = self.started.elapsed();
            let Some(pod) = self.queue.pop(now) else { return };
            match decide(&self.cluster, &pod, self.rotation) {
                Ok(node) => self.bind(pod, node),
                Err(reason) => {
                    self.queue.unschedulable(&pod.key, now);
                    self.report(&pod, reason);
                }
            }
            self.rotation = self.rotation.wrapping_add(1);
        }
    }

    fn bind(&mut self, pod: Arc<PodInfo>, node: Arc<str>) {
        self.cluster.place(pod.clone(), &node);
        let (registry, user) = (self.registry.clone(), self.user.clone());
        let binding = async move {
            let (namespace, name) = (&*pod.key.namespace, &*pod.key.name);
            let binding = Binding {
                node: &node,
                uid: Some(&pod.uid),
                annotations: None,
            };
            let result = registry
                .bind(&user, namespace, name, &binding, WriteOptions::default())
                .await;
            (pod, node, result)
        };
        self.in_flight.push(binding.boxed());
    }

    fn finish(&mut self, (pod, node, result): Bound) {
        match result {
            Ok(object) => {
                self.queue.remove(&pod.key);
                let message = format!("Successfully assigned {}/{} to {node}", pod.key.namespace, pod.key.name);
                self.recorder
                    .record(COMPONENT, Notice::normal(&object, "Scheduled", message));
            }
            Err(status) => {
                let current = self.registry.cache().get("pods", &pod.key.namespace, &pod.key.name);
                self.cluster.remove_pod(&pod.key);
                self.queue.retry(&pod.key, self.started.elapsed());
                match current {
                    Some(object) => self.apply_pod(&object),
                    None => self.forget(&pod.key),
                }
                self.queue.changed();
                tracing::warn!(pod = %pod.key.name, node = &*node, reason = status.reason, "binding: {}", status.message);
            }
        }
    }

    /// Tell the user why: the PodScheduled condition and an event.
    fn report(&mut self, pod: &PodInfo, Unschedulable(message): Unschedulable) {
        let Some(object) = self.registry.cache().get("pods", &pod.key.namespace, &pod.key.name) else {
            return;
        };
        self.recorder
            .record(COMPONENT, Notice::warning(&object, "FailedScheduling", message.clone()));
        let value = object.value();
        let conditions = value["status"]["conditions"].as_array();
        let old = conditions.into_iter().flatten().find(|c| c["type"] == "PodScheduled");
        if old.is_some_and(|c| c["status"] == "False" && c["message"] == *message) {
            return;
        }
        let Some(pods) = schema::by_key("pods") else { return };
        let since = old
            .filter(|c| c["status"] == "False")
            .map(|c| c["lastTransitionTime"].clone());
        let since = since.unwrap_or_else(|| self.registry.environment().now_text().into());
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": message, "lastTransitionTime": since});
        let patch = json!({"metadata": {"uid": &*pod.uid}, "status": {"conditions": [condition]}});
        let (registry, user, key) = (self.registry.clone(), self.user.clone(), pod.key.clone());
        let report = async move {
            let (namespace, name) = (&*key.namespace, &*key.name);
            let (patch, options) = (Patch::Strategic(patch), WriteOptions::default());
            let patched = registry
                .patch(&user, pods, Some("status"), namespace, name, patch, options)
                .await;
            if let Err(status) = patched.map(drop) {
                tracing::debug!(pod = name, reason = status.reason, "condition: {}", status.message);
            }
        };
        self.reports.push(report.boxed());
    }
}
