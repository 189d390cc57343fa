//! The replica sets of a deployment: which one is new, which are old, and edits to them collected until they are written.
//!
//! Two templates are equal when they differ in nothing but the `pod-template-hash` label.

use serde_json::{Value, json};

use super::spec::Deployment;
use crate::cache::Object;
use crate::controllers::metadata::{Metadata, metadata};

/// The label that keeps replica sets of one deployment apart.
pub const HASH_LABEL: &str = "pod-template-hash";
/// The rollout's number.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier numbers of a replica set that was rolled back to.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The deployment's `replicas` when the replica set was last scaled.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The same and the surge.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations that are not copied from the deployment.
const PRIVATE: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
];

/// One replica set, with the changes decided so far.
#[derive(Clone, Debug)]
pub struct ReplicaSet {
    /// As stored; `None` while it is to be created.
    pub object: Option<std::sync::Arc<Object>>,
    /// Metadata as stored.
    pub meta: Metadata,
    /// The whole object with the changes.
    pub value: Value,
    /// Whether `value` differs from what is stored.
    pub changed: bool,
    /// What happened to its size, for the event: from, to.
    pub scaled: Option<(i32, i32)>,
}

impl ReplicaSet {
    /// Decode one.
    pub fn new(object: std::sync::Arc<Object>) -> Self {
        let (meta, value) = (metadata(&object), object.value());
        Self {
            object: Some(object),
            meta,
            value,
            changed: false,
            scaled: None,
        }
    }

    /// `spec.replicas`, with the changes.
    pub fn replicas(&self) -> i32 {
        number(&self.value["spec"]["replicas"]).unwrap_or(1)
    }

    /// A number of its status.
    pub fn status(&self, field: &str) -> i32 {
        number(&self.value["status"][field]).unwrap_or(0)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.meta.name
    }

    /// An annotation, with the changes.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.value["metadata"]["annotations"][key].as_str()
    }

    /// Its revision; zero if it has none.
    pub fn revision(&self) -> i64 {
        self.annotation(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
    }

    /// Set an annotation.
    pub fn annotate(&mut self, key: &str, value: &str) {
        if self.annotation(key) != Some(value) {
            let annotations = &mut self.value["metadata"]["annotations"];
            if !annotations.is_object() {
                *annotations = json!({});
            }
            annotations[key] = value.into();
            self.changed = true;
        }
    }

    /// Set `spec.replicas` and the annotations that go with it.
    pub fn scale(&mut self, replicas: i32, deployment: &Deployment) {
        let from = self.replicas();
        if from != replicas {
            self.value["spec"]["replicas"] = replicas.into();
            self.changed = true;
            self.scaled = Some((self.scaled.map_or(from, |(first, _)| first), replicas));
        }
        self.annotate_sizes(deployment);
    }

    /// Record the deployment's size.
    pub fn annotate_sizes(&mut self, deployment: &Deployment) {
        self.annotate(DESIRED_REPLICAS, &deployment.replicas.to_string());
        self.annotate(
            MAX_REPLICAS,
            &(deployment.replicas + deployment.max_surge()).to_string(),
        );
    }

    /// Give it the deployment's annotations and a revision.
    pub fn synchronise(&mut self, deployment: &Deployment, revision: i64) {
        for (key, value) in &deployment.meta.annotations {
            if !PRIVATE.contains(&key.as_str()) {
                self.annotate(key, value);
            }
        }
        let old = self.revision();
        if old < revision {
            if old > 0 {
                let history = match self.annotation(REVISION_HISTORY) {
                    Some(history) if !history.is_empty() => format!("{history},{old}"),
                    _ => old.to_string(),
                };
                self.annotate(REVISION_HISTORY, &history);
            }
            self.annotate(REVISION, &revision.to_string());
        }
    }

    /// The pod template without the hash label.
    fn template(&self) -> Value {
        let mut template = self.value["spec"]["template"].clone();
        if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
            labels.remove(HASH_LABEL);
        }
        template
    }
}

fn number(value: &Value) -> Option<i32> {
    value.as_i64().and_then(|n| i32::try_from(n).ok())
}

/// Split into the one whose template is the deployment's (the oldest such) and the others, oldest first.
pub fn split(mut all: Vec<ReplicaSet>, deployment: &Deployment) -> (Option<ReplicaSet>, Vec<ReplicaSet>) {
    all.sort_by(|a, b| (a.meta.creation_timestamp, a.name()).cmp(&(b.meta.creation_timestamp, b.name())));
    let wanted = {
        let mut template = deployment.template.clone();
        if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
            labels.remove(HASH_LABEL);
        }
        template
    };
    match all.iter().position(|r| r.template() == wanted) {
        Some(at) => {
            let new = all.remove(at);
            (Some(new), all)
        }
        None => (None, all),
    }
}

/// The replica set for a template that has none yet.
pub fn build(deployment: &Deployment, hash: &str, revision: i64) -> ReplicaSet {
    let name = format!("{}-{hash}", deployment.meta.name);
    let mut template = deployment.template.clone();
    let mut selector = deployment.selector.clone();
    template["metadata"]["labels"][HASH_LABEL] = hash.into();
    selector["matchLabels"][HASH_LABEL] = hash.into();
    let labels = template["metadata"]["labels"].clone();
    let mut spec = json!({"replicas": 0, "selector": selector, "template": template});
    if deployment.min_ready_seconds != 0 {
        spec["minReadySeconds"] = deployment.min_ready_seconds.into();
    }
    let value = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": name,
            "namespace": deployment.namespace,
            "labels": labels,
            "ownerReferences": [crate::controllers::metadata::controller_reference(
                "apps/v1", "Deployment", &deployment.meta.name, &deployment.meta.uid,
            )],
        },
        "spec": spec,
    });
    let meta = Metadata {
        name,
        ..Metadata::default()
    };
    let mut set = ReplicaSet {
        object: None,
        meta,
        value,
        changed: true,
        scaled: None,
    };
    set.synchronise(deployment, revision);
    set.annotate_sizes(deployment);
    set
}
