//! Validation of deployments, replica sets, replication controllers and pod templates.

use serde_json::Value;

use super::super::error::FieldError;
use super::super::resource::NameRule;
use super::{Errors, immutable, meta, not_negative, one_of, pod, text};

/// Validates a Deployment.
pub(in super::super) fn deployment(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    let spec = &object["spec"];
    replicated(spec, "spec", &mut errors);
    strategy(&spec["strategy"], "spec.strategy", &mut errors);
    not_negative(spec, "spec", "minReadySeconds", &mut errors);
    not_negative(spec, "spec", "revisionHistoryLimit", &mut errors);
    if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64() {
        not_negative(spec, "spec", "progressDeadlineSeconds", &mut errors);
        if deadline <= spec["minReadySeconds"].as_i64().unwrap_or(0) {
            let detail = "must be greater than minReadySeconds";
            errors.push(FieldError::invalid("spec.progressDeadlineSeconds", deadline, detail));
        }
    }
    if let Some(old) = old {
        immutable(
            &spec["selector"],
            &old["spec"]["selector"],
            "spec.selector",
            &mut errors,
        );
    }
    errors
}

/// Validates a ReplicaSet.
pub(in super::super) fn replica_set(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    let spec = &object["spec"];
    replicated(spec, "spec", &mut errors);
    not_negative(spec, "spec", "minReadySeconds", &mut errors);
    if let Some(old) = old {
        immutable(
            &spec["selector"],
            &old["spec"]["selector"],
            "spec.selector",
            &mut errors,
        );
    }
    errors
}

/// Validates a ReplicationController, whose selector is a map of labels.
pub(in super::super) fn replication_controller(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    let spec = &object["spec"];
    not_negative(spec, "spec", "replicas", &mut errors);
    not_negative(spec, "spec", "minReadySeconds", &mut errors);
    meta::labels(spec, "spec.selector", "selector", &mut errors);
    let mut pairs = super::map(spec, "selector").peekable();
    if pairs.peek().is_none() {
        errors.push(FieldError::required("spec.selector", ""));
    }
    if spec["template"].is_null() {
        errors.push(FieldError::required("spec.template", ""));
        return errors;
    }
    let metadata = &spec["template"]["metadata"];
    if !pairs.all(|(key, value)| metadata["labels"][key] == *value) {
        mismatch(metadata, "spec.template", &mut errors);
    }
    pods_of_replicas(&spec["template"], "spec.template", &mut errors);
    errors
}

/// Validates a PodTemplate.
pub(in super::super) fn pod_template(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    template(&object["template"], "template", &mut errors);
    errors
}

/// Replicas, selector and template.
fn replicated(spec: &Value, path: &str, errors: &mut Errors) {
    not_negative(spec, path, "replicas", errors);
    let selector = &spec["selector"];
    if selector.is_null() {
        errors.push(FieldError::required(format!("{path}.selector"), ""));
    } else {
        meta::label_selector(selector, &format!("{path}.selector"), errors);
        if meta::is_empty(selector) {
            let detail = "empty selector is invalid for deployment";
            errors.push(FieldError::invalid(
                format!("{path}.selector"),
                selector.clone(),
                detail,
            ));
        }
    }
    let (metadata, path) = (&spec["template"]["metadata"], format!("{path}.template"));
    if !selector.is_null() && !meta::is_empty(selector) && !meta::matches(selector, metadata) {
        mismatch(metadata, &path, errors);
    }
    pods_of_replicas(&spec["template"], &path, errors);
}

fn mismatch(metadata: &Value, path: &str, errors: &mut Errors) {
    let detail = "`selector` does not match template `labels`";
    let path = format!("{path}.metadata.labels");
    errors.push(FieldError::invalid(path, metadata["labels"].clone(), detail));
}

/// A template of pods that are replaced when they end: they never end by themselves.
fn pods_of_replicas(pods: &Value, path: &str, errors: &mut Errors) {
    template(pods, path, errors);
    let policy = text(&pods["spec"], "restartPolicy");
    if !matches!(policy, "" | "Always") {
        errors.push(FieldError::not_supported(
            format!("{path}.spec.restartPolicy"),
            policy,
            &["Always"],
        ));
    }
    if !pods["spec"]["activeDeadlineSeconds"].is_null() {
        let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden(
            format!("{path}.spec.activeDeadlineSeconds"),
            detail,
        ));
    }
}

fn template(template: &Value, path: &str, errors: &mut Errors) {
    meta::labels_and_annotations(&template["metadata"], &format!("{path}.metadata"), errors);
    pod::spec(&template["spec"], &format!("{path}.spec"), errors);
}

fn strategy(strategy: &Value, path: &str, errors: &mut Errors) {
    one_of(strategy, path, "type", &["Recreate", "RollingUpdate"], errors);
    let rolling = &strategy["rollingUpdate"];
    match text(strategy, "type") {
        "Recreate" if !rolling.is_null() => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(format!("{path}.rollingUpdate"), detail));
        }
        "RollingUpdate" => {
            let path = format!("{path}.rollingUpdate");
            let unavailable = amount(&rolling["maxUnavailable"], &format!("{path}.maxUnavailable"), errors);
            let surge = amount(&rolling["maxSurge"], &format!("{path}.maxSurge"), errors);
            if (unavailable, surge) == (Some(0), Some(0)) {
                let detail = "may not be 0 when `maxSurge` is 0";
                errors.push(FieldError::invalid(
                    format!("{path}.maxUnavailable"),
                    rolling["maxUnavailable"].clone(),
                    detail,
                ));
            }
            if rolling["maxUnavailable"].is_string() && unavailable.is_some_and(|percent| percent > 100) {
                let detail = "must not be greater than 100%";
                errors.push(FieldError::invalid(
                    format!("{path}.maxUnavailable"),
                    rolling["maxUnavailable"].clone(),
                    detail,
                ));
            }
        }
        _ => {}
    }
}

/// A number, or a percentage; its figure if it is valid.
fn amount(value: &Value, path: &str, errors: &mut Errors) -> Option<i64> {
    let figure = match value {
        Value::Null => return None,
        Value::String(text) => match text.strip_suffix('%').and_then(|digits| digits.parse::<u32>().ok()) {
            Some(percent) => return Some(percent.into()),
            None => None,
        },
        other => other.as_i64(),
    };
    match figure {
        Some(number) if number >= 0 => Some(number),
        Some(number) => {
            errors.push(FieldError::invalid(path, number, super::NOT_NEGATIVE));
            None
        }
        None => {
            let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.push(FieldError::invalid(path, value.clone(), detail));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::default;
    use super::*;

    fn object() -> Value {
        let mut object = json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {
            "selector": {"matchLabels": {"a": "1"}},
            "template": {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        }});
        default::workload::deployment(&mut object);
        object
    }

    fn check(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut object = object();
        change(&mut object["spec"]);
        deployment(&object, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn deployments() {
        assert_eq!(check(|_| {}), Vec::<String>::new());
        assert_eq!(
            check(|spec| spec["replicas"] = json!(-1)),
            ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
        );
        assert_eq!(
            check(|spec| spec["template"]["metadata"]["labels"] = json!({"b": "1"})),
            [
                "spec.template.metadata.labels: Invalid value: {\"b\":\"1\"}: `selector` does not match template `labels`"
            ]
        );
        assert_eq!(
            check(|spec| spec["selector"] = Value::Null),
            ["spec.selector: Required value"]
        );
        assert_eq!(
            check(|spec| spec["template"]["spec"]["restartPolicy"] = json!("Never")),
            ["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""]
        );
        assert_eq!(
            check(|spec| spec["strategy"]["rollingUpdate"] = json!({"maxSurge": 0, "maxUnavailable": "0%"})),
            ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"]
        );
        let errors = check(|spec| spec["template"]["spec"]["containers"][0]["image"] = json!(""));
        assert_eq!(errors, ["spec.template.spec.containers[0].image: Required value"]);
    }

    #[test]
    fn replication_controllers() {
        let check = |selector: Value| {
            let template =
                json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
            let spec = json!({"selector": selector, "template": template});
            let mut object = json!({"metadata": {"name": "r", "namespace": "n"}, "spec": spec});
            default::pod::template_of(object["spec"].as_object_mut().unwrap());
            let errors = replication_controller(&object, None);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(check(json!({"a": "1"})), Vec::<String>::new());
        assert!(check(json!({"a": "2"}))[0].contains("does not match template"));
        assert_eq!(check(json!({})), ["spec.selector: Required value"]);
    }

    #[test]
    fn the_selector_is_immutable() {
        let mut new = object();
        new["spec"]["selector"] = json!({"matchLabels": {"b": "1"}});
        new["spec"]["template"]["metadata"]["labels"] = json!({"b": "1"});
        let errors = deployment(&new, Some(&object()));
        assert_eq!(
            errors[0].to_string(),
            "spec.selector: Invalid value: {\"matchLabels\":{\"b\":\"1\"}}: field is immutable"
        );
    }
}
