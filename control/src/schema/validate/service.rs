//! Validation of services, endpoints and endpoint slices.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::{is_label, is_port_name, is_subdomain};
use super::super::resource::NameRule;
use super::{Errors, PORT_RANGE, immutable, invalid_if, list, meta, one_of, port_or_name, require, text};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const BAD_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const MAX_AFFINITY_SECONDS: i64 = 86_400;
const MAX_SLICE_ENDPOINTS: usize = 1000;
const MAX_SLICE_PORTS: usize = 20_000;

/// Validates a Service.
pub(in super::super) fn service(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Label1035, true);
    let spec = &object["spec"];
    let kind = text(spec, "type");
    if kind.is_empty() {
        errors.push(FieldError::required("spec.type", ""));
    }
    one_of(spec, "spec", "type", TYPES, &mut errors);
    let headless = text(spec, "clusterIP") == "None";
    if list(spec, "ports").is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    ports(spec, kind, &mut errors);
    meta::labels(spec, "spec.selector", "selector", &mut errors);
    by_type(spec, kind, headless, &mut errors);
    affinity(spec, &mut errors);
    for (name, values) in [
        ("externalTrafficPolicy", &["Cluster", "Local"]),
        ("internalTrafficPolicy", &["Cluster", "Local"]),
    ] {
        one_of(spec, "spec", name, values, &mut errors);
    }
    one_of(
        spec,
        "spec",
        "ipFamilyPolicy",
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
        &mut errors,
    );
    addresses(spec, &mut errors);
    if let Some(old) = old {
        cluster_ip_update(spec, &old["spec"], &mut errors);
    }
    errors
}

fn ports(spec: &Value, kind: &str, errors: &mut Errors) {
    let ports = list(spec, "ports");
    let (mut names, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            invalid_if(is_label(name), format!("{path}.name"), name, errors);
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        } else if ports.len() > 1 {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        let number = port["port"].as_i64().unwrap_or(0);
        if !(1..=65535).contains(&number) {
            errors.push(FieldError::invalid(format!("{path}.port"), number, PORT_RANGE));
        }
        let protocol = text(port, "protocol");
        if require(port, &path, "protocol", errors) {
            one_of(port, &path, "protocol", PROTOCOLS, errors);
        }
        if !port["targetPort"].is_null() {
            port_or_name(&port["targetPort"], format!("{path}.targetPort"), errors);
        }
        if !numbers.insert((protocol, number)) {
            errors.push(FieldError::duplicate(path.as_str(), port.clone()));
        }
        let node_port = port["nodePort"].as_i64().unwrap_or(0);
        if node_port != 0 && matches!(kind, "ClusterIP" | "ExternalName") {
            let detail = format!("may not be used when `type` is '{kind}'");
            errors.push(FieldError::forbidden(format!("{path}.nodePort"), detail));
        } else if node_port != 0 && !node_ports.insert((protocol, node_port)) {
            errors.push(FieldError::duplicate(format!("{path}.nodePort"), node_port));
        }
    }
}

fn by_type(spec: &Value, kind: &str, headless: bool, errors: &mut Errors) {
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", detail));
        }
        "ExternalName" => {
            let name = text(spec, "externalName");
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                errors.push(FieldError::required("spec.externalName", ""));
            } else {
                invalid_if(
                    is_subdomain(name),
                    "spec.externalName",
                    text(spec, "externalName"),
                    errors,
                );
            }
            if !matches!(text(spec, "clusterIP"), "") {
                let detail = "may not be set for ExternalName services";
                errors.push(FieldError::forbidden("spec.clusterIPs", detail));
            }
        }
        _ => {}
    }
    if !text(spec, "externalTrafficPolicy").is_empty()
        && matches!(kind, "ClusterIP" | "ExternalName")
        && list(spec, "externalIPs").is_empty()
    {
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(
            "spec.externalTrafficPolicy",
            text(spec, "externalTrafficPolicy"),
            detail,
        ));
    }
}

fn affinity(spec: &Value, errors: &mut Errors) {
    if require(spec, "spec", "sessionAffinity", errors) {
        one_of(spec, "spec", "sessionAffinity", &["ClientIP", "None"], errors);
    }
    if text(spec, "sessionAffinity") != "ClientIP" {
        return;
    }
    let seconds = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]
        .as_i64()
        .unwrap_or(0);
    if !(1..=MAX_AFFINITY_SECONDS).contains(&seconds) {
        let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
        errors.push(FieldError::invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            seconds,
            detail,
        ));
    }
}

fn addresses(spec: &Value, errors: &mut Errors) {
    let cluster_ip = text(spec, "clusterIP");
    let cluster_ips = list(spec, "clusterIPs");
    if !matches!(cluster_ip, "" | "None") && cluster_ip.parse::<IpAddr>().is_err() {
        errors.push(FieldError::invalid("spec.clusterIPs[0]", cluster_ip, BAD_ADDRESS));
    }
    if let (Some(first), false) = (cluster_ips.first().and_then(Value::as_str), cluster_ip.is_empty())
        && first != cluster_ip
    {
        let detail = "first value must match `clusterIP`";
        errors.push(FieldError::invalid(
            "spec.clusterIPs",
            spec["clusterIPs"].clone(),
            detail,
        ));
    }
    for (index, address) in list(spec, "externalIPs").iter().enumerate() {
        let path = format!("spec.externalIPs[{index}]");
        match address.as_str().unwrap_or_default().parse::<IpAddr>() {
            Ok(parsed) if parsed.is_loopback() || parsed.is_unspecified() || parsed.is_multicast() => {
                let detail = "may not be in the loopback, unspecified or multicast range";
                errors.push(FieldError::invalid(path, address.clone(), detail));
            }
            Ok(_) => {}
            Err(_) => errors.push(FieldError::invalid(path, address.clone(), BAD_ADDRESS)),
        }
    }
}

/// An address once given stays, unless the service turns into or from an external name.
fn cluster_ip_update(new: &Value, old: &Value, errors: &mut Errors) {
    let external = |spec: &Value| text(spec, "type") == "ExternalName";
    if external(new) || external(old) || text(old, "clusterIP").is_empty() {
        return;
    }
    if text(new, "clusterIP") != text(old, "clusterIP") {
        let path = "spec.clusterIPs[0]";
        errors.push(FieldError::invalid(
            path,
            new["clusterIPs"].clone(),
            "may not change once set",
        ));
    }
}

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
        slice_endpoint(endpoint, kind, &format!("endpoints[{index}]"), &mut errors);
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
    }
    errors
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

fn endpoint_address(address: &str, path: &str, errors: &mut Errors) {
    let Ok(parsed) = address.parse::<IpAddr>() else {
        errors.push(FieldError::invalid(path, address, BAD_ADDRESS));
        return;
    };
    let link_local = match parsed {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let detail = if parsed.is_unspecified() {
        "may not be unspecified (0.0.0.0)"
    } else if parsed.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)"
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
    } else if parsed.is_multicast() {
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
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::default;
    use super::*;

    fn object(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec});
        default::service::service(&mut object);
        object
    }

    fn check(spec: Value) -> Vec<String> {
        service(&object(spec), None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn services() {
        assert_eq!(check(json!({"ports": [{"port": 80}]})), Vec::<String>::new());
        assert_eq!(check(json!({})), ["spec.ports: Required value"]);
        assert_eq!(check(json!({"clusterIP": "None"})), Vec::<String>::new());
        assert_eq!(
            check(json!({"type": "Foo", "ports": [{"port": 80}]})),
            [
                "spec.type: Unsupported value: \"Foo\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""
            ]
        );
        assert_eq!(
            check(json!({"ports": [{"port": 0, "targetPort": 1}]})),
            ["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"]
        );
        assert_eq!(
            check(json!({"ports": [{"port": 1}, {"port": 2, "name": "b"}]})),
            ["spec.ports[0].name: Required value"]
        );
        assert_eq!(
            check(json!({"ports": [{"port": 1, "nodePort": 30000}]})),
            ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]
        );
        assert_eq!(
            check(json!({"type": "ExternalName"})),
            ["spec.externalName: Required value"]
        );
    }

    #[test]
    fn the_cluster_ip_stays() {
        let old = object(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
        let new = object(json!({"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"], "ports": [{"port": 80}]}));
        let errors = service(&new, Some(&old));
        assert_eq!(
            errors[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: [\"10.96.0.2\"]: may not change once set"
        );
    }

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
