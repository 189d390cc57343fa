//! What the watch cache extracts from an object, so that selectors need not decode it again.

use serde_json::Value;

use crate::cache::{Index, Indexer};

use super::resource::by_key;

/// The indexer driven by the resource table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields;

impl Indexer for Fields {
    fn index(&self, resource: &str, object: &Value) -> Index {
        let metadata = &object["metadata"];
        let labels = metadata["labels"].as_object().into_iter().flatten();
        let mut labels: Box<[_]> = labels
            .filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into())))
            .collect();
        labels.sort();
        let selectable = by_key(resource).map_or(&[][..], |row| row.selectable_fields);
        let mut fields: Box<[_]> = ["metadata.name", "metadata.namespace"]
            .iter()
            .chain(selectable)
            .map(|path| (*path, field(resource, object, path).into()))
            .collect();
        fields.sort();
        let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
        Index {
            labels,
            fields,
            owners: owners
                .filter_map(|owner| owner["uid"].as_str().map(Box::from))
                .collect(),
            uid: metadata["uid"].as_str().unwrap_or_default().into(),
        }
    }
}

/// A selectable field's value as text; absent booleans are `false`, absent numbers `0`, as in Go.
fn field(resource: &str, object: &Value, path: &str) -> String {
    if resource == "events" && path == "source" {
        let component = object["source"]["component"].as_str().filter(|name| !name.is_empty());
        return component
            .or(object["reportingComponent"].as_str())
            .unwrap_or_default()
            .to_owned();
    }
    let value = path.split('.').fold(object, |value, name| &value[name]);
    match (path, value) {
        (_, Value::String(text)) => text.clone(),
        (_, Value::Bool(_) | Value::Number(_)) => value.to_string(),
        ("spec.unschedulable" | "spec.hostNetwork", _) => "false".to_owned(),
        ("status.replicas", _) => "0".to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value<'a>(index: &'a Index, path: &str) -> &'a str {
        &index.fields.iter().find(|(name, _)| *name == path).unwrap().1
    }

    #[test]
    fn a_pod_is_found_by_node_phase_labels_and_owner() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "1"}, "ownerReferences": [{"uid": "o"}]},
            "spec": {"nodeName": "node"}, "status": {"phase": "Running"},
        });
        let index = Fields.index("pods", &pod);
        assert_eq!(&*index.labels[0].0, "a");
        assert_eq!(
            (value(&index, "metadata.name"), value(&index, "metadata.namespace")),
            ("p", "n")
        );
        assert_eq!(
            (value(&index, "spec.nodeName"), value(&index, "status.phase")),
            ("node", "Running")
        );
        assert_eq!(
            (value(&index, "spec.hostNetwork"), value(&index, "status.podIP")),
            ("false", "")
        );
        assert_eq!((&*index.owners[0], &*index.uid), ("o", "u"));
        assert!(index.fields.is_sorted());
    }

    #[test]
    fn an_events_source_falls_back_to_its_reporter() {
        let index = Fields.index(
            "events",
            &json!({"reportingComponent": "kubelet", "involvedObject": {"kind": "Pod"}}),
        );
        assert_eq!(
            (value(&index, "source"), value(&index, "involvedObject.kind")),
            ("kubelet", "Pod")
        );
    }
}
