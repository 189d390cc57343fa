//! Quality of service: the class of a pod and what it means to the kernel's out-of-memory killer.
//!
//! Follows `pkg/apis/core/v1/helper/qos` and `pkg/kubelet/qos/policy.go` of Kubernetes.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::quantity::Amount;
use super::state::containers;

/// The class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has limits for cpu and memory equal to its requests.
    Guaranteed,
    /// Some container asks for something.
    Burstable,
    /// None asks for anything.
    BestEffort,
}

impl QosClass {
    /// The name in `status.qosClass`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }

    /// The class of `pod`.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let mut any = false;
        let mut guaranteed = true;
        for (container, _) in containers(pod) {
            for resource in ["cpu", "memory"] {
                let limit = limit(container, resource).filter(|amount| !amount.is_zero());
                let request = request(container, resource).filter(|amount| !amount.is_zero());
                any |= limit.is_some() || request.is_some();
                guaranteed &= limit.is_some() && (request.is_none() || request == limit);
            }
        }
        match (any, guaranteed) {
            (false, _) => QosClass::BestEffort,
            (true, true) => QosClass::Guaranteed,
            (true, false) => QosClass::Burstable,
        }
    }
}

/// A container's limit of a resource.
#[must_use]
pub fn limit(container: &Container, resource: &str) -> Option<Amount> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    Amount::parse(&limits.get(resource)?.0)
}

/// A container's request of a resource, without the default that its limit gives.
#[must_use]
pub fn request(container: &Container, resource: &str) -> Option<Amount> {
    let requests = container.resources.as_ref()?.requests.as_ref()?;
    Amount::parse(&requests.get(resource)?.0)
}

/// `oom_score_adj` of a container's processes: who asked for more memory is killed later.
#[must_use]
pub fn oom_score_adj(class: QosClass, container: &Container, node_memory: i64) -> i32 {
    match class {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let requested = request(container, "memory")
                .or(limit(container, "memory"))
                .map_or(0, Amount::value);
            let share = i128::from(requested) * 1000 / i128::from(node_memory.max(1));
            i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn pod(resources: Value) -> Pod {
        from_value(json!({"spec": {"containers": [{"name": "a", "resources": resources}]}})).unwrap()
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        for (resources, class) in [
            (json!({}), QosClass::BestEffort),
            (json!({"requests": {"cpu": "1"}}), QosClass::Burstable),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), QosClass::Guaranteed),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}}),
                QosClass::Guaranteed,
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
                QosClass::Burstable,
            ),
            (json!({"limits": {"memory": "1Gi"}}), QosClass::Burstable),
        ] {
            assert_eq!(QosClass::of(&pod(resources.clone())), class, "{resources}");
        }
    }

    #[test]
    fn burstable_scores_fall_with_the_share_of_memory() {
        let score = |request: &str| {
            let pod = pod(json!({"requests": {"memory": request}}));
            oom_score_adj(QosClass::Burstable, &pod.spec.unwrap().containers[0], 1 << 30)
        };
        assert_eq!((score("1"), score("512Mi"), score("1Gi")), (999, 500, 3));
    }
}
