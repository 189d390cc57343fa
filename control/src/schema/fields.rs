//! Does a body fit its type? Unknown fields, wrong types, malformed times, quantities and base64.
//!
//! After [`check_fields`] a value has only fields of its type, each of the right JSON type; nulls are gone (they mean
//! absence) and times and quantities are in canonical form, so that all later code can rely on shapes. What is wrong is
//! said in the words of Go's decoder, which clients match (`fieldValidation` of the API concepts).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::quantity::Quantity;
use super::types::{Kind, Type, by_name};

/// How many unknown or duplicate fields are listed.
pub(super) const MAX_REPORTED: usize = 100;

/// The `fieldValidation` parameter: what to do about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Drop them silently.
    Ignore,
    /// Drop them and warn.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

impl Mode {
    /// The mode of a `fieldValidation` parameter; empty means the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Ignore" => Some(Self::Ignore),
            "" | "Warn" => Some(Self::Warn),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// The text of a `Warning` header, e.g. `unknown field "spec.foo"`.
pub type Warning = String;

/// Why a body was refused: HTTP 400.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CheckError {
    /// A value does not fit its type; an error in every mode.
    #[error("{0}")]
    WrongType(String),
    /// Unknown or duplicate fields in strict mode.
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
}

/// Checks and normalises a decoded body of the type. `duplicates` are those found while decoding.
pub fn check_fields(
    type_name: &str,
    value: &mut Value,
    duplicates: &[String],
    mode: Mode,
) -> Result<Vec<Warning>, CheckError> {
    let Some(ty) = by_name(type_name) else {
        return Err(CheckError::WrongType(format!("no type {type_name} is known")));
    };
    let mut check = Check {
        path: String::new(),
        go_path: String::new(),
        findings: Vec::new(),
    };
    for path in duplicates.iter().take(MAX_REPORTED) {
        check.findings.push(format!("duplicate field {path:?}"));
    }
    match value {
        Value::Object(object) => check.object(ty, object)?,
        other => return Err(check.wrong(other, "", &Kind::Map(Box::new(Kind::Raw)))),
    }
    match mode {
        Mode::Ignore => Ok(Vec::new()),
        Mode::Warn => Ok(check.findings),
        Mode::Strict if check.findings.is_empty() => Ok(Vec::new()),
        Mode::Strict => Err(CheckError::Strict(check.findings)),
    }
}

struct Check {
    /// Path with list indices, for unknown fields.
    path: String,
    /// Path of names only, as Go's decoder has it.
    go_path: String,
    findings: Vec<String>,
}

impl Check {
    fn object(&mut self, ty: &Type, object: &mut Map<String, Value>) -> Result<(), CheckError> {
        let mut dropped = Vec::new();
        for (name, value) in object.iter_mut() {
            let Some(field) = ty.field(name) else {
                self.unknown(name);
                dropped.push(name.clone());
                continue;
            };
            if value.is_null() {
                dropped.push(name.clone());
                continue;
            }
            let parents = (self.path.len(), self.go_path.len());
            for path in [&mut self.path, &mut self.go_path] {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            self.value(short_name(ty.name), &field.kind, value)?;
            self.path.truncate(parents.0);
            self.go_path.truncate(parents.1);
        }
        for name in dropped {
            object.remove(&name);
        }
        Ok(())
    }

    fn unknown(&mut self, name: &str) {
        if self.findings.len() < MAX_REPORTED {
            let dot = if self.path.is_empty() { "" } else { "." };
            self.findings
                .push(format!("unknown field \"{}{dot}{name}\"", self.path));
        }
    }

    fn value(&mut self, owner: &str, kind: &Kind, value: &mut Value) -> Result<(), CheckError> {
        match (kind, &mut *value) {
            (Kind::String, Value::String(_)) | (Kind::Bool, Value::Bool(_)) | (Kind::Raw, _) => Ok(()),
            (Kind::FieldsV1, Value::Object(_)) => Ok(()),
            (Kind::Int32, Value::Number(number)) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
            (Kind::Int64, Value::Number(number)) if number.is_i64() => Ok(()),
            (Kind::Double, Value::Number(_)) => Ok(()),
            (Kind::IntOrString, Value::String(_)) => Ok(()),
            (Kind::IntOrString, Value::Number(number)) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {
                Ok(())
            }
            (Kind::Bytes, Value::String(text)) => base64_text(text).map_err(CheckError::WrongType),
            (Kind::Time | Kind::MicroTime, Value::String(text)) => {
                *text = normal_time(text, *kind == Kind::MicroTime).map_err(CheckError::WrongType)?;
                Ok(())
            }
            (Kind::Quantity, Value::String(_) | Value::Number(_)) => self.quantity(value),
            (Kind::Object(id), Value::Object(object)) => self.object(id.get(), object),
            (Kind::List(item), Value::Array(items)) => self.list(owner, item, items),
            (Kind::Map(item), Value::Object(entries)) => self.map(owner, item, entries),
            (kind, _) => Err(self.wrong(value, owner, kind)),
        }
    }

    fn list(&mut self, owner: &str, kind: &Kind, items: &mut [Value]) -> Result<(), CheckError> {
        let parent = self.path.len();
        for (index, item) in items.iter_mut().enumerate() {
            if item.is_null() {
                *item = zero(kind);
            }
            self.path.push_str(&format!("[{index}]"));
            self.value(owner, kind, item)?;
            self.path.truncate(parent);
        }
        Ok(())
    }

    fn map(&mut self, owner: &str, kind: &Kind, entries: &mut Map<String, Value>) -> Result<(), CheckError> {
        let parent = self.path.len();
        for (key, entry) in entries.iter_mut() {
            if entry.is_null() {
                *entry = zero(kind);
            }
            self.path.push('.');
            self.path.push_str(key);
            self.value(owner, kind, entry)?;
            self.path.truncate(parent);
        }
        Ok(())
    }

    fn quantity(&self, value: &mut Value) -> Result<(), CheckError> {
        let text = match &*value {
            Value::String(text) => text.trim().to_owned(),
            other => other.to_string(),
        };
        // Go's decoder takes an empty text for zero.
        let quantity: Quantity = if text.is_empty() { "0" } else { &text }
            .parse()
            .map_err(|error: super::quantity::ParseQuantityError| CheckError::WrongType(error.to_string()))?;
        *value = Value::String(quantity.to_string());
        Ok(())
    }

    fn wrong(&self, value: &Value, owner: &str, kind: &Kind) -> CheckError {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) => format!("number {number}"),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        // Go names the number only where it is a number of the wrong kind.
        let numeric = matches!(kind, Kind::Int32 | Kind::Int64 | Kind::IntOrString | Kind::Double);
        let found = if value.is_number() && !numeric {
            "number"
        } else {
            &found
        };
        let place = if owner.is_empty() {
            "value".to_owned()
        } else {
            format!("struct field {owner}.{}", self.go_path)
        };
        CheckError::WrongType(format!(
            "json: cannot unmarshal {found} into Go {place} of type {}",
            go_type(kind)
        ))
    }
}

fn zero(kind: &Kind) -> Value {
    match kind {
        Kind::String | Kind::Bytes => "".into(),
        Kind::Quantity => "0".into(),
        Kind::Bool => false.into(),
        Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => 0.into(),
        Kind::List(_) => Value::Array(Vec::new()),
        Kind::Object(_) | Kind::Map(_) | Kind::FieldsV1 => Value::Object(Map::new()),
        Kind::Time | Kind::MicroTime | Kind::Raw => Value::Null,
    }
}

/// `io.k8s.api.core.v1.Pod` → `Pod`.
fn short_name(type_name: &str) -> &str {
    type_name.rsplit('.').next().unwrap_or(type_name)
}

/// The type as Go writes it.
fn go_type(kind: &Kind) -> String {
    match kind {
        Kind::String => "string".into(),
        Kind::Bytes => "[]uint8".into(),
        Kind::Bool => "bool".into(),
        Kind::Int32 => "int32".into(),
        Kind::Int64 => "int64".into(),
        Kind::Double => "float64".into(),
        Kind::Time => "v1.Time".into(),
        Kind::MicroTime => "v1.MicroTime".into(),
        Kind::Quantity => "resource.Quantity".into(),
        Kind::IntOrString => "intstr.IntOrString".into(),
        Kind::Raw => "runtime.RawExtension".into(),
        Kind::FieldsV1 => "v1.FieldsV1".into(),
        Kind::Object(id) => {
            let parts: Vec<_> = id.get().name.rsplitn(3, '.').collect();
            format!("{}.{}", parts.get(1).unwrap_or(&""), parts.first().unwrap_or(&""))
        }
        Kind::List(item) => format!("[]{}", go_type(item)),
        Kind::Map(item) => format!("map[string]{}", go_type(item)),
    }
}

fn base64_text(text: &str) -> Result<(), String> {
    match STANDARD.decode(text) {
        Ok(_) => Ok(()),
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
            Err(format!("illegal base64 data at input byte {at}"))
        }
        Err(_) => Err(format!("illegal base64 data at input byte {}", text.len())),
    }
}

/// RFC 3339, in UTC, to the precision of the type.
fn normal_time(text: &str, micro: bool) -> Result<String, String> {
    let layout = if micro {
        "2006-01-02T15:04:05.000000Z07:00"
    } else {
        "2006-01-02T15:04:05Z07:00"
    };
    let fault = || format!("parsing time {text:?} as {layout:?}: cannot parse {text:?}");
    if text.as_bytes().get(10) != Some(&b'T') {
        return Err(fault());
    }
    let time: jiff::Timestamp = text.parse().map_err(|_| fault())?;
    Ok(format_time(time, micro))
}

/// A time as `meta.v1.Time` or `meta.v1.MicroTime` writes it.
pub fn format_time(time: jiff::Timestamp, micro: bool) -> String {
    let layout = if micro {
        "%Y-%m-%dT%H:%M:%S.%6fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    };
    time.strftime(layout).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const POD: &str = "io.k8s.api.core.v1.Pod";

    fn wrong(type_name: &str, mut value: Value) -> String {
        match check_fields(type_name, &mut value, &[], Mode::Ignore) {
            Err(CheckError::WrongType(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unknown_fields_are_dropped_and_named() {
        let body = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a", "imag": "b"}], "x": 1}, "foo": {}});
        let mut value = body.clone();
        let warnings = check_fields(POD, &mut value, &["spec.x".into()], Mode::Warn).unwrap();
        let expected = [
            "duplicate field \"spec.x\"",
            "unknown field \"foo\"",
            "unknown field \"spec.containers[0].imag\"",
            "unknown field \"spec.x\"",
        ];
        assert_eq!(warnings, expected);
        assert_eq!(
            value,
            json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a"}]}})
        );
        let error = check_fields(POD, &mut body.clone(), &[], Mode::Strict)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("strict decoding error: unknown field \"foo\", unknown field"),
            "{error}"
        );
        assert_eq!(check_fields(POD, &mut body.clone(), &[], Mode::Ignore), Ok(vec![]));
    }

    #[test]
    fn wrong_types_are_told_as_go_tells_them() {
        assert_eq!(
            wrong("io.k8s.api.apps.v1.Deployment", json!({"spec": {"replicas": "3"}})),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
        assert_eq!(
            wrong(POD, json!({"spec": {"containers": [{"image": 5}]}})),
            "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string"
        );
        assert_eq!(
            wrong(
                "io.k8s.api.core.v1.Service",
                json!({"spec": {"ports": [{"port": 3_000_000_000u64}]}})
            ),
            "json: cannot unmarshal number 3000000000 into Go struct field ServicePort.spec.ports.port of type int32"
        );
        assert_eq!(
            wrong(POD, json!({"metadata": {"labels": {"a": 1}}})),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"
        );
        assert!(wrong(POD, json!({"spec": []})).ends_with("Go struct field Pod.spec of type v1.PodSpec"));
        assert!(wrong(POD, json!([])).contains("cannot unmarshal array into Go value"));
    }

    #[test]
    fn formats_are_checked_and_made_canonical() {
        let mut pod = json!({
            "metadata": {"creationTimestamp": "2024-05-01T12:00:00.5+02:00"},
            "spec": {"containers": [{"resources": {"limits": {"cpu": 0.1, "memory": "1024Mi"}}}]},
        });
        check_fields(POD, &mut pod, &[], Mode::Strict).unwrap();
        assert_eq!(pod["metadata"]["creationTimestamp"], "2024-05-01T10:00:00Z");
        assert_eq!(
            pod["spec"]["containers"][0]["resources"]["limits"],
            json!({"cpu": "100m", "memory": "1Gi"})
        );
        assert!(wrong(POD, json!({"metadata": {"creationTimestamp": "yesterday"}})).contains("parsing time"));
        assert!(wrong(POD, json!({"spec": {"overhead": {"cpu": "1x"}}})).contains("quantities must match"));
        let message = wrong("io.k8s.api.core.v1.Secret", json!({"data": {"a": "%%"}}));
        assert_eq!(message, "illegal base64 data at input byte 0");
    }

    #[test]
    fn null_is_absence() {
        let mut value =
            json!({"metadata": {"creationTimestamp": null, "labels": {"a": null}}, "spec": {"containers": [null]}});
        check_fields(POD, &mut value, &[], Mode::Strict).unwrap();
        assert_eq!(
            value,
            json!({"metadata": {"labels": {"a": ""}}, "spec": {"containers": [{}]}})
        );
    }
}
