//! Validation of services: type, ports, affinity. Addresses: `service_address`; policies and load balancers:
//! `service_traffic`.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::super::error::FieldError;
use super::super::name::{is_label, is_qualified_name, is_subdomain};
use super::super::resource::NameRule;
use super::{
    Errors, PORT_RANGE, has, invalid_if, list, meta, one_of, port_or_name, require, service_address, service_traffic,
    text,
};

pub(super) const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
pub(super) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
pub(super) const BAD_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const MAX_AFFINITY_SECONDS: i64 = 86_400;
/// Never offered outside: some clouds would open it on every node.
const KUBELET_PORT: i64 = 10250;
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";

/// Validates a Service.
pub(in super::super) fn service(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Label1035, true);
    let spec = &object["spec"];
    let kind = text(spec, "type");
    topology_annotations(object, &mut errors);
    if list(spec, "ports").is_empty() && !service_address::is_headless(spec) && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    by_type(spec, kind, &mut errors);
    ports(spec, &mut errors);
    meta::labels(spec, "spec.selector", "selector", &mut errors);
    affinity(spec, &mut errors);
    service_address::service(object, old, &mut errors);
    if require(spec, "spec", "type", &mut errors) {
        one_of(spec, "spec", "type", TYPES, &mut errors);
    }
    port_numbers(spec, kind, &mut errors);
    service_traffic::service(object, old, kind, &mut errors);
    errors
}

fn topology_annotations(object: &Value, errors: &mut Errors) {
    let annotations = &object["metadata"]["annotations"];
    let (mode, hints) = (&annotations[TOPOLOGY_MODE], &annotations[TOPOLOGY_HINTS]);
    if !mode.is_null() && !hints.is_null() && mode != hints {
        errors.push(FieldError::invalid(
            format!("metadata.annotations[{TOPOLOGY_MODE}]"),
            mode.clone(),
            format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified"),
        ));
    }
}

fn by_type(spec: &Value, kind: &str, errors: &mut Errors) {
    if kind == "LoadBalancer" {
        for (index, port) in list(spec, "ports").iter().enumerate() {
            if port["port"] == KUBELET_PORT {
                let detail = format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet");
                errors.push(FieldError::invalid(
                    format!("spec.ports[{index}]"),
                    KUBELET_PORT,
                    detail,
                ));
            }
        }
    }
    match kind {
        "LoadBalancer" | "NodePort" if service_address::is_headless(spec) => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", detail));
        }
        "ExternalName" => external_name(spec, errors),
        _ => {}
    }
}

fn external_name(spec: &Value, errors: &mut Errors) {
    for name in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let first = if name == "clusterIPs" {
            text(spec, "clusterIP")
        } else {
            ""
        };
        if !list(spec, name).is_empty() || !text(spec, name).is_empty() || !first.is_empty() {
            let detail = "may not be set for ExternalName services";
            errors.push(FieldError::forbidden(format!("spec.{name}"), detail));
        }
    }
    let name = text(spec, "externalName");
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        errors.push(FieldError::required("spec.externalName", ""));
    } else {
        invalid_if(is_subdomain(name), "spec.externalName", name, errors);
    }
}

fn ports(spec: &Value, errors: &mut Errors) {
    let ports = list(spec, "ports");
    let mut names = HashSet::new();
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
        if require(port, &path, "protocol", errors) {
            one_of(port, &path, "protocol", PROTOCOLS, errors);
        }
        if has(port, "targetPort") {
            port_or_name(&port["targetPort"], format!("{path}.targetPort"), errors);
        }
        app_protocol(port, &path, errors);
    }
}

/// `appProtocol` is passed on to whoever understands it; it only has to be a name.
pub(super) fn app_protocol(port: &Value, path: &str, errors: &mut Errors) {
    if let Some(protocol) = port["appProtocol"].as_str() {
        invalid_if(
            is_qualified_name(protocol),
            format!("{path}.appProtocol"),
            protocol,
            errors,
        );
    }
}

/// No pair of protocol and number twice, neither of ports nor of node ports.
fn port_numbers(spec: &Value, kind: &str, errors: &mut Errors) {
    let ports = list(spec, "ports");
    let (mut numbers, mut node_ports) = (HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}].nodePort");
        let node_port = port["nodePort"].as_i64().unwrap_or(0);
        if node_port != 0 && kind == "ClusterIP" {
            errors.push(FieldError::forbidden(
                path.as_str(),
                "may not be used when `type` is 'ClusterIP'",
            ));
        }
        if node_port != 0 && !node_ports.insert((text(port, "protocol"), node_port)) {
            errors.push(FieldError::duplicate(path, node_port));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let (protocol, number) = (text(port, "protocol"), port["port"].as_i64().unwrap_or(0));
        if !numbers.insert((protocol, number)) {
            let pair = json!({"protocol": protocol, "port": number, "targetPort": 0});
            errors.push(FieldError::duplicate(format!("spec.ports[{index}]"), pair));
        }
    }
}

fn affinity(spec: &Value, errors: &mut Errors) {
    if require(spec, "spec", "sessionAffinity", errors) {
        one_of(spec, "spec", "sessionAffinity", &["ClientIP", "None"], errors);
    }
    let path = "spec.sessionAffinityConfig";
    if text(spec, "sessionAffinity") != "ClientIP" {
        if text(spec, "sessionAffinity") == "None" && has(spec, "sessionAffinityConfig") {
            let detail = "must not be set when session affinity is None";
            errors.push(FieldError::forbidden(path, detail));
        }
        return;
    }
    let seconds = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]
        .as_i64()
        .unwrap_or(0);
    if !(1..=MAX_AFFINITY_SECONDS).contains(&seconds) {
        let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
        errors.push(FieldError::invalid(
            format!("{path}.clientIP.timeoutSeconds"),
            seconds,
            detail,
        ));
    }
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
    fn enumerations_and_ranges() {
        let errors = check(
            json!({"ports": [{"port": 80, "protocol": "ICMP", "appProtocol": "a b"}, {"port": 80, "name": "b"}],
            "internalTrafficPolicy": "Near", "trafficDistribution": "Anywhere", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
        );
        let paths: Vec<&str> = errors.iter().filter_map(|error| error.split(": ").next()).collect();
        assert_eq!(
            paths,
            [
                "spec.ports[0].name",
                "spec.ports[0].protocol",
                "spec.ports[0].appProtocol",
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                "spec.internalTrafficPolicy",
                "spec.trafficDistribution",
            ]
        );
        for distribution in ["PreferClose", "PreferSameNode", "PreferSameZone"] {
            assert_eq!(
                check(json!({"ports": [{"port": 80}], "trafficDistribution": distribution})),
                [] as [&str; 0]
            );
        }
        let twice = check(
            json!({"type": "NodePort", "ports": [{"name": "a", "port": 80, "nodePort": 30000}, {"name": "b", "port": 80, "nodePort": 30000}]}),
        );
        assert!(
            twice[0].starts_with("spec.ports[1].nodePort: Duplicate value: 30000"),
            "{twice:?}"
        );
        assert!(twice[1].starts_with("spec.ports[1]: Duplicate value"), "{twice:?}");
    }
}
