//! The watch cache: every object in memory, one encoding each, serving gets, lists and watches.
//!
//! Per resource: a persistent ordered map (O(1) snapshots) and a ring of events bounded in bytes. A watcher is a cursor
//! into the ring plus a selector; one that lags past the ring gets [`Expired`] (HTTP 410). See STORE.md-style notes in
//! ARCHITECTURE.md.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::selector::Selector;
use crate::store::Store;
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

/// One object at one revision. Cheap to share; the body is encoded once for every list and watch.
#[derive(Debug)]
pub struct Object {
    /// Resource: `plural` for the core group, else `group/plural`.
    pub resource: Arc<str>,
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Revision of the last write (`metadata.resourceVersion`).
    pub revision: Revision,
    /// Revision of the creation.
    pub created: Revision,
    /// Extracted fields.
    pub index: Index,
    /// The JSON body, `metadata.resourceVersion` included.
    pub body: Bytes,
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
pub struct Cache {}

/// One resource at one revision; O(1) to take and to clone.
#[derive(Clone)]
pub struct Snapshot {}

/// A cursor into the events of one or more resources.
pub struct Watcher {}

impl Object {
    /// The decoded body.
    pub fn value(&self) -> Value {
        todo!()
    }
    /// The body decoded into a type.
    ///
    /// # Errors
    /// What serde says when the body does not fit the type.
    pub fn typed<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        todo!()
    }
    /// An indexed field, e.g. `spec.nodeName`.
    pub fn field(&self, _path: &str) -> Option<&str> {
        todo!()
    }
    /// A label.
    pub fn label(&self, _key: &str) -> Option<&str> {
        todo!()
    }
}

impl Cache {
    /// Load everything from `store` and follow it.
    ///
    /// # Errors
    /// What [`Store::load`] says.
    pub async fn open(_store: Arc<dyn Store>, _indexer: Arc<dyn Indexer>) -> Result<Arc<Cache>, StoreError> {
        todo!()
    }
    /// The newest revision visible.
    pub fn revision(&self) -> Revision {
        todo!()
    }
    /// One object; `namespace` is empty for cluster-scoped ones.
    pub fn get(&self, _resource: &str, _namespace: &str, _name: &str) -> Option<Arc<Object>> {
        todo!()
    }
    /// A resource as it is now.
    pub fn snapshot(&self, _resource: &str) -> Snapshot {
        todo!()
    }
    /// A page of objects: from the start or `after` the last page's `next`, now or exactly `at` a revision.
    ///
    /// # Errors
    /// [`Expired`] if `at` is no longer kept.
    pub fn list(&self, _query: &Query, _limit: Option<usize>, _after: Option<&str>, _at: Option<Revision>) -> Result<Page, Expired> {
        todo!()
    }
    /// Events after a revision.
    ///
    /// # Errors
    /// [`Expired`] if events after that revision are no longer kept.
    pub fn watch(&self, _query: Query, _after: Revision) -> Result<Watcher, Expired> {
        todo!()
    }
    /// Every event of these resources from now on, for controllers. Take it before the snapshot.
    pub fn watch_all(&self, _resources: &[&str]) -> Watcher {
        todo!()
    }
    /// Commit writes atomically and durably; visible here before it returns. For a deletion the last state is returned.
    ///
    /// # Errors
    /// What [`Store::commit`] says. Deleting what does not exist is a [`StoreError::Conflict`] with `current: None`.
    pub async fn commit(&self, _changes: Vec<Change>) -> Result<Vec<Arc<Object>>, StoreError> {
        todo!()
    }
    /// Pods whose `spec.nodeName` is `node`.
    pub fn pods_on_node(&self, _node: &str) -> Vec<Arc<Object>> {
        todo!()
    }
    /// Objects of any resource with an owner reference to `owner_uid`.
    pub fn dependents(&self, _owner_uid: &str) -> Vec<Arc<Object>> {
        todo!()
    }
}

impl Snapshot {
    /// The revision this is a state of.
    pub fn revision(&self) -> Revision {
        todo!()
    }
    /// How many objects.
    pub fn len(&self) -> usize {
        todo!()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        todo!()
    }
    /// All objects in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object>> {
        [].into_iter()
    }
    /// The objects of one namespace in name order.
    pub fn namespace(&self, _namespace: &str) -> impl Iterator<Item = &Arc<Object>> {
        [].into_iter()
    }
    /// One object.
    pub fn get(&self, _namespace: &str, _name: &str) -> Option<&Arc<Object>> {
        todo!()
    }
}

impl Watcher {
    /// The next event that the selector lets through; waits for it. Cancel-safe.
    ///
    /// # Errors
    /// [`Expired`] when this watcher lagged past what the cache keeps.
    pub async fn next(&mut self) -> Result<Event, Expired> {
        todo!()
    }
    /// The next event if one is there now.
    ///
    /// # Errors
    /// As [`Watcher::next`].
    pub fn try_next(&mut self) -> Result<Option<Event>, Expired> {
        todo!()
    }
    /// Everything up to this revision has been delivered: what a bookmark says.
    pub fn revision(&self) -> Revision {
        todo!()
    }
}
