//! Virtual resources that are only answered: who am I, may I, may they, is this token good.

use serde_json::{Value, json};

use super::body::{self, Response};
use super::{Api, Context};
use crate::auth::tokens::ISSUER;
use crate::auth::{Attributes, Decision, User};
use crate::registry::Status;

/// Answers a review.
///
/// # Errors
/// 400 for a review without a question; 404 for an unknown one.
pub async fn answer(api: &Api, context: &Context, mut review: Value) -> Result<Response, Status> {
    let status = match context.route.resource.kind {
        "SelfSubjectReview" => json!({"userInfo": user_info(&context.user)}),
        "TokenReview" => token(api, &review),
        "SelfSubjectAccessReview" => access(api, &context.user, &review["spec"])?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let spec = &review["spec"];
            let asked = spec
                .pointer("/resourceAttributes/namespace")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if context.route.resource.namespaced && asked != context.route.namespace {
                return Err(Status::bad_request(
                    "LocalSubjectAccessReview: spec.resourceAttributes.namespace must match the namespace of the request",
                ));
            }
            access(api, &subject(spec)?, spec)?
        }
        "SelfSubjectRulesReview" => api
            .authorizer
            .rules(&context.user, review["spec"]["namespace"].as_str().unwrap_or_default()),
        _ => return Err(Status::no_route()),
    };
    review["status"] = status;
    if let Some(metadata) = review["metadata"].as_object_mut() {
        metadata.insert("creationTimestamp".into(), Value::Null);
    } else {
        review["metadata"] = json!({"creationTimestamp": null});
    }
    Ok(body::value(201, &review))
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn token(api: &Api, review: &Value) -> Value {
    let bearer = review["spec"]["token"].as_str().unwrap_or_default();
    let asked: Vec<&str> = review["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let audiences = if asked.is_empty() { vec![ISSUER] } else { asked };
    match api.authenticator.review(bearer, &audiences) {
        Ok((user, audiences)) => json!({"authenticated": true, "user": user_info(&user), "audiences": audiences}),
        Err(error) => json!({"authenticated": false, "user": {}, "error": error.to_string()}),
    }
}

fn subject(spec: &Value) -> Result<User, Status> {
    let strings = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    };
    let user = User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: strings(&spec["groups"]),
        ..User::default()
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(Status::new(
            422,
            "Invalid",
            "SubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.user: Invalid value: \"\": at least one of user or group must be specified",
        ));
    }
    Ok(user)
}

fn access(api: &Api, user: &User, spec: &Value) -> Result<Value, Status> {
    let resource = &spec["resourceAttributes"];
    let path = &spec["nonResourceAttributes"];
    let attributes = match (resource.is_object(), path.is_object()) {
        (true, false) => {
            let text = |name: &str| resource[name].as_str().unwrap_or_default();
            Attributes {
                verb: text("verb"),
                group: text("group"),
                resource: text("resource"),
                subresource: text("subresource"),
                namespace: text("namespace"),
                name: text("name"),
                ..Attributes::default()
            }
        }
        (false, true) => Attributes {
            verb: path["verb"].as_str().unwrap_or_default(),
            non_resource_path: Some(path["path"].as_str().unwrap_or_default()),
            ..Attributes::default()
        },
        _ => {
            return Err(Status::new(
                422,
                "Invalid",
                "spec.resourceAttributes: Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
    };
    Ok(match api.authorizer.authorize(user, &attributes) {
        Decision::Allow(reason) => json!({"allowed": true, "reason": reason}),
        Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
    })
}
