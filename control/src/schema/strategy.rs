//! What a write resets, keeps and counts (Kubernetes' rest strategies).
//!
//! Invariant: a client can never write status through the main resource, nor spec through `/status`, and
//! `metadata.generation` rises exactly when the desired state changed.

use serde_json::{Map, Value, json};

/// The rules of one resource.
#[derive(Clone, Copy, Debug)]
pub struct Strategy {
    /// There is a `/status`: a main update keeps the old status, `/status` changes nothing else.
    pub status: bool,
    /// A create may carry a status (nodes register with theirs); otherwise it is dropped.
    pub create_with_status: bool,
    /// `metadata.generation` starts at 1 and rises when anything but metadata and status changes.
    pub generation: bool,
    /// An update may create the object (PUT on a name that does not exist), e.g. leases, config maps are not.
    pub create_on_update: bool,
    /// Whether an update without `metadata.resourceVersion` is allowed.
    pub unconditional_update: bool,
    /// Deleted in two steps with a grace period (pods).
    pub graceful: bool,
    /// More to do on create, after the general rules.
    pub on_create: Option<fn(&mut Value)>,
    /// More to do on update of the main resource, after the general rules: `(new, old)`.
    pub on_update: Option<fn(&mut Value, &Value)>,
}

impl Strategy {
    /// No status, no generation.
    pub const PLAIN: Strategy = Strategy {
        status: false,
        create_with_status: false,
        generation: false,
        create_on_update: false,
        unconditional_update: true,
        graceful: false,
        on_create: None,
        on_update: None,
    };
    /// Status and generation, as of workloads.
    pub const WORKLOAD: Strategy = Strategy {
        status: true,
        generation: true,
        ..Strategy::PLAIN
    };

    /// Applies the rules for a create. Call after defaults and before validation; metadata that the server owns (uid,
    /// creationTimestamp, …) is the registry's.
    pub fn prepare_create(&self, object: &mut Value) {
        if self.status && !self.create_with_status {
            remove(object, "status");
        }
        if self.generation {
            set_generation(object, Some(1));
        }
        if let Some(hook) = self.on_create {
            hook(object);
        }
    }

    /// Applies the rules for an update of the main resource (`subresource: None`), of `/status` or of another
    /// subresource that carries the whole object (`/finalize`), which only has its status kept.
    pub fn prepare_update(&self, subresource: Option<&str>, new: &mut Value, old: &Value) {
        if subresource == Some("status") {
            self.keep_all_but_status(new, old);
            return;
        }
        if self.status {
            copy(new, old, "status");
        }
        if self.generation {
            let generation = old["metadata"]["generation"].as_i64();
            let next = if desired(new) == desired(old) {
                generation
            } else {
                Some(generation.unwrap_or(0) + 1)
            };
            set_generation(new, next);
        }
        if let (Some(hook), None) = (self.on_update, subresource) {
            hook(new, old);
        }
    }

    /// A write to `/status` changes the status, labels, annotations, finalizers and nothing else.
    fn keep_all_but_status(&self, new: &mut Value, old: &Value) {
        let Some(fields) = new.as_object_mut() else { return };
        let status = fields.remove("status");
        let mut metadata = fields.remove("metadata").unwrap_or_else(|| json!({}));
        copy(&mut metadata, &old["metadata"], "ownerReferences");
        copy(&mut metadata, &old["metadata"], "generation");
        *fields = old.as_object().cloned().unwrap_or_default();
        fields.insert("metadata".into(), metadata);
        match status {
            Some(status) => fields.insert("status".into(), status),
            None => fields.remove("status"),
        };
    }
}

/// How long a pod is given to stop: the request's grace period, else the pod's own, else 30 s; none at all for a pod
/// that was never bound to a node or has ended.
pub fn pod_grace_seconds(pod: &Value, requested: Option<i64>) -> i64 {
    let unbound = pod["spec"]["nodeName"].as_str().unwrap_or("").is_empty();
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unbound || ended {
        return 0;
    }
    let grace = requested
        .or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30);
    if grace < 0 { 1 } else { grace }
}

/// The desired state: everything but metadata and status.
fn desired(object: &Value) -> Vec<(&String, &Value)> {
    let Some(fields) = object.as_object() else {
        return Vec::new();
    };
    fields
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
        .collect()
}

fn set_generation(object: &mut Value, generation: Option<i64>) {
    let Some(fields) = object.as_object_mut() else { return };
    let metadata = fields.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    match generation {
        Some(number) if metadata.is_object() => metadata["generation"] = json!(number),
        _ => remove(metadata, "generation"),
    }
}

fn remove(object: &mut Value, name: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(name);
    }
}

fn copy(new: &mut Value, old: &Value, name: &str) {
    let Some(fields) = new.as_object_mut() else { return };
    match old.get(name) {
        Some(value) => fields.insert(name.to_owned(), value.clone()),
        None => fields.remove(name),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_create_drops_status_and_starts_at_generation_one() {
        let mut object = json!({"metadata": {"name": "a", "generation": 9}, "spec": {}, "status": {"replicas": 3}});
        Strategy::WORKLOAD.prepare_create(&mut object);
        assert_eq!(object, json!({"metadata": {"name": "a", "generation": 1}, "spec": {}}));
    }

    #[test]
    fn a_main_update_keeps_status_and_counts_generations() {
        let old = json!({"metadata": {"generation": 4}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let mut same = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}, "status": {"replicas": 7}});
        Strategy::WORKLOAD.prepare_update(None, &mut same, &old);
        assert_eq!(same["metadata"]["generation"], 4);
        assert_eq!(same["status"]["replicas"], 1);
        let mut changed = json!({"metadata": {}, "spec": {"replicas": 2}});
        Strategy::WORKLOAD.prepare_update(None, &mut changed, &old);
        assert_eq!(changed["metadata"]["generation"], 5);
    }

    #[test]
    fn a_status_update_changes_only_status() {
        let old = json!({"metadata": {"generation": 4}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let mut new = json!({"metadata": {"generation": 8}, "spec": {"replicas": 5}, "status": {"replicas": 2}});
        Strategy::WORKLOAD.prepare_update(Some("status"), &mut new, &old);
        assert_eq!(
            new,
            json!({"metadata": {"generation": 4}, "spec": {"replicas": 1}, "status": {"replicas": 2}})
        );
    }

    #[test]
    fn pods_that_never_ran_need_no_grace() {
        let bound = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}});
        assert_eq!(pod_grace_seconds(&bound, None), 5);
        assert_eq!(pod_grace_seconds(&bound, Some(0)), 0);
        assert_eq!(pod_grace_seconds(&json!({"spec": {}}), Some(60)), 0);
        assert_eq!(
            pod_grace_seconds(&json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}), None),
            0
        );
    }
}
