//! Nodes with what runs on them, kept up to date from events, so that a decision computes nothing that has not changed.
//!
//! Invariant: a node's sums are those of its pods. A pod that was assigned but is not yet written counts like any other
//! (it is "assumed"); the event of its binding replaces it, a failed binding takes it out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use super::amounts::{Amounts, pod_capacity};
use super::pod::PodInfo;
use crate::cache::Object;
use crate::controllers::controller::Key;

/// A node and its pods.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Name.
    pub name: Arc<str>,
    /// Whether the node exists; if not, only pods that name it were seen.
    pub exists: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Cordoned.
    pub unschedulable: bool,
    /// What pods can have.
    pub allocatable: Amounts,
    /// How many pods it takes.
    pub capacity: i64,
    /// Size of its images by name.
    pub images: HashMap<String, i64>,
    /// What its pods request.
    pub requested: Amounts,
    /// The same with defaults, for scores.
    pub weight: Amounts,
    /// Its pods.
    pub pods: HashMap<Key, Arc<PodInfo>>,
}

impl NodeInfo {
    /// Take over what the node says. Returns whether anything that matters to scheduling changed.
    fn describe(&mut self, node: Node) -> bool {
        let spec = node.spec.unwrap_or_default();
        let status = node.status.unwrap_or_default();
        let mut labels = node.metadata.labels.unwrap_or_default();
        labels
            .entry("kubernetes.io/hostname".to_owned())
            .or_insert_with(|| self.name.to_string());
        let taints = spec.taints.unwrap_or_default();
        let unschedulable = spec.unschedulable.unwrap_or(false);
        let resources = status.allocatable.as_ref().or(status.capacity.as_ref());
        let (allocatable, capacity) = (Amounts::parse(resources), pod_capacity(resources));
        let changed = !self.exists
            || labels != self.labels
            || taints != self.taints
            || unschedulable != self.unschedulable
            || allocatable != self.allocatable
            || capacity != self.capacity;
        let sized = |image: k8s_openapi::api::core::v1::ContainerImage| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.into_iter().flatten().map(move |name| (name, size))
        };
        self.images = status.images.into_iter().flatten().flat_map(sized).collect();
        (self.labels, self.taints, self.unschedulable) = (labels, taints, unschedulable);
        (self.allocatable, self.capacity, self.exists) = (allocatable, capacity, true);
        changed
    }

    fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.weight.add(&pod.weight);
        self.pods.insert(pod.key.clone(), pod);
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(pod) = self.pods.remove(key) else { return false };
        self.requested.subtract(&pod.requests);
        self.weight.subtract(&pod.weight);
        true
    }
}

/// All nodes.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    nodes: BTreeMap<Arc<str>, NodeInfo>,
    placed: HashMap<Key, Arc<str>>,
    /// Placed pods that keep others away.
    repelling: HashMap<Key, Arc<PodInfo>>,
    /// Labels of namespaces.
    namespaces: HashMap<Arc<str>, BTreeMap<String, String>>,
}

impl Cluster {
    /// The nodes there are, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|node| node.exists)
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name).filter(|node| node.exists)
    }

    /// Placed pods with required anti-affinity, and their nodes.
    pub fn repelling(&self) -> impl Iterator<Item = (&PodInfo, &NodeInfo)> {
        self.repelling
            .values()
            .filter_map(|pod| Some((&**pod, self.nodes.get(self.placed.get(&pod.key)?)?)))
    }

    /// Labels of a namespace.
    pub fn namespace(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(name)
    }

    /// A namespace appeared or changed.
    pub fn put_namespace(&mut self, object: &Object) {
        let labels = object
            .index
            .labels
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        self.namespaces.insert(object.name.clone(), labels);
    }

    /// A namespace is gone.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// A node appeared or changed. Returns whether pods that did not fit should be tried again.
    pub fn put_node(&mut self, object: &Object) -> bool {
        let Ok(node) = object.typed::<Node>() else { return false };
        self.entry(&object.name).describe(node)
    }

    /// A node is gone; its pods are remembered until they go.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.exists = false;
            if node.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Where a pod is placed.
    pub fn place_of(&self, key: &Key) -> Option<&Arc<str>> {
        self.placed.get(key)
    }

    /// A pod is on a node.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(&pod.key);
        let entry = self.entry(node);
        let name = entry.name.clone();
        entry.add(pod.clone());
        self.placed.insert(pod.key.clone(), name);
        if !pod.repelled.is_empty() {
            self.repelling.insert(pod.key.clone(), pod);
        }
    }

    /// A pod is gone or uses nothing any more. Returns whether it was counted.
    pub fn remove_pod(&mut self, key: &Key) -> bool {
        let Some(name) = self.placed.remove(key) else {
            return false;
        };
        self.repelling.remove(key);
        let Some(node) = self.nodes.get_mut(&name) else {
            return false;
        };
        let removed = node.remove(key);
        if !node.exists && node.pods.is_empty() {
            self.nodes.remove(&name);
        }
        removed
    }

    fn entry(&mut self, name: &str) -> &mut NodeInfo {
        let name: Arc<str> = name.into();
        self.nodes.entry(name.clone()).or_insert_with(|| NodeInfo {
            name,
            ..NodeInfo::default()
        })
    }
}
