//! Validation of `metadata`, and of label selectors.

use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::{is_label_value, is_name, is_qualified_name};
use super::super::resource::NameRule;
use super::{Errors, flag, has, immutable, invalid_if, list, map, text};

const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// Validates an object's metadata.
pub(super) fn object(object: &Value, old: Option<&Value>, rule: NameRule, namespaced: bool) -> Errors {
    let metadata = &object["metadata"];
    let mut errors = Errors::new();
    names(metadata, rule, namespaced, &mut errors);
    if metadata["generation"].as_i64().is_some_and(|generation| generation < 0) {
        errors.push(FieldError::invalid(
            "metadata.generation",
            metadata["generation"].clone(),
            super::NOT_NEGATIVE,
        ));
    }
    labels_and_annotations(metadata, "metadata", &mut errors);
    owners(metadata, &mut errors);
    finalizers(metadata, &mut errors);
    if let Some(old) = old {
        update(metadata, &old["metadata"], &mut errors);
    }
    errors
}

fn names(metadata: &Value, rule: NameRule, namespaced: bool, errors: &mut Errors) {
    let (name, prefix) = (text(metadata, "name"), text(metadata, "generateName"));
    if !prefix.is_empty() {
        // What will follow the prefix is alphanumeric, so a trailing dash is fine.
        let masked = prefix
            .strip_suffix('-')
            .map(|start| format!("{start}a"))
            .unwrap_or_else(|| prefix.to_owned());
        invalid_if(is_name(rule, &masked), "metadata.generateName", prefix, errors);
    }
    if name.is_empty() {
        errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        invalid_if(is_name(rule, name), "metadata.name", name, errors);
    }
    let namespace = text(metadata, "namespace");
    match (namespaced, namespace) {
        (true, "") => errors.push(FieldError::required("metadata.namespace", "")),
        (true, namespace) => invalid_if(
            is_name(NameRule::Label, namespace),
            "metadata.namespace",
            namespace,
            errors,
        ),
        (false, "") => {}
        (false, _) => errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type")),
    }
}

/// Labels and annotations, also of a template.
pub(super) fn labels_and_annotations(metadata: &Value, path: &str, errors: &mut Errors) {
    labels(metadata, &format!("{path}.labels"), "labels", errors);
    let path = format!("{path}.annotations");
    let mut size = 0;
    for (key, value) in map(metadata, "annotations") {
        invalid_if(is_qualified_name(&key.to_lowercase()), path.as_str(), key, errors);
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX_BYTES));
    }
}

/// The map `name` of the object must hold labels.
pub(super) fn labels(object: &Value, path: &str, name: &str, errors: &mut Errors) {
    for (key, value) in map(object, name) {
        invalid_if(is_qualified_name(key), path, key, errors);
        let value = value.as_str().unwrap_or_default();
        invalid_if(is_label_value(value), path, value, errors);
    }
}

fn owners(metadata: &Value, errors: &mut Errors) {
    let mut controllers = Vec::new();
    for (index, owner) in list(metadata, "ownerReferences").iter().enumerate() {
        let path = format!("metadata.ownerReferences[{index}]");
        for name in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, name).is_empty() {
                errors.push(FieldError::invalid(
                    format!("{path}.{name}"),
                    text(owner, name),
                    "must not be empty",
                ));
            }
        }
        if flag(owner, "controller") {
            controllers.push(text(owner, "name"));
        }
    }
    if let [first, second, ..] = controllers[..] {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            metadata["ownerReferences"].clone(),
            detail,
        ));
    }
}

fn finalizers(metadata: &Value, errors: &mut Errors) {
    let (mut orphan, mut foreground) = (false, false);
    for finalizer in list(metadata, "finalizers").iter().filter_map(Value::as_str) {
        invalid_if(is_qualified_name(finalizer), "metadata.finalizers", finalizer, errors);
        match finalizer {
            "orphan" => orphan = true,
            "foregroundDeletion" => foreground = true,
            "kubernetes" => {}
            other if other.contains('/') => {}
            other => {
                let detail = "name is neither a standard finalizer name nor is it fully qualified";
                errors.push(FieldError::invalid("metadata.finalizers", other, detail));
            }
        }
    }
    if orphan && foreground {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(
            "metadata.finalizers",
            metadata["finalizers"].clone(),
            detail,
        ));
    }
}

fn update(new: &Value, old: &Value, errors: &mut Errors) {
    for name in ["name", "namespace", "uid", "creationTimestamp"] {
        if has(new, name) && has(old, name) {
            immutable(&new[name], &old[name], &format!("metadata.{name}"), errors);
        }
    }
    if has(old, "deletionTimestamp") {
        let before = list(old, "finalizers");
        let added: Vec<_> = list(new, "finalizers")
            .iter()
            .filter(|finalizer| !before.contains(finalizer))
            .collect();
        if !added.is_empty() {
            let added = added
                .iter()
                .map(|finalizer| finalizer.to_string())
                .collect::<Vec<_>>()
                .join(", ");
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers [{added}]"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
}

/// A `LabelSelector`.
pub(super) fn label_selector(selector: &Value, path: &str, errors: &mut Errors) {
    labels(selector, &format!("{path}.matchLabels"), "matchLabels", errors);
    for (index, requirement) in list(selector, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let values = list(requirement, "values");
        match text(requirement, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(format!("{path}.values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{path}.values"), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(FieldError::invalid(
                    format!("{path}.operator"),
                    other,
                    "not a valid selector operator",
                ));
            }
        }
        let key = text(requirement, "key");
        invalid_if(is_qualified_name(key), format!("{path}.key"), key, errors);
        for (index, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            invalid_if(is_label_value(value), format!("{path}.values[{index}]"), value, errors);
        }
    }
}

/// Whether a `LabelSelector` selects nothing in particular.
pub(super) fn is_empty(selector: &Value) -> bool {
    map(selector, "matchLabels").next().is_none() && list(selector, "matchExpressions").is_empty()
}

/// Whether a `LabelSelector` matches the labels in `metadata`.
pub(super) fn matches(selector: &Value, metadata: &Value) -> bool {
    let label = |key: &str| metadata["labels"][key].as_str();
    map(selector, "matchLabels").all(|(key, value)| label(key) == value.as_str())
        && list(selector, "matchExpressions").iter().all(|requirement| {
            let found = label(text(requirement, "key"));
            let listed = list(requirement, "values")
                .iter()
                .any(|value| found.is_some() && value.as_str() == found);
            match text(requirement, "operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(metadata: Value, old: Option<Value>) -> Vec<String> {
        let old = old.map(|old| json!({"metadata": old}));
        let errors = object(&json!({"metadata": metadata}), old.as_ref(), NameRule::Subdomain, true);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_are_required_and_checked() {
        assert_eq!(
            check(json!({"namespace": "n"}), None),
            ["metadata.name: Required value: name or generateName is required"]
        );
        let errors = check(json!({"name": "A_b", "namespace": "n"}), None);
        assert!(
            errors[0].starts_with("metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain"),
            "{errors:?}"
        );
        assert_eq!(
            check(json!({"name": "a", "generateName": "a-", "namespace": "n"}), None),
            Vec::<String>::new()
        );
        let errors = object(
            &json!({"metadata": {"name": "a", "namespace": "n"}}),
            None,
            NameRule::Label,
            false,
        );
        assert_eq!(
            errors[0].to_string(),
            "metadata.namespace: Forbidden: not allowed on this type"
        );
    }

    #[test]
    fn labels_annotations_owners_and_finalizers() {
        let metadata = json!({
            "name": "a", "namespace": "n", "labels": {"-x": "ok", "y": "not ok"},
            "annotations": {"a": "x".repeat(300_000)}, "finalizers": ["mine"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "controller": true},
                {"apiVersion": "v1", "kind": "Pod", "name": "q", "uid": "u", "controller": true}],
        });
        let errors = check(metadata, None).join("\n");
        for part in [
            "metadata.labels: Invalid value: \"-x\"",
            "metadata.labels: Invalid value: \"not ok\"",
            "metadata.annotations: Too long: may not be more than 262144 bytes",
            "metadata.ownerReferences[0].uid: Invalid value: \"\": must not be empty",
            "Only one reference can have Controller set to true",
            "metadata.finalizers: Invalid value: \"mine\": name is neither",
        ] {
            assert!(errors.contains(part), "{part} in {errors}");
        }
    }

    #[test]
    fn identity_does_not_change() {
        let errors = check(
            json!({"name": "a", "namespace": "n", "uid": "2", "finalizers": ["a/b"]}),
            Some(json!({"name": "a", "uid": "1", "deletionTimestamp": "t"})),
        );
        assert_eq!(errors[0], "metadata.uid: Invalid value: \"2\": field is immutable");
        assert!(errors[1].contains("no new finalizers can be added"), "{errors:?}");
    }

    #[test]
    fn selectors() {
        let selector = json!({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["2"]}]});
        assert!(matches(&selector, &json!({"labels": {"a": "1"}})));
        assert!(!matches(&selector, &json!({"labels": {"a": "1", "b": "2"}})));
        let mut errors = Errors::new();
        label_selector(
            &json!({"matchExpressions": [{"key": "b", "operator": "In"}, {"key": "", "operator": "X"}]}),
            "spec.selector",
            &mut errors,
        );
        assert_eq!(errors.len(), 3, "{errors:?}");
    }
}
