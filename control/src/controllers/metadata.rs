//! `ObjectMeta` and owner references, read from raw bodies without decoding the rest.
//!
//! Edits keep every field they do not name: the body goes back to the registry as it came.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cache::Object;

/// The part of `ObjectMeta` that controllers decide by.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Unique name in its namespace.
    pub name: String,
    /// The object's identity over time.
    pub uid: String,
    /// Bumped when the spec changes.
    pub generation: i64,
    /// When it was created.
    pub creation_timestamp: Option<Timestamp>,
    /// Set once deletion began.
    pub deletion_timestamp: Option<Timestamp>,
    /// What must happen before it goes.
    pub finalizers: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Owners.
    pub owner_references: Vec<OwnerReference>,
}

/// `metav1.OwnerReference`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Group and version of the owner.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid: what counts.
    pub uid: String,
    /// The one managing owner.
    pub controller: bool,
    /// Foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

#[derive(Deserialize)]
struct Envelope {
    metadata: Metadata,
}

/// Decode an object's metadata only. Damaged metadata reads as empty: such an object owns and selects nothing.
pub fn metadata(object: &Object) -> Metadata {
    serde_json::from_slice::<Envelope>(&object.body)
        .map(|e| e.metadata)
        .unwrap_or_default()
}

impl Metadata {
    /// The reference of the managing owner.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|r| r.controller)
    }

    /// Whether a finalizer is set.
    pub fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|f| f == name)
    }
}

/// The owner reference that makes `owner` the managing owner.
pub fn controller_reference(api_version: &str, kind: &str, name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// Append an owner reference.
pub fn add_owner(object: &mut Value, reference: Value) {
    let list = &mut object["metadata"]["ownerReferences"];
    match list.as_array_mut() {
        Some(list) => list.push(reference),
        None => *list = json!([reference]),
    }
}

/// Drop the owner references for which `gone` holds. An empty list is dropped too.
pub fn remove_owners(object: &mut Value, gone: impl Fn(&str) -> bool) {
    let Some(metadata) = object["metadata"].as_object_mut() else {
        return;
    };
    let empty = metadata
        .get_mut("ownerReferences")
        .and_then(Value::as_array_mut)
        .map(|list| {
            list.retain(|r| !r["uid"].as_str().is_some_and(&gone));
            list.is_empty()
        });
    if empty == Some(true) {
        metadata.remove("ownerReferences");
    }
}

/// Drop a finalizer.
pub fn remove_finalizer(object: &mut Value, name: &str) {
    if let Some(list) = object["metadata"]["finalizers"].as_array_mut() {
        list.retain(|f| f != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_added_and_removed_without_touching_the_rest() {
        let mut object = json!({"metadata": {"name": "a", "x": 1}, "spec": {"unknown": true}});
        add_owner(&mut object, controller_reference("apps/v1", "ReplicaSet", "r", "u1"));
        add_owner(&mut object, controller_reference("v1", "Service", "s", "u2"));
        remove_owners(&mut object, |uid| uid == "u1");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u2");
        remove_owners(&mut object, |_| true);
        assert_eq!(
            object,
            json!({"metadata": {"name": "a", "x": 1}, "spec": {"unknown": true}})
        );
    }
}
