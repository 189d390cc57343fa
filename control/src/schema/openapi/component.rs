//! The schemas of a document: types of the table as OpenAPI v3.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::super::resource::{Resource, resources};
use super::super::types::{Field, Kind, Type, by_name, type_for};
use super::Texts;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Types that are one value: name and schema.
const VALUES: &[(&str, &str)] = &[
    (
        "io.k8s.apimachinery.pkg.api.resource.Quantity",
        r#"{"oneOf":[{"type":"string"},{"type":"number"}]}"#,
    ),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", r#"{"type":"object"}"#),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
        r#"{"type":"string","format":"date-time"}"#,
    ),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Patch", r#"{"type":"object"}"#),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
        r#"{"type":"string","format":"date-time"}"#,
    ),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", r#"{"type":"object"}"#),
    (
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
        r#"{"format":"int-or-string","oneOf":[{"type":"integer"},{"type":"string"}]}"#,
    ),
];

/// Defaults that Kubernetes declares in its schemas and that the sources of the table lack: list keys need them.
const DEFAULTS: &[(&str, &str, &str)] = &[
    ("io.k8s.api.core.v1.ContainerPort", "protocol", "TCP"),
    ("io.k8s.api.core.v1.ServicePort", "protocol", "TCP"),
];

/// The types that a row's paths mention.
pub(super) fn roots(row: &Resource) -> Vec<String> {
    let list = type_for(row.group, row.version, &row.list_kind()).unwrap_or_default();
    let bodies = row.subresources.iter().map(|sub| sub.type_name());
    [row.type_name, list]
        .into_iter()
        .chain(bodies)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The types and everything they refer to.
pub(super) fn reach(roots: BTreeSet<String>) -> BTreeSet<String> {
    let mut pending: Vec<String> = roots.into_iter().collect();
    let mut reached = BTreeSet::new();
    while let Some(name) = pending.pop() {
        if let Some(ty) = by_name(&name) {
            pending.extend(
                ty.fields
                    .iter()
                    .filter_map(|field| referent(&field.kind))
                    .filter(|name| !reached.contains(*name))
                    .map(str::to_owned),
            );
        }
        reached.insert(name);
    }
    reached
}

/// The named type that a kind comes down to.
fn referent(kind: &Kind) -> Option<&'static str> {
    match kind {
        Kind::List(item) | Kind::Map(item) => referent(item),
        Kind::Object(id) => Some(id.get().name),
        Kind::Quantity => Some(VALUES[0].0),
        Kind::FieldsV1 => Some(VALUES[1].0),
        Kind::MicroTime => Some(VALUES[2].0),
        Kind::Time => Some(VALUES[4].0),
        Kind::Raw => Some(VALUES[5].0),
        Kind::IntOrString => Some(VALUES[6].0),
        Kind::String | Kind::Bytes | Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Double => None,
    }
}

/// The schema of a type, in the document of a group-version.
pub(super) fn schema(name: &str, texts: &Texts<'_>, group_version: (&str, &str)) -> Value {
    let mut schema = Map::new();
    if let Some(text) = texts.get(name, "") {
        schema.insert("description".into(), text);
    }
    if let Some((_, value)) = VALUES.iter().find(|(value, _)| *value == name) {
        if let Ok(Value::Object(fields)) = serde_json::from_str(value) {
            schema.extend(fields);
        }
        return Value::Object(schema);
    }
    let Some(ty) = by_name(name) else {
        return Value::Object(schema);
    };
    schema.insert("type".into(), "object".into());
    let required: Vec<_> = ty
        .fields
        .iter()
        .filter(|field| field.required)
        .map(|field| field.name)
        .collect();
    if !required.is_empty() {
        schema.insert("required".into(), json!(required));
    }
    if !ty.fields.is_empty() {
        let fields = ty
            .fields
            .iter()
            .map(|field| (field.name.to_owned(), property(ty, field, texts)));
        schema.insert("properties".into(), Value::Object(fields.collect()));
    }
    if ty.atomic {
        schema.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    let kinds = kinds(ty, group_version);
    if !kinds.is_empty() {
        schema.insert("x-kubernetes-group-version-kind".into(), kinds.into());
    }
    Value::Object(schema)
}

/// The kinds of a type. DeleteOptions and WatchEvent belong to every group-version, Status to the core.
fn kinds(ty: &Type, group_version: (&str, &str)) -> Vec<Value> {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    if let Some((group, version, name)) = ty.gvk {
        return vec![kind(group, version, name)];
    }
    let Some(name) = ty.name.strip_prefix(META).and_then(|rest| rest.strip_prefix('.')) else {
        return Vec::new();
    };
    match name {
        "Status" => vec![kind("", "v1", name)],
        "DeleteOptions" | "WatchEvent" => {
            let mut all: BTreeSet<_> = resources().iter().map(|row| (row.group, row.version)).collect();
            all.insert(group_version);
            all.into_iter()
                .map(|(group, version)| kind(group, version, name))
                .collect()
        }
        _ => Vec::new(),
    }
}

fn property(ty: &Type, field: &Field, texts: &Texts<'_>) -> Value {
    let mut schema = Map::new();
    if let Some(text) = texts.get(ty.name, field.name) {
        schema.insert("description".into(), text);
    }
    value_schema(
        &field.kind,
        field.required || matches!(field.kind, Kind::Object(_)) && !field.pointer,
        &mut schema,
    );
    if let Some((_, _, value)) = DEFAULTS
        .iter()
        .find(|(of, name, _)| (*of, *name) == (ty.name, field.name))
    {
        schema.insert("default".into(), (*value).into());
    }
    for (extension, value) in [
        ("x-kubernetes-patch-strategy", field.patch),
        ("x-kubernetes-patch-merge-key", field.merge_key.unwrap_or_default()),
        ("x-kubernetes-list-type", field.list),
    ] {
        if !value.is_empty() {
            schema.insert(extension.into(), value.into());
        }
    }
    if !field.keys.is_empty() {
        let keys: Vec<_> = field.keys.split(',').collect();
        schema.insert("x-kubernetes-list-map-keys".into(), json!(keys));
    }
    if field.atomic {
        schema.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    Value::Object(schema)
}

/// Adds what a value of the kind looks like; with the default that Go's zero value is, if it has one.
fn value_schema(kind: &Kind, with_default: bool, schema: &mut Map<String, Value>) {
    if !matches!(kind, Kind::List(_) | Kind::Map(_))
        && let Some(name) = referent(kind)
    {
        schema.insert("allOf".into(), json!([reference(name)]));
        if with_default && matches!(kind, Kind::Object(_)) {
            schema.insert("default".into(), json!({}));
        }
        return;
    }
    let (type_name, format, default) = match kind {
        Kind::String => ("string", "", json!("")),
        Kind::Bytes => ("string", "byte", Value::Null),
        Kind::Bool => ("boolean", "", json!(false)),
        Kind::Int32 => ("integer", "int32", json!(0)),
        Kind::Int64 => ("integer", "int64", json!(0)),
        Kind::Double => ("number", "double", json!(0)),
        Kind::List(_) => ("array", "", Value::Null),
        _ => ("object", "", Value::Null),
    };
    schema.insert("type".into(), type_name.into());
    if !format.is_empty() {
        schema.insert("format".into(), format.into());
    }
    if let Kind::List(item) | Kind::Map(item) = kind {
        let mut inner = Map::new();
        value_schema(item, true, &mut inner);
        let word = if matches!(kind, Kind::List(_)) {
            "items"
        } else {
            "additionalProperties"
        };
        schema.insert(word.into(), Value::Object(inner));
    } else if with_default && !default.is_null() {
        schema.insert("default".into(), default);
    }
}

/// A reference to a schema of the document.
pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}
