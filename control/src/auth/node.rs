//! The node authorizer: an agent may touch its own node, the pods bound to it, and what those pods refer to.
//!
//! So an agent taken over by an attacker reads the secrets of its own pods, and no others (FAULTS 49). What an object
//! that a node creates may say (a Node or Lease of its own name) is admission's to check.

use serde_json::Value;

use super::{Attributes, User};
use crate::cache::Cache;

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 3] = ["create", "update", "patch"];

/// The node a user is the agent of.
pub(super) fn name(user: &User) -> Option<&str> {
    user.name
        .strip_prefix("system:node:")
        .filter(|name| !name.is_empty() && user.is_in("system:nodes"))
}

/// Whether a node's agent may; the error says what would have to hold.
pub(super) fn decide(cache: &Cache, node: &str, asked: &Attributes<'_>) -> Result<(), String> {
    if asked.non_resource_path.is_some() {
        return Err(String::new());
    }
    let (verb, subresource) = (asked.verb, asked.subresource);
    let own = |name: &str| {
        if name == node {
            Ok(())
        } else {
            Err(format!("node '{node}' can only write its own object of that name"))
        }
    };
    match (asked.group, asked.resource, subresource) {
        ("", "nodes", "") if READ.contains(&verb) || verb == "create" => Ok(()),
        ("", "nodes", "") if ["update", "patch", "delete"].contains(&verb) => own(asked.name),
        ("", "nodes", "status") if ["get", "update", "patch"].contains(&verb) => own(asked.name),
        ("coordination.k8s.io", "leases", "") if asked.namespace == "kube-node-lease" => match verb {
            "create" if asked.name.is_empty() => Ok(()),
            _ => own(asked.name),
        },
        ("storage.k8s.io", "csinodes", "") => match verb {
            "create" if asked.name.is_empty() => Ok(()),
            _ => own(asked.name),
        },
        ("", "pods", _) => pod(cache, node, asked),
        ("", "secrets" | "configmaps" | "persistentvolumeclaims", "") if READ.contains(&verb) => {
            referenced(cache, node, asked)
        }
        ("", "serviceaccounts", "") if verb == "get" => referenced(cache, node, asked),
        ("", "serviceaccounts", "token") if verb == "create" => referenced(cache, node, asked),
        ("", "persistentvolumes", "") if verb == "get" => volume(cache, node, asked.name),
        ("" | "events.k8s.io", "events", "") if WRITE.contains(&verb) => Ok(()),
        ("", "services" | "endpoints", "")
        | ("discovery.k8s.io", "endpointslices", "")
        | ("networking.k8s.io", "servicecidrs", "")
        | ("node.k8s.io", "runtimeclasses", "")
        | ("storage.k8s.io", "csidrivers" | "storageclasses" | "volumeattachments", "")
            if READ.contains(&verb) =>
        {
            Ok(())
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") if verb == "create" || READ.contains(&verb) => Ok(()),
        ("authentication.k8s.io", "tokenreviews", "") | ("authorization.k8s.io", "subjectaccessreviews", "")
            if verb == "create" =>
        {
            Ok(())
        }
        _ => Err(String::new()),
    }
}

fn pod(cache: &Cache, node: &str, asked: &Attributes<'_>) -> Result<(), String> {
    match (asked.verb, asked.subresource) {
        ("list" | "watch", "") if asked.name.is_empty() => {
            let wanted = format!("spec.nodeName={node}");
            let only_own = |selector: &str| selector.replace("==", "=").split(',').any(|term| term == wanted);
            if asked.field_selector.is_none_or(only_own) {
                return Ok(());
            }
            return Err(format!(
                "can only list/watch pods with spec.nodeName field selector: node '{node}'"
            ));
        }
        ("get" | "list" | "watch" | "delete", "") | ("get" | "update" | "patch", "status") | ("create", "eviction") => {
        }
        _ => return Err(String::new()),
    }
    match cache.get("pods", asked.namespace, asked.name) {
        // Of a pod that is gone only that can be learnt.
        None => Ok(()),
        Some(pod) if pod.field("spec.nodeName") == Some(node) => Ok(()),
        Some(_) => Err(format!("no relationship found between node '{node}' and this object")),
    }
}

/// Whether a pod on the node refers to the object.
fn referenced(cache: &Cache, node: &str, asked: &Attributes<'_>) -> Result<(), String> {
    if asked.name.is_empty() {
        return Err(format!("can only read resource of this type by name: node '{node}'"));
    }
    let pods = cache
        .pods_on_node(node)
        .into_iter()
        .filter(|pod| *pod.namespace == *asked.namespace);
    for pod in pods {
        if refers(&pod.value(), asked.resource, asked.name) {
            return Ok(());
        }
    }
    Err(format!("no relationship found between node '{node}' and this object"))
}

fn volume(cache: &Cache, node: &str, name: &str) -> Result<(), String> {
    for pod in cache.pods_on_node(node) {
        for claim in claims(&pod.value()) {
            let claim = cache.get("persistentvolumeclaims", &pod.namespace, &claim);
            if claim.is_some_and(|claim| claim.value()["spec"]["volumeName"] == name) {
                return Ok(());
            }
        }
    }
    Err(format!("no relationship found between node '{node}' and this object"))
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Names of the PersistentVolumeClaims a pod uses.
fn claims(pod: &Value) -> Vec<String> {
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    items(&pod["spec"]["volumes"])
        .filter_map(|volume| match volume["persistentVolumeClaim"]["claimName"].as_str() {
            Some(claim) => Some(claim.to_owned()),
            None if volume["ephemeral"].is_object() => Some(format!("{pod_name}-{}", volume["name"].as_str()?)),
            None => None,
        })
        .collect()
}

/// Whether a pod refers to a secret, config map, claim or service account.
fn refers(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    let (volume, name_field, key_ref, from_ref) = match resource {
        "serviceaccounts" => return spec["serviceAccountName"].as_str().unwrap_or("default") == name,
        "persistentvolumeclaims" => return claims(pod).iter().any(|claim| claim == name),
        "secrets" => ("secret", "secretName", "secretKeyRef", "secretRef"),
        "configmaps" => ("configMap", "name", "configMapKeyRef", "configMapRef"),
        _ => return false,
    };
    let in_volume = |v: &Value| {
        v[volume][name_field] == name
            || items(&v["projected"]["sources"]).any(|source| source[volume]["name"] == name)
            || (resource == "secrets" && other_secrets(v).contains(&name))
    };
    let in_container = |container: &Value| {
        items(&container["env"]).any(|env| env["valueFrom"][key_ref]["name"] == name)
            || items(&container["envFrom"]).any(|from| from[from_ref]["name"] == name)
    };
    let pulls = || resource == "secrets" && items(&spec["imagePullSecrets"]).any(|secret| secret["name"] == name);
    items(&spec["volumes"]).any(in_volume)
        || ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .any(|list| items(&spec[*list]).any(in_container))
        || pulls()
}

/// Secrets that volume drivers are given.
fn other_secrets(volume: &Value) -> Vec<&str> {
    let named = [
        &volume["csi"]["nodePublishSecretRef"]["name"],
        &volume["flexVolume"]["secretRef"]["name"],
        &volume["iscsi"]["secretRef"]["name"],
        &volume["cephfs"]["secretRef"]["name"],
        &volume["rbd"]["secretRef"]["name"],
        &volume["azureFile"]["secretName"],
    ];
    named.into_iter().filter_map(Value::as_str).collect()
}
