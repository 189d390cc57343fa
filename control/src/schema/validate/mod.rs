//! Semantic validation, with Kubernetes' field paths and messages (pkg/apis/*/validation).
//!
//! Runs after `check_fields` and defaults, so shapes and types hold; here it is about meaning: names, references within
//! the object, ranges, what may not change. Functions collect every fault, they do not stop at the first.

pub(super) mod certificate;
pub(super) mod config;
mod container;
pub(super) mod disruption;
pub(super) mod endpoint;
pub(super) mod ingress;
mod meta;
pub(super) mod networking;
pub(super) mod node;
pub(super) mod pod;
mod probe;
pub(super) mod rbac;
mod scheduling;
pub(super) mod service;
mod service_address;
mod service_traffic;
mod volume;
pub(super) mod workload;

use serde_json::{Map, Value};

use super::error::FieldError;
use super::resource::NameRule;

/// What was found so far.
type Errors = Vec<FieldError>;

const IMMUTABLE: &str = "field is immutable";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

/// Nothing to validate (reviews: the answer says what is wrong).
pub(super) fn nothing(_: &Value, _: Option<&Value>) -> Errors {
    Vec::new()
}

/// A namespaced object of which only the metadata is validated.
pub(super) fn metadata_only(object: &Value, old: Option<&Value>) -> Errors {
    meta::object(object, old, NameRule::Subdomain, true)
}

fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_default()
}

fn list<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    object[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn map<'a>(object: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object[name].as_object().into_iter().flatten()
}

fn has(object: &Value, name: &str) -> bool {
    !object[name].is_null()
}

fn flag(object: &Value, name: &str) -> bool {
    object[name] == Value::Bool(true)
}

/// `Required value` if the text is absent or empty. Whether it is there.
fn require(object: &Value, path: &str, name: &str, errors: &mut Errors) -> bool {
    let missing = text(object, name).is_empty();
    if missing {
        errors.push(FieldError::required(format!("{path}.{name}"), ""));
    }
    !missing
}

/// A number that may not be negative.
fn not_negative(object: &Value, path: &str, name: &str, errors: &mut Errors) {
    if let Some(number) = object[name].as_i64().filter(|number| *number < 0) {
        errors.push(FieldError::invalid(format!("{path}.{name}"), number, NOT_NEGATIVE));
    }
}

/// A text that must be one of a list, if set.
fn one_of(object: &Value, path: &str, name: &str, supported: &[&str], errors: &mut Errors) {
    let value = text(object, name);
    if !value.is_empty() && !supported.contains(&value) {
        errors.push(FieldError::not_supported(format!("{path}.{name}"), value, supported));
    }
}

/// Adds `Invalid value` if the check of a text fails.
fn invalid_if(result: Result<(), String>, path: impl Into<String>, value: &str, errors: &mut Errors) {
    if let Err(message) = result {
        errors.push(FieldError::invalid(path, value, message));
    }
}

/// A port given as number or name (`intstr.IntOrString`).
fn port_or_name(value: &Value, path: String, errors: &mut Errors) {
    match value {
        Value::Number(number) if number.as_i64().is_some_and(|port| (1..=65535).contains(&port)) => {}
        Value::String(name) => invalid_if(super::name::is_port_name(name), path, name, errors),
        other => errors.push(FieldError::invalid(path, other.clone(), PORT_RANGE)),
    }
}

/// A field that may not change once the object exists.
fn immutable(new: &Value, old: &Value, path: &str, errors: &mut Errors) {
    if !same(new, old) {
        errors.push(FieldError::invalid(path, new.clone(), IMMUTABLE));
    }
}

/// Equality as Go's `DeepEqual` of semantics has it: an absent list or map equals an empty list, null equals absence.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => {
            let one_sided = |a: &Map<String, Value>, b: &Map<String, Value>| {
                a.iter()
                    .all(|(name, value)| same(value, b.get(name).unwrap_or(&Value::Null)))
            };
            one_sided(left, right) && one_sided(right, left)
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Null, Value::Array(items)) | (Value::Array(items), Value::Null) => items.is_empty(),
        (left, right) => left == right,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn validation_survives_any_shape() {
        let odd = [
            json!(null),
            json!([1]),
            json!({}),
            json!({"metadata": [], "spec": "x", "rules": {}, "data": 1, "subsets": [1]}),
        ];
        for row in super::super::resources() {
            for object in &odd {
                (row.validate)(object, None);
                for old in &odd {
                    (row.validate)(object, Some(old));
                }
            }
        }
    }

    #[test]
    fn absent_and_empty_lists_are_the_same() {
        assert!(same(&json!({"a": [], "b": 1}), &json!({"b": 1})));
        assert!(!same(&json!({"a": {}}), &json!({})));
        assert!(!same(&json!({"a": [1]}), &json!({"a": [2]})));
    }
}
