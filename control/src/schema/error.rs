//! What is wrong with a field, said as Kubernetes says it.
//!
//! [`FieldError`] renders exactly like Go's `field.Error`, so that clients which parse causes or match messages keep
//! working: `spec.replicas: Invalid value: -1: must be greater than or equal to 0`.

use std::fmt;

use serde_json::Value;

/// The kind of a [`FieldError`]; `reason` gives the wire name used in `Status.details.causes[].reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A reference to something that does not exist.
    NotFound,
    /// A value must be given.
    Required,
    /// A value that must be unique appears twice.
    Duplicate,
    /// The value is malformed or out of range.
    Invalid,
    /// The value is not one of an enumeration.
    NotSupported,
    /// The value may not be set here.
    Forbidden,
    /// The value is longer than allowed.
    TooLong,
    /// The list has more items than allowed.
    TooMany,
    /// The value has the wrong type.
    TypeInvalid,
    /// The server could not check the value.
    Internal,
}

impl ErrorKind {
    /// The cause's reason in a `Status`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One invalid field of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Where, e.g. `spec.containers[0].image`.
    pub path: String,
    /// What kind of fault.
    pub kind: ErrorKind,
    /// The offending value, as far as it is shown.
    pub value: Value,
    /// The explanation; may be empty.
    pub detail: String,
}

impl FieldError {
    fn new(kind: ErrorKind, path: impl Into<String>, value: Value, detail: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            kind,
            value,
            detail: detail.into(),
        }
    }

    /// `path: Required value: detail`.
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Required, path, Value::Null, detail)
    }

    /// `path: Invalid value: value: detail`.
    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, path, value.into(), detail)
    }

    /// `path: Duplicate value: value`.
    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::Duplicate, path, value.into(), "")
    }

    /// `path: Not found: value`.
    pub fn not_found(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::NotFound, path, value.into(), "")
    }

    /// `path: Forbidden: detail`.
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Forbidden, path, Value::Null, detail)
    }

    /// `path: Unsupported value: "x": supported values: "A", "B"`.
    pub fn not_supported(path: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let mut sorted: Vec<_> = supported.iter().map(|name| format!("{name:?}")).collect();
        sorted.sort();
        let detail = format!("supported values: {}", sorted.join(", "));
        Self::new(ErrorKind::NotSupported, path, value.into(), detail)
    }

    /// `path: Too long: may not be more than N bytes`.
    pub fn too_long(path: impl Into<String>, max: usize) -> Self {
        Self::new(
            ErrorKind::TooLong,
            path,
            Value::Null,
            format!("may not be more than {max} bytes"),
        )
    }

    /// `path: Too many: actual: must have at most max items`.
    pub fn too_many(path: impl Into<String>, actual: usize, max: usize) -> Self {
        let detail = format!("must have at most {max} items");
        Self::new(ErrorKind::TooMany, path, Value::from(actual), detail)
    }

    /// The message without the path, as in `Status.details.causes[].message`.
    pub fn message(&self) -> String {
        let mut text = self.kind.title().to_owned();
        match self.kind {
            ErrorKind::Required | ErrorKind::Forbidden | ErrorKind::TooLong | ErrorKind::Internal => {}
            _ => {
                text.push_str(": ");
                text.push_str(&self.value.to_string());
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_like_kubernetes() {
        let cases = [
            (
                FieldError::required("metadata.name", "name or generateName is required"),
                "metadata.name: Required value: name or generateName is required",
            ),
            (
                FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0"),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                FieldError::invalid("metadata.name", "A\"b", "bad"),
                "metadata.name: Invalid value: \"A\\\"b\": bad",
            ),
            (
                FieldError::duplicate("spec.ports[1].name", "web"),
                "spec.ports[1].name: Duplicate value: \"web\"",
            ),
            (
                FieldError::not_supported("spec.type", "Foo", &["NodePort", "ClusterIP"]),
                "spec.type: Unsupported value: \"Foo\": supported values: \"ClusterIP\", \"NodePort\"",
            ),
            (
                FieldError::too_long("data", 1048576),
                "data: Too long: may not be more than 1048576 bytes",
            ),
        ];
        for (error, expected) in cases {
            assert_eq!(error.to_string(), expected);
        }
    }
}
