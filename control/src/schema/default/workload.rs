//! Defaults of deployments, replica sets and replication controllers.

use serde_json::{Map, Value, json};

use super::pod::template_of;
use super::{fill, fill_text};

/// Defaults of a Deployment.
pub(in super::super) fn deployment(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = spec.entry("strategy").or_insert_with(|| json!({})).as_object_mut() {
        rolling_update(strategy);
    }
    template_of(spec);
}

fn rolling_update(strategy: &mut Map<String, Value>) {
    fill_text(strategy, "type", "RollingUpdate");
    if strategy["type"] != "RollingUpdate" {
        return;
    }
    if let Some(parameters) = strategy
        .entry("rollingUpdate")
        .or_insert_with(|| json!({}))
        .as_object_mut()
    {
        fill(parameters, "maxUnavailable", "25%");
        fill(parameters, "maxSurge", "25%");
    }
}

/// Defaults of a ReplicaSet.
pub(in super::super) fn replica_set(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    fill(spec, "replicas", 1);
    template_of(spec);
}

/// Defaults of a ReplicationController: what it does not say it has from its template.
pub(in super::super) fn replication_controller(object: &mut Value) {
    let labels = object.pointer("/spec/template/metadata/labels").cloned();
    if let Some(labels) = labels.filter(|labels| labels.as_object().is_some_and(|labels| !labels.is_empty())) {
        for place in ["spec", "metadata"] {
            let name = if place == "spec" { "selector" } else { "labels" };
            let Some(fields) = object.get_mut(place).and_then(Value::as_object_mut) else {
                continue;
            };
            let unset = fields.get(name).and_then(Value::as_object).is_none_or(Map::is_empty);
            if unset {
                fields.insert(name.to_owned(), labels.clone());
            }
        }
    }
    replica_set(object);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_rolls_by_quarters() {
        let mut object = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "a:1"}]}}}});
        deployment(&mut object);
        let spec = &object["spec"];
        assert_eq!(
            (&spec["replicas"], &spec["revisionHistoryLimit"]),
            (&json!(1), &json!(10))
        );
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(
            spec["template"]["spec"]["containers"][0]["imagePullPolicy"],
            "IfNotPresent"
        );
        assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
    }

    #[test]
    fn a_replication_controller_selects_what_it_makes() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}});
        let mut object = json!({"metadata": {"name": "r"}, "spec": {"template": template}});
        replication_controller(&mut object);
        assert_eq!(object["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(object["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(object["spec"]["replicas"], 1);
    }

    #[test]
    fn zero_replicas_and_recreate_stay() {
        let mut object = json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}});
        deployment(&mut object);
        assert_eq!(object["spec"]["replicas"], 0);
        assert_eq!(object["spec"]["strategy"], json!({"type": "Recreate"}));
    }
}
