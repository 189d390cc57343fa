//! Validation of Endpoints and EndpointSlices.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::{is_label, is_label_value, is_port_name, is_subdomain};
use super::super::resource::NameRule;
use super::service::{BAD_ADDRESS, PROTOCOLS, app_protocol};
use super::{Errors, PORT_RANGE, immutable, invalid_if, list, meta, one_of, text};

const MAX_SLICE_ENDPOINTS: usize = 1000;
const MAX_SLICE_PORTS: usize = 20_000;
/// Zones and nodes an endpoint can be meant for.
const MAX_HINTS: usize = 8;

/// Validates Endpoints.
pub(in super::super) fn endpoints(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    for (index, subset) in list(object, "subsets").iter().enumerate() {
        let path = format!("subsets[{index}]");
        if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty() {
            errors.push(FieldError::required(
                path.as_str(),
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for name in ["addresses", "notReadyAddresses"] {
            for (index, address) in list(subset, name).iter().enumerate() {
                endpoint_address(text(address, "ip"), &format!("{path}.{name}[{index}].ip"), &mut errors);
            }
        }
        endpoint_ports(subset, &path, &mut errors);
    }
    errors
}

/// Validates an EndpointSlice.
pub(in super::super) fn endpoint_slice(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    let kind = text(object, "addressType");
    if kind.is_empty() {
        errors.push(FieldError::required("addressType", ""));
    } else if !matches!(kind, "IPv4" | "IPv6" | "FQDN") {
        errors.push(FieldError::not_supported(
            "addressType",
            kind,
            &["FQDN", "IPv4", "IPv6"],
        ));
    }
    if let Some(old) = old {
        immutable(&object["addressType"], &old["addressType"], "addressType", &mut errors);
    }
    let endpoints = list(object, "endpoints");
    if endpoints.len() > MAX_SLICE_ENDPOINTS {
        errors.push(FieldError::too_many("endpoints", endpoints.len(), MAX_SLICE_ENDPOINTS));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = format!("endpoints[{index}]");
        slice_endpoint(endpoint, kind, &path, &mut errors);
        whereabouts(endpoint, &path, &mut errors);
    }
    let ports = list(object, "ports");
    if ports.len() > MAX_SLICE_PORTS {
        errors.push(FieldError::too_many("ports", ports.len(), MAX_SLICE_PORTS));
    }
    let mut names = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            invalid_if(is_label(name), format!("{path}.name"), name, &mut errors);
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        one_of(port, &path, "protocol", PROTOCOLS, &mut errors);
        app_protocol(port, &path, &mut errors);
    }
    errors
}

fn whereabouts(endpoint: &Value, path: &str, errors: &mut Errors) {
    let (node, hostname) = (text(endpoint, "nodeName"), text(endpoint, "hostname"));
    if !node.is_empty() {
        invalid_if(is_subdomain(node), format!("{path}.nodeName"), node, errors);
    }
    if !hostname.is_empty() {
        invalid_if(is_label(hostname), format!("{path}.hostname"), hostname, errors);
    }
    for name in ["forZones", "forNodes"] {
        let hints = list(&endpoint["hints"], name);
        let path = format!("{path}.hints.{name}");
        if hints.len() > MAX_HINTS {
            errors.push(FieldError::too_many(path.as_str(), hints.len(), MAX_HINTS));
            continue;
        }
        let mut seen = HashSet::new();
        for (index, hint) in hints.iter().enumerate() {
            let (path, hint) = (format!("{path}[{index}].name"), text(hint, "name"));
            if !seen.insert(hint) {
                errors.push(FieldError::duplicate(path.as_str(), hint));
            }
            invalid_if(is_label_value(hint), path, hint, errors);
        }
    }
}

fn slice_endpoint(endpoint: &Value, kind: &str, path: &str, errors: &mut Errors) {
    let addresses = list(endpoint, "addresses");
    let path = format!("{path}.addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(path.as_str(), "must contain at least 1 address"));
    }
    if addresses.len() > 100 {
        errors.push(FieldError::too_many(path.as_str(), addresses.len(), 100));
    }
    for (index, address) in addresses.iter().enumerate() {
        let (address, path) = (address.as_str().unwrap_or_default(), format!("{path}[{index}]"));
        let parsed = address.parse::<IpAddr>();
        match (kind, parsed) {
            ("FQDN", _) => invalid_if(is_subdomain(address), path, address, errors),
            ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => endpoint_address(address, &path, errors),
            ("IPv4", _) => errors.push(FieldError::invalid(path, address, "must be an IPv4 address")),
            ("IPv6", _) => errors.push(FieldError::invalid(path, address, "must be an IPv6 address")),
            _ => {}
        }
    }
}

/// An address that traffic can be sent to from anywhere (`ValidateNonSpecialIP`).
pub(super) fn endpoint_address(address: &str, path: &str, errors: &mut Errors) {
    let Ok(parsed) = address.parse::<IpAddr>() else {
        errors.push(FieldError::invalid(path, address, BAD_ADDRESS));
        return;
    };
    let (link_local, link_local_multicast) = match parsed {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if parsed.is_unspecified() {
        let detail = format!("may not be unspecified ({address})");
        return errors.push(FieldError::invalid(path, address, detail));
    }
    let detail = if parsed.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)"
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
    } else if link_local_multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
    } else {
        return;
    };
    errors.push(FieldError::invalid(path, address, detail));
}

fn endpoint_ports(subset: &Value, path: &str, errors: &mut Errors) {
    let ports = list(subset, "ports");
    for (index, port) in ports.iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = text(port, "name");
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !name.is_empty() {
            let valid = is_label(name).or_else(|message| is_port_name(name).map_err(|_| message));
            invalid_if(valid, format!("{path}.name"), name, errors);
        }
        let number = port["port"].as_i64().unwrap_or(0);
        if !(1..=65535).contains(&number) {
            errors.push(FieldError::invalid(format!("{path}.port"), number, PORT_RANGE));
        }
        one_of(port, &path, "protocol", PROTOCOLS, errors);
        app_protocol(port, &path, errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endpoint_addresses() {
        let slice = |address: &str| {
            let object = json!({"metadata": {"name": "s", "namespace": "n"}, "addressType": "IPv4", "endpoints": [{"addresses": [address]}]});
            endpoint_slice(&object, None)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert!(slice("10.0.0.1").is_empty());
        assert!(slice("127.0.0.1")[0].contains("loopback"));
        assert!(slice("::1")[0].contains("must be an IPv4 address"));
    }
}
