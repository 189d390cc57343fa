//! Deployments, ReplicaSets, pod templates, disruption budgets.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Printer, created, int, list, name, or_none, text};
use crate::registry::selector_text;

pub(super) const DEPLOYMENT: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Ready"),
        Column::number("Up-to-date"),
        Column::number("Available"),
        AGE,
        Column::text("Containers").wide(),
        Column::text("Images").wide(),
        Column::text("Selector").wide(),
    ],
    cells: deployment,
};

pub(super) const REPLICA_SET: Printer = Printer {
    columns: &[
        NAME,
        Column::number("Desired"),
        Column::number("Current"),
        Column::number("Ready"),
        AGE,
        Column::text("Containers").wide(),
        Column::text("Images").wide(),
        Column::text("Selector").wide(),
    ],
    cells: replica_set,
};

pub(super) const BUDGET: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Min Available"),
        Column::text("Max Unavailable"),
        Column::number("Allowed Disruptions"),
        AGE,
    ],
    cells: budget,
};

pub(super) const POD_TEMPLATE: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Containers"),
        Column::text("Images"),
        Column::text("Pod Labels"),
    ],
    cells: pod_template,
};

fn budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let or_not_applicable = |field: &str| match &object["spec"][field] {
        Value::String(text) => json!(text),
        Value::Number(number) => json!(number.to_string()),
        _ => json!("N/A"),
    };
    vec![
        name(object),
        or_not_applicable("minAvailable"),
        or_not_applicable("maxUnavailable"),
        json!(int(object, "/status/disruptionsAllowed")),
        created(object, now),
    ]
}

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(format!(
            "{}/{}",
            int(object, "/status/readyReplicas"),
            int(object, "/spec/replicas")
        )),
        json!(int(object, "/status/updatedReplicas")),
        json!(int(object, "/status/availableReplicas")),
        created(object, now),
        containers(object, "/spec/template/spec/containers", "/name"),
        containers(object, "/spec/template/spec/containers", "/image"),
        or_none(selector_text(&object["spec"]["selector"])),
    ]
}

fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(int(object, "/spec/replicas")),
        json!(int(object, "/status/replicas")),
        json!(int(object, "/status/readyReplicas")),
        created(object, now),
        containers(object, "/spec/template/spec/containers", "/name"),
        containers(object, "/spec/template/spec/containers", "/image"),
        or_none(selector_text(&object["spec"]["selector"])),
    ]
}

fn pod_template(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        containers(object, "/template/spec/containers", "/name"),
        containers(object, "/template/spec/containers", "/image"),
        super::labels(&object["template"]["metadata"]["labels"]),
    ]
}

fn containers(object: &Value, at: &str, field: &str) -> Value {
    let values: Vec<&str> = list(object, at)
        .iter()
        .map(|container| text(container, field))
        .collect();
    json!(values.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_shows_progress_and_template() {
        let object = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"spec": {"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y"}]}}},
            "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1},
        });
        let now = "2026-01-01T00:00:30Z".parse().unwrap();
        assert_eq!(
            json!(deployment(&object, now)),
            json!(["web", "1/3", 2, 1, "30s", "a,b", "x:1,y", "app=web"])
        );
    }
}
