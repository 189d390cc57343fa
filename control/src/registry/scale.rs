//! `autoscaling/v1` Scale: the view of a workload that autoscalers and `kubectl scale` write.

use serde_json::{Map, Value, json};

use super::Status;
use super::metadata::{child_mut, metadata_mut, text};
use crate::schema::{FieldError, Resource};

/// The `Scale` of a stored Deployment, ReplicaSet or StatefulSet.
pub fn scale_of(object: &Value) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.into(), value.clone());
        }
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(1)},
        "status": {
            "replicas": object["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector_text(&object["spec"]["selector"]),
        },
    })
}

/// The object with the replicas of `scale`; the resourceVersion of `scale` is kept for the conflict check.
pub(super) fn apply(resource: &'static Resource, object: &Value, scale: &Value) -> Result<Value, Status> {
    let name = text(object, "/metadata/name");
    let sent = text(scale, "/metadata/name");
    if !sent.is_empty() && sent != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({sent}) does not match the name on the URL ({name})"
        )));
    }
    let replicas = match scale.pointer("/spec/replicas") {
        None | Some(Value::Null) => 0,
        Some(value) => value
            .as_i64()
            .filter(|number| i32::try_from(*number).is_ok())
            .ok_or_else(|| Status::bad_request("spec.replicas of the Scale is not a 32-bit number"))?,
    };
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::invalid(resource, name, &[error]));
    }
    let mut new = object.clone();
    child_mut(&mut new, "spec").insert("replicas".into(), json!(replicas));
    if let Some(version) = scale.pointer("/metadata/resourceVersion") {
        metadata_mut(&mut new).insert("resourceVersion".into(), version.clone());
    }
    Ok(new)
}

/// `metav1.LabelSelector`, or the plain map of labels of a ReplicationController, in the form of a query string.
pub fn selector_text(selector: &Value) -> String {
    let mut parts = Vec::new();
    for (key, value) in selector.as_object().into_iter().flatten() {
        parts.extend(value.as_str().map(|value| format!("{key}={value}")));
    }
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let values = values.collect::<Vec<_>>().join(",");
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_replicas_and_selector() {
        let object = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "resourceVersion": "7", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}, "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]}, {"key": "old", "operator": "DoesNotExist"}]}},
            "status": {"replicas": 2},
        });
        let scale = scale_of(&object);
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(
            scale["status"],
            json!({"replicas": 2, "selector": "app=web,tier in (a,b),!old"})
        );
        assert_eq!(scale["metadata"].get("labels"), None);
        assert_eq!(selector_text(&json!({"app": "web", "tier": "a"})), "app=web,tier=a");
    }
}
