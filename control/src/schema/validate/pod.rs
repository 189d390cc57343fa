//! Validation of pods and pod specs, and of what may change in a pod.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::error::FieldError;
use super::super::name::{is_label, is_subdomain};
use super::super::resource::NameRule;
use super::container::{Context, Role, container, resources, security_context};
use super::{Errors, flag, has, invalid_if, list, meta, not_negative, one_of, require, same, scheduling, text, volume};

const RESTART_POLICIES: &[&str] = &["Always", "Never", "OnFailure"];
const DNS_POLICIES: &[&str] = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const DEADLINE_RANGE: &str = "must be between 1 and 2147483647, inclusive";
const UPDATE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Validates a Pod.
pub(in super::super) fn pod(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    match old {
        Some(old) => update(&object["spec"], &old["spec"], &mut errors),
        None => spec(&object["spec"], "spec", &mut errors),
    }
    errors
}

/// Validates a Binding.
pub(in super::super) fn binding(object: &Value, _: Option<&Value>) -> Errors {
    let mut errors = Errors::new();
    let target = &object["target"];
    if !matches!(text(target, "kind"), "" | "Node") {
        errors.push(FieldError::not_supported(
            "target.kind",
            text(target, "kind"),
            &["Node", "<empty>"],
        ));
    }
    require(target, "target", "name", &mut errors);
    errors
}

/// Validates a pod's spec at `path`.
pub(super) fn spec(spec: &Value, path: &str, errors: &mut Errors) {
    let volumes = volume::volumes(spec, path, errors);
    containers(spec, path, &volumes, errors);
    policies(spec, path, errors);
    names(spec, path, errors);
    meta::labels(spec, &format!("{path}.nodeSelector"), "nodeSelector", errors);
    scheduling::scheduling(spec, path, errors);
    security_context(&spec["securityContext"], &format!("{path}.securityContext"), errors);
    if has(spec, "resources") {
        resources(&spec["resources"], &format!("{path}.resources"), errors);
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(
            format!("{path}.shareProcessNamespace"),
            true,
            detail,
        ));
    }
    for (index, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        require(secret, &format!("{path}.imagePullSecrets[{index}]"), "name", errors);
    }
    for (index, alias) in list(spec, "hostAliases").iter().enumerate() {
        let address = text(alias, "ip");
        if address.parse::<IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(
                format!("{path}.hostAliases[{index}].ip"),
                address,
                detail,
            ));
        }
    }
}

fn containers(spec: &Value, path: &str, volumes: &HashSet<&str>, errors: &mut Errors) {
    let host_network = flag(spec, "hostNetwork");
    let mut context = Context {
        volumes,
        host_network,
        names: HashSet::new(),
        host_ports: HashSet::new(),
    };
    if list(spec, "containers").is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    for (name, role) in [
        ("containers", Role::Main),
        ("initContainers", Role::Init),
        ("ephemeralContainers", Role::Ephemeral),
    ] {
        if role == Role::Init {
            // Init containers run before the others, so their host ports do not collide with them.
            context.host_ports.clear();
        }
        for (index, fields) in list(spec, name).iter().enumerate() {
            container(fields, &format!("{path}.{name}[{index}]"), role, &mut context, errors);
        }
    }
}

fn policies(spec: &Value, path: &str, errors: &mut Errors) {
    for (name, supported) in [("restartPolicy", RESTART_POLICIES), ("dnsPolicy", DNS_POLICIES)] {
        if require(spec, path, name, errors) {
            one_of(spec, path, name, supported, errors);
        }
    }
    one_of(
        spec,
        path,
        "preemptionPolicy",
        &["Never", "PreemptLowerPriority"],
        errors,
    );
    if text(spec, "dnsPolicy") == "None" && list(&spec["dnsConfig"], "nameservers").is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(format!("{path}.dnsConfig.nameservers"), detail));
    }
    dns_config(&spec["dnsConfig"], &format!("{path}.dnsConfig"), errors);
    not_negative(spec, path, "terminationGracePeriodSeconds", errors);
    deadline(&spec["activeDeadlineSeconds"], path, errors);
}

fn deadline(deadline: &Value, path: &str, errors: &mut Errors) {
    if deadline
        .as_i64()
        .is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds))
    {
        errors.push(FieldError::invalid(
            format!("{path}.activeDeadlineSeconds"),
            deadline.clone(),
            DEADLINE_RANGE,
        ));
    }
}

fn dns_config(config: &Value, path: &str, errors: &mut Errors) {
    let servers = list(config, "nameservers");
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(
            format!("{path}.nameservers"),
            config["nameservers"].clone(),
            detail,
        ));
    }
    for (index, server) in servers.iter().enumerate() {
        if server.as_str().unwrap_or_default().parse::<IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(
                format!("{path}.nameservers[{index}]"),
                server.clone(),
                detail,
            ));
        }
    }
}

fn names(spec: &Value, path: &str, errors: &mut Errors) {
    for (name, check) in [
        ("serviceAccountName", is_subdomain as fn(&str) -> Result<(), String>),
        ("nodeName", is_subdomain),
        ("priorityClassName", is_subdomain),
        ("runtimeClassName", is_subdomain),
        ("hostname", is_label),
        ("subdomain", is_label),
    ] {
        let value = text(spec, name);
        if !value.is_empty() {
            invalid_if(check(value), format!("{path}.{name}"), value, errors);
        }
    }
}

/// What may change in a pod: images, tolerations (additions), its deadline (shorter), a negative grace period, and
/// scheduling gates (removal).
fn update(new: &Value, old: &Value, errors: &mut Errors) {
    for name in ["containers", "initContainers"] {
        let (new, old) = (list(new, name), list(old, name));
        if new.len() != old.len() {
            errors.push(FieldError::forbidden(
                format!("spec.{name}"),
                "pod updates may not add or remove containers",
            ));
            return;
        }
        for (index, container) in new.iter().enumerate() {
            require(container, &format!("spec.{name}[{index}]"), "image", errors);
        }
    }
    deadline_update(new, old, errors);
    tolerations_update(new, old, errors);
    gates_update(new, old, errors);
    let mut munged = new.clone();
    if let Some(fields) = munged.as_object_mut() {
        for name in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
            fields.insert(name.to_owned(), old[name].clone());
        }
        let negative = old["terminationGracePeriodSeconds"]
            .as_i64()
            .is_some_and(|seconds| seconds < 0);
        if negative && new["terminationGracePeriodSeconds"] == json!(1) {
            fields.insert(
                "terminationGracePeriodSeconds".into(),
                old["terminationGracePeriodSeconds"].clone(),
            );
        }
        for name in ["containers", "initContainers"] {
            let containers = fields.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten();
            for (container, old) in containers.zip(list(old, name)) {
                if let (Some(container), Some(image)) = (container.as_object_mut(), old.get("image")) {
                    container.insert("image".into(), image.clone());
                }
            }
        }
    }
    if !same(&munged, old) {
        errors.push(FieldError::forbidden("spec", UPDATE));
    }
}

fn deadline_update(new: &Value, old: &Value, errors: &mut Errors) {
    let path = "spec.activeDeadlineSeconds";
    match (
        new["activeDeadlineSeconds"].as_i64(),
        old["activeDeadlineSeconds"].as_i64(),
    ) {
        (Some(new), Some(old)) if new > old => {
            errors.push(FieldError::invalid(
                path,
                new,
                "must be less than or equal to previous value",
            ));
        }
        (None, Some(_)) => errors.push(FieldError::invalid(
            path,
            Value::Null,
            "must not update from a positive integer to nil value",
        )),
        _ => deadline(&new["activeDeadlineSeconds"], "spec", errors),
    }
}

fn tolerations_update(new: &Value, old: &Value, errors: &mut Errors) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        toleration
            .as_object_mut()
            .map(|fields| fields.remove("tolerationSeconds"));
        toleration
    };
    let kept: Vec<_> = list(new, "tolerations").iter().map(without_seconds).collect();
    if !list(old, "tolerations")
        .iter()
        .all(|toleration| kept.contains(&without_seconds(toleration)))
    {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", detail));
    }
    scheduling::scheduling(&json!({"tolerations": new["tolerations"]}), "spec", errors);
}

fn gates_update(new: &Value, old: &Value, errors: &mut Errors) {
    let before = list(old, "schedulingGates");
    let added = list(new, "schedulingGates").iter().find(|gate| !before.contains(gate));
    if let Some(gate) = added {
        let detail = format!(
            "only deletion is allowed, but found new scheduling gate '{}'",
            text(gate, "name")
        );
        errors.push(FieldError::forbidden("spec.schedulingGates", detail));
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::default;
    use super::*;

    fn minimal() -> Value {
        json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
    }

    fn check(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut object = minimal();
        change(&mut object["spec"]);
        default::pod::pod(&mut object);
        pod(&object, None).iter().map(ToString::to_string).collect()
    }

    fn check_container(fields: Value) -> String {
        check(|spec| {
            let container = spec["containers"][0].as_object_mut().unwrap();
            container.extend(fields.as_object().unwrap().clone());
        })
        .join("\n")
    }

    #[test]
    fn a_minimal_pod_is_valid() {
        assert_eq!(check(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn containers_are_required_named_and_unique() {
        assert_eq!(
            check(|spec| spec["containers"] = json!([])),
            ["spec.containers: Required value"]
        );
        let errors = check(|spec| {
            spec["containers"] =
                json!([{"name": "A", "image": ""}, {"name": "b", "image": "x"}, {"name": "b", "image": " x"}])
        });
        assert!(
            errors[0].starts_with("spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label"),
            "{errors:?}"
        );
        assert_eq!(errors[1], "spec.containers[0].image: Required value");
        assert_eq!(errors[2], "spec.containers[2].name: Duplicate value: \"b\"");
        assert_eq!(
            errors[3],
            "spec.containers[2].image: Invalid value: \" x\": must not have leading or trailing whitespace"
        );
    }

    #[test]
    fn ports_environment_and_mounts() {
        for (fields, expected) in [
            (
                json!({"ports": [{"containerPort": 0}]}),
                "spec.containers[0].ports[0].containerPort: Required value",
            ),
            (
                json!({"ports": [{"containerPort": 70000}]}),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"ports": [{"containerPort": 1, "protocol": "X"}]}),
                "spec.containers[0].ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ),
            (
                json!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            ),
            (
                json!({"volumeMounts": [{"name": "no", "mountPath": "/a"}]}),
                "spec.containers[0].volumeMounts[0].name: Not found: \"no\"",
            ),
            (
                json!({"livenessProbe": {"periodSeconds": -1}}),
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
            (
                json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": false}}),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ),
            (
                json!({"imagePullPolicy": "Sometimes"}),
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ),
        ] {
            let errors = check_container(fields);
            assert!(errors.contains(expected), "{expected}\nin\n{errors}");
        }
    }

    #[test]
    fn volumes_and_policies() {
        let errors = check(|spec| {
            spec["volumes"] =
                json!([{"name": "a", "secret": {}}, {"name": "a", "emptyDir": {}, "hostPath": {"path": "/x/.."}}]);
            spec["restartPolicy"] = json!("Sometimes");
            spec["dnsPolicy"] = json!("None");
        });
        for expected in [
            "spec.volumes[0].secret.secretName: Required value",
            "spec.volumes[1].name: Duplicate value: \"a\"",
            "spec.volumes[1].hostPath: Forbidden: may not specify more than 1 volume type",
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
            "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
        ] {
            assert!(errors.iter().any(|error| error == expected), "{expected} in {errors:?}");
        }
    }

    #[test]
    fn little_of_a_pod_may_change() {
        let mut old = minimal();
        default::pod::pod(&mut old);
        let update = |change: &dyn Fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new["spec"]);
            pod(&new, Some(&old))
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert!(update(&|spec| spec["containers"][0]["image"] = json!("other")).is_empty());
        assert!(update(&|spec| spec["tolerations"] = json!([{"key": "a", "operator": "Exists"}])).is_empty());
        assert!(update(&|spec| spec["volumes"] = json!([])).is_empty());
        let errors = update(&|spec| spec["nodeName"] = json!("n"));
        assert!(
            errors[0].starts_with("spec: Forbidden: pod updates may not change fields other than"),
            "{errors:?}"
        );
        let errors = update(&|spec| spec["containers"] = json!([]));
        assert_eq!(
            errors,
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
    }
}
