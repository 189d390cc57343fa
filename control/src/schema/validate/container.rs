//! Validation of containers: name, image, ports, environment, resources, mounts, security context.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::super::error::FieldError;
use super::super::name::{is_env_name, is_label, is_port_name, is_qualified_name};
use super::super::quantity::Quantity;
use super::probe;
use super::{Errors, PORT_RANGE, flag, has, invalid_if, list, map, one_of, require, text};

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const USER_RANGE: &str = "must be between 0 and 2147483647, inclusive";
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Which of the pod's lists a container stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Init,
    Main,
    Ephemeral,
}

/// What containers of one pod share.
pub(super) struct Context<'a> {
    pub volumes: &'a HashSet<&'a str>,
    pub host_network: bool,
    /// Names of all containers so far.
    pub names: HashSet<String>,
    /// `protocol/hostIP/hostPort` of all containers so far.
    pub host_ports: HashSet<String>,
}

/// Validates one container at `path`.
pub(super) fn container(fields: &Value, path: &str, role: Role, context: &mut Context<'_>, errors: &mut Errors) {
    if require(fields, path, "name", errors) {
        let name = text(fields, "name");
        invalid_if(is_label(name), format!("{path}.name"), name, errors);
        if !context.names.insert(name.to_owned()) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
    }
    let image = text(fields, "image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{path}.image"), image, detail));
    }
    one_of(fields, path, "imagePullPolicy", PULL_POLICIES, errors);
    one_of(
        fields,
        path,
        "terminationMessagePolicy",
        &["File", "FallbackToLogsOnError"],
        errors,
    );
    ports(fields, path, context, errors);
    environment(fields, path, errors);
    mounts(fields, path, context, errors);
    resources(&fields["resources"], &format!("{path}.resources"), errors);
    security_context(&fields["securityContext"], &format!("{path}.securityContext"), errors);
    lifecycle(fields, path, role, errors);
}

fn lifecycle(fields: &Value, path: &str, role: Role, errors: &mut Errors) {
    let restartable = role == Role::Main || (role == Role::Init && text(fields, "restartPolicy") == "Always");
    let hooks = ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"];
    for name in hooks.iter().filter(|name| has(fields, name)) {
        let path = format!("{path}.{name}");
        match (role, restartable, *name) {
            (Role::Init, false, _) => {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.push(FieldError::forbidden(path, detail));
            }
            (Role::Ephemeral, ..) => {
                errors.push(FieldError::forbidden(path, "may not be set for ephemeral containers"));
            }
            (_, _, "lifecycle") => probe::lifecycle(&fields["lifecycle"], &path, errors),
            (_, _, name) => probe::probe(&fields[name], &path, name, errors),
        }
    }
    let policies: &[&str] = if role == Role::Init {
        &["Always", "Never", "OnFailure"]
    } else {
        &[]
    };
    let policy = text(fields, "restartPolicy");
    match role {
        Role::Init => one_of(fields, path, "restartPolicy", policies, errors),
        _ if !policy.is_empty() && list(fields, "restartPolicyRules").is_empty() && role == Role::Ephemeral => {
            errors.push(FieldError::forbidden(
                format!("{path}.restartPolicy"),
                "may not be set for ephemeral containers",
            ));
        }
        _ => one_of(fields, path, "restartPolicy", &["Always", "Never", "OnFailure"], errors),
    }
}

fn ports(fields: &Value, path: &str, context: &mut Context<'_>, errors: &mut Errors) {
    let mut names = HashSet::new();
    for (index, port) in list(fields, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            invalid_if(is_port_name(name), format!("{path}.name"), name, errors);
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        let number = port["containerPort"].as_i64().unwrap_or(0);
        if number == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else if !(1..=65535).contains(&number) {
            errors.push(FieldError::invalid(format!("{path}.containerPort"), number, PORT_RANGE));
        }
        if require(port, &path, "protocol", errors) {
            one_of(port, &path, "protocol", PROTOCOLS, errors);
        }
        host_port(port, number, &path, context, errors);
    }
}

fn host_port(port: &Value, number: i64, path: &str, context: &mut Context<'_>, errors: &mut Errors) {
    let host = port["hostPort"].as_i64().unwrap_or(0);
    if host == 0 {
        return;
    }
    let path = format!("{path}.hostPort");
    if !(1..=65535).contains(&host) {
        errors.push(FieldError::invalid(path, host, PORT_RANGE));
        return;
    }
    if context.host_network && host != number {
        errors.push(FieldError::invalid(
            path.clone(),
            host,
            "must match `containerPort` when `hostNetwork` is true",
        ));
    }
    let key = format!("{}/{}/{host}", text(port, "protocol"), text(port, "hostIP"));
    if !context.host_ports.insert(key.clone()) {
        errors.push(FieldError::duplicate(path, key));
    }
}

fn environment(fields: &Value, path: &str, errors: &mut Errors) {
    for (index, variable) in list(fields, "env").iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        if require(variable, &path, "name", errors) {
            let name = text(variable, "name");
            invalid_if(is_env_name(name), format!("{path}.name"), name, errors);
        }
        if has(variable, "valueFrom") {
            value_from(variable, &format!("{path}.valueFrom"), errors);
        }
    }
    for (index, source) in list(fields, "envFrom").iter().enumerate() {
        let path = format!("{path}.envFrom[{index}]");
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            invalid_if(is_env_name(prefix), format!("{path}.prefix"), prefix, errors);
        }
        match (has(source, "configMapRef"), has(source, "secretRef")) {
            (true, true) => errors.push(FieldError::invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            )),
            (false, false) => errors.push(FieldError::invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            (true, false) => drop(require(
                &source["configMapRef"],
                &format!("{path}.configMapRef"),
                "name",
                errors,
            )),
            (false, true) => drop(require(
                &source["secretRef"],
                &format!("{path}.secretRef"),
                "name",
                errors,
            )),
        }
    }
}

fn value_from(variable: &Value, path: &str, errors: &mut Errors) {
    let source = &variable["valueFrom"];
    let given: Vec<_> = [
        "fieldRef",
        "resourceFieldRef",
        "configMapKeyRef",
        "secretKeyRef",
        "fileKeyRef",
    ]
    .into_iter()
    .filter(|name| has(source, name))
    .collect();
    if given.is_empty() {
        let detail =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.push(FieldError::invalid(path, "", detail));
    } else if !text(variable, "value").is_empty() {
        errors.push(FieldError::invalid(
            path,
            "",
            "may not be specified when `value` is not empty",
        ));
    } else if given.len() > 1 {
        errors.push(FieldError::invalid(
            path,
            "",
            "may not have more than one field specified at a time",
        ));
    }
    for name in given {
        let (source, path) = (&source[name], format!("{path}.{name}"));
        match name {
            "fieldRef" => field_reference(source, &path, ENV_FIELDS, errors),
            "resourceFieldRef" => drop(require(source, &path, "resource", errors)),
            "configMapKeyRef" | "secretKeyRef" => {
                require(source, &path, "name", errors);
                require(source, &path, "key", errors);
            }
            _ => {}
        }
    }
}

/// A reference to a field of the pod itself; labels and annotations can be named by key.
pub(super) fn field_reference(source: &Value, path: &str, supported: &[&str], errors: &mut Errors) {
    if !require(source, path, "fieldPath", errors) {
        return;
    }
    let field = text(source, "fieldPath");
    let keyed = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|start| field.starts_with(start))
        && field.ends_with("']");
    if !keyed && !supported.contains(&field) {
        errors.push(FieldError::not_supported(format!("{path}.fieldPath"), field, supported));
    }
}

fn mounts(fields: &Value, path: &str, context: &Context<'_>, errors: &mut Errors) {
    let mut paths = HashSet::new();
    for (index, mount) in list(fields, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if require(mount, &path, "name", errors) && !context.volumes.contains(text(mount, "name")) {
            errors.push(FieldError::not_found(format!("{path}.name"), text(mount, "name")));
        }
        if require(mount, &path, "mountPath", errors) && !paths.insert(text(mount, "mountPath")) {
            errors.push(FieldError::invalid(
                format!("{path}.mountPath"),
                text(mount, "mountPath"),
                "must be unique",
            ));
        }
        for name in ["subPath", "subPathExpr"] {
            relative_path(text(mount, name), &format!("{path}.{name}"), errors);
        }
        one_of(
            mount,
            &path,
            "mountPropagation",
            &["Bidirectional", "HostToContainer", "None"],
            errors,
        );
        let privileged = flag(&fields["securityContext"], "privileged");
        if text(mount, "mountPropagation") == "Bidirectional" && !privileged {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(format!("{path}.mountPropagation"), detail));
        }
    }
}

/// A path that must stay below where it is used.
pub(super) fn relative_path(text: &str, path: &str, errors: &mut Errors) {
    if text.starts_with('/') {
        errors.push(FieldError::invalid(path, text, "must be a relative path"));
    }
    if text.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, text, "must not contain '..'"));
    }
}

/// Requests and limits.
pub(super) fn resources(resources: &Value, path: &str, errors: &mut Errors) {
    for list in ["limits", "requests"] {
        for (resource, amount) in map(resources, list) {
            let path = format!("{path}.{list}[{resource}]");
            resource_name(resource, &path, errors);
            match amount.as_str().unwrap_or_default().parse::<Quantity>() {
                Ok(amount) if amount.nanos() < 0 => {
                    errors.push(FieldError::invalid(path, amount.to_string(), super::NOT_NEGATIVE));
                }
                Ok(amount) if !is_divisible(resource) && amount.nanos() % 1_000_000_000 != 0 => {
                    errors.push(FieldError::invalid(path, amount.to_string(), "must be an integer"));
                }
                Ok(_) => {}
                Err(error) => errors.push(FieldError::invalid(path, amount.clone(), error.to_string())),
            }
        }
    }
    for (resource, request) in map(resources, "requests") {
        let limit = &resources["limits"][resource];
        let parse = |amount: &Value| amount.as_str().and_then(|text| text.parse::<Quantity>().ok());
        let path = format!("{path}.requests");
        match (parse(request), parse(limit)) {
            (Some(request), Some(limit)) if request > limit => {
                let detail = format!("must be less than or equal to {resource} limit of {limit}");
                errors.push(FieldError::invalid(path, request.to_string(), detail));
            }
            (Some(request), Some(limit)) if is_extended(resource) && request != limit => {
                let detail = format!("must be equal to {resource} limit of {limit}");
                errors.push(FieldError::invalid(path, request.to_string(), detail));
            }
            (Some(_), None) if is_extended(resource) => {
                errors.push(FieldError::required(
                    format!("{}.limits", path.trim_end_matches(".requests")),
                    "Limit must be set for non overcommitable resources",
                ));
            }
            _ => {}
        }
    }
}

fn is_divisible(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-")
}

fn is_extended(resource: &str) -> bool {
    resource.starts_with("hugepages-") || (resource.contains('/') && !resource.contains("kubernetes.io/"))
}

fn resource_name(resource: &str, path: &str, errors: &mut Errors) {
    invalid_if(is_qualified_name(resource), path, resource, errors);
    let standard = matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    if !resource.contains('/') && !standard {
        errors.push(FieldError::invalid(
            path,
            resource,
            "must be a standard resource type or fully qualified",
        ));
        errors.push(FieldError::invalid(
            path,
            resource,
            "must be a standard resource for containers",
        ));
    }
}

/// What the security contexts of pods and containers have in common, and a container's own.
pub(super) fn security_context(context: &Value, path: &str, errors: &mut Errors) {
    for name in ["runAsUser", "runAsGroup", "fsGroup"] {
        if let Some(id) = context[name]
            .as_i64()
            .filter(|id| !(0..=i64::from(i32::MAX)).contains(id))
        {
            errors.push(FieldError::invalid(format!("{path}.{name}"), id, USER_RANGE));
        }
    }
    for (index, group) in list(context, "supplementalGroups").iter().enumerate() {
        if !group.as_i64().is_some_and(|id| (0..=i64::from(i32::MAX)).contains(&id)) {
            errors.push(FieldError::invalid(
                format!("{path}.supplementalGroups[{index}]"),
                group.clone(),
                USER_RANGE,
            ));
        }
    }
    if context["allowPrivilegeEscalation"] == json!(false) && flag(context, "privileged") {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(FieldError::invalid(path, context.clone(), detail));
    }
    profile(&context["seccompProfile"], &format!("{path}.seccompProfile"), errors);
}

fn profile(profile: &Value, path: &str, errors: &mut Errors) {
    if profile.is_null() {
        return;
    }
    let kind = text(profile, "type");
    if kind.is_empty() {
        errors.push(FieldError::required(
            format!("{path}.type"),
            "type is required when seccompProfile is set",
        ));
    }
    one_of(
        profile,
        path,
        "type",
        &["Localhost", "RuntimeDefault", "Unconfined"],
        errors,
    );
    let file = text(profile, "localhostProfile");
    match (kind, file) {
        ("Localhost", "") => {
            errors.push(FieldError::required(
                format!("{path}.localhostProfile"),
                "must be set when seccomp type is Localhost",
            ));
        }
        ("Localhost", file) => relative_path(file, &format!("{path}.localhostProfile"), errors),
        (_, "") => {}
        (_, file) => {
            let detail = "can only be set when seccomp type is Localhost";
            errors.push(FieldError::invalid(format!("{path}.localhostProfile"), file, detail));
        }
    }
}
