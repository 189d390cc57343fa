//! What admission fills into a new pod: tolerations, priority, service account and its token volume.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::metadata::{child_mut, text};
use super::super::{Registry, Status};
use crate::cache::{Object, Query};
use crate::schema::Resource;
use std::sync::Arc;

/// How long a pod stays on a node that is not ready or not reachable.
const TOLERATION_SECONDS: i64 = 300;
/// How long a create waits for the service account of a namespace that was made a moment ago.
const ACCOUNT_WAIT: Duration = Duration::from_secs(3);
/// Where the token appears in containers.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Lifetime of a mounted token; the agent renews it.
const TOKEN_SECONDS: i64 = 3607;

/// DefaultTolerationSeconds.
pub(super) fn default_tolerations(pod: &mut Value) {
    let spec = child_mut(pod, "spec");
    let list = spec.entry("tolerations").or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        if !list.iter().any(|toleration| tolerates_execution(toleration, key)) {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}

fn tolerates_execution(toleration: &Value, key: &str) -> bool {
    let given = |field: &str| toleration[field].as_str().unwrap_or_default().to_owned();
    matches!(given("key").as_str(), k if k == key || k.is_empty())
        && matches!(given("effect").as_str(), "NoExecute" | "")
}

/// Priority: the two built-in classes; `PriorityClass` objects are not served yet.
pub(super) fn priority(resource: &'static Resource, pod: &mut Value) -> Result<(), Status> {
    let value = match text(pod, "/spec/priorityClassName") {
        "" => 0,
        "system-node-critical" => 2_000_001_000_i64,
        "system-cluster-critical" => 2_000_000_000,
        other => {
            let why = format!("no PriorityClass with name {other} was found");
            return Err(Status::forbidden(resource, text(pod, "/metadata/name"), why));
        }
    };
    let spec = child_mut(pod, "spec");
    spec.insert("priority".into(), json!(value));
    spec.entry("preemptionPolicy")
        .or_insert_with(|| json!("PreemptLowerPriority"));
    Ok(())
}

/// ServiceAccount: the account exists, its pull secrets are used, its token is mounted.
pub(super) async fn service_account(
    registry: &Registry,
    resource: &'static Resource,
    namespace: &str,
    pod: &mut Value,
) -> Result<(), Status> {
    if pod
        .pointer("/metadata/annotations/kubernetes.io~1config.mirror")
        .is_some()
    {
        return Ok(());
    }
    let name = match text(pod, "/spec/serviceAccountName") {
        "" => "default".to_owned(),
        given => given.to_owned(),
    };
    let spec = child_mut(pod, "spec");
    spec.insert("serviceAccountName".into(), json!(name));
    spec.insert("serviceAccount".into(), json!(name));
    let Some(account) = find_account(registry, namespace, &name).await else {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
        return Err(Status::forbidden(resource, text(pod, "/metadata/name"), why));
    };
    let account = account.value();
    let secrets = &account["imagePullSecrets"];
    let spec = child_mut(pod, "spec");
    if secrets.is_array()
        && spec
            .get("imagePullSecrets")
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty)
    {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    let pod_says = spec.get("automountServiceAccountToken").and_then(Value::as_bool);
    if pod_says
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true)
    {
        mount_token(pod, &registry.environment().suffix());
    }
    Ok(())
}

/// The account; waits a little for the `default` one, which a controller makes for each new namespace.
async fn find_account(registry: &Registry, namespace: &str, name: &str) -> Option<Arc<Object>> {
    let cache = registry.cache();
    let get = || cache.get("serviceaccounts", namespace, name);
    let query = Query {
        resource: "serviceaccounts".into(),
        namespace: Some(namespace.into()),
        ..Default::default()
    };
    if let Some(found) = get() {
        return Some(found);
    }
    if name != "default" {
        return None;
    }
    let mut watcher = cache.watch(query, cache.revision()).ok()?;
    let arrives = async {
        loop {
            if let Some(found) = get() {
                return Some(found);
            }
            watcher.next().await.ok()?;
        }
    };
    tokio::time::timeout(ACCOUNT_WAIT, arrives).await.ok().flatten()
}

/// Adds the projected `kube-api-access` volume and mounts it into every container that has nothing there.
fn mount_token(pod: &mut Value, suffix: &str) {
    let spec = child_mut(pod, "spec");
    let name = format!("kube-api-access-{suffix}");
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            mounted |= mount_into(container, &name);
        }
    }
    if !mounted {
        return;
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if volumes.is_null() {
        *volumes = json!([]);
    }
    if let Some(list) = volumes.as_array_mut() {
        list.push(token_volume(&name));
    }
}

fn mount_into(container: &mut Value, volume: &str) -> bool {
    if !container.is_object() {
        return false;
    }
    let mounts = &mut container["volumeMounts"];
    if mounts.is_null() {
        *mounts = json!([]);
    }
    let Some(mounts) = mounts.as_array_mut() else {
        return false;
    };
    if mounts.iter().any(|mount| mount["mountPath"] == TOKEN_PATH) {
        return false;
    }
    mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
    true
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 420,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                ]}},
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_added_once_and_not_over_the_users() {
        let mut pod = json!({"spec": {"tolerations": [
            {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute", "tolerationSeconds": 5}]}});
        default_tolerations(&mut pod);
        default_tolerations(&mut pod);
        let list = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0]["tolerationSeconds"], 5);
        assert_eq!(list[1]["key"], "node.kubernetes.io/unreachable");
    }

    #[test]
    fn the_token_is_mounted_where_nothing_is() {
        let mut pod = json!({"spec": {"initContainers": [{"name": "i"}], "containers": [
            {"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": TOKEN_PATH}]}]}});
        mount_token(&mut pod, "abcde");
        assert_eq!(
            pod["spec"]["initContainers"][0]["volumeMounts"][0]["name"],
            "kube-api-access-abcde"
        );
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], TOKEN_PATH);
        assert_eq!(
            pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(),
            1
        );
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn an_unknown_priority_class_is_refused() {
        let row = crate::schema::by_key("pods").unwrap();
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"priorityClassName": "gold"}});
        let refused = priority(row, &mut pod).unwrap_err();
        assert_eq!(
            refused.message,
            "pods \"p\" is forbidden: no PriorityClass with name gold was found"
        );
    }
}
