//! Rules between pods: affinity, anti-affinity and topology spread constraints.
//!
//! A topology is a node label; its values are domains. All three count matching pods by domain, once per decision, and
//! then look at each node's domain. Kubernetes: "Inter-pod affinity", "Pod Topology Spread Constraints".

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{PodAffinityTerm, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::affinity;
use super::cluster::{Cluster, NodeInfo};
use super::pod::PodInfo;
use crate::controllers::labels;
use crate::controllers::node::taints::{NO_EXECUTE, NO_SCHEDULE, untolerated};

/// What the rules of one pod come to in a cluster.
pub struct Rules<'a> {
    attracted: Vec<(&'a str, HashMap<&'a str, i64>)>,
    /// No pod matches the pod's own affinity anywhere, but it matches itself: it may be the first.
    first: bool,
    repelled: Vec<(&'a str, HashMap<&'a str, i64>)>,
    /// Domains that placed pods keep for themselves.
    forbidden: Vec<(&'a str, &'a str)>,
    spread: Vec<Spread<'a>>,
    preferred: Vec<(&'a str, i64, HashMap<&'a str, i64>)>,
}

struct Spread<'a> {
    key: &'a str,
    hard: bool,
    max_skew: i64,
    counts: HashMap<&'a str, i64>,
    least: i64,
    own: i64,
}

/// Count what the pod's rules need to know.
pub fn rules<'a>(cluster: &'a Cluster, pod: &'a PodInfo) -> Rules<'a> {
    let count = |term: &'a PodAffinityTerm| {
        let key = term.topology_key.as_str();
        (
            key,
            count(cluster, key, |other| term_selects(cluster, term, pod, other)),
        )
    };
    let attracted = pod.attracted.iter().map(count).collect::<Vec<_>>();
    let none_yet = attracted.iter().all(|(_, domains)| domains.is_empty());
    let own = pod.attracted.iter().all(|term| term_selects(cluster, term, pod, pod));
    Rules {
        first: none_yet && own,
        repelled: pod.repelled.iter().map(count).collect(),
        forbidden: forbidden(cluster, pod),
        spread: pod
            .spread
            .iter()
            .map(|constraint| spread(cluster, pod, constraint))
            .collect(),
        preferred: pod
            .preferred
            .iter()
            .map(|weighted| {
                let (key, domains) = count(&weighted.pod_affinity_term);
                (key, i64::from(weighted.weight), domains)
            })
            .collect(),
        attracted,
    }
}

impl Rules<'_> {
    /// Why the node breaks a rule, and whether removing pods could help.
    pub fn refuse(&self, node: &NodeInfo) -> Option<(&'static str, bool)> {
        for spread in self.spread.iter().filter(|s| s.hard) {
            let Some(domain) = node.labels.get(spread.key) else {
                return Some((
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                    false,
                ));
            };
            let here = spread.counts.get(domain.as_str()).copied().unwrap_or(0);
            if here + spread.own - spread.least > spread.max_skew {
                return Some(("node(s) didn't match pod topology spread constraints", true));
            }
        }
        let in_domain = |key: &str, domain: &str| node.labels.get(key).is_some_and(|d| d == domain);
        if self.forbidden.iter().any(|(key, domain)| in_domain(key, domain)) {
            return Some(("node(s) didn't satisfy existing pods anti-affinity rules", true));
        }
        let has = |(key, domains): &(&str, HashMap<&str, i64>)| {
            node.labels.get(*key).is_some_and(|d| domains.contains_key(d.as_str()))
        };
        let labelled = |(key, _): &(&str, HashMap<&str, i64>)| node.labels.contains_key(*key);
        let near = self.attracted.iter().all(has) || (self.first && self.attracted.iter().all(labelled));
        if !near {
            return Some(("node(s) didn't match pod affinity rules", false));
        }
        self.repelled
            .iter()
            .any(has)
            .then_some(("node(s) didn't match pod anti-affinity rules", true))
    }

    /// Preferred affinity: higher is better, may be negative.
    pub fn attraction(&self, node: &NodeInfo) -> i64 {
        let of = |(key, weight, domains): &(&str, i64, HashMap<&str, i64>)| {
            let here = node
                .labels
                .get(*key)
                .and_then(|d| domains.get(d.as_str()))
                .copied()
                .unwrap_or(0);
            weight * here
        };
        self.preferred.iter().map(of).sum()
    }

    /// Soft spread constraints: matching pods in the node's domains; lower is better.
    pub fn crowd(&self, node: &NodeInfo) -> i64 {
        let soft = self.spread.iter().filter(|s| !s.hard);
        soft.map(|s| {
            node.labels
                .get(s.key)
                .and_then(|d| s.counts.get(d.as_str()))
                .copied()
                .unwrap_or(0)
        })
        .sum()
    }
}

/// Pods that `selected` picks, by the domain they are in.
fn count<'a>(cluster: &'a Cluster, key: &str, selected: impl Fn(&PodInfo) -> bool) -> HashMap<&'a str, i64> {
    let mut domains = HashMap::new();
    for node in cluster.nodes() {
        let Some(domain) = node.labels.get(key) else { continue };
        let here = node.pods.values().filter(|other| selected(other)).count();
        if here > 0 {
            *domains.entry(domain.as_str()).or_insert(0) += i64::try_from(here).unwrap_or(i64::MAX);
        }
    }
    domains
}

/// Whether a term of `owner` selects `other`.
fn term_selects(cluster: &Cluster, term: &PodAffinityTerm, owner: &PodInfo, other: &PodInfo) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    let by_label = term.namespace_selector.as_ref();
    let in_namespace = if named.is_empty() && by_label.is_none() {
        owner.key.namespace == other.key.namespace
    } else {
        let labelled = || {
            let empty = BTreeMap::new();
            labels::matches(by_label, cluster.namespace(&other.key.namespace).unwrap_or(&empty))
        };
        named.iter().any(|n| **n == *other.key.namespace) || labelled()
    };
    in_namespace && {
        let keys = term.match_label_keys.as_deref().unwrap_or_default();
        let unlike = term.mismatch_label_keys.as_deref().unwrap_or_default();
        let selector = with_keys(term.label_selector.as_ref(), owner, keys, "In");
        let selector = with_keys(selector.as_ref(), owner, unlike, "NotIn");
        labels::matches(selector.as_ref(), &other.labels)
    }
}

/// The selector narrowed to pods that have (or have not) the owner's values of some labels.
fn with_keys(
    selector: Option<&LabelSelector>,
    owner: &PodInfo,
    keys: &[String],
    operator: &str,
) -> Option<LabelSelector> {
    let mut selector = selector?.clone();
    let expressions = selector.match_expressions.get_or_insert_default();
    for key in keys {
        if let Some(value) = owner.labels.get(key) {
            expressions.push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![value.clone()]),
            });
        }
    }
    Some(selector)
}

fn forbidden<'a>(cluster: &'a Cluster, pod: &PodInfo) -> Vec<(&'a str, &'a str)> {
    let mut forbidden = Vec::new();
    for (other, node) in cluster.repelling() {
        for term in other
            .repelled
            .iter()
            .filter(|term| term_selects(cluster, term, other, pod))
        {
            if let Some((key, domain)) = node.labels.get_key_value(&term.topology_key) {
                forbidden.push((key.as_str(), domain.as_str()));
            }
        }
    }
    forbidden.sort_unstable();
    forbidden.dedup();
    forbidden
}

fn spread<'a>(cluster: &'a Cluster, pod: &'a PodInfo, constraint: &'a TopologySpreadConstraint) -> Spread<'a> {
    let key = constraint.topology_key.as_str();
    let keys = constraint.match_label_keys.as_deref().unwrap_or_default();
    let selector = with_keys(constraint.label_selector.as_ref(), pod, keys, "In");
    let selects = |other: &PodInfo| {
        other.key.namespace == pod.key.namespace
            && !other.terminating
            && labels::matches(selector.as_ref(), &other.labels)
    };
    let honours_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
    let honours_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
    let eligible = |node: &&NodeInfo| {
        (!honours_affinity || affinity::allows(pod, node))
            && (!honours_taints || untolerated(&node.taints, &pod.tolerations, &[NO_SCHEDULE, NO_EXECUTE]).is_none())
    };
    let mut counts: HashMap<&str, i64> = HashMap::new();
    for node in cluster.nodes().filter(eligible) {
        if let Some(domain) = node.labels.get(key) {
            let here = node.pods.values().filter(|other| selects(other)).count();
            *counts.entry(domain.as_str()).or_insert(0) += i64::try_from(here).unwrap_or(i64::MAX);
        }
    }
    let enough = i32::try_from(counts.len()).unwrap_or(i32::MAX) >= constraint.min_domains.unwrap_or(1);
    Spread {
        key,
        hard: constraint.when_unsatisfiable != "ScheduleAnyway",
        max_skew: constraint.max_skew.into(),
        least: if enough {
            counts.values().copied().min().unwrap_or(0)
        } else {
            0
        },
        own: i64::from(labels::matches(selector.as_ref(), &pod.labels)),
        counts,
    }
}

/// Pods with the same managing owner on the node: spread by default, without any constraint.
pub fn siblings(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let Some(owner) = &pod.owner else { return 0 };
    let here = node
        .pods
        .values()
        .filter(|other| other.owner.as_ref() == Some(owner))
        .count();
    i64::try_from(here).unwrap_or(i64::MAX)
}
