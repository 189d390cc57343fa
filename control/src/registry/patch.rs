//! Patch: apply the document to the current state, check the result's fields, then go the way of an update.

use std::sync::Arc;

use super::update::Target;
use super::{Patch, Registry, Status, WriteOptions};
use crate::auth::User;
use crate::cache::Object;
use crate::schema::{self, CheckError, PatchError, Resource};

impl Registry {
    /// Patches an object or one of its subresources. A patch that names no resourceVersion is retried on conflict.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid`, `BadRequest` for a malformed patch.
    #[expect(clippy::too_many_arguments, reason = "the verb of the API has that many parts")]
    pub async fn patch(
        &self,
        who: &User,
        resource: &'static Resource,
        subresource: Option<&str>,
        namespace: &str,
        name: &str,
        patch: Patch,
        options: WriteOptions,
    ) -> Result<Arc<Object>, Status> {
        let target = Target {
            resource,
            subresource,
            namespace,
            name,
        };
        let type_name = body_type(resource, subresource);
        self.modify(who, target, &options, |current| {
            let mut patched = schema::patch::apply(type_name, current, &patch).map_err(|error| refused(&error))?;
            let warnings = schema::check_fields(type_name, &mut patched, &[], options.field_validation)
                .map_err(|error| misfit(&error))?;
            for warning in warnings {
                options.warnings.push(warning);
            }
            Ok(patched)
        })
        .await
    }
}

/// The type of the body that a (sub)resource speaks.
fn body_type(resource: &'static Resource, subresource: Option<&str>) -> &'static str {
    let sub = subresource.and_then(|name| resource.subresource(name));
    sub.map_or(resource.type_name, schema::Subresource::type_name)
}

fn refused(error: &PatchError) -> Status {
    match error {
        PatchError::Malformed(what) => Status::bad_request(what.clone()),
        PatchError::Unprocessable(what) => Status::new(
            422,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {what}"),
        ),
        PatchError::TooLarge(what) => Status::new(413, "RequestEntityTooLarge", what.clone()),
    }
}

fn misfit(error: &CheckError) -> Status {
    Status::bad_request(error.to_string())
}
