//! Delete: at once, after a grace period, or when the last finalizer is gone.
//!
//! What a delete does to an object is the pure function [`plan`]. An object whose last reason to wait disappears, by
//! delete or by update, is removed in that same write ([`is_complete`]).

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::metadata::{self, metadata_mut, text};
use super::{DeleteOptions, Deleted, MAX_RETRIES, Propagation, Registry, Status, admission, time_text, unsaved};
use crate::auth::User;
use crate::cache::{Expect, Object, Query};
use crate::schema::{Resource, strategy::pod_grace_seconds};
use crate::store::StoreError;

/// Finalizer of foreground deletion, handled by the garbage collector.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of orphaning, handled by the garbage collector.
pub const ORPHAN: &str = "orphan";

/// What a delete does now.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Take it away.
    Remove,
    /// Write this state: marked, waiting.
    Mark(Value),
    /// It is waiting already and nothing about that changes.
    Wait,
}

impl Registry {
    /// Deletes one object.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` with the preconditions, `Forbidden` for namespaces that must stay.
    pub async fn delete(
        &self,
        who: &User,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<Deleted, Status> {
        admission::delete(who, resource, name)?;
        for _ in 0..MAX_RETRIES {
            let current = self.get(resource, namespace, name)?;
            check_preconditions(resource, &current, &options)?;
            match self.carry_out(resource, &current, &options).await {
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(Status::from_store(&error, resource, name)),
                Ok(deleted) => return Ok(deleted),
            }
        }
        Err(Status::stale(resource, name))
    }

    /// Deletes everything the query selects; what vanished in between is no error.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn delete_collection(
        &self,
        who: &User,
        resource: &'static Resource,
        query: &Query,
        options: DeleteOptions,
    ) -> Result<Vec<Arc<Object>>, Status> {
        let page = self.cache().list(query, None, None, None)?;
        let mut deleted = Vec::with_capacity(page.items.len());
        for object in page.items {
            match self
                .delete(who, resource, &object.namespace, &object.name, options.clone())
                .await
            {
                Ok(done) => deleted.push(done.object().clone()),
                Err(status) if status.is_not_found() => {}
                Err(status) => return Err(status),
            }
        }
        Ok(deleted)
    }

    async fn carry_out(
        &self,
        resource: &'static Resource,
        current: &Arc<Object>,
        options: &DeleteOptions,
    ) -> Result<Deleted, StoreError> {
        let old = current.value();
        let (namespace, name) = (&current.namespace, &current.name);
        let expect = Expect::At(current.revision);
        match plan(resource, &old, options, self.environment().now()) {
            Plan::Wait => Ok(Deleted::Terminating(current.clone())),
            Plan::Remove if options.dry_run => Ok(Deleted::Gone(current.clone())),
            Plan::Mark(new) if options.dry_run => Ok(Deleted::Terminating(unsaved(resource, &new, Some(current)))),
            Plan::Remove => {
                let last = self.commit(resource, namespace, name, None, expect).await?;
                self.release(resource, &old);
                Ok(Deleted::Gone(last))
            }
            Plan::Mark(new) => {
                let marked = self.commit(resource, namespace, name, Some(new), expect).await?;
                Ok(Deleted::Terminating(marked))
            }
        }
    }
}

/// Whether a terminating object waits for nothing any more.
pub(super) fn is_complete(resource: &Resource, object: &Value) -> bool {
    metadata::is_terminating(object)
        && metadata::finalizers(object).is_empty()
        && namespace_finalizers(resource, object) == 0
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}

fn namespace_finalizers(resource: &Resource, object: &Value) -> usize {
    if resource.key != "namespaces" {
        return 0;
    }
    object
        .pointer("/spec/finalizers")
        .and_then(Value::as_array)
        .map_or(0, Vec::len)
}

fn plan(resource: &'static Resource, old: &Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    let mut new = old.clone();
    set_propagation(&mut new, options.propagation);
    let marked = metadata::is_terminating(old);
    let grace = if resource.strategy.graceful {
        pod_grace_seconds(old, options.grace_period_seconds)
    } else {
        0
    };
    let left = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let shorten = marked && grace < left && (options.grace_period_seconds.is_some() || grace == 0);
    if !marked || shorten {
        let from = if marked {
            requested_at(old, left).unwrap_or(now)
        } else {
            now
        };
        let deadline = from.checked_add(SignedDuration::from_secs(grace)).unwrap_or(from);
        let metadata = metadata_mut(&mut new);
        metadata.insert("deletionTimestamp".into(), json!(time_text(deadline)));
        metadata.insert("deletionGracePeriodSeconds".into(), json!(grace));
        if let Some(generation) = metadata.get("generation").and_then(Value::as_i64).filter(|_| !marked) {
            metadata.insert("generation".into(), json!(generation + 1));
        }
        if resource.key == "namespaces" {
            metadata::child_mut(&mut new, "status").insert("phase".into(), json!("Terminating"));
        }
    }
    if is_complete(resource, &new) {
        Plan::Remove
    } else if new == *old {
        Plan::Wait
    } else {
        Plan::Mark(new)
    }
}

/// When the deletion was asked for: the deadline less the grace period.
fn requested_at(object: &Value, grace: i64) -> Option<Timestamp> {
    let deadline: Timestamp = text(object, "/metadata/deletionTimestamp").parse().ok()?;
    deadline.checked_sub(SignedDuration::from_secs(grace)).ok()
}

fn set_propagation(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let mut kept: Vec<String> = metadata::finalizers(object)
        .into_iter()
        .filter(|one| !matches!(*one, FOREGROUND | ORPHAN))
        .map(str::to_owned)
        .collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => kept.push(FOREGROUND.into()),
        Propagation::Orphan => kept.push(ORPHAN.into()),
    }
    metadata::set_finalizers(object, &kept);
}

fn check_preconditions(resource: &'static Resource, current: &Object, options: &DeleteOptions) -> Result<(), Status> {
    if let Some(uid) = &options.uid
        && **uid != *current.index.uid
    {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            current.index.uid
        );
        return Err(Status::conflict(resource, &current.name, why));
    }
    if let Some(version) = &options.resource_version
        && *version != current.revision.to_string()
    {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
            current.revision
        );
        return Err(Status::conflict(resource, &current.name, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::by_key;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn decide(key: &str, old: &Value, grace: Option<i64>, propagation: Option<Propagation>) -> Plan {
        let options = DeleteOptions {
            grace_period_seconds: grace,
            propagation,
            ..Default::default()
        };
        plan(by_key(key).unwrap(), old, &options, at("2026-01-01T00:00:00Z"))
    }

    fn pod() -> Value {
        json!({"metadata": {"name": "p", "generation": 1}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}})
    }

    #[test]
    fn a_running_pod_gets_its_grace_period() {
        let Plan::Mark(marked) = decide("pods", &pod(), None, None) else {
            panic!("not marked")
        };
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(marked["metadata"]["generation"], 2);
        assert_eq!(decide("pods", &marked, None, None), Plan::Wait);
        assert_eq!(decide("pods", &marked, Some(60), None), Plan::Wait);
        let Plan::Mark(shorter) = decide("pods", &marked, Some(5), None) else {
            panic!("not shortened")
        };
        assert_eq!(shorter["metadata"]["deletionTimestamp"], "2026-01-01T00:00:05Z");
        assert_eq!(decide("pods", &marked, Some(0), None), Plan::Remove);
    }

    #[test]
    fn a_pod_without_a_node_or_forced_goes_at_once() {
        assert_eq!(
            decide("pods", &json!({"metadata": {"name": "p"}, "spec": {}}), None, None),
            Plan::Remove
        );
        assert_eq!(decide("pods", &pod(), Some(0), None), Plan::Remove);
    }

    #[test]
    fn finalizers_hold_an_object_until_they_are_gone() {
        let held = json!({"metadata": {"name": "c", "finalizers": ["a/b"]}});
        let Plan::Mark(marked) = decide("configmaps", &held, None, None) else {
            panic!("not marked")
        };
        assert!(!is_complete(by_key("configmaps").unwrap(), &marked));
        assert_eq!(decide("configmaps", &marked, None, None), Plan::Wait);
        let mut freed = marked;
        metadata::set_finalizers(&mut freed, &[]);
        assert!(is_complete(by_key("configmaps").unwrap(), &freed));
    }

    #[test]
    fn propagation_is_a_finalizer() {
        let object = json!({"metadata": {"name": "d"}, "spec": {}});
        for (propagation, finalizer) in [(Propagation::Foreground, FOREGROUND), (Propagation::Orphan, ORPHAN)] {
            let Plan::Mark(marked) = decide("apps/deployments", &object, None, Some(propagation)) else {
                panic!("not marked")
            };
            assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
            assert_eq!(
                decide("apps/deployments", &marked, None, Some(Propagation::Background)),
                Plan::Remove
            );
        }
    }

    #[test]
    fn a_namespace_waits_for_its_controller() {
        let namespace =
            json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Plan::Mark(mut marked) = decide("namespaces", &namespace, None, None) else {
            panic!("not marked")
        };
        assert_eq!(marked["status"]["phase"], "Terminating");
        marked["spec"]["finalizers"] = json!([]);
        assert!(is_complete(by_key("namespaces").unwrap(), &marked));
    }
}
