//! Defaults of pods and of the pod templates in workloads.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::quantity::Quantity;
use super::{fill, fill_number, fill_text, items, member};

type Fields = Map<String, Value>;

const DEFAULT_MODE: i64 = 0o644;
const TOKEN_EXPIRATION_SECONDS: i64 = 3600;
/// How long a pod stays on a node that is not ready or not reachable.
const EVICTION_SECONDS: i64 = 300;

/// Defaults of a pod.
pub(in super::super) fn pod(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            request_limits(container);
        }
    }
    pod_spec(spec);
}

/// Defaults of a PodTemplate.
pub(in super::super) fn pod_template(object: &mut Value) {
    let template = object.get_mut("template").and_then(Value::as_object_mut);
    if let Some(spec) = template
        .and_then(|template| template.get_mut("spec"))
        .and_then(Value::as_object_mut)
    {
        pod_spec(spec);
    }
}

/// A new pod is pending; has a quality class, a priority, and leaves failed nodes after five minutes.
pub(in super::super) fn on_create(object: &mut Value) {
    let class = qos_class(&object["spec"]);
    let Some(fields) = object.as_object_mut() else { return };
    fields.insert("status".into(), json!({"phase": "Pending", "qosClass": class}));
    let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let priority = match spec.get("priorityClassName").and_then(Value::as_str) {
        Some("system-node-critical") => 2_000_001_000,
        Some("system-cluster-critical") => 2_000_000_000,
        _ => 0,
    };
    fill(spec, "priority", priority);
    fill_text(spec, "preemptionPolicy", "PreemptLowerPriority");
    let Some(tolerations) = spec.entry("tolerations").or_insert_with(|| json!([])).as_array_mut() else {
        return;
    };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerates = |toleration: &Value| {
            let named = toleration["key"].as_str().unwrap_or_default();
            let effect = toleration["effect"].as_str().unwrap_or_default();
            (named == key || named.is_empty()) && matches!(effect, "" | "NoExecute")
        };
        if !tolerations.iter().any(tolerates) {
            tolerations.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": EVICTION_SECONDS,
            }));
        }
    }
}

/// Defaults of a pod's spec.
pub(super) fn pod_spec(spec: &mut Fields) {
    fill_text(spec, "restartPolicy", "Always");
    fill_text(spec, "dnsPolicy", "ClusterFirst");
    fill_text(spec, "schedulerName", "default-scheduler");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "securityContext", json!({}));
    fill(spec, "enableServiceLinks", true);
    service_account(spec);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for fields in items(spec, list) {
            container(fields);
            if host_network && list != "ephemeralContainers" {
                host_ports(fields);
            }
        }
    }
    for fields in items(spec, "volumes") {
        volume(fields);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are shown.
fn service_account(spec: &mut Fields) {
    for name in ["serviceAccountName", "serviceAccount"] {
        let account = spec.get(name).and_then(Value::as_str).unwrap_or_default();
        if !account.is_empty() {
            let account = account.to_owned();
            spec.insert("serviceAccountName".into(), account.clone().into());
            spec.insert("serviceAccount".into(), account.into());
            return;
        }
    }
}

fn host_ports(container: &mut Fields) {
    for port in items(container, "ports") {
        if let Some(number) = port.get("containerPort").and_then(Value::as_i64) {
            fill_number(port, "hostPort", number);
        }
    }
}

/// What is limited and not requested is requested as limited.
fn request_limits(container: &mut Fields) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else {
        return;
    };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if let Some(requests) = requests.as_object_mut() {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

fn container(fields: &mut Fields) {
    let image = fields.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    fill_text(fields, "imagePullPolicy", policy);
    fill_text(fields, "terminationMessagePath", "/dev/termination-log");
    fill_text(fields, "terminationMessagePolicy", "File");
    fill(fields, "resources", json!({}));
    for port in items(fields, "ports") {
        fill_text(port, "protocol", "TCP");
    }
    for variable in items(fields, "env") {
        let source = variable
            .get_mut("valueFrom")
            .and_then(|source| source.get_mut("fieldRef"));
        if let Some(reference) = source.and_then(Value::as_object_mut) {
            fill_text(reference, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(fields) = fields.get_mut(name).and_then(Value::as_object_mut) {
            probe(fields);
        }
    }
    if let Some(lifecycle) = fields.get_mut("lifecycle").and_then(Value::as_object_mut) {
        for name in ["postStart", "preStop"] {
            if let Some(handler) = lifecycle.get_mut(name).and_then(Value::as_object_mut) {
                http_get(handler);
            }
        }
    }
}

/// Whether an image's tag is `latest`, given or implied; a digest never is.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn probe(fields: &mut Fields) {
    fill_number(fields, "timeoutSeconds", 1);
    fill_number(fields, "periodSeconds", 10);
    fill_number(fields, "successThreshold", 1);
    fill_number(fields, "failureThreshold", 3);
    http_get(fields);
    if let Some(grpc) = fields.get_mut("grpc").and_then(Value::as_object_mut) {
        fill(grpc, "service", "");
    }
}

fn http_get(handler: &mut Fields) {
    if let Some(get) = handler.get_mut("httpGet").and_then(Value::as_object_mut) {
        fill_text(get, "path", "/");
        fill_text(get, "scheme", "HTTP");
    }
}

fn volume(fields: &mut Fields) {
    if !fields.iter().any(|(name, source)| name != "name" && !source.is_null()) {
        fields.insert("emptyDir".into(), json!({}));
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = fields.get_mut(name).and_then(Value::as_object_mut) {
            fill(source, "defaultMode", DEFAULT_MODE);
            downward_items(source);
        }
    }
    if let Some(path) = fields.get_mut("hostPath").and_then(Value::as_object_mut) {
        fill(path, "type", "");
    }
    let projected = fields.get_mut("projected").and_then(Value::as_object_mut);
    for source in projected.into_iter().flat_map(|projected| items(projected, "sources")) {
        if let Some(token) = source.get_mut("serviceAccountToken").and_then(Value::as_object_mut) {
            fill_number(token, "expirationSeconds", TOKEN_EXPIRATION_SECONDS);
        }
        if let Some(downward) = source.get_mut("downwardAPI").and_then(Value::as_object_mut) {
            downward_items(downward);
        }
    }
}

fn downward_items(source: &mut Fields) {
    for item in items(source, "items") {
        if let Some(reference) = item.get_mut("fieldRef").and_then(Value::as_object_mut) {
            fill_text(reference, "apiVersion", "v1");
        }
    }
}

/// The pod's quality of service: `Guaranteed` if every container's cpu and memory are limited and requested alike,
/// `BestEffort` if none asks for any, else `Burstable`.
fn qos_class(spec: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let lists = ["containers", "initContainers"].map(|name| spec[name].as_array());
    for container in lists.into_iter().flatten().flatten() {
        let amounts = |name: &str| -> BTreeMap<&str, Quantity> {
            let list = container["resources"][name].as_object().into_iter().flatten();
            list.filter(|(resource, _)| matches!(resource.as_str(), "cpu" | "memory"))
                .filter_map(|(resource, amount)| Some((resource.as_str(), amount.as_str()?.parse().ok()?)))
                .filter(|(_, amount): &(_, Quantity)| amount.nanos() > 0)
                .collect()
        };
        let (limits, requests) = (amounts("limits"), amounts("requests"));
        any |= !limits.is_empty() || !requests.is_empty();
        guaranteed &= limits.len() == 2;
        guaranteed &= requests
            .iter()
            .all(|(resource, amount)| limits.get(resource) == Some(amount));
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Defaults of the template in a workload's spec.
pub(in super::super) fn template_of(spec: &mut Fields) {
    let mut holder = Value::Object(std::mem::take(spec));
    if let Some(template) = member(&mut holder, "template")
        && let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut)
    {
        pod_spec(spec);
    }
    if let Value::Object(fields) = holder {
        *spec = fields;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_pod_is_completed() {
        let mut object = json!({"spec": {"containers": [{
            "name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1"}, "requests": {"memory": "1Gi"}},
            "env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "readinessProbe": {"httpGet": {"port": 80}},
        }], "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}});
        pod(&mut object);
        let expected = json!({
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30, "securityContext": {}, "enableServiceLinks": true,
            "containers": [{
                "name": "c", "image": "nginx", "imagePullPolicy": "Always",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1", "memory": "1Gi"}},
                "env": [{"name": "X", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
        });
        assert_eq!(object["spec"], expected);
        let before = object.clone();
        pod(&mut object);
        assert_eq!(object, before);
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.27", false),
            ("host:5000/nginx", true),
            ("host:5000/nginx:1", false),
            ("nginx@sha256:abc", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn quality_classes() {
        let class = |resources: Value| qos_class(&json!({"containers": [{"resources": resources}]}));
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        let unequal = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        assert_eq!(class(unequal), "Burstable");
    }

    #[test]
    fn a_new_pod_is_pending_and_leaves_failed_nodes() {
        let mut object =
            json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]}});
        on_create(&mut object);
        assert_eq!(object["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        assert_eq!(object["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            object["spec"]["tolerations"][1]["key"],
            "node.kubernetes.io/unreachable"
        );
    }
}
