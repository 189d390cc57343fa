//! NodeRestriction: what an agent may say of itself and of its pods (FAULTS 49).
//!
//! The node authorizer decides by what is in the path; this decides by what is in the object. An agent taken over can
//! so neither pose as another node, nor label or untaint its own to attract pods, nor ask for tokens of pods elsewhere.
//! <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction>

use serde_json::Value;

use super::super::metadata::text;
use super::super::{Registry, Status};
use crate::auth::User;
use crate::controllers::node::cidr::Range;
use crate::schema::Resource;

const LEASES: &str = "kube-node-lease";

/// Labels in Kubernetes' own domains that a node may give itself; and all of these two domains.
const OWN_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const OWN_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];

/// The node a user is the agent of.
fn node_of(who: &User) -> Option<&str> {
    who.name
        .strip_prefix("system:node:")
        .filter(|_| who.is_in("system:nodes"))
}

/// Admits what an agent creates.
pub(super) fn create(
    registry: &Registry,
    who: &User,
    resource: &'static Resource,
    object: &Value,
) -> Result<(), Status> {
    let Some(node) = node_of(who) else { return Ok(()) };
    let name = text(object, "/metadata/name");
    let refuse = |why: String| Err(Status::forbidden(resource, name, why));
    match resource.key {
        "nodes" if name != node => refuse(format!("node {node:?} is not allowed to create node {name:?}")),
        "nodes" => match restricted_changes(object, &Value::Null).as_slice() {
            [] => match claimed(registry, object) {
                Some(other) => refuse(format!(
                    "node {node:?} is not allowed to take a pod range of node {other:?}"
                )),
                None => Ok(()),
            },
            labels => refuse(format!(
                "node {node:?} is not allowed to set the following labels: {}",
                labels.join(", ")
            )),
        },
        "coordination.k8s.io/leases" if text(object, "/metadata/namespace") != LEASES => {
            refuse(format!("can only access leases in the \"{LEASES}\" system namespace"))
        }
        "coordination.k8s.io/leases" if name != node => {
            refuse("can only access node lease with the same name as the requesting node".to_owned())
        }
        "pods" => refuse(format!("node {node:?} is not allowed to create pods")),
        _ => Ok(()),
    }
}

/// The node that already has one of the pod ranges a new node brings along: packets to its pods would go elsewhere.
fn claimed(registry: &Registry, object: &Value) -> Option<String> {
    let ranges = |node: &Value| -> Vec<Range> {
        let list = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
        let single = std::iter::once(&node["spec"]["podCIDR"]);
        let texts = list.chain(single).filter_map(Value::as_str);
        texts.filter_map(|text| text.parse().ok()).collect()
    };
    let wanted = ranges(object);
    if wanted.is_empty() {
        return None;
    }
    let nodes = registry.cache().snapshot("nodes");
    let overlaps = |held: &Range| wanted.iter().any(|range| range.overlaps(*held));
    let taken = nodes.iter().find(|node| ranges(&node.value()).iter().any(overlaps));
    taken.map(|node| node.name.to_string())
}

/// Admits what an agent writes over an object, or over its status.
pub(super) fn update(who: &User, resource: &'static Resource, new: &Value, old: &Value) -> Result<(), Status> {
    let Some(node) = node_of(who) else { return Ok(()) };
    let name = text(old, "/metadata/name");
    let refuse = |why: String| Err(Status::forbidden(resource, name, why));
    match resource.key {
        "nodes" if name != node => refuse(format!("node {node:?} is not allowed to modify node {name:?}")),
        "nodes" if new["spec"]["taints"] != old["spec"]["taints"] => {
            refuse(format!("node {node:?} is not allowed to modify taints"))
        }
        "nodes" if new["metadata"]["ownerReferences"] != old["metadata"]["ownerReferences"] => {
            refuse(format!("node {node:?} is not allowed to modify ownerReferences"))
        }
        "nodes" => match restricted_changes(new, old).as_slice() {
            [] => Ok(()),
            labels => refuse(format!(
                "node {node:?} is not allowed to modify labels: {}",
                labels.join(", ")
            )),
        },
        "pods" if new["metadata"]["labels"] != old["metadata"]["labels"] => {
            refuse(format!("node {node:?} cannot update labels through pod status"))
        }
        _ => Ok(()),
    }
}

/// Admits an agent's request for a service-account token: bound to a pod of its node, by uid.
pub(super) fn token(
    registry: &Registry,
    who: &User,
    resource: &'static Resource,
    (namespace, account): (&str, &str),
    reference: &Value,
) -> Result<(), Status> {
    let Some(node) = node_of(who) else { return Ok(()) };
    let refuse = |why: String| Err(Status::forbidden(resource, account, why));
    if text(reference, "/kind") != "Pod" {
        return refuse("node requested token not bound to a pod".to_owned());
    }
    let name = text(reference, "/name");
    if text(reference, "/uid").is_empty() {
        return refuse(format!(
            "node requested token with a pod binding without a uid: {name:?}"
        ));
    }
    match registry.cache().get("pods", namespace, name) {
        Some(pod) if pod.field("spec.nodeName") == Some(node) => Ok(()),
        _ => refuse("node requested token bound to a pod scheduled on a different node".to_owned()),
    }
}

/// Labels that differ and are not a node's to set.
fn restricted_changes(new: &Value, old: &Value) -> Vec<String> {
    let (new, old) = (&new["metadata"]["labels"], &old["metadata"]["labels"]);
    let names = [new, old].into_iter().filter_map(Value::as_object);
    let mut changed: Vec<String> = names
        .flat_map(|labels| labels.keys())
        .filter(|label| new[label.as_str()] != old[label.as_str()] && is_restricted(label))
        .cloned()
        .collect();
    changed.sort_unstable();
    changed.dedup();
    changed
}

/// Whether a label is in Kubernetes' domains and not one of those a node may set.
fn is_restricted(label: &str) -> bool {
    let Some((prefix, _)) = label.split_once('/') else {
        return false;
    };
    let within = |domain: &&str| {
        prefix
            .strip_suffix(*domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    ["kubernetes.io", "k8s.io"].iter().any(within) && !OWN_LABELS.contains(&label) && !OWN_DOMAINS.iter().any(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_sets_its_own_labels_and_no_others_of_kubernetes() {
        for (label, restricted) in [
            ("disk", false),
            ("example.com/disk", false),
            ("notkubernetes.io/x", false),
            ("kubernetes.io/hostname", false),
            ("node.kubernetes.io/instance-type", false),
            ("a.kubelet.kubernetes.io/x", false),
            ("kubernetes.io/other", true),
            ("node-role.kubernetes.io/control-plane", true),
            ("node-restriction.kubernetes.io/tenant", true),
            ("x.node-restriction.kubernetes.io/tenant", true),
            ("notnode.kubernetes.io/x", true),
            ("a.k8s.io/x", true),
        ] {
            assert_eq!(is_restricted(label), restricted, "{label}");
        }
    }
}
