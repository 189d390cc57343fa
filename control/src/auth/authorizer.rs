//! Whether a user may: members of system:masters always, nodes by what runs on them, everybody by RBAC.
//!
//! Bindings are compiled when one changes, not per request; the compiled state follows the cache, so a revoked binding
//! is revoked for the next request.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::rbac::{self, Grants, Rule};
use super::{Attributes, Decision, MASTERS, User, node};
use crate::cache::{Cache, Watcher};

/// Authorizes requests from the state of the cache.
pub struct Authorizer {
    cache: Arc<Cache>,
    compiled: Mutex<Option<Compiled>>,
}

struct Compiled {
    /// Tells when to compile again.
    changes: Watcher,
    grants: Arc<Grants>,
}

impl Authorizer {
    /// Reads roles, bindings and pods from `cache`.
    pub fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            compiled: Mutex::new(None),
        }
    }

    /// Whether `user` may do what is asked.
    pub fn authorize(&self, user: &User, asked: &Attributes<'_>) -> Decision {
        if user.is_in(MASTERS) {
            return Decision::Allow(String::new());
        }
        let mut reason = String::new();
        if let Some(name) = node::name(user) {
            match node::decide(&self.cache, name, asked) {
                Ok(()) => return Decision::Allow(String::new()),
                Err(why) => reason = why,
            }
        }
        match self.grants().allows(user, asked) {
            Some(origin) => Decision::Allow(format!("RBAC: allowed by {origin}")),
            None => Decision::Deny(reason),
        }
    }

    fn grants(&self) -> Arc<Grants> {
        let mut compiled = self.compiled.lock();
        if let Some(current) = compiled.as_mut()
            && matches!(current.changes.try_next(), Ok(None))
        {
            return current.grants.clone();
        }
        let changes = self.cache.watch_all(&rbac::RESOURCES);
        let grants = Arc::new(Grants::compile(&self.cache));
        *compiled = Some(Compiled {
            changes,
            grants: grants.clone(),
        });
        grants
    }

    /// The status of a SelfSubjectRulesReview: all a user may do in a namespace.
    pub fn rules(&self, user: &User, namespace: &str) -> Value {
        if user.is_in(MASTERS) {
            let all = serde_json::json!({"rules": [
                {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
                {"verbs": ["*"], "nonResourceURLs": ["*"]},
            ]});
            return rbac::review(&rbac::rules(&all).iter().collect::<Vec<_>>());
        }
        rbac::review(&self.grants().rules(user, namespace))
    }

    /// Whether a user has, in a namespace (empty: everywhere), all that the `rules` of `role` grant.
    ///
    /// # Errors
    /// Kubernetes' text for what the user lacks.
    pub fn rules_cover(&self, user: &User, namespace: &str, role: &Value) -> Result<(), String> {
        self.cover(user, namespace, &rbac::rules(role))
    }

    fn cover(&self, user: &User, namespace: &str, wanted: &[Rule]) -> Result<(), String> {
        if user.is_in(MASTERS) {
            return Ok(());
        }
        let grants = self.grants();
        let missing = rbac::missing(&grants.rules(user, namespace), wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<String> = missing.iter().map(Rule::to_string).collect();
        Err(format!(
            "user \"{}\" (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            user.groups,
            missing.join("\n")
        ))
    }

    /// Nobody grants through a role or binding what they do not have, unless they may `escalate` or `bind`.
    /// `resource` is the plural: `roles`, `clusterroles`, `rolebindings`, `clusterrolebindings`.
    ///
    /// # Errors
    /// Why it is forbidden.
    pub fn check_escalation(
        &self,
        user: &User,
        resource: &str,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<(), String> {
        let same = |field: &str| old.is_some_and(|old| old[field] == new[field]);
        let namespace = new["metadata"]["namespace"].as_str().unwrap_or_default();
        let group = "rbac.authorization.k8s.io";
        let may = |verb, resource, name| {
            let asked = Attributes {
                verb,
                group,
                resource,
                namespace,
                name,
                ..Attributes::default()
            };
            matches!(self.authorize(user, &asked), Decision::Allow(_))
        };
        match resource {
            "roles" | "clusterroles" => {
                let name = new["metadata"]["name"].as_str().unwrap_or_default();
                if (same("rules") && same("aggregationRule")) || may("escalate", resource, name) {
                    return Ok(());
                }
                if !new["aggregationRule"].is_null() && !same("aggregationRule") {
                    let all = serde_json::json!({"rules": [
                        {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
                        {"verbs": ["*"], "nonResourceURLs": ["*"]},
                    ]});
                    self.rules_cover(user, "", &all)
                        .map_err(|_| "must have cluster-admin privileges to use an aggregationRule".to_owned())?;
                }
                self.rules_cover(user, namespace, new)
            }
            "rolebindings" | "clusterrolebindings" => {
                if same("subjects") && same("roleRef") {
                    return Ok(());
                }
                let name = new["roleRef"]["name"].as_str().unwrap_or_default();
                let (of, home) = match new["roleRef"]["kind"].as_str() {
                    Some("Role") => ("roles", namespace),
                    _ => ("clusterroles", ""),
                };
                if may("bind", of, name) {
                    return Ok(());
                }
                let role = self.cache.get(&format!("{group}/{of}"), home, name);
                let role = role
                    .ok_or_else(|| format!("{of}.{group} \"{name}\" not found"))?
                    .value();
                let all: Vec<_> = self
                    .cache
                    .snapshot(rbac::RESOURCES[0])
                    .iter()
                    .map(|role| (role.clone(), role.value()))
                    .collect();
                self.cover(user, namespace, &rbac::with_aggregated(&role, &all))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
