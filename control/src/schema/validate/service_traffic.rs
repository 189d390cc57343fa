//! Validation of where a service's traffic may come from and go to: policies, distribution, what load balancers need.

use std::net::IpAddr;

use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::is_qualified_name;
use super::service::TYPES;
use super::{Errors, PORT_RANGE, has, invalid_if, list, one_of, require, text};

const BAD_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const POLICIES: &[&str] = &["Cluster", "Local"];
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameNode", "PreferSameZone"];
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Validates everything about the traffic of a Service of type `kind`.
pub(super) fn service(object: &Value, old: Option<&Value>, kind: &str, errors: &mut Errors) {
    balancer(object, old, kind, errors);
    policies(&object["spec"], old, kind, errors);
}

/// What only a load balancer has.
fn balancer(object: &Value, old: Option<&Value>, kind: &str, errors: &mut Errors) {
    let (spec, is_balancer) = (&object["spec"], kind == "LoadBalancer");
    let only = "may only be used when `type` is 'LoadBalancer'";
    source_ranges(object, is_balancer, only, errors);
    let allocate = has(spec, "allocateLoadBalancerNodePorts");
    if allocate && !is_balancer {
        errors.push(FieldError::forbidden("spec.allocateLoadBalancerNodePorts", only));
    } else if !allocate && is_balancer {
        errors.push(FieldError::required("spec.allocateLoadBalancerNodePorts", ""));
    }
    let (path, class) = ("spec.loadBalancerClass", &spec["loadBalancerClass"]);
    let was_balancer = old.is_some_and(|old| text(&old["spec"], "type") == "LoadBalancer");
    if let Some(old) = old.filter(|_| was_balancer && is_balancer)
        && old["spec"]["loadBalancerClass"] != *class
    {
        errors.push(FieldError::invalid(path, class.clone(), "may not change once set"));
    }
    match class.as_str() {
        Some(class) if is_balancer => invalid_if(is_qualified_name(class), path, class, errors),
        Some(_) => errors.push(FieldError::forbidden(path, only)),
        None => {}
    }
}

/// The field, else the annotation that was there before it. Spaces around a range have always been allowed.
fn source_ranges(object: &Value, is_balancer: bool, only: &str, errors: &mut Errors) {
    let listed = list(&object["spec"], "loadBalancerSourceRanges");
    let annotation = object["metadata"]["annotations"][SOURCE_RANGES].as_str();
    let (path, ranges): (_, Vec<&str>) = match annotation {
        _ if !listed.is_empty() => (
            "spec.LoadBalancerSourceRanges".to_owned(),
            listed.iter().filter_map(Value::as_str).collect(),
        ),
        Some(text) => (
            format!("metadata.annotations[{SOURCE_RANGES}]"),
            text.split(',').filter(|_| !text.trim().is_empty()).collect(),
        ),
        None => return,
    };
    if !is_balancer {
        errors.push(FieldError::forbidden(path.as_str(), only));
    }
    for (index, range) in ranges.iter().map(|range| range.trim()).enumerate() {
        if !is_network(range) {
            let path = if listed.is_empty() {
                path.clone()
            } else {
                format!("{path}[{index}]")
            };
            errors.push(FieldError::invalid(path, range, BAD_CIDR));
        }
    }
}

fn is_network(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else {
        return false;
    };
    match (address.parse::<IpAddr>(), prefix.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(prefix)) => prefix <= 32,
        (Ok(IpAddr::V6(_)), Ok(prefix)) => prefix <= 128,
        _ => false,
    }
}

/// Where traffic may go, and on which port a load balancer asks.
fn policies(spec: &Value, old: Option<&Value>, kind: &str, errors: &mut Errors) {
    let from_outside = match kind {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !list(spec, "externalIPs").is_empty(),
        _ => false,
    };
    let external = text(spec, "externalTrafficPolicy");
    if !from_outside && !external.is_empty() {
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", external, detail));
    } else if from_outside && require(spec, "spec", "externalTrafficPolicy", errors) {
        one_of(spec, "spec", "externalTrafficPolicy", POLICIES, errors);
    }
    let needs_port =
        |spec: &Value| text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local";
    let (path, port) = (
        "spec.healthCheckNodePort",
        spec["healthCheckNodePort"].as_i64().unwrap_or(0),
    );
    if !needs_port(spec) && port != 0 {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(path, port, detail));
    } else if port != 0 && !(1..=65535).contains(&port) {
        errors.push(FieldError::invalid(path, port, PORT_RANGE));
    }
    if let Some(old) = old.map(|old| &old["spec"])
        && needs_port(old)
        && needs_port(spec)
        && old["healthCheckNodePort"].as_i64().unwrap_or(0) != port
    {
        errors.push(FieldError::forbidden(path, "field is immutable"));
    }
    if kind != "ExternalName" && TYPES.contains(&kind) {
        require(spec, "spec", "internalTrafficPolicy", errors);
    }
    one_of(spec, "spec", "internalTrafficPolicy", POLICIES, errors);
    one_of(spec, "spec", "trafficDistribution", DISTRIBUTIONS, errors);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::default;
    use super::*;

    fn object(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec});
        default::service::on_create(&mut object);
        default::service::service(&mut object);
        object
    }

    fn service(new: &Value, old: Option<&Value>) -> Errors {
        super::super::service::service(new, old)
    }

    fn check(spec: Value) -> Vec<String> {
        service(&object(spec), None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_belongs_to_load_balancers_is_refused_elsewhere() {
        let ports = json!([{"port": 80}]);
        assert_eq!(
            check(
                json!({"ports": ports, "loadBalancerClass": "a/b", "loadBalancerSourceRanges": ["10.0.0.0/8"],
                "allocateLoadBalancerNodePorts": true, "externalTrafficPolicy": "Local", "healthCheckNodePort": 30000})
            ),
            [
                "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
                "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
                "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
                "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
                "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            ]
        );
        let balancer = json!({"type": "LoadBalancer", "ports": [{"port": 10250}], "loadBalancerClass": "-",
            "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "10.0.0.0/33"], "externalTrafficPolicy": "Local"});
        let errors = check(balancer);
        assert!(
            errors[0].starts_with("spec.ports[0]: Invalid value: 10250: may not expose port 10250"),
            "{errors:?}"
        );
        assert!(
            errors[1]
                .starts_with("spec.LoadBalancerSourceRanges[1]: Invalid value: \"10.0.0.0/33\": must be a valid CIDR")
        );
        assert!(
            errors[2].starts_with("spec.loadBalancerClass: Invalid value: \"-\""),
            "{errors:?}"
        );
        assert_eq!(errors.len(), 3);
    }

    #[test]
    fn some_fields_never_change() {
        let with = |class: &str, port: u16| {
            object(
                json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerClass": class,
                "healthCheckNodePort": port, "ports": [{"port": 80}]}),
            )
        };
        let errors = service(&with("a/c", 30001), Some(&with("a/b", 30002)));
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "spec.loadBalancerClass: Invalid value: \"a/c\": may not change once set",
                "spec.healthCheckNodePort: Forbidden: field is immutable",
            ]
        );
    }
}
