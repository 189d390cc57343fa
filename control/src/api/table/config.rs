//! Namespaces, ConfigMaps, Secrets, ServiceAccounts, Leases.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Printer, created, list, name, text};

pub(super) const NAMESPACE: Printer = Printer {
    columns: &[NAME, Column::text("Status"), AGE],
    cells: |object, now| vec![name(object), json!(text(object, "/status/phase")), created(object, now)],
};

pub(super) const CONFIG_MAP: Printer = Printer {
    columns: &[NAME, Column::number("Data"), AGE],
    cells: |object, now| {
        let count = entries(object, "data") + entries(object, "binaryData");
        vec![name(object), json!(count), created(object, now)]
    },
};

pub(super) const SECRET: Printer = Printer {
    columns: &[NAME, Column::text("Type"), Column::number("Data"), AGE],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/type")),
            json!(entries(object, "data")),
            created(object, now),
        ]
    },
};

pub(super) const SERVICE_ACCOUNT: Printer = Printer {
    columns: &[NAME, Column::number("Secrets"), AGE],
    cells: |object, now| {
        vec![
            name(object),
            json!(list(object, "/secrets").len()),
            created(object, now),
        ]
    },
};

pub(super) const LEASE: Printer = Printer {
    columns: &[NAME, Column::text("Holder"), AGE],
    cells: lease,
};

fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(text(object, "/spec/holderIdentity")),
        created(object, now),
    ]
}

fn entries(object: &Value, field: &str) -> usize {
    object
        .get(field)
        .and_then(Value::as_object)
        .map_or(0, serde_json::Map::len)
}
