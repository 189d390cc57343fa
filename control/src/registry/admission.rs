//! Admission: what is refused or filled in although each object alone is valid.
//!
//! The built-in plugins of Kubernetes that a cluster cannot do without: NamespaceLifecycle, ServiceAccount,
//! DefaultTolerationSeconds, Priority, NodeRestriction, DefaultIngressClass, those for certificates, and the RBAC escalation check. Webhooks will be called from here.

pub(super) mod certificate;
mod escalation;
mod ingress;
mod node;
mod pod;

use serde_json::Value;

use super::metadata::{is_terminating, text};
use super::status::Cause;
use super::{Registry, Status, WriteOptions};
use crate::auth::User;
use crate::schema::Resource;

/// Namespaces the cluster cannot lose.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// What a policy would forbid still gets through: whoever relies on it must know.
const POLICIES_ARE_STORED: &str = "this version of hull stores network policies but does not enforce them";

/// Admits a create; may fill in fields.
pub(super) async fn create(
    registry: &Registry,
    who: &User,
    resource: &'static Resource,
    namespace: &str,
    object: &mut Value,
    options: &WriteOptions,
) -> Result<(), Status> {
    node::create(registry, who, resource, object)?;
    if resource.key == certificate::KEY {
        certificate::create(who, resource, object)?;
    }
    if resource.key == "networking.k8s.io/ingresses" {
        ingress::default_class(registry.cache(), object);
    }
    if resource.key == "networking.k8s.io/networkpolicies" {
        options.warnings.push(POLICIES_ARE_STORED);
    }
    if resource.namespaced {
        namespace_is_open(registry, resource, namespace, text(object, "/metadata/name"))?;
    }
    if resource.key == "pods" {
        pod::default_tolerations(object);
        pod::priority(resource, object)?;
        pod::service_account(registry, resource, namespace, object).await?;
    }
    escalation::check(registry, who, resource, object, None)
}

/// Admits an update of an object or its subresource.
pub(super) fn update(
    registry: &Registry,
    who: &User,
    resource: &'static Resource,
    subresource: Option<&str>,
    new: &Value,
    old: &Value,
    _options: &WriteOptions,
) -> Result<(), Status> {
    node::update(who, resource, new, old)?;
    if resource.key == certificate::KEY {
        certificate::update(registry, who, resource, subresource, new, old)?;
    }
    if subresource.is_some() || is_terminating(old) {
        return Ok(());
    }
    escalation::check(registry, who, resource, new, Some(old))
}

/// Admits a request for a token of a service account, named by namespace and name.
pub(super) fn token(
    registry: &Registry,
    who: &User,
    resource: &'static Resource,
    account: (&str, &str),
    reference: &Value,
) -> Result<(), Status> {
    node::token(registry, who, resource, account, reference)
}

/// Admits a delete.
pub(super) fn delete(_who: &User, resource: &'static Resource, name: &str) -> Result<(), Status> {
    if resource.key == "namespaces" && IMMORTAL.contains(&name) {
        return Err(Status::forbidden(resource, name, "this namespace may not be deleted"));
    }
    Ok(())
}

fn namespace_is_open(
    registry: &Registry,
    resource: &'static Resource,
    namespace: &str,
    name: &str,
) -> Result<(), Status> {
    let Some(found) = registry.cache().get("namespaces", "", namespace) else {
        let mut status = Status::new(404, "NotFound", format!("namespaces \"{namespace}\" not found"));
        let details = status.details_mut();
        (details.name, details.kind) = (namespace.to_owned(), "namespaces".into());
        return Err(status);
    };
    if found.field("status.phase") != Some("Terminating") {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut status = Status::forbidden(resource, name, why);
    status.details_mut().causes = vec![Cause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {namespace} is being terminated"),
        field: "metadata.namespace".into(),
    }];
    Err(status)
}
