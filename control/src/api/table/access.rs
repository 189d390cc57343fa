//! RBAC: roles and bindings; certificate signing requests.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Printer, created, list, name, text};

pub(super) const ROLE: Printer = Printer {
    columns: &[NAME, Column::text("Created At")],
    cells: |object, _| vec![name(object), json!(text(object, "/metadata/creationTimestamp"))],
};

pub(super) const BINDING: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Role"),
        AGE,
        Column::text("Users").wide(),
        Column::text("Groups").wide(),
        Column::text("ServiceAccounts").wide(),
    ],
    cells: binding,
};

pub(super) const SIGNING_REQUEST: Printer = Printer {
    columns: &[
        NAME,
        AGE,
        Column::text("SignerName"),
        Column::text("Requestor"),
        Column::text("RequestedDuration"),
        Column::text("Condition"),
    ],
    cells: signing_request,
};

fn signing_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let has = |kind: &str| list(object, "/status/conditions").iter().any(|c| c["type"] == kind);
    let mut words = Vec::new();
    words.push(match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    });
    if has("Failed") {
        words.push("Failed");
    }
    if !text(object, "/status/certificate").is_empty() {
        words.push("Issued");
    }
    let seconds = object.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
    vec![
        name(object),
        created(object, now),
        json!(text(object, "/spec/signerName")),
        json!(text(object, "/spec/username")),
        seconds.map_or_else(|| json!("<none>"), |seconds| json!(super::age::human(seconds))),
        json!(words.join(",")),
    ]
}

fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let role = &object["roleRef"];
    let subjects = |kind: &str| {
        let found = list(object, "/subjects")
            .iter()
            .filter(|subject| subject["kind"] == kind);
        let names: Vec<String> = found
            .map(|subject| match (kind, text(subject, "/namespace")) {
                ("ServiceAccount", namespace) => format!("{namespace}/{}", text(subject, "/name")),
                _ => text(subject, "/name").to_owned(),
            })
            .collect();
        json!(names.join(", "))
    };
    vec![
        name(object),
        json!(format!("{}/{}", text(role, "/kind"), text(role, "/name"))),
        created(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
