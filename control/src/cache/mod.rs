//! The watch cache: every object in memory, one encoding each, serving gets, lists and watches.
//!
//! Per resource: a persistent ordered map (O(1) snapshots) and a ring of events bounded in bytes. A watcher is a cursor
//! into the ring plus a selector; one that lags past the ring gets [`Expired`] (HTTP 410).
//! Invariant: the cache shows only what the store has made durable, whole transactions, in revision order.

mod list;
mod object;
mod ring;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod watcher;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use serde_json::Value;

pub use self::object::Object;
pub use self::table::Snapshot;
pub use self::watcher::Watcher;
use crate::selector::Selector;
use crate::store::{self, Store};
pub use crate::store::{Expect, Revision, StoreError};

/// What is extracted from an object once, when it enters the cache, so that selectors need not decode it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// `metadata.labels`, sorted by key.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the resource's selectable fields, sorted by path, e.g. `("spec.nodeName", "n1")`. Always has
    /// `metadata.name` and `metadata.namespace`.
    pub fields: Box<[(&'static str, Box<str>)]>,
    /// `metadata.ownerReferences[*].uid`.
    pub owners: Box<[Box<str>]>,
    /// `metadata.uid`.
    pub uid: Box<str>,
}

/// Computes an object's [`Index`] from its decoded body. `resource` is e.g. `pods`, `apps/deployments`.
pub trait Indexer: Send + Sync + 'static {
    /// The index of `object`.
    fn index(&self, resource: &str, object: &Value) -> Index;
}

/// What happened to an object, as the selector of the watcher sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Created, or began to match the selector.
    Added,
    /// Changed while matching.
    Modified,
    /// Deleted, or ceased to match.
    Deleted,
}

/// One change in a resource.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The revision of the change.
    pub revision: Revision,
    /// The object after the change; for a deletion the last state, with the revision of the deletion.
    pub object: Arc<Object>,
    /// The object before the change, if there was one.
    pub previous: Option<Arc<Object>>,
}

/// The revision asked for is outside what the cache keeps: HTTP 410, reason Expired.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("too old resource version: {requested} ({oldest})")]
pub struct Expired {
    /// What was asked for.
    pub requested: Revision,
    /// The oldest revision available.
    pub oldest: Revision,
}

/// What a list asks for.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The resource, as in [`Object::resource`].
    pub resource: Arc<str>,
    /// Only this namespace; `None`: all.
    pub namespace: Option<Arc<str>>,
    /// Labels and fields.
    pub selector: Selector,
}

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    /// The matching objects in key order.
    pub items: Vec<Arc<Object>>,
    /// The list's revision; the same on every page of one list.
    pub revision: Revision,
    /// Start of the next page, to be passed as `after` with the same revision; `None`: this was the last.
    pub next: Option<String>,
    /// How many matching objects are left after this page (`remainingItemCount`), when known.
    pub remaining: Option<u64>,
}

/// One write: put (`object: Some`) or delete (`None`).
#[derive(Clone, Debug)]
pub struct Change {
    /// The resource.
    pub resource: Arc<str>,
    /// Namespace; empty for cluster-scoped.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// The new state; any `metadata.resourceVersion` in it is ignored. `None` deletes.
    pub object: Option<Value>,
    /// The condition.
    pub expect: Expect,
}

/// The watch cache over a [`Store`].
pub struct Cache {
    store: Arc<dyn Store>,
    shared: Arc<Shared>,
}

/// What the store's publisher and the watchers share.
struct Shared {
    indexer: Arc<dyn Indexer>,
    tables: RwLock<table::Tables>,
    /// Changes published before the load was taken in; `None` afterwards.
    early: Mutex<Option<Vec<store::Change>>>,
    /// Indexes of the values being committed, by the address of the value: computed by the writer's task from the decoded
    /// object, so that the publisher need not decode it. [`Prepared`] keeps the address taken while an entry exists.
    prepared: Mutex<HashMap<usize, Index>>,
    names: Mutex<Names>,
}

/// Resource and namespace names, one allocation each.
#[derive(Default)]
struct Names {
    names: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Cache {
    /// Load everything from `store` and follow it.
    ///
    /// # Errors
    /// What [`Store::load`] says; [`StoreError::Broken`] if a value is not an object.
    pub async fn open(store: Arc<dyn Store>, indexer: Arc<dyn Indexer>) -> Result<Arc<Cache>, StoreError> {
        let shared = Arc::new(Shared {
            indexer,
            tables: RwLock::new(table::Tables::new()),
            early: Mutex::new(Some(Vec::new())),
            prepared: Mutex::default(),
            names: Mutex::default(),
        });
        let publisher = shared.clone();
        store.subscribe(Box::new(move |changes| publisher.publish(changes)));
        let (values, revision) = store.load().await?;
        let mut objects = Vec::with_capacity(values.len());
        for store::KeyValue {
            key,
            value,
            revision,
            created,
        } in values
        {
            let change = store::Change {
                revision,
                key,
                value: Some(value),
                created,
            };
            let object = shared.decode(&change).ok_or_else(|| StoreError::Broken {
                path: String::new(),
                what: format!("the value of {} is not an encoded object", change.key),
            })?;
            objects.push((change.key, Arc::new(object)));
        }
        shared.tables.write().load(objects, revision);
        // Holding `early` keeps the publisher out until what came meanwhile is applied before what comes next.
        let mut early = shared.early.lock();
        let changes: Vec<_> = early
            .take()
            .unwrap_or_default()
            .into_iter()
            .filter(|c| c.revision > revision)
            .collect();
        shared.apply(&changes);
        drop(early);
        Ok(Arc::new(Cache { store, shared }))
    }

    /// The newest revision visible.
    pub fn revision(&self) -> Revision {
        self.shared.tables.read().revision
    }

    /// One object; `namespace` is empty for cluster-scoped ones.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let key = key(resource, namespace, name);
        self.shared.tables.read().get(resource)?.objects.get(&*key).cloned()
    }

    /// A resource as it is now.
    pub fn snapshot(&self, resource: &str) -> Snapshot {
        let tables = self.shared.tables.read();
        let objects = tables
            .get(resource)
            .map(|table| table.objects.clone())
            .unwrap_or_default();
        Snapshot {
            objects,
            revision: tables.revision,
            resource: resource.into(),
        }
    }

    /// A page of objects: from the start or `after` the last page's `next`, now or exactly `at` a revision.
    ///
    /// # Errors
    /// [`Expired`] if `at` is no longer kept, or has not happened yet.
    pub fn list(
        &self,
        query: &Query,
        limit: Option<usize>,
        after: Option<&str>,
        at: Option<Revision>,
    ) -> Result<Page, Expired> {
        list::list(&self.shared, query, limit, after, at)
    }

    /// Events after a revision. All changes of one transaction share a revision: a watch resumed within one skips its rest.
    ///
    /// # Errors
    /// [`Expired`] if events after that revision are no longer kept.
    pub fn watch(&self, query: Query, after: Revision) -> Result<Watcher, Expired> {
        Watcher::filtered(&self.shared, query, after)
    }

    /// Every event of these resources from now on, for controllers. Take it before the snapshot.
    pub fn watch_all(&self, resources: &[&str]) -> Watcher {
        Watcher::all(&self.shared, resources)
    }

    /// Commit writes atomically and durably; visible here before it returns. For a deletion the last state is returned,
    /// under the revision of the deletion.
    ///
    /// # Errors
    /// What [`Store::commit`] says. Deleting what does not exist is a [`StoreError::Conflict`] with `current: None`.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<Vec<Arc<Object>>, StoreError> {
        let mut prepared = Prepared {
            shared: &self.shared,
            values: Vec::new(),
        };
        let mut writes = Vec::with_capacity(changes.len());
        for change in &changes {
            let value = change.object.as_ref().map(object::encode);
            if let (Some(value), Some(object)) = (&value, &change.object) {
                prepared.add(value.clone(), self.shared.indexer.index(&change.resource, object));
            }
            let key = key(&change.resource, &change.namespace, &change.name).into();
            writes.push(store::Write {
                key,
                value,
                expect: change.expect,
            });
        }
        let revision = self.store.commit(writes).await?;
        drop(prepared);
        Ok(changes.iter().map(|change| self.result(change, revision)).collect())
    }

    /// The object a committed change resulted in.
    fn result(&self, change: &Change, revision: Revision) -> Arc<Object> {
        let tables = self.shared.tables.read();
        if let Some(table) = tables.get(&change.resource) {
            let key = key(&change.resource, &change.namespace, &change.name);
            if let Some(object) = table.objects.get(&*key).filter(|object| object.revision == revision) {
                return object.clone();
            }
            let recent = table.ring.backwards().take_while(|event| event.revision >= revision);
            let mut own = recent
                .filter(|event| event.revision == revision)
                .map(|event| &event.object);
            if let Some(object) = own.find(|o| o.name == change.name && o.namespace == change.namespace) {
                return object.clone();
            }
        }
        drop(tables);
        // Changed again, and even that long enough ago to have left the ring: show what this commit wrote.
        let value = change.object.clone().unwrap_or_default();
        let index = self.shared.indexer.index(&change.resource, &value);
        let name = (&*change.resource, &*change.namespace, &*change.name);
        Arc::new(Object::new(name, revision, revision, index, &value))
    }

    /// Pods whose `spec.nodeName` is `node`.
    pub fn pods_on_node(&self, node: &str) -> Vec<Arc<Object>> {
        self.shared.tables.read().on_node(node).cloned().collect()
    }

    /// Objects of any resource with an owner reference to `owner_uid`.
    pub fn dependents(&self, owner_uid: &str) -> Vec<Arc<Object>> {
        self.shared.tables.read().owned_by(owner_uid).cloned().collect()
    }

    /// The store below, to compact or close it.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}

impl Shared {
    fn publish(&self, changes: &[store::Change]) {
        if let Some(early) = self.early.lock().as_mut() {
            early.extend_from_slice(changes);
            return;
        }
        self.apply(changes);
    }

    fn apply(&self, changes: &[store::Change]) {
        let decoded: Vec<_> = changes
            .iter()
            .map(|change| {
                let object = change.value.as_ref().and_then(|_| self.decode(change)).map(Arc::new);
                let resource = match &object {
                    Some(object) => object.resource.clone(),
                    None => self.intern(split(&change.key).0),
                };
                (change.key.clone(), resource, object, change.revision)
            })
            .collect();
        let now = Instant::now();
        let mut tables = self.tables.write();
        for (key, resource, object, revision) in decoded {
            tables.apply(key, &resource, object, revision, now);
        }
    }

    fn decode(&self, change: &store::Change) -> Option<Object> {
        let stored = change.value.as_ref()?;
        let (resource, namespace, name) = split(&change.key);
        let prepared = self.prepared.lock().remove(&(stored.as_ptr() as usize));
        let index = match prepared {
            Some(index) => index,
            None => self.indexer.index(resource, &object::decode_value(stored)?),
        };
        let name = (self.intern(resource), self.intern(namespace), name.into());
        Object::decode(name, change.revision, change.created, index, stored)
    }

    fn intern(&self, name: &str) -> Arc<str> {
        let mut names = self.names.lock();
        if let Some(known) = names.names.get(name) {
            return known.clone();
        }
        if names.names.len() >= names.sweep_at {
            names.names.retain(|name| Arc::strong_count(name) > 1);
            names.sweep_at = names.names.len() * 2 + 64;
        }
        let name: Arc<str> = name.into();
        names.names.insert(name.clone());
        name
    }
}

/// Indexes handed to the publisher, taken back when the commit ends in any way.
struct Prepared<'a> {
    shared: &'a Shared,
    values: Vec<bytes::Bytes>,
}

impl Prepared<'_> {
    fn add(&mut self, value: bytes::Bytes, index: Index) {
        self.shared.prepared.lock().insert(value.as_ptr() as usize, index);
        self.values.push(value);
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        let mut prepared = self.shared.prepared.lock();
        for value in &self.values {
            prepared.remove(&(value.as_ptr() as usize));
        }
    }
}

/// The prefix of a resource's keys: `/registry/core/pods/`, `/registry/apps/deployments/`.
fn prefix(resource: &str) -> String {
    let group = if resource.contains('/') { "" } else { "core/" };
    format!("/registry/{group}{resource}/")
}

/// An object's key in the store.
fn key(resource: &str, namespace: &str, name: &str) -> String {
    let prefix = prefix(resource);
    if namespace.is_empty() {
        prefix + name
    } else {
        format!("{prefix}{namespace}/{name}")
    }
}

/// Resource, namespace and name of a key.
fn split(key: &str) -> (&str, &str, &str) {
    let path = key.strip_prefix("/registry/").unwrap_or(key);
    let mut slashes = path.match_indices('/').map(|(at, _)| at);
    let (group_end, plural_end) = (slashes.next().unwrap_or(0), slashes.next().unwrap_or(path.len()));
    let resource = match &path[..group_end] {
        "core" => &path[group_end + 1..plural_end],
        _ => &path[..plural_end],
    };
    let rest = path.get(plural_end + 1..).unwrap_or_default();
    let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
    (resource, namespace, name)
}
