//! Node selectors and node affinity. Kubernetes: "Assigning Pods to Nodes".

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use super::cluster::NodeInfo;
use super::pod::PodInfo;
use crate::controllers::labels;

/// Whether the pod's selector and its required affinity allow the node.
pub fn allows(pod: &PodInfo, node: &NodeInfo) -> bool {
    if !labels::contains(&pod.selector, &node.labels) {
        return false;
    }
    let required = pod
        .node_affinity
        .as_ref()
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|selector| selector.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

/// Sum of the weights of preferred terms that match.
pub fn preference(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let preferred = pod
        .node_affinity
        .iter()
        .filter_map(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let matching = preferred.flatten().filter(|term| term_matches(&term.preference, node));
    matching.map(|term| i64::from(term.weight)).sum()
}

/// An empty term matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let field = |key: &str| (key == "metadata.name").then_some(&*node.name);
    !(expressions.is_empty() && fields.is_empty())
        && expressions
            .iter()
            .all(|r| requirement_matches(r, node.labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| requirement_matches(r, field(&r.key)))
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |v: &str| values.iter().any(|candidate| candidate == v);
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = |holds: fn(i64, i64) -> bool| match (value.and_then(number), values) {
        (Some(mine), [bound]) => number(bound).is_some_and(|bound| holds(mine, bound)),
        _ => false,
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(|mine, bound| mine > bound),
        "Lt" => compared(|mine, bound| mine < bound),
        _ => false,
    }
}
