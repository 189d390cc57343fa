//! Events (core/v1) for people: best effort, never in the way of work.
//!
//! An event that repeats raises `count` and `lastTimestamp` of the first one, as client-go's correlator does; what does
//! not fit the queue is dropped. One task writes them all, so repeats are seen in order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::controller::Notice;
use super::system_user;
use crate::registry::{Patch, Registry, WriteOptions};
use crate::schema;

/// Events waiting to be written; more are dropped.
const QUEUE: usize = 1024;
/// Events remembered to recognise repeats.
const REMEMBERED: usize = 512;

/// Where to send notices. Cheap to clone.
#[derive(Clone)]
pub struct Recorder(mpsc::Sender<(&'static str, Notice)>);

impl Recorder {
    /// A recorder and the future that writes what is sent to it; it ends when all recorders are dropped.
    pub fn new(registry: Arc<Registry>) -> (Self, impl Future<Output = ()>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), write_all(registry, receiver))
    }

    /// Record an event of a component.
    pub fn record(&self, component: &'static str, notice: Notice) {
        if self.0.try_send((component, notice)).is_err() {
            tracing::debug!(component, "the event queue is full; an event was dropped");
        }
    }
}

async fn write_all(registry: Arc<Registry>, mut receiver: mpsc::Receiver<(&'static str, Notice)>) {
    let mut memory = Memory::default();
    let mut batch = Vec::new();
    while receiver.recv_many(&mut batch, 64).await > 0 {
        let now = Timestamp::now();
        let steps = batch
            .drain(..)
            .map(|(component, notice)| memory.step(component, &notice, now))
            .collect::<Vec<_>>();
        join_all(steps.into_iter().map(|step| perform(&registry, step))).await;
    }
}

/// What to write for one notice.
#[derive(Debug, PartialEq)]
struct Step {
    namespace: String,
    name: String,
    event: Value,
    /// More than one: the event exists, only its count is raised.
    count: u32,
}

#[derive(Default)]
struct Memory {
    seen: HashMap<String, (String, Timestamp, u32)>,
    order: VecDeque<String>,
    serial: u64,
}

impl Memory {
    fn step(&mut self, component: &'static str, notice: &Notice, now: Timestamp) -> Step {
        let about = |field: &str| notice.about[field].as_str().unwrap_or_default();
        let namespace = match about("namespace") {
            "" => "default".to_owned(),
            namespace => namespace.to_owned(),
        };
        let identity = format!(
            "{}/{}/{component}/{}/{}",
            about("kind"),
            about("uid"),
            notice.reason,
            notice.message
        );
        if let Some((name, first, count)) = self.seen.get_mut(&identity) {
            *count += 1;
            let event = event(component, notice, &namespace, name, (*first, now), *count);
            return Step {
                namespace,
                name: name.clone(),
                event,
                count: *count,
            };
        }
        self.serial += 1;
        let stamp = u64::try_from(now.as_nanosecond())
            .unwrap_or_default()
            .wrapping_add(self.serial);
        let name = format!("{}.{stamp:016x}", about("name"));
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.order.push_back(identity.clone());
        self.seen.insert(identity, (name.clone(), now, 1));
        let event = event(component, notice, &namespace, &name, (now, now), 1);
        Step {
            namespace,
            name,
            event,
            count: 1,
        }
    }
}

fn event(
    component: &str,
    notice: &Notice,
    namespace: &str,
    name: &str,
    (first, last): (Timestamp, Timestamp),
    count: u32,
) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": notice.about,
        "reason": notice.reason,
        "message": notice.message,
        "source": {"component": component},
        "firstTimestamp": seconds(first),
        "lastTimestamp": seconds(last),
        "count": count,
        "type": if notice.warning { "Warning" } else { "Normal" },
        "reportingComponent": component,
        "reportingInstance": "",
    })
}

/// A `metav1.Time`: whole seconds.
pub fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

async fn perform(registry: &Registry, step: Step) {
    let Some(events) = schema::by_key("events") else { return };
    let user = system_user("system:kube-controller-manager");
    let Step {
        namespace,
        name,
        event,
        count,
    } = step;
    if count > 1 {
        let patch = json!({"count": count, "lastTimestamp": event["lastTimestamp"]});
        let options = WriteOptions::default();
        let patched = registry
            .patch(&user, events, None, &namespace, &name, Patch::Merge(patch), options)
            .await;
        match patched {
            Err(status) if status.code == 404 => {}
            _ => return,
        }
    }
    if let Err(status) = registry
        .create(&user, events, &namespace, event, WriteOptions::default())
        .await
    {
        tracing::debug!(event = name, namespace, error = %status.message, "an event was not recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(message: &str) -> Notice {
        Notice {
            about: json!({"kind": "Pod", "name": "p", "namespace": "n", "uid": "u"}),
            warning: true,
            reason: "FailedScheduling",
            message: message.to_owned(),
        }
    }

    #[test]
    fn repeats_raise_the_count_of_the_first() {
        let mut memory = Memory::default();
        let t = |s| Timestamp::from_second(s).unwrap();
        let first = memory.step("c", &notice("a"), t(10));
        let other = memory.step("c", &notice("b"), t(11));
        let again = memory.step("c", &notice("a"), t(12));
        assert_ne!(first.name, other.name);
        assert_eq!((again.name, again.count), (first.name, 2));
        assert_eq!(again.event["firstTimestamp"], "1970-01-01T00:00:10Z");
        assert_eq!(again.event["lastTimestamp"], "1970-01-01T00:00:12Z");
    }

    #[test]
    fn memory_is_bounded() {
        let mut memory = Memory::default();
        for i in 0..REMEMBERED * 2 {
            memory.step("c", &notice(&i.to_string()), Timestamp::UNIX_EPOCH);
        }
        assert_eq!(memory.seen.len(), REMEMBERED);
    }
}
