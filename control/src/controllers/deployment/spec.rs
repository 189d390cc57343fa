//! A deployment as its controller reads it, with Kubernetes' defaults for what is left out.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde_json::Value;

use crate::cache::Object;
use crate::controllers::intstr::{Round, scaled};
use crate::controllers::metadata::Metadata;

/// A decoded deployment.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// As stored.
    pub object: Arc<Object>,
    /// Namespace.
    pub namespace: String,
    /// Metadata.
    pub meta: Metadata,
    /// Wanted pods.
    pub replicas: i32,
    /// The raw pod template.
    pub template: Value,
    /// The raw selector.
    pub selector: Value,
    /// The selector, decoded.
    pub label_selector: LabelSelector,
    /// `Recreate` instead of `RollingUpdate`.
    pub recreate: bool,
    /// Rollouts are on hold.
    pub paused: bool,
    /// `spec.minReadySeconds`.
    pub min_ready_seconds: i32,
    /// `spec.revisionHistoryLimit`.
    pub history_limit: usize,
    /// `spec.progressDeadlineSeconds`; `None` if the deadline is switched off.
    pub progress_deadline: Option<i32>,
    /// The status as stored.
    pub status: DeploymentStatus,
    surge: IntOrString,
    unavailable: IntOrString,
}

#[derive(Deserialize)]
struct Body {
    metadata: Metadata,
    spec: DeploymentSpec,
    status: Option<DeploymentStatus>,
}

impl Deployment {
    /// Decode; `None` if the body is not a deployment.
    pub fn new(object: Arc<Object>) -> Option<Self> {
        let body: Body = object.typed().ok()?;
        let mut raw = object.value();
        let strategy = body.spec.strategy.unwrap_or_default();
        let rolling = strategy.rolling_update.unwrap_or_default();
        let quarter = || IntOrString::String("25%".to_owned());
        Some(Self {
            namespace: object.namespace.to_string(),
            meta: body.metadata,
            replicas: body.spec.replicas.unwrap_or(1),
            template: raw["spec"]["template"].take(),
            selector: raw["spec"]["selector"].take(),
            label_selector: body.spec.selector,
            recreate: strategy.type_.as_deref() == Some("Recreate"),
            paused: body.spec.paused.unwrap_or(false),
            min_ready_seconds: body.spec.min_ready_seconds.unwrap_or(0),
            history_limit: usize::try_from(body.spec.revision_history_limit.unwrap_or(10)).unwrap_or(usize::MAX),
            progress_deadline: Some(body.spec.progress_deadline_seconds.unwrap_or(600)).filter(|s| *s != i32::MAX),
            status: body.status.unwrap_or_default(),
            surge: rolling.max_surge.unwrap_or_else(quarter),
            unavailable: rolling.max_unavailable.unwrap_or_else(quarter),
            object,
        })
    }

    /// How many pods there may be above `replicas`.
    pub fn max_surge(&self) -> i32 {
        if self.recreate {
            0
        } else {
            scaled(&self.surge, self.replicas, Round::Up).max(0)
        }
    }

    /// How many pods may be missing. If both bounds come out as zero nothing could ever move: then it is one.
    pub fn max_unavailable(&self) -> i32 {
        if self.recreate || self.replicas == 0 {
            return 0;
        }
        let unavailable = scaled(&self.unavailable, self.replicas, Round::Down).max(0);
        let unavailable = if unavailable == 0 && self.max_surge() == 0 {
            1
        } else {
            unavailable
        };
        unavailable.min(self.replicas)
    }

    /// How many pods must be available during a rollout.
    pub fn min_available(&self) -> i32 {
        self.replicas - self.max_unavailable()
    }
}
