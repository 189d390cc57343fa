//! `metav1.Status`: how every refusal reaches a client, with Kubernetes' own reasons and wording.
//!
//! Spec: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/>. Clients branch on `code` and
//! `reason`, people read `message`, so all three follow `k8s.io/apimachinery/pkg/api/errors`.

use std::fmt;

use serde_json::{Value, json};

use crate::cache::Expired;
use crate::schema::{FieldError, Resource};
use crate::store::StoreError;

/// One cause of a failure, e.g. one invalid field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable, e.g. `FieldValueInvalid`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The field's path, e.g. `spec.replicas`; empty if none.
    pub field: String,
}

/// A failed request as the API reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// Machine-readable reason, e.g. `NotFound`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// What it is about, if there is more to say.
    pub details: Option<Box<Details>>,
}

/// `details` of a [`Status`], and the one field of its `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// Its group.
    pub group: String,
    /// The plural resource, or for `Invalid` the kind.
    pub kind: String,
    /// One for each fault.
    pub causes: Vec<Cause>,
    /// `retryAfterSeconds`, sent as `Retry-After` too.
    pub retry_after: Option<u32>,
    /// `metadata.continue`: how a list whose token expired can go on, inconsistently.
    pub continue_token: String,
}

impl Status {
    /// A status with this code, reason and message and no details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    /// The details, made if there are none.
    pub fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_default()
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        let details = self.details_mut();
        details.name = name.to_owned();
        details.group = resource.group.to_owned();
        details.kind = resource.plural.to_owned();
        self
    }

    /// 404 for a named object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(resource));
        Self::new(404, "NotFound", message).about(resource, name)
    }

    /// 404 for a path no resource is served under.
    pub fn no_route() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 409: create of something that exists.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(resource));
        Self::new(409, "AlreadyExists", message).about(resource, name)
    }

    /// 409: the object changed since it was read, or a precondition failed.
    pub fn conflict(resource: &Resource, name: &str, why: impl fmt::Display) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            qualified(resource)
        );
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// 409 with the text every client library recognises as "read it again and retry".
    pub fn stale(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 with one cause per field.
    pub fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Self {
        let kind = if resource.group.is_empty() {
            resource.kind.to_owned()
        } else {
            format!("{}.{}", resource.kind, resource.group)
        };
        let list = match errors {
            [one] => one.to_string(),
            many => format!(
                "[{}]",
                many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            ),
        };
        let mut status = Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {list}"));
        let details = status.details_mut();
        details.name = name.to_owned();
        details.group = resource.group.to_owned();
        details.kind = resource.kind.to_owned();
        details.causes = errors.iter().map(cause).collect();
        status
    }

    /// 403 from admission or escalation checks.
    pub fn forbidden(resource: &Resource, name: &str, why: impl fmt::Display) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", qualified(resource))
        } else {
            format!("{} \"{name}\" is forbidden: {why}", qualified(resource))
        };
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405: the resource does not have this verb.
    pub fn method_not_allowed(resource: &Resource, verb: &str) -> Self {
        let message = format!(
            "{verb} is not supported on resources of kind \"{}\"",
            qualified(resource)
        );
        Self::new(405, "MethodNotAllowed", message).about(resource, "")
    }

    /// 406: none of the accepted media types can be served.
    pub fn not_acceptable(served: &str) -> Self {
        let message = format!("only the following media types are accepted: {served}");
        Self::new(406, "NotAcceptable", message)
    }

    /// 410: the revision or continue token is outside the kept history.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415.
    pub fn unsupported_media_type(got: &str, served: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {served} (got {got:?})"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 429: the server or a quota asks the client to slow down.
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        status.details_mut().retry_after = Some(retry_after);
        status
    }

    /// 500.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504 with a retry hint: the cache has not seen the revision asked for.
    pub fn too_large_revision(requested: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {requested}, current: {current}");
        let mut status = Self::new(504, "Timeout", message);
        let details = status.details_mut();
        details.retry_after = Some(1);
        details.causes = vec![Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        }];
        status
    }

    /// 504.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", message)
    }

    /// What a failed commit on `name` means to the client.
    pub fn from_store(error: &StoreError, resource: &Resource, name: &str) -> Self {
        match error {
            StoreError::Conflict { .. } => Self::stale(resource, name),
            StoreError::Compacted { .. } => Self::expired(error.to_string()),
            StoreError::Full(_) | StoreError::Closed => Self::unavailable(error.to_string()),
            StoreError::Broken { .. } => Self::internal(error),
        }
    }

    /// Whether this is a 404.
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// Whether this is a 409 of the optimistic-concurrency kind.
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    /// Whether this is a 409 because the name is taken.
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    /// The `v1/Status` object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.to_value();
            if !details.continue_token.is_empty() {
                status["metadata"]["continue"] = json!(details.continue_token);
            }
        }
        status
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut value = serde_json::Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind)] {
            if !text.is_empty() {
                value.insert(key.into(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            value.insert("causes".into(), self.causes.iter().map(cause_value).collect());
        }
        if let Some(seconds) = self.retry_after {
            value.insert("retryAfterSeconds".into(), json!(seconds));
        }
        Value::Object(value)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl From<Expired> for Status {
    fn from(expired: Expired) -> Self {
        Self::expired(expired.to_string())
    }
}

/// `deployments.apps`, `pods`: a resource as error messages name it.
pub fn qualified(resource: &Resource) -> String {
    if resource.group.is_empty() {
        resource.plural.to_owned()
    } else {
        format!("{}.{}", resource.plural, resource.group)
    }
}

fn cause(error: &FieldError) -> Cause {
    Cause {
        reason: error.kind.reason().to_owned(),
        message: error.message(),
        field: error.path.clone(),
    }
}

fn cause_value(cause: &Cause) -> Value {
    let mut value = serde_json::Map::new();
    for (key, text) in [
        ("reason", &cause.reason),
        ("message", &cause.message),
        ("field", &cause.field),
    ] {
        if !text.is_empty() {
            value.insert(key.into(), json!(text));
        }
    }
    Value::Object(value)
}
