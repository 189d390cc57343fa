//! What the kubelet API may see of the pods on this node, without asking their workers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use tokio::sync::watch;

use super::state::{Phase, PodState};

/// One container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    /// Its id, once there is one.
    pub id: Option<String>,
    /// Number of the attempt, which names the log file.
    pub attempt: u32,
    /// Whether its program runs.
    pub running: bool,
    /// Whether this attempt has produced a container at all.
    pub existed: bool,
}

/// One pod.
#[derive(Clone, Debug)]
pub struct View {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its containers by name.
    pub containers: BTreeMap<String, ContainerView>,
}

impl View {
    /// The view of `pod` in `state`.
    #[must_use]
    pub fn of(pod: &Arc<Pod>, state: &PodState) -> Self {
        let view = |state: &super::state::ContainerState| ContainerView {
            id: state.id.clone(),
            attempt: state.attempt,
            running: state.is_running(),
            existed: matches!(state.phase, Phase::Running { .. } | Phase::Exited(_)),
        };
        View {
            pod: Arc::clone(pod),
            containers: state
                .containers
                .iter()
                .map(|(name, state)| (name.clone(), view(state)))
                .collect(),
        }
    }
}

/// All pods by uid.
pub struct Views {
    pods: RwLock<HashMap<String, Arc<View>>>,
    changes: watch::Sender<u64>,
}

impl Default for Views {
    fn default() -> Self {
        Views {
            pods: RwLock::default(),
            changes: watch::channel(0).0,
        }
    }
}

impl Views {
    /// Replaces the view of a pod.
    pub fn set(&self, uid: &str, view: View) {
        let mut pods = self.pods.write();
        let same = pods
            .get(uid)
            .is_some_and(|old| old.containers == view.containers && Arc::ptr_eq(&old.pod, &view.pod));
        if !same {
            pods.insert(uid.to_owned(), Arc::new(view));
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &str) {
        self.pods.write().remove(uid);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Notified whenever a view changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// All pods.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<View>> {
        self.pods.read().values().cloned().collect()
    }

    /// The pod of that name.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<View>> {
        let matches = |view: &&Arc<View>| {
            let meta = &view.pod.metadata;
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        };
        self.pods.read().values().find(matches).cloned()
    }
}
