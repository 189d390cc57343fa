//! Create: system fields, defaults, admission, validation, then one write that must find nothing there.

use std::sync::Arc;

use serde_json::Value;

use super::metadata::{self, metadata_mut, text};
use super::{CreateOptions, Registry, Status, admission, storage_row, unsaved};
use crate::auth::User;
use crate::cache::{Expect, Object};
use crate::schema::Resource;
use crate::store::StoreError;

/// How many generated names are tried before the client is told to.
const NAME_ATTEMPTS: usize = 8;

impl Registry {
    /// Creates `object` in `namespace` (empty for cluster-scoped resources).
    ///
    /// # Errors
    /// `AlreadyExists`, `Invalid`, `Forbidden` by admission, `NotFound` for the namespace.
    pub async fn create(
        &self,
        who: &User,
        resource: &'static Resource,
        namespace: &str,
        mut object: Value,
        options: CreateOptions,
    ) -> Result<Arc<Object>, Status> {
        metadata::stamp_kind(resource, &mut object)?;
        if let Some(conversion) = &resource.conversion {
            (conversion.to_storage)(&mut object);
        }
        let resource = storage_row(resource);
        metadata::prepare_create(resource, namespace, &mut object, self.environment())?;
        let generated = metadata::name_or_generate(resource, &mut object, self.environment())?;
        resource.strategy.prepare_create(&mut object);
        (resource.default)(&mut object);
        admission::create(self, who, resource, namespace, &mut object, &options).await?;
        validate(resource, &object, None)?;
        self.insert(resource, namespace, object, generated, options.dry_run)
            .await
    }

    async fn insert(
        &self,
        resource: &'static Resource,
        namespace: &str,
        mut object: Value,
        generated: bool,
        dry_run: bool,
    ) -> Result<Arc<Object>, Status> {
        for attempt in 1.. {
            let name = text(&object, "/metadata/name").to_owned();
            let reservation = self.reserve(resource, None, &mut object)?;
            let taken = self.cache().get(resource.key, namespace, &name).is_some();
            if dry_run && !taken {
                return Ok(unsaved(resource, &object, None));
            }
            let outcome = if taken {
                Err(StoreError::Conflict {
                    key: name.as_str().into(),
                    expected: Expect::Absent,
                    current: None,
                })
            } else {
                self.commit(resource, namespace, &name, Some(object.clone()), Expect::Absent)
                    .await
            };
            match outcome {
                Ok(created) => {
                    reservation.keep();
                    return Ok(created);
                }
                Err(StoreError::Conflict { .. }) if generated && attempt < NAME_ATTEMPTS => {
                    metadata_mut(&mut object).remove("name");
                    metadata::name_or_generate(resource, &mut object, self.environment())?;
                }
                Err(StoreError::Conflict { .. }) => return Err(Status::already_exists(resource, &name)),
                Err(error) => return Err(Status::from_store(&error, resource, &name)),
            }
        }
        unreachable!("the loop ends by returning")
    }
}

/// Semantic validation as a `Status`.
pub(super) fn validate(resource: &'static Resource, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let errors = (resource.validate)(object, old);
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(resource, text(object, "/metadata/name"), &errors))
}
