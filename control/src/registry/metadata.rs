//! `metadata` of objects: what the server owns, names and generated names, finalizers.
//!
//! Invariant: uid, creationTimestamp, deletionTimestamp and resourceVersion are never a client's to set
//! (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/object-meta/>).

use serde_json::{Map, Value, json};

use super::environment::Environment;
use super::status::Status;
use crate::schema::{FieldError, Resource};

/// Longest name made from a `generateName`; what is longer is cut before the suffix.
const MAX_GENERATED: usize = 63;

/// Fields of `metadata` that an update keeps from the stored object whatever the client sends.
const SERVER_OWNED: &[&str] = &[
    "name",
    "generateName",
    "namespace",
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// A string in the object, empty if absent.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Whether the object is being deleted.
pub(super) fn is_terminating(object: &Value) -> bool {
    object
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(|value| !value.is_null())
}

/// `metadata.finalizers`.
pub(super) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Replaces `metadata.finalizers`.
pub(super) fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    let metadata = metadata_mut(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), json!(finalizers));
    }
}

/// `metadata`, created if absent or not an object.
pub(super) fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    child_mut(object, "metadata")
}

/// The object under `name`, created if absent or not an object.
pub(super) fn child_mut<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let slot = &mut object[name];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// Checks that the body is of the kind the path names, and fills kind and apiVersion in.
pub(crate) fn stamp_kind(resource: &Resource, object: &mut Value) -> Result<(), Status> {
    let Some(fields) = object.as_object_mut() else {
        return Err(Status::bad_request("the object provided is not a JSON object"));
    };
    let version = resource.api_version();
    for (field, expected) in [("kind", resource.kind), ("apiVersion", version.as_str())] {
        match fields.get(field).and_then(Value::as_str) {
            None | Some("") => _ = fields.insert(field.to_owned(), json!(expected)),
            Some(got) if got == expected => {}
            Some(got) => {
                return Err(Status::bad_request(format!(
                    "{field} {got:?} of the object provided does not match the expected {expected:?} of {}",
                    resource.plural
                )));
            }
        }
    }
    if let Some(metadata) = fields.get("metadata")
        && !metadata.is_object()
        && !metadata.is_null()
    {
        return Err(Status::bad_request("metadata of the object provided is not an object"));
    }
    Ok(())
}

/// Sets what the server owns on a new object.
pub(super) fn prepare_create(
    resource: &'static Resource,
    namespace: &str,
    object: &mut Value,
    environment: &Environment,
) -> Result<(), Status> {
    let metadata = metadata_mut(object);
    if metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .is_some_and(|version| !version.is_empty())
    {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    place(resource, namespace, metadata)?;
    for field in [
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
        "generation",
    ] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), json!(environment.uid()));
    metadata.insert("creationTimestamp".into(), json!(environment.now_text()));
    Ok(())
}

/// Puts the object into the namespace of the request, or refuses a different one.
fn place(resource: &Resource, namespace: &str, metadata: &mut Map<String, Value>) -> Result<(), Status> {
    let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if !given.is_empty() && given != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if resource.namespaced {
        metadata.insert("namespace".into(), json!(namespace));
    } else {
        metadata.remove("namespace");
    }
    Ok(())
}

/// The name, generated from `generateName` if there is none; `true` if generated.
pub(super) fn name_or_generate(
    resource: &'static Resource,
    object: &mut Value,
    environment: &Environment,
) -> Result<bool, Status> {
    if !text(object, "/metadata/name").is_empty() {
        return Ok(false);
    }
    let prefix = text(object, "/metadata/generateName");
    if prefix.is_empty() {
        let error = FieldError::required("metadata.name", "name or generateName is required");
        return Err(Status::invalid(resource, "", &[error]));
    }
    let mut cut = prefix.len().min(MAX_GENERATED - 5);
    while !prefix.is_char_boundary(cut) {
        cut -= 1;
    }
    let name = format!("{}{}", &prefix[..cut], environment.suffix());
    metadata_mut(object).insert("name".into(), json!(name));
    Ok(true)
}

/// Restores what the server owns and checks what a client may not change.
pub(super) fn prepare_update(resource: &'static Resource, new: &mut Value, old: &Value) -> Result<(), Status> {
    let name = text(old, "/metadata/name").to_owned();
    let uid = text(new, "/metadata/uid").to_owned();
    let stored_uid = text(old, "/metadata/uid");
    if !uid.is_empty() && uid != stored_uid {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {stored_uid}");
        return Err(Status::conflict(resource, &name, why));
    }
    let given = text(new, "/metadata/name");
    if given != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    place(resource, text(old, "/metadata/namespace"), metadata_mut(new))?;
    let metadata = metadata_mut(new);
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    for field in SERVER_OWNED {
        match old["metadata"].get(*field) {
            Some(value) => _ = metadata.insert((*field).to_owned(), value.clone()),
            None => _ = metadata.remove(*field),
        }
    }
    refuse_new_finalizers(resource, &name, new, old)
}

fn refuse_new_finalizers(resource: &'static Resource, name: &str, new: &Value, old: &Value) -> Result<(), Status> {
    if !is_terminating(old) {
        return Ok(());
    }
    let before = finalizers(old);
    let added: Vec<_> = finalizers(new)
        .into_iter()
        .filter(|one| !before.contains(one))
        .collect();
    if added.is_empty() {
        return Ok(());
    }
    let list = added
        .iter()
        .map(|one| format!("{one:?}"))
        .collect::<Vec<_>>()
        .join(", ");
    let detail = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
    );
    Err(Status::invalid(
        resource,
        name,
        &[FieldError::forbidden("metadata.finalizers", detail)],
    ))
}
