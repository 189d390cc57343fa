//! Table rows as kubectl shows them: which columns a kind has, and the text in each cell.
//!
//! Columns and words follow Kubernetes' printers (`pkg/printers/internalversion`); priority 1 columns are `-o wide`.

mod access;
mod age;
mod config;
mod event;
mod ingress;
mod network;
mod node;
mod pod;
mod workload;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::schema::Resource;

/// A column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    priority: u8,
}

impl Column {
    const fn text(name: &'static str) -> Self {
        Self {
            name,
            kind: "string",
            format: "",
            priority: 0,
        }
    }

    const fn number(name: &'static str) -> Self {
        Self {
            name,
            kind: "integer",
            format: "",
            priority: 0,
        }
    }

    const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
};
const AGE: Column = Column::text("Age");

/// How a kind is shown.
pub(super) struct Printer {
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

const DEFAULT: Printer = Printer {
    columns: &[NAME, Column::text("Created At")],
    cells: default_cells,
};

fn default_cells(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![name(object), object["metadata"]["creationTimestamp"].clone()]
}

fn printer(row: &Resource) -> &'static Printer {
    match row.key {
        "pods" => &pod::PRINTER,
        "podtemplates" => &workload::POD_TEMPLATE,
        "apps/deployments" => &workload::DEPLOYMENT,
        "apps/replicasets" | "replicationcontrollers" => &workload::REPLICA_SET,
        "services" => &network::SERVICE,
        "endpoints" => &network::ENDPOINTS,
        "discovery.k8s.io/endpointslices" => &network::ENDPOINT_SLICE,
        "networking.k8s.io/ingresses" => &ingress::INGRESS,
        "networking.k8s.io/ingressclasses" => &ingress::CLASS,
        "networking.k8s.io/networkpolicies" => &network::POLICY,
        "networking.k8s.io/servicecidrs" => &network::SERVICE_CIDR,
        "networking.k8s.io/ipaddresses" => &network::IP_ADDRESS,
        "nodes" => &node::NODE,
        "namespaces" => &config::NAMESPACE,
        "configmaps" => &config::CONFIG_MAP,
        "secrets" => &config::SECRET,
        "serviceaccounts" => &config::SERVICE_ACCOUNT,
        "coordination.k8s.io/leases" => &config::LEASE,
        "events" => &event::EVENT,
        "policy/poddisruptionbudgets" => &workload::BUDGET,
        "certificates.k8s.io/certificatesigningrequests" => &access::SIGNING_REQUEST,
        "rbac.authorization.k8s.io/roles" | "rbac.authorization.k8s.io/clusterroles" => &access::ROLE,
        "rbac.authorization.k8s.io/rolebindings" | "rbac.authorization.k8s.io/clusterrolebindings" => &access::BINDING,
        _ => &DEFAULT,
    }
}

/// `columnDefinitions`, as JSON.
pub(super) fn column_definitions(row: &Resource) -> String {
    let columns = printer(row).columns.iter().map(|column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format, "description": "",
            "priority": column.priority,
        })
    });
    Value::Array(columns.collect()).to_string()
}

/// The cells of an object (in stored form).
pub(super) fn cells(row: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    (printer(row).cells)(object, now)
}

fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

/// `metadata.creationTimestamp` as an age.
fn created(object: &Value, now: Timestamp) -> Value {
    json!(age::since(text(object, "/metadata/creationTimestamp"), now))
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn int(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// `<none>` for what is empty.
fn or_none(text: impl Into<String>) -> Value {
    let text = text.into();
    json!(if text.is_empty() { "<none>".to_owned() } else { text })
}

/// `a=b,c=d`, or `<none>`.
fn labels(map: &Value) -> Value {
    let pairs = map.as_object().into_iter().flatten();
    let pairs: Vec<String> = pairs
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    or_none(pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_as_many_cells_as_columns() {
        let object = json!({"metadata": {"name": "x", "namespace": "d", "creationTimestamp": "2026-01-01T00:00:00Z"}});
        for row in crate::schema::resources().iter().filter(|row| row.storage) {
            let shown = cells(row, &object, Timestamp::UNIX_EPOCH);
            let columns = printer(row).columns;
            assert_eq!(shown.len(), columns.len(), "{}", row.key);
            assert_eq!(
                columns.iter().filter(|column| column.format == "name").count(),
                1,
                "{}",
                row.key
            );
        }
    }
}
