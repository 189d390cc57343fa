//! An API server in memory, with as much of Kubernetes' behaviour as an agent can see.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hull_agent::client::{ApiStatus, ClientError, ListWatchEvent, PatchKind};
use hull_agent::pod::api::{Api, ApiResult};
use serde_json::{Value, json};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Store {
    /// By path.
    objects: BTreeMap<String, Value>,
    followers: Vec<(String, Option<String>, mpsc::UnboundedSender<ListWatchEvent>)>,
    revision: u64,
}

/// The server.
pub struct MemoryApi {
    store: Mutex<Store>,
    changed: Condvar,
}

impl MemoryApi {
    pub fn new() -> Arc<Self> {
        Arc::new(MemoryApi {
            store: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Creates or replaces an object of the namespace `default`.
    pub fn put(&self, plural: &str, name: &str, object: Value) {
        self.write(&format!("/api/v1/namespaces/default/{plural}/{name}"), object);
    }

    pub fn put_pod(&self, pod: Value) {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        self.put("pods", &name, pod);
    }

    pub fn pod(&self, name: &str) -> Value {
        self.store
            .lock()
            .unwrap()
            .objects
            .get(&pod_path(name))
            .cloned()
            .unwrap_or_default()
    }

    /// Graceful deletion: the agent is to finish it.
    pub fn delete_pod(&self, name: &str, grace: u64) {
        let mut pod = self.pod(name);
        let due = jiff::Timestamp::now() + Duration::from_secs(grace);
        pod["metadata"]["deletionTimestamp"] = json!(due.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.put_pod(pod);
    }

    /// Forced deletion: the object goes without the agent.
    pub fn forget_pod(&self, name: &str) {
        self.remove(&pod_path(name));
    }

    /// Waits for a state of a pod.
    pub fn wait_for(&self, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.wait(&format!("pod {name}"), |store| {
            store.objects.get(&pod_path(name)).filter(|pod| holds(pod)).cloned()
        })
    }

    pub fn wait_until_gone(&self, name: &str) {
        self.wait(&format!("the end of pod {name}"), |store| {
            (!store.objects.contains_key(&pod_path(name))).then_some(())
        });
    }

    fn wait<T>(&self, what: &str, holds: impl Fn(&Store) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut store = self.store.lock().unwrap();
        loop {
            if let Some(found) = holds(&store) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                panic!("{what}: not within {PATIENCE:?}; the objects are {:#?}", store.objects);
            }
            store = self.changed.wait_timeout(store, left).unwrap().0;
        }
    }

    fn write(&self, path: &str, mut object: Value) -> Value {
        let mut store = self.store.lock().unwrap();
        store.revision += 1;
        object["metadata"]["resourceVersion"] = json!(store.revision.to_string());
        store.objects.insert(path.to_owned(), object.clone());
        tell(&mut store, path, ListWatchEvent::Applied(object.clone()));
        self.changed.notify_all();
        object
    }

    fn remove(&self, path: &str) -> Option<Value> {
        let mut store = self.store.lock().unwrap();
        let object = store.objects.remove(path)?;
        tell(&mut store, path, ListWatchEvent::Deleted(object.clone()));
        self.changed.notify_all();
        Some(object)
    }
}

fn pod_path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

fn is_in(path: &str, collection: &str, name: Option<&String>) -> bool {
    let plural = collection.rsplit('/').next().unwrap_or_default();
    let (parent, last) = path.rsplit_once('/').unwrap_or_default();
    parent.ends_with(&format!("/{plural}")) && name.is_none_or(|name| name == last)
}

fn tell(store: &mut Store, path: &str, event: ListWatchEvent) {
    store.followers.retain(|(collection, name, sender)| {
        !is_in(path, collection, name.as_ref()) || sender.send(event.clone()).is_ok()
    });
}

fn not_found(path: &str) -> ClientError {
    let status = ApiStatus {
        code: 404,
        reason: "NotFound".into(),
        message: format!("{path} not found"),
    };
    ClientError {
        status: Some(status),
        what: format!("{path} not found"),
    }
}

/// RFC 7396; enough for the patches that agents send, whose lists are whole.
fn merge(target: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (name, value) in fields {
                if value.is_null() {
                    target.as_object_mut().unwrap().remove(&name);
                } else {
                    merge(&mut target[&name], value);
                }
            }
        }
        other => *target = other,
    }
}

impl Api for MemoryApi {
    fn get(&self, path: String) -> BoxFuture<'_, ApiResult> {
        async move {
            if path == "/version" {
                return Ok(json!({"gitVersion": "v1.37.0"}));
            }
            self.store
                .lock()
                .unwrap()
                .objects
                .get(&path)
                .cloned()
                .ok_or_else(|| not_found(&path))
        }
        .boxed()
    }

    fn create(&self, path: String, object: Value) -> BoxFuture<'_, ApiResult> {
        async move {
            let name = object["metadata"]["name"].as_str().unwrap_or("none").to_owned();
            Ok(self.write(&format!("{path}/{name}"), object))
        }
        .boxed()
    }

    fn update(&self, path: String, object: Value) -> BoxFuture<'_, ApiResult> {
        async move { Ok(self.write(&path, object)) }.boxed()
    }

    fn patch(&self, path: String, _: PatchKind, patch: Value) -> BoxFuture<'_, ApiResult> {
        async move {
            let path = path.strip_suffix("/status").unwrap_or(&path).to_owned();
            let mut object = self.get(path.clone()).await?;
            merge(&mut object, patch);
            Ok(self.write(&path, object))
        }
        .boxed()
    }

    fn delete(&self, path: String, _: Value) -> BoxFuture<'_, ApiResult> {
        async move { self.remove(&path).ok_or_else(|| not_found(&path)) }.boxed()
    }

    fn follow(&self, path: String, query: String) -> mpsc::Receiver<ListWatchEvent> {
        let name = query.strip_prefix("fieldSelector=metadata.name%3D").map(str::to_owned);
        let (sender, mut events) = mpsc::unbounded_channel();
        let mut store = self.store.lock().unwrap();
        let chosen = store
            .objects
            .iter()
            .filter(|(object, _)| is_in(object, &path, name.as_ref()));
        let listed = chosen.map(|(_, object)| object.clone()).collect();
        let _ = sender.send(ListWatchEvent::Listed(listed));
        store.followers.push((path, name, sender));
        let (bounded, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if bounded.send(event).await.is_err() {
                    return;
                }
            }
        });
        receiver
    }
}
