//! A cluster in a map, in virtual time: what the pure cores are tested against.
//!
//! It does to writes what the registry does (revisions, conflicts, generations, uids, names, finalizers, graceful
//! deletion), deterministically: names and uids count up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::controller::{Context, Controller, Key, Notice, Now, Write};
use super::queue::{End, Queue};
use super::view::View;
use crate::cache::{Event, EventKind, Index, Object};
use crate::registry::Propagation;

/// Resource, namespace and name.
type Name = (Arc<str>, Arc<str>, Arc<str>);
/// Why a write is refused, if it is.
type Refuse = Box<dyn FnMut(&Write) -> Option<String>>;

/// The objects.
#[derive(Default)]
pub struct Memory {
    objects: BTreeMap<Name, Arc<Object>>,
    revision: u64,
    serial: u64,
    /// Virtual wall clock.
    pub wall: Timestamp,
    /// What happened and was not looked at yet.
    pub events: Vec<Event>,
}

impl Memory {
    /// Create or replace an object, status and all.
    pub fn put(&mut self, resource: &str, namespace: &str, mut value: Value) -> Arc<Object> {
        let meta = &mut value["metadata"];
        if meta["name"].is_null() {
            self.serial += 1;
            meta["name"] = format!("{}{:05}", meta["generateName"].as_str().unwrap_or("x-"), self.serial).into();
        }
        if meta["uid"].is_null() {
            self.serial += 1;
            meta["uid"] = format!("uid-{}", self.serial).into();
        }
        if meta["creationTimestamp"].is_null() {
            meta["creationTimestamp"] = super::recorder::seconds(self.wall).into();
        }
        if meta["generation"].is_null() {
            meta["generation"] = 1.into();
        }
        if !namespace.is_empty() {
            meta["namespace"] = namespace.into();
        }
        let name: Arc<str> = meta["name"].as_str().unwrap().into();
        self.store((resource.into(), namespace.into(), name), value)
    }

    fn store(&mut self, key: Name, mut value: Value) -> Arc<Object> {
        self.revision += 1;
        value["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let previous = self.objects.get(&key).cloned();
        let object = Arc::new(Object {
            resource: key.0.clone(),
            namespace: key.1.clone(),
            name: key.2.clone(),
            revision: self.revision,
            created: previous.as_ref().map_or(self.revision, |p| p.created),
            index: index(&value),
            body: serde_json::to_vec(&value).unwrap().into(),
        });
        self.objects.insert(key, object.clone());
        let kind = if previous.is_some() {
            EventKind::Modified
        } else {
            EventKind::Added
        };
        self.events.push(Event {
            kind,
            revision: self.revision,
            object: object.clone(),
            previous,
        });
        object
    }

    /// Take an object out.
    pub fn remove(&mut self, resource: &str, namespace: &str, name: &str) {
        let Some(object) = self.objects.remove(&(resource.into(), namespace.into(), name.into())) else {
            return;
        };
        self.revision += 1;
        let (revision, previous) = (self.revision, Some(object.clone()));
        self.events.push(Event {
            kind: EventKind::Deleted,
            revision,
            object,
            previous,
        });
    }

    /// Change an object by a merge patch, as its owner would.
    pub fn patch(&mut self, resource: &str, namespace: &str, name: &str, patch: &Value) {
        let mut value = self
            .get(resource, namespace, name)
            .expect("the object to patch exists")
            .value();
        let before = value["spec"].clone();
        json_patch::merge(&mut value, patch);
        bump(&before, &mut value);
        self.store((resource.into(), namespace.into(), name.into()), value);
    }

    /// All of a resource.
    pub fn objects(&self, resource: &str) -> Vec<Arc<Object>> {
        self.list(resource, None)
    }

    /// The bodies of all of a resource.
    pub fn values(&self, resource: &str) -> Vec<Value> {
        self.objects(resource).iter().map(|o| o.value()).collect()
    }

    /// Do what the registry would.
    pub fn apply(&mut self, write: Write) -> Result<String, String> {
        match write {
            Write::Create {
                resource,
                namespace,
                object,
            } => {
                if object["metadata"]["name"]
                    .as_str()
                    .is_some_and(|n| self.get(&resource, &namespace, n).is_some())
                {
                    return Err(format!("{resource} already exists"));
                }
                Ok(self.put(&resource, &namespace, object).name.to_string())
            }
            Write::Update {
                key,
                subresource,
                object,
            } => self.update(&key, subresource, object),
            Write::Delete {
                key,
                uid,
                grace_period_seconds,
                propagation,
            } => {
                self.delete(&key, &uid, grace_period_seconds, propagation);
                Ok(key.name.to_string())
            }
        }
    }

    fn update(&mut self, key: &Key, subresource: Option<&str>, new: Value) -> Result<String, String> {
        let old = self.get(&key.resource, &key.namespace, &key.name).ok_or("not found")?;
        if new["metadata"]["resourceVersion"].as_str() != Some(&old.revision.to_string()) {
            return Err(format!("conflict on {key:?}"));
        }
        let mut value = old.value();
        let before = value["spec"].clone();
        if matches!(subresource, Some("status" | "approval")) {
            value["status"] = new["status"].clone();
        } else if subresource == Some("finalize") {
            value["spec"]["finalizers"] = new["spec"]["finalizers"].clone();
        } else {
            let status = value["status"].take();
            value = new;
            if status.is_null() {
                value.as_object_mut().unwrap().remove("status");
            } else {
                value["status"] = status;
            }
            bump(&before, &mut value);
        }
        assert_ne!(value, old.value(), "a controller wrote {key:?} without changing it");
        let finalizers = |v: &Value, at: &str| v[at]["finalizers"].as_array().is_none_or(Vec::is_empty);
        let free = finalizers(&value, "metadata") && finalizers(&value, "spec");
        let goes = !value["metadata"]["deletionTimestamp"].is_null() && &*key.resource != "pods" && free;
        self.store((key.resource.clone(), key.namespace.clone(), key.name.clone()), value);
        if goes {
            self.remove(&key.resource, &key.namespace, &key.name);
        }
        Ok(key.name.to_string())
    }

    /// Delete as a user would.
    pub fn delete(&mut self, key: &Key, uid: &str, grace: Option<i64>, propagation: Option<Propagation>) {
        let Some(object) = self.get(&key.resource, &key.namespace, &key.name) else {
            return;
        };
        if !uid.is_empty() && &*object.index.uid != uid {
            return;
        }
        let mut value = object.value();
        let mut finalizers = value["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        match propagation {
            Some(Propagation::Foreground) => finalizers.push("foregroundDeletion".into()),
            Some(Propagation::Orphan) => finalizers.push("orphan".into()),
            _ => {}
        }
        let bound = &*key.resource == "pods" && value["spec"]["nodeName"].is_string() && grace != Some(0);
        let spec_finalizers = value["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if finalizers.is_empty() && !bound && !spec_finalizers {
            return self.remove(&key.resource, &key.namespace, &key.name);
        }
        if value["metadata"]["deletionTimestamp"].is_null() {
            value["metadata"]["deletionTimestamp"] = super::recorder::seconds(self.wall).into();
            if !finalizers.is_empty() {
                value["metadata"]["finalizers"] = finalizers.into();
            }
            self.store((key.resource.clone(), key.namespace.clone(), key.name.clone()), value);
        }
    }
}

fn bump(before: &Value, value: &mut Value) {
    if *before != value["spec"] {
        value["metadata"]["generation"] = (value["metadata"]["generation"].as_i64().unwrap_or(0) + 1).into();
    }
}

fn index(value: &Value) -> Index {
    let meta = &value["metadata"];
    let text = |v: &Value| -> Box<str> { v.as_str().unwrap_or_default().into() };
    let labels = meta["labels"].as_object().into_iter().flatten();
    let mut labels = labels
        .map(|(k, v)| (Box::from(k.as_str()), text(v)))
        .collect::<Vec<_>>();
    labels.sort();
    Index {
        labels: labels.into(),
        fields: vec![("spec.nodeName", text(&value["spec"]["nodeName"]))].into(),
        owners: meta["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|r| text(&r["uid"]))
            .collect(),
        uid: text(&meta["uid"]),
    }
}

impl View for Memory {
    fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.objects
            .get(&(resource.into(), namespace.into(), name.into()))
            .cloned()
    }

    fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Arc<Object>> {
        let wanted = |o: &&Arc<Object>| &*o.resource == resource && namespace.is_none_or(|n| &*o.namespace == n);
        self.objects.values().filter(wanted).cloned().collect()
    }

    fn dependents(&self, uid: &str) -> Vec<Arc<Object>> {
        self.objects
            .values()
            .filter(|o| o.index.owners.iter().any(|owner| &**owner == uid))
            .cloned()
            .collect()
    }

    fn pods_on_node(&self, node: &str) -> Vec<Arc<Object>> {
        self.list("pods", None)
            .into_iter()
            .filter(|o| &*o.index.fields[0].1 == node)
            .collect()
    }
}

/// Controllers at work on a [`Memory`].
pub struct World {
    /// The objects.
    pub memory: Memory,
    /// All events recorded so far: reason and message.
    pub notices: Vec<(String, String)>,
    /// Asked before each write; an answer refuses it.
    pub refuse: Refuse,
    /// Called after each reconcile, to check invariants.
    pub watch: Box<dyn FnMut(&Memory)>,
    controllers: Vec<Box<dyn Controller>>,
    queue: Queue<(usize, Key)>,
    failures: BTreeMap<(usize, Key), String>,
    monotonic: Duration,
}

impl World {
    /// An empty world.
    pub fn new(controllers: Vec<Box<dyn Controller>>) -> Self {
        let memory = Memory {
            wall: "2026-01-01T00:00:00Z".parse().unwrap(),
            ..Memory::default()
        };
        let mut queue = Queue::default();
        for (index, controller) in controllers.iter().enumerate() {
            controller.start().into_iter().for_each(|key| queue.add((index, key)));
        }
        Self {
            memory,
            notices: Vec::new(),
            refuse: Box::new(|_| None),
            watch: Box::new(|_| ()),
            controllers,
            queue,
            failures: BTreeMap::new(),
            monotonic: Duration::ZERO,
        }
    }

    fn dispatch(&mut self) {
        for event in std::mem::take(&mut self.memory.events) {
            for (index, controller) in self.controllers.iter().enumerate() {
                controller.keys(&self.memory, &event, &mut |key| self.queue.add((index, key)));
            }
        }
    }

    /// Do one thing that is due. Returns whether there was one.
    pub fn step(&mut self) -> bool {
        self.dispatch();
        let Some(job) = self.queue.pop(self.monotonic) else {
            return false;
        };
        let failure = self.failures.remove(&job);
        let now = Now {
            wall: self.memory.wall,
            monotonic: self.monotonic,
        };
        let context = Context {
            view: &self.memory,
            now,
            failure: failure.as_deref(),
        };
        let outcome = self.controllers[job.0].reconcile(&context, &job.1);
        let notices = outcome.notices.into_iter().map(|n| (n.reason.to_owned(), n.message));
        self.notices.extend(notices);
        let mut end = End::Done(outcome.requeue_after);
        for operation in outcome.operations {
            let refused = (self.refuse)(&operation.write);
            let result = refused.map_or_else(|| self.memory.apply(operation.write.clone()), Err);
            if let Some(announce) = operation.announce {
                let (notice, detail): (Notice, &str) = match &result {
                    Ok(name) => (announce.success, name),
                    Err(error) => (announce.failure, error),
                };
                self.notices
                    .push((notice.reason.to_owned(), notice.message.replacen("{}", detail, 1)));
            }
            if let Err(error) = result {
                if !error.starts_with("conflict") {
                    self.failures.insert(job.clone(), error);
                }
                end = End::Failed;
            }
        }
        self.dispatch();
        self.queue.end(&job, end, self.monotonic);
        (self.watch)(&self.memory);
        true
    }

    /// Work until nothing is due now.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the controllers never come to rest");
    }

    /// Let time pass, working on what becomes due.
    pub fn advance(&mut self, time: Duration) {
        self.settle();
        let end = self.monotonic + time;
        while let Some(due) = self.queue.next_due().filter(|due| *due <= end) {
            self.sleep_until(due);
            self.settle();
        }
        self.sleep_until(end);
    }

    fn sleep_until(&mut self, time: Duration) {
        let passed = time.saturating_sub(self.monotonic);
        self.monotonic += passed;
        self.memory.wall += jiff::SignedDuration::try_from(passed).unwrap();
    }

    /// A node agent: pods get a node and an address, become ready, and go when they are deleted.
    pub fn run_pods(&mut self) {
        for object in self.memory.objects("pods") {
            self.run_pod(&object);
        }
    }

    /// The same for one pod, one step.
    pub fn run_pod(&mut self, object: &Object) {
        let (namespace, name) = (object.namespace.clone(), object.name.clone());
        let value = object.value();
        if !value["metadata"]["deletionTimestamp"].is_null() {
            self.memory.remove("pods", &namespace, &name);
        } else if value["status"]["phase"] != "Running" {
            let address = format!("10.244.0.{}", object.revision % 250 + 2);
            let ready = json!({"type": "Ready", "status": "True",
                "lastTransitionTime": super::recorder::seconds(self.memory.wall)});
            let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                "conditions": [ready]});
            self.memory.patch(
                "pods",
                &namespace,
                &name,
                &json!({"spec": {"nodeName": "n1"}, "status": status}),
            );
        }
    }

    /// Settle and run pods until both have nothing to do.
    pub fn converge(&mut self) {
        for _ in 0..1000 {
            self.settle();
            let before = self.memory.revision;
            self.run_pods();
            if self.memory.revision == before {
                return;
            }
        }
        panic!("the cluster never comes to rest");
    }
}
