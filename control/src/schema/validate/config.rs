//! Validation of config maps and secrets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::is_config_key;
use super::super::resource::NameRule;
use super::{Errors, flag, has, immutable, invalid_if, map, meta, same, text};

/// Bytes of all values together.
const MAX_BYTES: usize = 1 << 20;
const NOT_ONCE_IMMUTABLE: &str = "field is immutable when `immutable` is set";

/// Validates a ConfigMap.
pub(in super::super) fn config_map(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    let mut size = 0;
    for name in ["data", "binaryData"] {
        for (key, value) in map(object, name) {
            let path = format!("{name}[{key}]");
            invalid_if(is_config_key(key), path.as_str(), key, &mut errors);
            if name == "data" && object["binaryData"].get(key).is_some() {
                errors.push(FieldError::invalid(
                    path,
                    key.as_str(),
                    "duplicate of key present in binaryData",
                ));
            }
            size += bytes(value.as_str().unwrap_or_default(), name == "binaryData");
        }
    }
    if size > MAX_BYTES {
        errors.push(FieldError::too_long("", MAX_BYTES));
    }
    frozen(object, old, &["data", "binaryData"], &mut errors);
    errors
}

/// Validates a Secret.
pub(in super::super) fn secret(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    let mut size = 0;
    for (key, value) in map(object, "data") {
        invalid_if(is_config_key(key), format!("data[{key}]"), key, &mut errors);
        size += bytes(value.as_str().unwrap_or_default(), true);
    }
    if size > MAX_BYTES {
        errors.push(FieldError::too_long("data", MAX_BYTES));
    }
    well_known_type(object, &mut errors);
    if let Some(old) = old {
        immutable(&object["type"], &old["type"], "type", &mut errors);
    }
    frozen(object, old, &["data"], &mut errors);
    errors
}

fn bytes(text: &str, base64: bool) -> usize {
    if base64 {
        text.trim_end_matches('=').len() * 3 / 4
    } else {
        text.len()
    }
}

/// Keys that the well-known types promise.
fn well_known_type(object: &Value, errors: &mut Errors) {
    let data = &object["data"];
    let mut need = |key: &str| {
        if data.get(key).is_none() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match text(object, "type") {
        "kubernetes.io/tls" => ["tls.crt", "tls.key"].into_iter().for_each(need),
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/dockerconfigjson" => {
            need(".dockerconfigjson");
            json_value(data, ".dockerconfigjson", errors);
        }
        "kubernetes.io/dockercfg" => {
            need(".dockercfg");
            json_value(data, ".dockercfg", errors);
        }
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            errors.push(FieldError::required("data[username]", ""));
            errors.push(FieldError::required("data[password]", ""));
        }
        "kubernetes.io/service-account-token" => {
            let account = &object["metadata"]["annotations"]["kubernetes.io/service-account.name"];
            if account.as_str().unwrap_or_default().is_empty() {
                let path = "metadata.annotations[kubernetes.io/service-account.name]";
                errors.push(FieldError::required(path, ""));
            }
        }
        _ => {}
    }
}

fn json_value(data: &Value, key: &str, errors: &mut Errors) {
    let Some(text) = data[key].as_str() else { return };
    let decoded = STANDARD.decode(text).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&decoded) {
        errors.push(FieldError::invalid(
            format!("data[{key}]"),
            "<secret contents redacted>",
            error.to_string(),
        ));
    }
}

/// Once `immutable`, always immutable, and so the data.
fn frozen(new: &Value, old: Option<&Value>, fields: &[&str], errors: &mut Errors) {
    let Some(old) = old.filter(|old| flag(old, "immutable")) else {
        return;
    };
    if !has(new, "immutable") || !flag(new, "immutable") {
        errors.push(FieldError::forbidden("immutable", NOT_ONCE_IMMUTABLE));
    }
    for name in fields {
        if !same(&new[*name], &old[*name]) {
            errors.push(FieldError::forbidden(*name, NOT_ONCE_IMMUTABLE));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(fields: Value) -> Value {
        let mut object = json!({"metadata": {"name": "a", "namespace": "n"}});
        object
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        object
    }

    fn texts(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_and_size_of_config_maps() {
        assert!(config_map(&with(json!({"data": {"a.b_c-D": "x"}})), None).is_empty());
        let errors = texts(config_map(
            &with(json!({"data": {"a/b": "x", "c": ""}, "binaryData": {"c": ""}})),
            None,
        ));
        assert!(
            errors[0].starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key"),
            "{errors:?}"
        );
        assert_eq!(
            errors[1],
            "data[c]: Invalid value: \"c\": duplicate of key present in binaryData"
        );
        let errors = texts(config_map(
            &with(json!({"data": {"a": "x".repeat(MAX_BYTES + 1)}})),
            None,
        ));
        assert!(
            errors[0].contains("Too long: may not be more than 1048576 bytes"),
            "{errors:?}"
        );
    }

    #[test]
    fn immutability_cannot_be_undone() {
        let old = with(json!({"data": {"a": "1"}, "immutable": true}));
        assert!(config_map(&old, Some(&old)).is_empty());
        let errors = texts(config_map(&with(json!({"data": {"a": "2"}})), Some(&old)));
        assert_eq!(
            errors,
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
    }

    #[test]
    fn secret_types() {
        let errors = texts(secret(
            &with(json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})),
            None,
        ));
        assert_eq!(errors, ["data[tls.key]: Required value"]);
        let docker = with(json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "eA=="}}));
        assert!(texts(secret(&docker, None))[0].contains("<secret contents redacted>"));
        let errors = texts(secret(&with(json!({"type": "b"})), Some(&with(json!({"type": "a"})))));
        assert_eq!(errors, ["type: Invalid value: \"b\": field is immutable"]);
    }
}
