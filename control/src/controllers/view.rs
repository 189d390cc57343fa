//! What a controller may see: objects as they were at one moment, never the cache itself.
//!
//! The running control plane looks at the watch cache ([`CacheView`]); tests and simulations look at a plain map
//! ([`super::memory::Memory`]). Reads of one `reconcile` may be of different revisions, as with informers.

use std::sync::Arc;

use crate::cache::{Cache, Object};

/// Read access to all objects.
pub trait View {
    /// One object; `namespace` is empty for cluster-scoped resources.
    fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Object>>;

    /// Every object of a resource, in key order; `namespace: None` means all of them.
    fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Arc<Object>>;

    /// Every object with an owner reference to `uid`.
    fn dependents(&self, uid: &str) -> Vec<Arc<Object>>;

    /// The pods bound to a node.
    fn pods_on_node(&self, node: &str) -> Vec<Arc<Object>>;
}

/// The watch cache as a [`View`].
pub struct CacheView(pub Arc<Cache>);

impl View for CacheView {
    fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.0.get(resource, namespace, name)
    }

    fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Arc<Object>> {
        let snapshot = self.0.snapshot(resource);
        match namespace {
            Some(namespace) => snapshot.namespace(namespace).cloned().collect(),
            None => snapshot.iter().cloned().collect(),
        }
    }

    fn dependents(&self, uid: &str) -> Vec<Arc<Object>> {
        self.0.dependents(uid)
    }

    fn pods_on_node(&self, node: &str) -> Vec<Arc<Object>> {
        self.0.pods_on_node(node)
    }
}
