//! RBAC: roles and bindings.

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
