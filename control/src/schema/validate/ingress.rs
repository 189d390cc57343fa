//! Validation of ingresses and their classes (`pkg/apis/networking/validation`).

use std::net::IpAddr;

use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::{is_label_1035, is_port_name, is_subdomain};
use super::super::resource::NameRule;
use super::{Errors, PORT_RANGE, has, immutable, invalid_if, list, meta, one_of, require, text};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Validates an Ingress.
pub(in super::super) fn ingress(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    let spec = &object["spec"];
    let class = text(spec, "ingressClassName");
    if has(spec, "ingressClassName") {
        invalid_if(is_subdomain(class), "spec.ingressClassName", class, &mut errors);
        let annotated = object["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
        if old.is_none() && annotated.is_some_and(|other| other != class) {
            let path = format!("metadata.annotations[{CLASS_ANNOTATION}]");
            let detail = "must match `ingressClassName` when both are specified";
            errors.push(FieldError::invalid(path, annotated.unwrap_or_default(), detail));
        }
    }
    if list(spec, "rules").is_empty() && !has(spec, "defaultBackend") {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid("spec", spec.clone(), detail));
    }
    if has(spec, "defaultBackend") {
        backend(&spec["defaultBackend"], "spec.defaultBackend", &mut errors);
    }
    for (index, rule) in list(spec, "rules").iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        host(text(rule, "host"), &format!("{path}.host"), &mut errors);
        for (index, one) in list(&rule["http"], "paths").iter().enumerate() {
            http_path(one, &format!("{path}.http.paths[{index}]"), &mut errors);
        }
        if has(rule, "http") && list(&rule["http"], "paths").is_empty() {
            errors.push(FieldError::required(format!("{path}.http.paths"), ""));
        }
    }
    for (index, tls) in list(spec, "tls").iter().enumerate() {
        for (number, name) in list(tls, "hosts").iter().enumerate() {
            let path = format!("spec.tls[{index}].hosts[{number}]");
            host(name.as_str().unwrap_or_default(), &path, &mut errors);
        }
    }
    errors
}

/// A name, or a name whose first label is `*`; no address.
fn host(name: &str, path: &str, errors: &mut Errors) {
    if name.is_empty() {
        return;
    }
    if name.parse::<IpAddr>().is_ok() {
        errors.push(FieldError::invalid(path, name, "must be a DNS name, not an IP address"));
    } else if name.contains('*') {
        let rest = name.strip_prefix("*.").unwrap_or("*");
        let detail = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
        if is_subdomain(rest).is_err() {
            errors.push(FieldError::invalid(path, name, detail));
        }
    } else {
        invalid_if(is_subdomain(name), path, name, errors);
    }
}

fn http_path(one: &Value, path: &str, errors: &mut Errors) {
    let (kind, place) = (text(one, "pathType"), text(one, "path"));
    if !has(one, "pathType") {
        errors.push(FieldError::required(
            format!("{path}.pathType"),
            "pathType must be specified",
        ));
    } else {
        let supported = ["Exact", "ImplementationSpecific", "Prefix"];
        one_of(one, path, "pathType", &supported, errors);
    }
    let at = format!("{path}.path");
    let strict = matches!(kind, "Exact" | "Prefix");
    if (strict || !place.is_empty()) && !place.starts_with('/') {
        errors.push(FieldError::invalid(at.as_str(), place, "must be an absolute path"));
    } else if strict {
        for bad in ["//", "/./", "/../", "%2f", "%2F"] {
            if place.contains(bad) {
                errors.push(FieldError::invalid(
                    at.as_str(),
                    place,
                    format!("must not contain '{bad}'"),
                ));
            }
        }
        for bad in ["/..", "/."] {
            if place.ends_with(bad) {
                errors.push(FieldError::invalid(
                    at.as_str(),
                    place,
                    format!("cannot end with '{bad}'"),
                ));
            }
        }
    }
    backend(&one["backend"], &format!("{path}.backend"), errors);
}

/// A service with a port, or another object of the namespace: one of the two.
fn backend(backend: &Value, path: &str, errors: &mut Errors) {
    match (has(backend, "service"), has(backend, "resource")) {
        (true, true) => {
            let detail = "cannot set both resource and service backends";
            errors.push(FieldError::invalid(path, "", detail));
        }
        (false, true) => {
            require(&backend["resource"], &format!("{path}.resource"), "kind", errors);
            require(&backend["resource"], &format!("{path}.resource"), "name", errors);
        }
        (_, false) => {
            let (service, path) = (&backend["service"], format!("{path}.service"));
            if require(service, &path, "name", errors) {
                let name = text(service, "name");
                invalid_if(is_label_1035(name), format!("{path}.name"), name, errors);
            }
            backend_port(&service["port"], &format!("{path}.port"), errors);
        }
    }
}

fn backend_port(port: &Value, path: &str, errors: &mut Errors) {
    let (name, number) = (text(port, "name"), port["number"].as_i64().unwrap_or(0));
    match (name.is_empty(), number) {
        (true, 0) => errors.push(FieldError::required(path, "port name or number is required")),
        (false, 0) => invalid_if(is_port_name(name), format!("{path}.name"), name, errors),
        (false, _) => {
            let detail = "cannot set both port name & port number";
            errors.push(FieldError::invalid(path, "", detail));
        }
        (true, number) if (1..=65535).contains(&number) => {}
        (true, number) => errors.push(FieldError::invalid(format!("{path}.number"), number, PORT_RANGE)),
    }
}

/// Validates an IngressClass; who serves it does not change.
pub(in super::super) fn ingress_class(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, false);
    let spec = &object["spec"];
    let controller = text(spec, "controller");
    match old {
        Some(old) => {
            let before = &old["spec"]["controller"];
            immutable(&spec["controller"], before, "spec.controller", &mut errors);
        }
        None if !require(spec, "spec", "controller", &mut errors) => {}
        None => {
            let (domain, _) = controller.split_once('/').unwrap_or_default();
            if controller.len() > 250 {
                errors.push(FieldError::too_long("spec.controller", 250));
            } else if domain.is_empty() || is_subdomain(domain).is_err() {
                let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
                errors.push(FieldError::invalid("spec.controller", controller, detail));
            }
        }
    }
    if has(spec, "parameters") {
        let (parameters, path) = (&spec["parameters"], "spec.parameters");
        require(parameters, path, "kind", &mut errors);
        require(parameters, path, "name", &mut errors);
        one_of(parameters, path, "scope", &["Cluster", "Namespace"], &mut errors);
        let namespaced = text(parameters, "scope") == "Namespace";
        if namespaced && text(parameters, "namespace").is_empty() {
            let detail = "`parameters.scope` is set to 'Namespace'";
            errors.push(FieldError::required(format!("{path}.namespace"), detail));
        } else if !namespaced && has(parameters, "namespace") {
            let detail = "`parameters.scope` is set to 'Cluster'";
            errors.push(FieldError::forbidden(format!("{path}.namespace"), detail));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(spec: Value) -> Vec<String> {
        let object = json!({"metadata": {"name": "i", "namespace": "n"}, "spec": spec});
        ingress(&object, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ingresses() {
        let service = json!({"service": {"name": "a", "port": {"number": 80}}});
        assert!(check(json!({"defaultBackend": service})).is_empty());
        let rule = |host: &str, kind: &str, path: &str| {
            let paths = json!([{"path": path, "pathType": kind, "backend": service}]);
            check(json!({"rules": [{"host": host, "http": {"paths": paths}}]}))
        };
        assert!(rule("*.example.com", "Prefix", "/").is_empty());
        assert!(rule("", "ImplementationSpecific", "").is_empty());
        assert!(rule("10.0.0.1", "Prefix", "/")[0].contains("not an IP address"));
        assert!(rule("*example", "Prefix", "/")[0].contains("wildcard"));
        assert!(rule("a", "Exact", "x")[0].contains("absolute path"));
        assert!(rule("a", "Exact", "/a/../b")[0].contains("must not contain"));
        assert!(rule("a", "Other", "/")[0].contains("Unsupported value"));
        assert!(check(json!({}))[0].contains("either `defaultBackend` or `rules`"));
        assert!(check(json!({"defaultBackend": {"service": {"name": "a"}}}))[0].contains("name or number"));
    }

    #[test]
    fn classes() {
        let class = |spec: Value, old: Option<Value>| {
            let of = |spec: Value| json!({"metadata": {"name": "c"}, "spec": spec});
            let errors = ingress_class(&of(spec), old.map(of).as_ref());
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(class(json!({"controller": "example.com/c"}), None).is_empty());
        assert!(class(json!({"controller": "c"}), None)[0].contains("domain-prefixed"));
        let other = Some(json!({"controller": "example.com/a"}));
        assert!(class(json!({"controller": "example.com/c"}), other)[0].contains("immutable"));
        let local = json!({"kind": "P", "name": "p", "scope": "Namespace"});
        assert!(class(json!({"controller": "e.com/c", "parameters": local}), None)[0].contains("Required"));
    }
}
