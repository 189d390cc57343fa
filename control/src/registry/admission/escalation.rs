//! RBAC escalation: nobody grants through a role or binding what they do not have, unless they may escalate or bind.

use serde_json::Value;

use super::super::metadata::text;
use super::super::{Registry, Status};
use crate::auth::User;
use crate::schema::Resource;

/// Checks a new or changed role or binding.
pub(super) fn check(
    registry: &Registry,
    who: &User,
    resource: &'static Resource,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if resource.group != "rbac.authorization.k8s.io" {
        return Ok(());
    }
    let checked = registry.authorizer.check_escalation(who, resource.plural, new, old);
    checked.map_err(|why| Status::forbidden(resource, text(new, "/metadata/name"), why))
}
