//! A container's resources as cgroup v2 settings, within what this machine's hierarchy can enforce.
//!
//! Follows the kubelet: requests of cpu become weight (through cgroup v1's shares), limits become quota and
//! memory.max, and an out-of-memory kill takes the whole container. A controller the machine lacks is left out and
//! named, so that the pod runs and its owner is told.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Container;
use serde_json::{Map, Value, json};

use super::qos::{limit, request};
use super::quantity::Amount;

/// Processes and threads a container may have.
pub const PIDS_MAX: i64 = 4096;
/// The length of a cpu quota's period, in microseconds.
const PERIOD_US: i64 = 100_000;
/// The kernel's smallest quota, in microseconds.
const QUOTA_MIN_US: i64 = 1_000;
/// The smallest weight, in cgroup v1's shares.
const SHARES_MIN: i64 = 2;
/// The largest weight, in cgroup v1's shares.
const SHARES_MAX: i64 = 262_144;

/// The `linux.resources` of a container's OCI configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// The JSON object.
    pub value: Map<String, Value>,
    /// Limits that were asked for and cannot be enforced here.
    pub missing: Vec<&'static str>,
}

/// Computes them for a machine whose hierarchy offers `controllers`.
#[must_use]
pub fn compute(container: &Container, controllers: &BTreeSet<String>) -> Resources {
    let mut resources = Resources::default();
    let cpu = cpu(container);
    if controllers.contains("cpu") {
        resources.value.insert("cpu".into(), cpu);
    } else if limit(container, "cpu").is_some() {
        resources.missing.push("cpu");
    }
    if let Some(bytes) = limit(container, "memory").map(Amount::value).filter(|bytes| *bytes > 0) {
        if controllers.contains("memory") {
            resources
                .value
                .insert("memory".into(), json!({"limit": bytes, "swap": bytes}));
            resources
                .value
                .insert("unified".into(), json!({"memory.oom.group": "1"}));
        } else {
            resources.missing.push("memory");
        }
    }
    if controllers.contains("pids") {
        resources.value.insert("pids".into(), json!({"limit": PIDS_MAX}));
    }
    resources
}

fn cpu(container: &Container) -> Value {
    let limit = limit(container, "cpu").map(Amount::milli).filter(|milli| *milli > 0);
    let request = request(container, "cpu").map(Amount::milli).or(limit).unwrap_or(0);
    let shares = (request.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX);
    match limit {
        None => json!({"shares": shares}),
        Some(milli) => {
            let quota = (milli.saturating_mul(PERIOD_US) / 1000).max(QUOTA_MIN_US);
            json!({"shares": shares, "quota": quota, "period": PERIOD_US})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    fn of(resources: Value, controllers: &[&str]) -> Resources {
        let container: Container = from_value(json!({"name": "a", "resources": resources})).unwrap();
        compute(&container, &controllers.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn limits_become_cgroup_settings() {
        let resources = of(
            json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}),
            &["cpu", "memory", "pids"],
        );
        assert_eq!(
            resources.value["cpu"],
            json!({"shares": 256, "quota": 50_000, "period": 100_000})
        );
        assert_eq!(resources.value["memory"]["limit"], 64 << 20);
        assert_eq!(resources.value["pids"]["limit"], PIDS_MAX);
        assert!(resources.missing.is_empty());
    }

    #[test]
    fn what_the_machine_lacks_is_left_out_and_named() {
        let resources = of(json!({"limits": {"cpu": "1", "memory": "64Mi"}}), &["pids"]);
        assert_eq!(resources.missing, ["cpu", "memory"]);
        assert_eq!(resources.value.keys().collect::<Vec<_>>(), ["pids"]);
        assert!(
            of(json!({}), &[]).missing.is_empty(),
            "nothing asked for, nothing missed"
        );
    }
}
