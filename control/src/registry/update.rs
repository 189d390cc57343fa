//! Update: one read-modify-write loop that replacing, patching, and every subresource share.
//!
//! Invariant: the new state is computed from the exact revision it replaces. A client that names a resourceVersion gets
//! a conflict when it is not the current one; others are retried on the newer state.

use std::sync::Arc;

use serde_json::{Value, json};

use super::create::validate;
use super::metadata::{self, metadata_mut, text};
use super::{MAX_RETRIES, Registry, Status, WriteOptions, admission, delete, scale, storage_row, unsaved};
use crate::auth::User;
use crate::cache::{Expect, Object};
use crate::schema::{FieldError, Resource};
use crate::store::StoreError;

/// What is written: a resource or one of its subresources, by name.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub resource: &'static Resource,
    pub subresource: Option<&'a str>,
    pub namespace: &'a str,
    pub name: &'a str,
}

impl Registry {
    /// Replaces an object or writes a subresource (`status`, `scale` with a `Scale`, `finalize`).
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid`, `Forbidden` by admission.
    #[expect(clippy::too_many_arguments, reason = "the verb of the API has that many parts")]
    pub async fn update(
        &self,
        who: &User,
        resource: &'static Resource,
        subresource: Option<&str>,
        namespace: &str,
        name: &str,
        mut object: Value,
        options: WriteOptions,
    ) -> Result<Arc<Object>, Status> {
        if subresource != Some("scale") {
            metadata::stamp_kind(resource, &mut object)?;
        }
        if metadata_mut(&mut object).get("name").is_none_or(|value| value == "") {
            metadata_mut(&mut object).insert("name".into(), json!(name));
        }
        let missing = self.cache().get(resource.key, namespace, name).is_none();
        if missing && subresource.is_none() && resource.strategy.create_on_update {
            return self.create(who, resource, namespace, object, options).await;
        }
        if text(&object, "/metadata/resourceVersion").is_empty() && !resource.strategy.unconditional_update {
            let error = FieldError::invalid("metadata.resourceVersion", "", "must be specified for an update");
            return Err(Status::invalid(resource, name, &[error]));
        }
        let target = Target {
            resource,
            subresource,
            namespace,
            name,
        };
        self.modify(who, target, &options, |_| Ok(object.clone())).await
    }

    /// Computes the new state from the current one until it is written.
    pub(super) async fn modify(
        &self,
        who: &User,
        target: Target<'_>,
        options: &WriteOptions,
        change: impl Fn(&Value) -> Result<Value, Status>,
    ) -> Result<Arc<Object>, Status> {
        let Target {
            resource,
            namespace,
            name,
            ..
        } = target;
        for _ in 0..MAX_RETRIES {
            let current = self.get(resource, namespace, name)?;
            let old = current.value();
            let view = view(target, &old);
            let changed = change(&view)?;
            check_revision(resource, name, &changed, &current)?;
            let new = self.prepare(who, target, changed, &old, options)?;
            match self
                .replace(storage_row(resource), &current, new, &old, options.dry_run)
                .await
            {
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(Status::from_store(&error, resource, name)),
                Ok(outcome) => return outcome,
            }
        }
        Err(Status::stale(resource, name))
    }

    /// From what the client sent to what would be stored: kept fields, defaults, admission, validation.
    fn prepare(
        &self,
        who: &User,
        target: Target<'_>,
        changed: Value,
        old: &Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let resource = storage_row(target.resource);
        let mut new = unview(target, changed, old)?;
        metadata::prepare_update(resource, &mut new, old)?;
        match target.subresource {
            Some("finalize") => {
                let finalizers = new["spec"]["finalizers"].take();
                new = old.clone();
                metadata::child_mut(&mut new, "spec").insert("finalizers".into(), finalizers);
            }
            Some("scale") => resource.strategy.prepare_update(None, &mut new, old),
            Some(part @ ("approval" | "status")) if resource.key == admission::certificate::KEY => {
                admission::certificate::merge(part, &mut new, old, &self.environment().now_text());
            }
            subresource => resource.strategy.prepare_update(subresource, &mut new, old),
        }
        metadata_mut(&mut new).insert("resourceVersion".into(), old["metadata"]["resourceVersion"].clone());
        (resource.default)(&mut new);
        admission::update(self, who, resource, target.subresource, &new, old, options)?;
        validate(resource, &new, Some(old))?;
        Ok(new)
    }

    /// Writes `new` over `current`, or deletes it when it was only waiting for this. The outer error is for the caller's
    /// retry, the inner one for the client.
    async fn replace(
        &self,
        resource: &'static Resource,
        current: &Arc<Object>,
        mut new: Value,
        old: &Value,
        dry_run: bool,
    ) -> Result<Result<Arc<Object>, Status>, StoreError> {
        if new == *old {
            return Ok(Ok(current.clone()));
        }
        let reservation = match self.reserve(resource, Some(old), &mut new) {
            Ok(reservation) => reservation,
            Err(status) => return Ok(Err(status)),
        };
        if dry_run {
            return Ok(Ok(unsaved(resource, &new, Some(current))));
        }
        let done = delete::is_complete(resource, &new);
        let answer = done.then(|| unsaved(resource, &new, Some(current)));
        let object = if done { None } else { Some(new) };
        let expect = Expect::At(current.revision);
        let written = self
            .commit(resource, &current.namespace, &current.name, object, expect)
            .await?;
        reservation.keep();
        if done {
            self.release(resource, old);
        }
        Ok(Ok(answer.unwrap_or(written)))
    }
}

/// What the client sees of the stored object.
fn view(target: Target<'_>, stored: &Value) -> Value {
    if target.subresource == Some("scale") {
        return scale::scale_of(stored);
    }
    let mut seen = stored.clone();
    if let Some(conversion) = &target.resource.conversion {
        (conversion.from_storage)(&mut seen);
    }
    seen
}

/// The stored form of what the client sent.
fn unview(target: Target<'_>, mut sent: Value, old: &Value) -> Result<Value, Status> {
    if target.subresource == Some("scale") {
        return scale::apply(target.resource, old, &sent);
    }
    if !sent.is_object() {
        return Err(Status::bad_request("the object provided is not a JSON object"));
    }
    if let Some(conversion) = &target.resource.conversion {
        (conversion.to_storage)(&mut sent);
    }
    Ok(sent)
}

fn check_revision(resource: &'static Resource, name: &str, sent: &Value, current: &Object) -> Result<(), Status> {
    let version = text(sent, "/metadata/resourceVersion");
    if version.is_empty() || version == "0" && resource.strategy.unconditional_update {
        return Ok(());
    }
    match version.parse::<u64>() {
        Ok(revision) if revision == current.revision => Ok(()),
        Ok(_) => Err(Status::stale(resource, name)),
        Err(_) => {
            let error = FieldError::invalid("metadata.resourceVersion", version, "must be an unsigned integer");
            Err(Status::invalid(resource, name, &[error]))
        }
    }
}
