//! Eviction: a delete that asks the pod disruption budgets first. Kubernetes: "API-initiated Eviction".
//!
//! Invariant: what is granted is subtracted from the budget by compare-and-swap before the pod is deleted, so that many
//! evictions at once cannot overdraw it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::metadata::{child_mut, is_terminating, text};
use super::pods::pods;
use super::status::Cause;
use super::{DeleteOptions, Deleted, MAX_RETRIES, Registry, Status};
use crate::auth::User;
use crate::cache::{Expect, Object};
use crate::schema::{self, Resource};
use crate::selector::Selector;
use crate::store::StoreError;

const BUDGETS: &str = "policy/poddisruptionbudgets";
/// Evictions in flight that one budget remembers.
const MAX_DISRUPTED: usize = 2000;

impl Registry {
    /// Evicts a pod, if its disruption budget allows.
    ///
    /// # Errors
    /// 429 when the budget does not allow it now, 500 when more than one budget covers the pod; those of a delete.
    pub async fn evict(
        &self,
        who: &User,
        namespace: &str,
        pod: &str,
        mut options: DeleteOptions,
    ) -> Result<Deleted, Status> {
        let resource = pods()?;
        let current = self.get(resource, namespace, pod)?;
        let value = current.value();
        if !is_free(&value)
            && let Some(budget) = self.budget_of(&current)?
        {
            if is_ready(&value) || !may_always(&budget) {
                self.withdraw(&budget, pod, is_ready(&value), options.dry_run).await?;
            }
            // Not another pod of that name: the budget was asked about this one.
            options.uid.get_or_insert_with(|| current.uid().to_owned());
        }
        self.delete(who, resource, namespace, pod, options).await
    }

    /// The budget that covers a pod.
    fn budget_of(&self, pod: &Object) -> Result<Option<Arc<Object>>, Status> {
        let snapshot = self.cache().snapshot(BUDGETS);
        let covering: Vec<&Arc<Object>> = snapshot
            .namespace(&pod.namespace)
            .filter(|budget| covers(budget, pod))
            .collect();
        match covering[..] {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            _ => Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            )),
        }
    }

    /// Takes one disruption from a budget.
    async fn withdraw(&self, budget: &Object, pod: &str, healthy: bool, dry_run: bool) -> Result<(), Status> {
        let resource = budgets()?;
        let (namespace, name) = (&*budget.namespace, &*budget.name);
        for _ in 0..MAX_RETRIES {
            let current = self.get(resource, namespace, name)?;
            let mut value = current.value();
            if !healthy && if_healthy_allows(&value["status"]) {
                return Ok(());
            }
            grant(resource, &mut value, pod, &self.environment().now_text())?;
            if dry_run {
                return Ok(());
            }
            let expect = Expect::At(current.revision);
            match self.commit(resource, namespace, name, Some(value), expect).await {
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(Status::from_store(&error, resource, name)),
                Ok(_) => return Ok(()),
            }
        }
        Err(Status::stale(resource, name))
    }
}

fn budgets() -> Result<&'static Resource, Status> {
    schema::by_key(BUDGETS).ok_or_else(|| Status::internal("disruption budgets are not in the resource table"))
}

/// Pods whose going disrupts nobody: ended, not started, or going already.
fn is_free(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending") || is_terminating(pod)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// `unhealthyPodEvictionPolicy: AlwaysAllow`: a pod that is not ready may always go.
fn may_always(budget: &Object) -> bool {
    text(&budget.value(), "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow"
}

/// The default, `IfHealthyBudget`: a pod that is not ready may go as long as enough others are.
fn if_healthy_allows(status: &Value) -> bool {
    let number = |name: &str| status[name].as_i64().unwrap_or(0);
    number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0
}

fn covers(budget: &Object, pod: &Object) -> bool {
    let selector = Selector::from_label_selector(&budget.value()["spec"]["selector"]);
    selector.is_ok_and(|selector| selector.matches(&pod.index))
}

/// Subtracts one disruption, or says why there is none.
fn grant(resource: &'static Resource, budget: &mut Value, pod: &str, now: &str) -> Result<(), Status> {
    let name = text(budget, "/metadata/name").to_owned();
    let (generation, seen) = (
        &budget["metadata"]["generation"],
        &budget["status"]["observedGeneration"],
    );
    if seen.as_i64().unwrap_or(0) < generation.as_i64().unwrap_or(0) {
        return Err(refused(
            &name,
            "The disruption budget {} is still being processed by the server.",
            10,
        ));
    }
    let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
    if allowed < 0 {
        return Err(Status::forbidden(
            resource,
            &name,
            "pdb disruptions allowed is negative",
        ));
    }
    let disrupted = budget["status"]["disruptedPods"]
        .as_object()
        .map_or(0, serde_json::Map::len);
    if disrupted > MAX_DISRUPTED {
        return Err(Status::forbidden(
            resource,
            &name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    if allowed == 0 {
        let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
        let text = format!(
            "The disruption budget {{}} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        );
        return Err(refused(&name, &text, 0));
    }
    let status = child_mut(budget, "status");
    status.insert("disruptionsAllowed".into(), json!(allowed - 1));
    let pods = status.entry("disruptedPods").or_insert_with(|| json!({}));
    if !pods.is_object() {
        *pods = json!({});
    }
    pods[pod] = json!(now);
    Ok(())
}

/// 429: kubectl drain tries again.
fn refused(budget: &str, cause: &str, retry_after: u32) -> Status {
    let mut status = Status::new(
        429,
        "TooManyRequests",
        "Cannot evict pod as it would violate the pod's disruption budget.",
    );
    let details = status.details_mut();
    details.retry_after = (retry_after > 0).then_some(retry_after);
    details.causes = vec![Cause {
        reason: "DisruptionBudget".into(),
        message: cause.replacen("{}", budget, 1),
        field: String::new(),
    }];
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_charged_once_for_each_pod_and_never_overdrawn() {
        let row = budgets().unwrap();
        let mut budget = json!({"metadata": {"name": "b", "generation": 2},
            "status": {"observedGeneration": 1, "disruptionsAllowed": 1, "desiredHealthy": 2, "currentHealthy": 3}});
        let early = grant(row, &mut budget, "p", "now").unwrap_err();
        assert_eq!((early.code, early.details.unwrap().retry_after), (429, Some(10)));
        budget["status"]["observedGeneration"] = json!(2);
        grant(row, &mut budget, "p", "now").unwrap();
        assert_eq!(budget["status"]["disruptionsAllowed"], 0);
        assert_eq!(budget["status"]["disruptedPods"], json!({"p": "now"}));
        let over = grant(row, &mut budget, "q", "now").unwrap_err();
        let cause = &over.details.as_ref().unwrap().causes[0];
        assert_eq!(
            (over.code, over.reason, cause.reason.as_str()),
            (429, "TooManyRequests", "DisruptionBudget")
        );
        assert_eq!(
            cause.message,
            "The disruption budget b needs 2 healthy pods and has 3 currently"
        );
    }

    #[test]
    fn pods_that_do_not_run_disrupt_nobody() {
        assert!(is_free(&json!({"status": {"phase": "Pending"}})) && is_free(&json!({"status": {"phase": "Failed"}})));
        assert!(is_free(
            &json!({"metadata": {"deletionTimestamp": "t"}, "status": {"phase": "Running"}})
        ));
        assert!(!is_free(&json!({"status": {"phase": "Running"}})));
        assert!(if_healthy_allows(&json!({"currentHealthy": 2, "desiredHealthy": 2})));
        assert!(!if_healthy_allows(&json!({"currentHealthy": 1, "desiredHealthy": 2})));
    }
}
