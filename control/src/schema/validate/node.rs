//! Validation of namespaces, nodes, leases and events.

use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::is_qualified_name;
use super::super::resource::NameRule;
use super::{Errors, has, invalid_if, list, meta, one_of, require, text};

/// Validates a Namespace.
pub(in super::super) fn namespace(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Label, false);
    for (index, finalizer) in list(&object["spec"], "finalizers").iter().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        invalid_if(
            is_qualified_name(name),
            format!("spec.finalizers[{index}]"),
            name,
            &mut errors,
        );
    }
    errors
}

/// Validates a Node.
pub(in super::super) fn node(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, false);
    let mut seen = Vec::new();
    for (index, taint) in list(&object["spec"], "taints").iter().enumerate() {
        let path = format!("spec.taints[{index}]");
        let key = text(taint, "key");
        invalid_if(is_qualified_name(key), format!("{path}.key"), key, &mut errors);
        if require(taint, &path, "effect", &mut errors) {
            one_of(
                taint,
                &path,
                "effect",
                &["NoExecute", "NoSchedule", "PreferNoSchedule"],
                &mut errors,
            );
        }
        let identity = (key, text(taint, "effect"));
        if seen.contains(&identity) {
            errors.push(FieldError::duplicate(path, taint.clone()));
        }
        seen.push(identity);
    }
    if let Some(old) = old {
        for name in ["providerID", "podCIDR", "podCIDRs"] {
            let (new, old) = (&object["spec"][name], &old["spec"][name]);
            if !old.is_null() && !super::same(new, old) {
                let detail = "node updates may not change ".to_owned() + name + " except from \"\" to valid";
                errors.push(FieldError::forbidden(format!("spec.{name}"), detail));
            }
        }
    }
    errors
}

/// Validates a Lease.
pub(in super::super) fn lease(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    let spec = &object["spec"];
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64().filter(|seconds| *seconds <= 0) {
        errors.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            seconds,
            "must be greater than 0",
        ));
    }
    if let Some(count) = spec["leaseTransitions"].as_i64().filter(|count| *count < 0) {
        errors.push(FieldError::invalid("spec.leaseTransitions", count, super::NOT_NEGATIVE));
    }
    if has(spec, "holderIdentity") && text(spec, "holderIdentity").is_empty() {
        errors.push(FieldError::invalid("spec.holderIdentity", "", "must not be empty"));
    }
    errors
}

/// Validates an Event, in the core shape. An event stands in the namespace of what it is about.
pub(in super::super) fn event(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    let (namespace, about) = (
        text(&object["metadata"], "namespace"),
        text(&object["involvedObject"], "namespace"),
    );
    let fits = if about.is_empty() {
        namespace == "default" || namespace.starts_with("kube-")
    } else {
        namespace == about
    };
    if !fits {
        errors.push(FieldError::invalid(
            "involvedObject.namespace",
            about,
            "does not match event.namespace",
        ));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn taints() {
        let object = json!({"metadata": {"name": "n"}, "spec": {"taints": [
            {"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "X"},
        ]}});
        let errors = texts(node(&object, None));
        assert!(errors[0].starts_with("spec.taints[1]: Duplicate value"), "{errors:?}");
        assert!(
            errors[1].starts_with("spec.taints[2].effect: Unsupported value: \"X\""),
            "{errors:?}"
        );
    }

    #[test]
    fn events_stand_beside_what_they_are_about() {
        let object = |namespace: &str, about: &str| json!({"metadata": {"name": "e", "namespace": namespace}, "involvedObject": {"namespace": about}});
        assert!(event(&object("a", "a"), None).is_empty() && event(&object("default", ""), None).is_empty());
        let errors = texts(event(&object("a", "b"), None));
        assert_eq!(
            errors,
            ["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]
        );
    }

    #[test]
    fn leases_last_some_time() {
        let object = json!({"metadata": {"name": "l", "namespace": "n"}, "spec": {"leaseDurationSeconds": 0}});
        assert_eq!(
            texts(lease(&object, None)),
            ["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]
        );
    }
}
