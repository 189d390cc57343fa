//! Nodes.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Printer, created, list, name, or_none, text};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

pub(super) const NODE: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Status"),
        Column::text("Roles"),
        AGE,
        Column::text("Version"),
        Column::text("Internal-IP").wide(),
        Column::text("External-IP").wide(),
        Column::text("OS-Image").wide(),
        Column::text("Kernel-Version").wide(),
        Column::text("Container-Runtime").wide(),
    ],
    cells: node,
};

fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let info = |field: &str| {
        let value = text(object, &format!("/status/nodeInfo/{field}"));
        json!(if value.is_empty() { "<unknown>" } else { value })
    };
    vec![
        name(object),
        json!(status(object)),
        or_none(roles(object)),
        created(object, now),
        json!(text(object, "/status/nodeInfo/kubeletVersion")),
        or_none(address(object, "InternalIP")),
        or_none(address(object, "ExternalIP")),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn status(object: &Value) -> String {
    let ready = list(object, "/status/conditions")
        .iter()
        .find(|condition| condition["type"] == "Ready");
    let mut words = vec![match ready.map(|condition| text(condition, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if object.pointer("/spec/unschedulable") == Some(&json!(true)) {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(object: &Value) -> String {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) if !role.is_empty() => Some(role),
            _ if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

fn address<'a>(object: &'a Value, kind: &str) -> &'a str {
    let found = list(object, "/status/addresses")
        .iter()
        .find(|address| address["type"] == kind);
    found.map_or("", |address| text(address, "/address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cordoned_control_plane_node() {
        let object = json!({
            "metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/control-plane": "", "x": "y"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                       "addresses": [{"type": "InternalIP", "address": "192.168.0.2"}],
                       "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian", "kernelVersion": "6.18", "containerRuntimeVersion": "hull://0.1.0"}},
        });
        let cells = node(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(json!(cells[1..3]), json!(["Ready,SchedulingDisabled", "control-plane"]));
        assert_eq!(
            json!(cells[4..]),
            json!(["v1.37.0", "192.168.0.2", "<none>", "Debian", "6.18", "hull://0.1.0"])
        );
    }
}
