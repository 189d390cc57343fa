//! Patches: JSON patch (RFC 6902), merge patch (RFC 7396) and strategic merge patch.
//!
//! A small JSON patch can make a huge or very deep document (`copy` doubles), so every operation is bounded before it
//! is applied.

use json_patch::{Patch as JsonPatch, PatchOperation};
use serde_json::Value;

use super::decode::{MAX_BODY_BYTES, MAX_DEPTH};

/// Operations of one JSON patch, as in Kubernetes.
const MAX_OPERATIONS: usize = 10_000;
/// Bytes that the `copy` operations of one patch may copy.
const MAX_COPIED_BYTES: usize = MAX_BODY_BYTES;

/// A patch, by its content type.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// `application/json-patch+json`
    Json(Value),
    /// `application/merge-patch+json`
    Merge(Value),
    /// `application/strategic-merge-patch+json`
    Strategic(Value),
}

/// Why a patch was not applied.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatchError {
    /// It is not a patch: HTTP 400.
    #[error("{0}")]
    Malformed(String),
    /// It does not fit the object: HTTP 422.
    #[error("{0}")]
    Unprocessable(String),
    /// It is too large, or would make too large an object: HTTP 413.
    #[error("{0}")]
    TooLarge(String),
}

/// The object of the type that results from applying `patch` to `base`.
pub fn apply(type_name: &str, base: &Value, patch: &Patch) -> Result<Value, PatchError> {
    match patch {
        Patch::Json(operations) => json(base, operations),
        Patch::Merge(patch) if patch.is_object() => {
            let mut result = base.clone();
            json_patch::merge(&mut result, patch);
            Ok(result)
        }
        Patch::Merge(_) => Err(PatchError::Malformed("a merge patch must be a JSON object".to_owned())),
        Patch::Strategic(patch) => super::strategic_merge(type_name, base.clone(), patch.clone()),
    }
}

fn json(base: &Value, operations: &Value) -> Result<Value, PatchError> {
    let JsonPatch(operations) = serde_json::from_value(operations.clone())
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    if operations.len() > MAX_OPERATIONS {
        let count = operations.len();
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}"
        )));
    }
    let mut result = base.clone();
    let mut copied = 0;
    for operation in operations {
        bound(&result, &operation, &mut copied)?;
        json_patch::patch_unsafe(&mut result, std::slice::from_ref(&operation))
            .map_err(|error| PatchError::Unprocessable(format!("{error}: {operation}")))?;
    }
    Ok(result)
}

/// Refuses an operation that would make the document too deep or, by copying, too large.
fn bound(document: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), PatchError> {
    let source = |pointer: &str| document.pointer(pointer).unwrap_or(&Value::Null);
    let (path, value) = match operation {
        PatchOperation::Add(add) => (&add.path, &add.value),
        PatchOperation::Replace(replace) => (&replace.path, &replace.value),
        PatchOperation::Move(moved) => (&moved.path, source(moved.from.as_str())),
        PatchOperation::Copy(copy) => {
            let value = source(copy.from.as_str());
            *copied += value.to_string().len();
            (&copy.path, value)
        }
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
    };
    if *copied > MAX_COPIED_BYTES {
        return Err(PatchError::TooLarge(format!(
            "the patch copies more than {MAX_COPIED_BYTES} bytes"
        )));
    }
    if path.count() + depth(value) > MAX_DEPTH {
        return Err(PatchError::TooLarge(format!(
            "the patch makes the object deeper than {MAX_DEPTH} levels"
        )));
    }
    Ok(())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const POD: &str = "io.k8s.api.core.v1.Pod";

    #[test]
    fn the_three_kinds_of_patch() {
        let base = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
        let operations = json!([{"op": "test", "path": "/metadata/labels/a", "value": "1"}, {"op": "replace", "path": "/metadata/labels/a", "value": "2"}]);
        assert_eq!(
            apply(POD, &base, &Patch::Json(operations)).unwrap()["metadata"]["labels"]["a"],
            "2"
        );
        let list = json!({"spec": {"containers": [{"name": "d"}]}});
        let merged = apply(POD, &base, &Patch::Merge(list.clone())).unwrap();
        assert_eq!(merged["spec"]["containers"], json!([{"name": "d"}]));
        let merged = apply(POD, &base, &Patch::Strategic(list)).unwrap();
        assert_eq!(merged["spec"]["containers"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn faults_are_told_apart() {
        let apply = |patch| apply(POD, &json!({"a": 1}), &patch).unwrap_err();
        assert!(matches!(apply(Patch::Json(json!({}))), PatchError::Malformed(_)));
        assert!(matches!(
            apply(Patch::Json(json!([{"op": "jump"}]))),
            PatchError::Malformed(_)
        ));
        let test = json!([{"op": "test", "path": "/a", "value": 2}]);
        assert!(matches!(apply(Patch::Json(test)), PatchError::Unprocessable(_)));
        let missing = json!([{"op": "remove", "path": "/b/c"}]);
        assert!(matches!(apply(Patch::Json(missing)), PatchError::Unprocessable(_)));
        assert!(matches!(apply(Patch::Merge(json!([]))), PatchError::Malformed(_)));
        let many = vec![json!({"op": "test", "path": "/a", "value": 1}); MAX_OPERATIONS + 1];
        assert!(matches!(apply(Patch::Json(many.into())), PatchError::TooLarge(_)));
    }

    #[test]
    fn doubling_in_size_or_depth_is_stopped() {
        let base = json!({"a": ["0123456789"]});
        let grow = vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 60];
        assert!(matches!(
            apply(POD, &base, &Patch::Json(grow.into())),
            Err(PatchError::TooLarge(_))
        ));
        let deepen = vec![json!({"op": "copy", "from": "/a", "path": "/a/0"}); 200];
        assert!(matches!(
            apply(POD, &json!({"a": [1]}), &Patch::Json(deepen.into())),
            Err(PatchError::TooLarge(_))
        ));
    }
}
