//! Validation of roles and role bindings.

use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::is_subdomain;
use super::super::resource::NameRule;
use super::{Errors, immutable, invalid_if, list, meta, require, text};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Validates a Role.
pub(in super::super) fn role(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::PathSegment, true);
    rules(object, true, &mut errors);
    errors
}

/// Validates a ClusterRole.
pub(in super::super) fn cluster_role(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::PathSegment, false);
    rules(object, false, &mut errors);
    for (index, selector) in list(&object["aggregationRule"], "clusterRoleSelectors")
        .iter()
        .enumerate()
    {
        meta::label_selector(
            selector,
            &format!("aggregationRule.clusterRoleSelectors[{index}]"),
            &mut errors,
        );
    }
    errors
}

/// Validates a RoleBinding.
pub(in super::super) fn role_binding(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::PathSegment, true);
    binding(object, old, &["ClusterRole", "Role"], true, &mut errors);
    errors
}

/// Validates a ClusterRoleBinding.
pub(in super::super) fn cluster_role_binding(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::PathSegment, false);
    binding(object, old, &["ClusterRole"], false, &mut errors);
    errors
}

fn rules(object: &Value, namespaced: bool, errors: &mut Errors) {
    for (index, rule) in list(object, "rules").iter().enumerate() {
        let path = format!("rules[{index}]");
        if list(rule, "verbs").is_empty() {
            errors.push(FieldError::required(
                format!("{path}.verbs"),
                "verbs must contain at least one value",
            ));
        }
        if !list(rule, "nonResourceURLs").is_empty() {
            let field = format!("{path}.nonResourceURLs");
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(field, rule["nonResourceURLs"].clone(), detail));
            } else if ["apiGroups", "resources", "resourceNames"]
                .iter()
                .any(|name| !list(rule, name).is_empty())
            {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(field, rule["nonResourceURLs"].clone(), detail));
            }
            continue;
        }
        if list(rule, "apiGroups").is_empty() {
            let detail = "resource rules must supply at least one api group";
            errors.push(FieldError::required(format!("{path}.apiGroups"), detail));
        }
        if list(rule, "resources").is_empty() {
            let detail = "resource rules must supply at least one resource";
            errors.push(FieldError::required(format!("{path}.resources"), detail));
        }
    }
}

fn binding(object: &Value, old: Option<&Value>, kinds: &[&str], namespaced: bool, errors: &mut Errors) {
    let role = &object["roleRef"];
    if text(role, "apiGroup") != GROUP {
        errors.push(FieldError::not_supported(
            "roleRef.apiGroup",
            text(role, "apiGroup"),
            &[GROUP],
        ));
    }
    if !kinds.contains(&text(role, "kind")) {
        errors.push(FieldError::not_supported("roleRef.kind", text(role, "kind"), kinds));
    }
    if require(role, "roleRef", "name", errors) {
        let name = text(role, "name");
        invalid_if(
            super::super::name::is_name(NameRule::PathSegment, name),
            "roleRef.name",
            name,
            errors,
        );
    }
    for (index, value) in list(object, "subjects").iter().enumerate() {
        subject(value, &format!("subjects[{index}]"), namespaced, errors);
    }
    if let Some(old) = old
        && !super::same(role, &old["roleRef"])
    {
        errors.push(FieldError::invalid("roleRef", role.clone(), "cannot change roleRef"));
    }
    if let Some(old) = old {
        immutable(&object["kind"], &old["kind"], "kind", errors);
    }
}

fn subject(subject: &Value, path: &str, namespaced: bool, errors: &mut Errors) {
    require(subject, path, "name", errors);
    let group = text(subject, "apiGroup");
    match text(subject, "kind") {
        "ServiceAccount" => {
            let name = text(subject, "name");
            if !name.is_empty() {
                invalid_if(is_subdomain(name), format!("{path}.name"), name, errors);
            }
            if !group.is_empty() {
                errors.push(FieldError::not_supported(format!("{path}.apiGroup"), group, &[""]));
            }
            if !namespaced || text(subject, "namespace").is_empty() {
                require(subject, path, "namespace", errors);
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(FieldError::not_supported(format!("{path}.apiGroup"), group, &[GROUP]));
            }
        }
        kind => {
            let supported = ["ServiceAccount", "User", "Group"];
            errors.push(FieldError::not_supported(format!("{path}.kind"), kind, &supported));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_need_verbs_groups_and_resources() {
        let object = json!({"metadata": {"name": "system:x", "namespace": "n"}, "rules": [
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}, {"verbs": []}, {"verbs": ["get"], "nonResourceURLs": ["/x"]},
        ]});
        assert_eq!(
            texts(role(&object, None)),
            [
                "rules[1].verbs: Required value: verbs must contain at least one value",
                "rules[1].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[1].resources: Required value: resource rules must supply at least one resource",
                "rules[2].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
            ]
        );
    }

    #[test]
    fn the_role_of_a_binding_is_immutable() {
        let object = |name: &str| {
            json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": "s"}, {"kind": "User", "name": "u", "apiGroup": GROUP}]})
        };
        let errors = texts(cluster_role_binding(&object("y"), Some(&object("x"))));
        assert_eq!(errors[0], "subjects[0].namespace: Required value");
        assert!(
            errors[1].starts_with("roleRef: Invalid value: {") && errors[1].ends_with("cannot change roleRef"),
            "{errors:?}"
        );
    }
}
