//! Validation of probes and lifecycle hooks.

use serde_json::Value;

use super::super::error::FieldError;
use super::{Errors, has, list, not_negative, one_of, port_or_name, require};

/// Validates a probe; `name` is `livenessProbe`, `readinessProbe` or `startupProbe`.
pub(super) fn probe(probe: &Value, path: &str, name: &str, errors: &mut Errors) {
    handler(probe, path, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for number in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        not_negative(probe, path, number, errors);
    }
    if name != "readinessProbe"
        && let Some(number) = probe["successThreshold"].as_i64().filter(|number| *number != 1)
    {
        errors.push(FieldError::invalid(
            format!("{path}.successThreshold"),
            number,
            "must be 1",
        ));
    }
    if let Some(grace) = probe["terminationGracePeriodSeconds"].as_i64() {
        let path = format!("{path}.terminationGracePeriodSeconds");
        if name == "readinessProbe" {
            errors.push(FieldError::invalid(path, grace, "must not be set for readinessProbes"));
        } else if grace <= 0 {
            errors.push(FieldError::invalid(path, grace, "must be greater than 0"));
        }
    }
}

/// Validates `postStart` and `preStop`.
pub(super) fn lifecycle(lifecycle: &Value, path: &str, errors: &mut Errors) {
    for hook in ["postStart", "preStop"].iter().filter(|hook| has(lifecycle, hook)) {
        handler(
            &lifecycle[*hook],
            &format!("{path}.{hook}"),
            &["exec", "httpGet", "tcpSocket", "sleep"],
            errors,
        );
    }
}

/// Exactly one of the handlers, and that one valid.
fn handler(holder: &Value, path: &str, handlers: &[&str], errors: &mut Errors) {
    let mut first = true;
    for name in handlers.iter().filter(|name| has(holder, name)) {
        let (action, path) = (&holder[*name], format!("{path}.{name}"));
        if !first {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        first = false;
        match *name {
            "exec" if list(action, "command").is_empty() => {
                errors.push(FieldError::required(format!("{path}.command"), ""));
            }
            "httpGet" => http_get(action, &path, errors),
            "tcpSocket" => port_or_name(&action["port"], format!("{path}.port"), errors),
            "grpc" if !action["port"].as_i64().is_some_and(|port| (1..=65535).contains(&port)) => {
                errors.push(FieldError::invalid(
                    format!("{path}.port"),
                    action["port"].clone(),
                    super::PORT_RANGE,
                ));
            }
            "sleep" => not_negative(action, &path, "seconds", errors),
            _ => {}
        }
    }
    if first {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn http_get(action: &Value, path: &str, errors: &mut Errors) {
    require(action, path, "path", errors);
    port_or_name(&action["port"], format!("{path}.port"), errors);
    one_of(action, path, "scheme", &["HTTP", "HTTPS"], errors);
    for (index, header) in list(action, "httpHeaders").iter().enumerate() {
        let name = super::text(header, "name");
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(valid) {
            let detail = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
            errors.push(FieldError::invalid(
                format!("{path}.httpHeaders[{index}].name"),
                name,
                detail,
            ));
        }
    }
}
