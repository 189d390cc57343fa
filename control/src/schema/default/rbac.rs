//! Defaults of role bindings.

use serde_json::Value;

use super::{fill_text, items};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Roles, users and groups are of the RBAC group; service accounts of the core group.
pub(in super::super) fn binding(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    if let Some(role) = fields.get_mut("roleRef").and_then(Value::as_object_mut) {
        fill_text(role, "apiGroup", GROUP);
    }
    for subject in items(fields, "subjects") {
        if matches!(subject.get("kind").and_then(Value::as_str), Some("User" | "Group")) {
            fill_text(subject, "apiGroup", GROUP);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn api_groups_by_kind() {
        let mut object = json!({"roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
        binding(&mut object);
        assert_eq!(object["roleRef"]["apiGroup"], GROUP);
        assert_eq!(object["subjects"][0]["apiGroup"], GROUP);
        assert!(object["subjects"][1].get("apiGroup").is_none());
    }
}
