//! Taints and tolerations. Kubernetes: "Taints and Tolerations".

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// New pods stay away.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// New pods stay away if they can.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
/// Pods are evicted.
pub const NO_EXECUTE: &str = "NoExecute";
/// The agent says it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The agent is silent.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Cordoned.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "" | "Equal" => {
            let value = toleration.value.as_deref().unwrap_or_default();
            !key.is_empty() && value == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// The first taint with one of the effects that nothing tolerates.
pub fn untolerated<'a>(taints: &'a [Taint], tolerations: &[Toleration], effects: &[&str]) -> Option<&'a Taint> {
    let relevant = taints.iter().filter(|t| effects.contains(&t.effect.as_str()));
    relevant
        .into_iter()
        .find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn operators_effects_and_wildcards() {
        let taint: Taint = serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoSchedule"})).unwrap();
        let tolerated = |toleration: Value| tolerates(&serde_json::from_value(toleration).unwrap(), &taint);
        assert!(tolerated(
            json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"})
        ));
        assert!(tolerated(json!({"key": "k", "value": "v"})));
        assert!(tolerated(json!({"key": "k", "operator": "Exists"})));
        assert!(tolerated(json!({"operator": "Exists"})));
        assert!(!tolerated(json!({"key": "k", "value": "w"})));
        assert!(!tolerated(json!({"key": "x", "operator": "Exists"})));
        assert!(!tolerated(
            json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})
        ));
        assert!(!tolerated(json!({"key": "k", "operator": "Near"})));
    }
}
