//! Defaults, as Kubernetes applies them (pkg/apis/*/v1/defaults.go).
//!
//! Every function is idempotent and never overrules a value that is set. A zero counts as unset only where Go's field is
//! no pointer. Shapes are those that `check_fields` guarantees; anything else is left alone.

pub(super) mod certificate;
pub(super) mod endpoint;
pub(super) mod networking;
pub(super) mod pod;
pub(super) mod rbac;
pub(super) mod service;
pub(super) mod workload;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// The finalizer that keeps a namespace until its content is gone.
const NAMESPACE_FINALIZER: &str = "kubernetes";

/// No defaults.
pub(super) fn nothing(_: &mut Value) {}

/// A namespace has its own name as a label.
pub(super) fn namespace(object: &mut Value) {
    let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else {
        return;
    };
    if let Some(metadata) = member(object, "metadata") {
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        if let Some(labels) = labels.as_object_mut() {
            labels.insert("kubernetes.io/metadata.name".into(), name.into());
        }
    }
}

/// A namespace begins active, with its finalizer.
pub(super) fn namespace_create(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    fields.insert("spec".into(), json!({"finalizers": [NAMESPACE_FINALIZER]}));
    fields.insert("status".into(), json!({"phase": "Active"}));
}

/// Finalizers of a namespace change only through `/finalize`.
pub(super) fn namespace_update(new: &mut Value, old: &Value) {
    let Some(fields) = new.as_object_mut() else { return };
    match old.get("spec") {
        Some(spec) => fields.insert("spec".into(), spec.clone()),
        None => fields.remove("spec"),
    };
}

/// What is not said to be reserved on a node can be allocated.
pub(super) fn node(object: &mut Value) {
    let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) else {
        return;
    };
    let unset = status
        .get("allocatable")
        .and_then(Value::as_object)
        .is_none_or(Map::is_empty);
    if unset && let Some(capacity) = status.get("capacity").cloned() {
        status.insert("allocatable".into(), capacity);
    }
}

/// `stringData` becomes `data`; the type is `Opaque`.
pub(super) fn secret(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    if let Some(Value::Object(texts)) = fields.remove("stringData") {
        let data = fields.entry("data").or_insert_with(|| json!({}));
        for (key, text) in texts {
            if let (Some(data), Some(text)) = (data.as_object_mut(), text.as_str()) {
                data.insert(key, STANDARD.encode(text).into());
            }
        }
    }
    fill_text(fields, "type", "Opaque");
}

/// The member, made an empty object if absent.
fn member<'a>(object: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    object
        .as_object_mut()?
        .entry(name)
        .or_insert_with(|| json!({}))
        .as_object_mut()
}

/// The items of a list that are objects; none if the list is absent.
fn items<'a>(fields: &'a mut Map<String, Value>, name: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    fields
        .get_mut(name)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

/// Sets a field that is absent.
fn fill(fields: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    if fields.get(name).is_none_or(Value::is_null) {
        fields.insert(name.to_owned(), value.into());
    }
}

/// Sets a text that is absent or empty.
fn fill_text(fields: &mut Map<String, Value>, name: &str, value: &str) {
    if fields.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
        fields.insert(name.to_owned(), value.into());
    }
}

/// Sets a number that is absent or zero.
fn fill_number(fields: &mut Map<String, Value>, name: &str, value: i64) {
    if fields.get(name).and_then(Value::as_i64).unwrap_or_default() == 0 {
        fields.insert(name.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_encode_their_texts() {
        let mut object = json!({"data": {"a": "eA==", "b": "eA=="}, "stringData": {"b": "hi"}});
        secret(&mut object);
        assert_eq!(object, json!({"data": {"a": "eA==", "b": "aGk="}, "type": "Opaque"}));
    }

    #[test]
    fn namespaces_carry_their_name_and_finalizer() {
        let mut object = json!({"metadata": {"name": "n"}});
        namespace(&mut object);
        namespace_create(&mut object);
        assert_eq!(object["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
        assert_eq!(object["spec"]["finalizers"], json!(["kubernetes"]));
        let mut new = json!({"metadata": {"name": "n"}});
        namespace_update(&mut new, &object);
        assert_eq!(new["spec"], object["spec"]);
    }

    #[test]
    fn defaults_leave_odd_shapes_alone() {
        for row in super::super::resources() {
            for mut odd in [
                json!(null),
                json!([]),
                json!({}),
                json!({"spec": 1, "metadata": "x", "data": [], "stringData": 3}),
            ] {
                (row.default)(&mut odd);
                row.strategy.prepare_create(&mut odd);
                row.strategy.prepare_update(None, &mut odd, &json!(null));
            }
        }
    }
}
