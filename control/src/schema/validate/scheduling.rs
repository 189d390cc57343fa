//! Validation of what steers scheduling: tolerations, affinity, topology spread.

use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::{is_label_value, is_qualified_name};
use super::meta::label_selector;
use super::{Errors, has, invalid_if, list, require, text};

const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "PreferNoSchedule"];

/// Validates tolerations, affinity and topology spread constraints of a pod's spec.
pub(super) fn scheduling(spec: &Value, path: &str, errors: &mut Errors) {
    for (index, value) in list(spec, "tolerations").iter().enumerate() {
        toleration(value, &format!("{path}.tolerations[{index}]"), errors);
    }
    affinity(&spec["affinity"], &format!("{path}.affinity"), errors);
    for (index, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        spread(
            constraint,
            &format!("{path}.topologySpreadConstraints[{index}]"),
            errors,
        );
    }
}

fn toleration(toleration: &Value, path: &str, errors: &mut Errors) {
    let (key, value) = (text(toleration, "key"), text(toleration, "value"));
    let (operator, effect) = (text(toleration, "operator"), text(toleration, "effect"));
    if !key.is_empty() {
        invalid_if(is_qualified_name(key), format!("{path}.key"), key, errors);
    } else if operator != "Exists" {
        let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.push(FieldError::invalid(format!("{path}.operator"), operator, detail));
    }
    if has(toleration, "tolerationSeconds") && effect != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(format!("{path}.effect"), effect, detail));
    }
    match operator {
        "" | "Equal" => invalid_if(is_label_value(value), format!("{path}.value"), value, errors),
        "Lt" | "Gt" => {}
        "Exists" if !value.is_empty() => {
            let detail = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(format!("{path}.operator"), value, detail));
        }
        "Exists" => {}
        other => errors.push(FieldError::not_supported(
            format!("{path}.operator"),
            other,
            &["Equal", "Exists"],
        )),
    }
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        errors.push(FieldError::not_supported(format!("{path}.effect"), effect, EFFECTS));
    }
}

fn affinity(affinity: &Value, path: &str, errors: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let (node, node_path) = (&affinity["nodeAffinity"], format!("{path}.nodeAffinity"));
    if has(node, REQUIRED) {
        let terms = list(&node[REQUIRED], "nodeSelectorTerms");
        let path = format!("{node_path}.{REQUIRED}.nodeSelectorTerms");
        if terms.is_empty() {
            errors.push(FieldError::required(
                path.as_str(),
                "must have at least one node selector term",
            ));
        }
        for (index, term) in terms.iter().enumerate() {
            node_term(term, &format!("{path}[{index}]"), errors);
        }
    }
    for (index, preferred) in list(node, PREFERRED).iter().enumerate() {
        let path = format!("{node_path}.{PREFERRED}[{index}]");
        weight(preferred, &path, errors);
        node_term(&preferred["preference"], &format!("{path}.preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (pod, path) = (&affinity[kind], format!("{path}.{kind}"));
        for (index, term) in list(pod, REQUIRED).iter().enumerate() {
            pod_term(term, &format!("{path}.{REQUIRED}[{index}]"), errors);
        }
        for (index, preferred) in list(pod, PREFERRED).iter().enumerate() {
            let path = format!("{path}.{PREFERRED}[{index}]");
            weight(preferred, &path, errors);
            pod_term(
                &preferred["podAffinityTerm"],
                &format!("{path}.podAffinityTerm"),
                errors,
            );
        }
    }
}

fn weight(preferred: &Value, path: &str, errors: &mut Errors) {
    let weight = preferred["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(
            format!("{path}.weight"),
            weight,
            "must be in the range 1-100",
        ));
    }
}

fn pod_term(term: &Value, path: &str, errors: &mut Errors) {
    label_selector(&term["labelSelector"], &format!("{path}.labelSelector"), errors);
    if text(term, "topologyKey").is_empty() {
        errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
    } else {
        let key = text(term, "topologyKey");
        invalid_if(is_qualified_name(key), format!("{path}.topologyKey"), key, errors);
    }
}

fn node_term(term: &Value, path: &str, errors: &mut Errors) {
    for (index, requirement) in list(term, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let (values, operator) = (list(requirement, "values"), text(requirement, "operator"));
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{path}.values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{path}.values"), detail));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(FieldError::required(format!("{path}.values"), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(FieldError::invalid(
                format!("{path}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = text(requirement, "key");
        invalid_if(is_qualified_name(key), format!("{path}.key"), key, errors);
    }
    for (index, requirement) in list(term, "matchFields").iter().enumerate() {
        let key = text(requirement, "key");
        if key != "metadata.name" {
            let path = format!("{path}.matchFields[{index}].key");
            errors.push(FieldError::invalid(path, key, "not a valid field selector key"));
        }
    }
}

fn spread(constraint: &Value, path: &str, errors: &mut Errors) {
    let skew = constraint["maxSkew"].as_i64().unwrap_or(0);
    if skew <= 0 {
        errors.push(FieldError::invalid(
            format!("{path}.maxSkew"),
            skew,
            "must be greater than zero",
        ));
    }
    if require(constraint, path, "topologyKey", errors) {
        let key = text(constraint, "topologyKey");
        invalid_if(is_qualified_name(key), format!("{path}.topologyKey"), key, errors);
    }
    let action = text(constraint, "whenUnsatisfiable");
    if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
        let supported = ["DoNotSchedule", "ScheduleAnyway"];
        errors.push(FieldError::not_supported(
            format!("{path}.whenUnsatisfiable"),
            action,
            &supported,
        ));
    }
    label_selector(&constraint["labelSelector"], &format!("{path}.labelSelector"), errors);
}
