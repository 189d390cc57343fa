//! Binding a pod to a node.

use std::sync::Arc;

use serde_json::{Value, json};

use super::metadata::{self, child_mut, text};
use super::{MAX_RETRIES, Registry, Status, WriteOptions, storage_row, unsaved};
use crate::auth::User;
use crate::cache::{Expect, Object};
use crate::schema::{self, Resource};
use crate::store::StoreError;

impl Registry {
    /// Assigns a pod to a node, as a `Binding` does. Annotations are added to the pod's.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if the pod has a node, another uid, or is being deleted.
    pub async fn bind(
        &self,
        _who: &User,
        namespace: &str,
        pod: &str,
        binding: &Binding<'_>,
        options: WriteOptions,
    ) -> Result<Arc<Object>, Status> {
        let resource = pods()?;
        for _ in 0..MAX_RETRIES {
            let current = self.get(resource, namespace, pod)?;
            let new = bound(resource, &current, binding, &self.environment().now_text())?;
            if options.dry_run {
                return Ok(unsaved(resource, &new, Some(&current)));
            }
            match self
                .commit(resource, namespace, pod, Some(new), Expect::At(current.revision))
                .await
            {
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(Status::from_store(&error, resource, pod)),
                Ok(written) => return Ok(written),
            }
        }
        Err(Status::stale(resource, pod))
    }
}

/// What a `Binding` says.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The node.
    pub node: &'a str,
    /// Only a pod with this uid.
    pub uid: Option<&'a str>,
    /// Annotations to add to the pod.
    pub annotations: Option<&'a Value>,
}

pub(super) fn pods() -> Result<&'static Resource, Status> {
    schema::by_key("pods")
        .map(storage_row)
        .ok_or_else(|| Status::internal("pods are not in the resource table"))
}

fn bound(resource: &'static Resource, current: &Object, binding: &Binding<'_>, now: &str) -> Result<Value, Status> {
    let name = &current.name;
    let mut pod = current.value();
    if binding
        .uid
        .is_some_and(|uid| !uid.is_empty() && *uid != *current.index.uid)
    {
        let why = format!("Precondition failed: UID in object meta: {}", current.index.uid);
        return Err(Status::conflict(resource, name, why));
    }
    if metadata::is_terminating(&pod) {
        let why = format!("pod {name} is being deleted, cannot be assigned to a host");
        return Err(Status::conflict(resource, name, why));
    }
    let node = text(&pod, "/spec/nodeName");
    if !node.is_empty() {
        let why = format!("pod {name} is already assigned to node \"{node}\"");
        return Err(Status::conflict(resource, name, why));
    }
    child_mut(&mut pod, "spec").insert("nodeName".into(), json!(binding.node));
    if let Some(annotations) = binding.annotations.and_then(Value::as_object) {
        let metadata = &mut pod["metadata"];
        child_mut(metadata, "annotations").extend(annotations.clone());
    }
    let status = child_mut(&mut pod, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|condition| condition["type"] != "PodScheduled");
        list.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
    }
    Ok(pod)
}
