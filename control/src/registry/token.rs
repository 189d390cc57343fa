//! TokenRequest: a service-account token, bound to the account and, if asked, to a pod, secret or node.

use serde_json::{Value, json};

use super::metadata::{metadata_mut, text};
use super::{Registry, Status, admission, time_text};
use crate::auth::User;
use crate::auth::tokens::{Bound, ISSUER, LIFE_SECONDS, Scope};
use crate::cache::Object;
use crate::schema::{FieldError, Resource};

/// Life of a token when the request does not say.
const DEFAULT_SECONDS: i64 = 3600;

impl Registry {
    /// Issues a token for a service account and returns the `TokenRequest` with its status.
    ///
    /// # Errors
    /// `NotFound` for the account or the bound object, `Forbidden` to a node for pods of others, `Invalid` for what cannot be asked.
    pub fn request_token(
        &self,
        who: &User,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        mut request: Value,
        dry_run: bool,
    ) -> Result<Value, Status> {
        let account = self.get(resource, namespace, name)?;
        let spec = &request["spec"];
        admission::token(self, who, resource, (namespace, name), &spec["boundObjectRef"])?;
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
        check_seconds(name, seconds)?;
        let audiences: Vec<String> = spec["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|audience| audience.as_str().map(str::to_owned))
            .collect();
        let scope = self.scope(&account, &spec["boundObjectRef"])?;
        let seen = if audiences.is_empty() {
            vec![ISSUER.to_owned()]
        } else {
            audiences.clone()
        };
        let now = self.environment().now();
        let (token, expires) = self
            .tokens
            .issue(scope, &audiences, seconds, now)
            .map_err(Status::internal)?;
        request["spec"]["audiences"] = json!(seen);
        request["spec"]["expirationSeconds"] = json!(seconds);
        let token = if dry_run { String::new() } else { token };
        request["status"] = json!({"token": token, "expirationTimestamp": time_text(expires)});
        let metadata = metadata_mut(&mut request);
        metadata.insert("name".into(), json!(name));
        metadata.insert("namespace".into(), json!(namespace));
        metadata.insert("creationTimestamp".into(), json!(time_text(now)));
        Ok(request)
    }

    /// What the token is bound to; it dies with any of these.
    fn scope(&self, account: &Object, reference: &Value) -> Result<Scope, Status> {
        let namespace = &*account.namespace;
        let mut scope = Scope {
            namespace: namespace.to_owned(),
            serviceaccount: bound(account),
            pod: None,
            secret: None,
            node: None,
        };
        if reference.is_null() {
            return Ok(scope);
        }
        let (kind, name) = (text(reference, "/kind"), text(reference, "/name"));
        let (plural, home) = match kind {
            "Pod" => ("pods", namespace),
            "Secret" => ("secrets", namespace),
            "Node" => ("nodes", ""),
            other => {
                let message =
                    format!("cannot bind token for serviceaccount to a {other:?}: it must be a Pod, Secret or Node");
                return Err(Status::bad_request(message));
            }
        };
        let missing = || {
            let mut status = Status::new(404, "NotFound", format!("{plural} \"{name}\" not found"));
            let details = status.details_mut();
            (details.name, details.kind) = (name.to_owned(), plural.to_owned());
            status
        };
        let object = self.cache().get(plural, home, name).ok_or_else(missing)?;
        let uid = text(reference, "/uid");
        if !uid.is_empty() && uid != object.uid() {
            let message = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
                object.uid()
            );
            return Err(Status::new(409, "Conflict", message));
        }
        match kind {
            "Pod" => {
                if object.field("spec.serviceAccountName").unwrap_or_default() != &*account.name {
                    let message = format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        &*account.name
                    );
                    return Err(Status::bad_request(message));
                }
                let node = object.field("spec.nodeName").unwrap_or_default();
                scope.node = self.cache().get("nodes", "", node).map(|node| bound(&node));
                scope.pod = Some(bound(&object));
            }
            "Secret" => scope.secret = Some(bound(&object)),
            _ => scope.node = Some(bound(&object)),
        }
        Ok(scope)
    }
}

fn bound(object: &Object) -> Bound {
    Bound {
        name: object.name.to_string(),
        uid: object.uid().to_owned(),
    }
}

fn check_seconds(name: &str, seconds: i64) -> Result<(), Status> {
    let detail = if seconds < *LIFE_SECONDS.start() {
        "may not specify a duration less than 10 minutes"
    } else if seconds > *LIFE_SECONDS.end() {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let error = FieldError::invalid("spec.expirationSeconds", seconds, detail);
    Err(Status::new(
        422,
        "Invalid",
        format!("TokenRequest.authentication.k8s.io \"{name}\" is invalid: {error}"),
    ))
}
