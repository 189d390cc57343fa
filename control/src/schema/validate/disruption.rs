//! Validation of pod disruption budgets (pkg/apis/policy/validation).

use serde_json::Value;

use super::super::error::FieldError;
use super::super::resource::NameRule;
use super::{Errors, NOT_NEGATIVE, has, meta, one_of};

/// Validates a PodDisruptionBudget.
pub(in super::super) fn budget(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    let spec = &object["spec"];
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid("spec", spec.clone(), detail));
    }
    for name in ["minAvailable", "maxUnavailable"] {
        number_or_percentage(&spec[name], &format!("spec.{name}"), &mut errors);
    }
    meta::label_selector(&spec["selector"], "spec.selector", &mut errors);
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    one_of(spec, "spec", "unhealthyPodEvictionPolicy", &policies, &mut errors);
    for name in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        super::not_negative(&object["status"], "status", name, &mut errors);
    }
    errors
}

fn number_or_percentage(value: &Value, path: &str, errors: &mut Errors) {
    match value {
        Value::Number(number) if number.as_i64().is_some_and(|number| number < 0) => {
            errors.push(FieldError::invalid(path, value.clone(), NOT_NEGATIVE));
        }
        Value::String(text) => {
            let percent = text.strip_suffix('%').filter(|digits| !digits.is_empty());
            match percent.and_then(|digits| digits.parse::<u32>().ok()) {
                None => {
                    let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                    errors.push(FieldError::invalid(path, value.clone(), detail));
                }
                Some(101..) => errors.push(FieldError::invalid(
                    path,
                    value.clone(),
                    "must not be greater than 100%",
                )),
                Some(_) => {}
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_of_both_and_sensible() {
        let errors = |spec: Value| -> Vec<String> {
            let object = json!({"metadata": {"name": "b", "namespace": "d"}, "spec": spec});
            budget(&object, None).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            errors(json!({"minAvailable": "50%", "selector": {}})),
            Vec::<String>::new()
        );
        assert!(errors(json!({"minAvailable": 1, "maxUnavailable": 1}))[0].contains("cannot be both set"));
        for wrong in [json!(-1), json!("x"), json!("101%"), json!("%")] {
            assert!(errors(json!({"maxUnavailable": wrong}))[0].starts_with("spec.maxUnavailable: Invalid"));
        }
        assert!(errors(json!({"unhealthyPodEvictionPolicy": "Never"}))[0].contains("Unsupported value"));
    }
}
