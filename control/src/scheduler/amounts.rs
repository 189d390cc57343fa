//! Amounts of resources: what pods request and what nodes can give.
//!
//! A pod's request is the larger of what its containers (with sidecars) need together and what any init container needs
//! beside the sidecars started before it, plus the overhead. Kubernetes: "Resource sharing within containers".

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::schema::quantity::Quantity;

/// Counted for scoring where a container requests nothing, so that such pods spread too.
const DEFAULT_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

/// Amounts by resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a CPU.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of ephemeral storage.
    pub storage: i64,
    /// Everything else, e.g. `hugepages-2Mi`.
    pub other: BTreeMap<Box<str>, i64>,
}

impl Amounts {
    /// From a resource list. `pods` is not an amount, see [`pod_capacity`].
    pub fn parse(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut amounts = Self::default();
        for (name, text) in list.into_iter().flatten() {
            let Ok(quantity) = text.0.parse::<Quantity>() else {
                continue;
            };
            match name.as_str() {
                "cpu" => amounts.cpu = quantity.millis(),
                "memory" => amounts.memory = quantity.units(),
                "ephemeral-storage" => amounts.storage = quantity.units(),
                "pods" => {}
                other => drop(amounts.other.insert(other.into(), quantity.units())),
            }
        }
        amounts
    }

    fn combine(&mut self, other: &Self, by: impl Fn(i64, i64) -> i64) {
        self.cpu = by(self.cpu, other.cpu);
        self.memory = by(self.memory, other.memory);
        self.storage = by(self.storage, other.storage);
        for (name, amount) in &other.other {
            let mine = self.other.entry(name.clone()).or_default();
            *mine = by(*mine, *amount);
        }
    }

    /// Add.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    /// Take away.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
    }

    /// Keep the larger of each.
    fn raise(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    /// The resources of which `wanted` does not fit beside `used`, by name.
    pub fn lacking(&self, used: &Self, wanted: &Self) -> Vec<Box<str>> {
        let fits = |capacity: i64, used: i64, wanted: i64| wanted <= 0 || wanted <= capacity.saturating_sub(used);
        let mut lacking = Vec::new();
        for (name, ok) in [
            ("cpu", fits(self.cpu, used.cpu, wanted.cpu)),
            ("memory", fits(self.memory, used.memory, wanted.memory)),
            ("ephemeral-storage", fits(self.storage, used.storage, wanted.storage)),
        ] {
            if !ok {
                lacking.push(name.into());
            }
        }
        let of = |amounts: &Self, name: &str| amounts.other.get(name).copied().unwrap_or(0);
        let short = |name: &str, amount: i64| !fits(of(self, name), of(used, name), amount);
        lacking.extend(
            wanted
                .other
                .iter()
                .filter(|(n, a)| short(n, **a))
                .map(|(name, _)| name.clone()),
        );
        lacking
    }
}

/// How many pods a node takes: its `pods` resource.
pub fn pod_capacity(list: Option<&BTreeMap<String, Text>>) -> i64 {
    let pods = list
        .and_then(|l| l.get("pods"))
        .and_then(|q| q.0.parse::<Quantity>().ok());
    pods.map_or(0, |q| q.units())
}

/// What a pod requests, and the same with defaults where nothing is said (for scoring).
pub fn requests(spec: &PodSpec) -> (Amounts, Amounts) {
    let exact = |container: &Container| Amounts::parse(container.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let defaulted = |container: &Container| {
        let mut amounts = exact(container);
        let says = |name: &str| {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            requests.is_some_and(|r| r.contains_key(name))
        };
        if !says("cpu") {
            amounts.cpu = DEFAULT_CPU;
        }
        if !says("memory") {
            amounts.memory = DEFAULT_MEMORY;
        }
        amounts
    };
    (total(spec, exact), total(spec, defaulted))
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut sum = Amounts::default();
    spec.containers.iter().for_each(|c| sum.add(&of(c)));
    let (mut sidecars, mut peak) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let mut needed = of(container);
        needed.add(&sidecars);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = needed.clone();
        }
        peak.raise(&needed);
    }
    sum.add(&sidecars);
    sum.raise(&peak);
    let pod_level = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    for (name, _) in pod_level.into_iter().flatten() {
        let amounts = Amounts::parse(pod_level);
        match name.as_str() {
            "cpu" => sum.cpu = amounts.cpu,
            "memory" => sum.memory = amounts.memory,
            _ => {}
        }
    }
    sum.add(&Amounts::parse(spec.overhead.as_ref()));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cpu(spec: Value) -> i64 {
        requests(&serde_json::from_value(spec).unwrap()).0.cpu
    }

    fn container(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    fn sidecar(cpu: &str) -> Value {
        json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn containers_add_up_and_init_containers_peak() {
        assert_eq!(cpu(json!({"containers": [container("100m"), container("0.2")]})), 300);
        assert_eq!(
            cpu(json!({"containers": [container("1")], "initContainers": [container("3"), container("2")]})),
            3000
        );
        let sidecars = json!([container("2"), sidecar("1"), container("2")]);
        assert_eq!(
            cpu(json!({"containers": [container("1")], "initContainers": sidecars})),
            3000
        );
        assert_eq!(
            cpu(json!({"containers": [container("1")], "overhead": {"cpu": "250m"}})),
            1250
        );
        let level = json!({"containers": [container("1")], "resources": {"requests": {"cpu": "4"}}});
        assert_eq!(cpu(level), 4000);
    }

    #[test]
    fn what_lacks_is_named() {
        let amounts = |value: Value| Amounts::parse(Some(&serde_json::from_value(value).unwrap()));
        let node = amounts(json!({"cpu": "2", "memory": "1Gi"}));
        let used = amounts(json!({"cpu": "1500m"}));
        let wanted = amounts(json!({"cpu": "600m", "memory": "1Gi", "example.com/gpu": "1"}));
        assert_eq!(
            node.lacking(&used, &wanted),
            ["cpu".into(), "example.com/gpu".into()] as [Box<str>; 2]
        );
        assert!(node.lacking(&used, &Amounts::default()).is_empty());
    }
}
