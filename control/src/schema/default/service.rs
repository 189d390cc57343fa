//! Defaults of services, endpoints and endpoint slices. Addresses and node ports are allocated by the registry.

use serde_json::{Map, Value, json};

use super::{fill, fill_text, items, member};

type Fields = Map<String, Value>;

const AFFINITY_SECONDS: i64 = 10_800;

/// Defaults of a Service.
pub(in super::super) fn service(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    fill_text(spec, "sessionAffinity", "None");
    fill_text(spec, "type", "ClusterIP");
    session_affinity(spec);
    for port in items(spec, "ports") {
        fill_text(port, "protocol", "TCP");
        let unset = matches!(port.get("targetPort"), None | Some(Value::Null)) || is_empty(&port["targetPort"]);
        if let (true, Some(number)) = (unset, port.get("port").cloned()) {
            port.insert("targetPort".into(), number);
        }
    }
    let kind = text(spec, "type").to_owned();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        fill_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        fill_text(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
}

fn is_empty(value: &Value) -> bool {
    value == &json!(0) || value == &json!("")
}

fn session_affinity(spec: &mut Fields) {
    if text(spec, "sessionAffinity") != "ClientIP" {
        spec.remove("sessionAffinityConfig");
        return;
    }
    let config = spec.entry("sessionAffinityConfig").or_insert_with(|| json!({}));
    if let Some(client) = member(config, "clientIP") {
        fill(client, "timeoutSeconds", AFFINITY_SECONDS);
    }
}

/// An update that does not mention what was allocated keeps it, and drops what a change of type makes meaningless.
pub(in super::super) fn on_update(new: &mut Value, old: &Value) {
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let Some(before) = old.get("spec").and_then(Value::as_object) else {
        return;
    };
    let kind = |spec: &Fields| match text(spec, "type") {
        "" => "ClusterIP".to_owned(),
        kind => kind.to_owned(),
    };
    let (kind, old_kind) = (kind(spec), kind(before));
    if kind != "ExternalName" && old_kind != "ExternalName" {
        for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            keep(spec, before, name);
        }
    } else if kind == "ExternalName" && old_kind != "ExternalName" {
        for name in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            drop_unchanged(spec, before, name);
        }
    }
    let has_node_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    match (has_node_ports(&kind), has_node_ports(&old_kind)) {
        (true, true) => {
            keep_node_ports(spec, before);
            keep(spec, before, "healthCheckNodePort");
        }
        (false, true) => {
            drop_node_ports(spec, before);
            drop_unchanged(spec, before, "externalTrafficPolicy");
            drop_unchanged(spec, before, "healthCheckNodePort");
        }
        _ => {}
    }
    if kind != "LoadBalancer" && old_kind == "LoadBalancer" {
        drop_unchanged(spec, before, "allocateLoadBalancerNodePorts");
    }
}

fn keep(spec: &mut Fields, before: &Fields, name: &str) {
    let unset = spec
        .get(name)
        .is_none_or(|value| value.is_null() || is_empty(value) || value == &json!([]));
    if let (true, Some(value)) = (unset, before.get(name)) {
        spec.insert(name.to_owned(), value.clone());
    }
}

fn drop_unchanged(spec: &mut Fields, before: &Fields, name: &str) {
    if spec.get(name) == before.get(name) {
        spec.remove(name);
    }
}

fn keep_node_ports(spec: &mut Fields, before: &Fields) {
    let old: Vec<_> = before
        .get("ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect();
    let taken: Vec<i64> = items(spec, "ports")
        .filter_map(|port| port.get("nodePort")?.as_i64())
        .collect();
    for port in items(spec, "ports") {
        if port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0 {
            continue;
        }
        let same = |old: &&&Value| old.get("port") == port.get("port") && protocol(old) == port_protocol(port);
        let number = old.iter().find(same).and_then(|old| old["nodePort"].as_i64());
        if let Some(number) = number.filter(|number| !taken.contains(number)) {
            port.insert("nodePort".into(), number.into());
        }
    }
}

fn protocol(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

fn port_protocol(port: &Fields) -> &str {
    port.get("protocol").and_then(Value::as_str).unwrap_or("TCP")
}

fn drop_node_ports(spec: &mut Fields, before: &Fields) {
    let old: Vec<_> = before
        .get("ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect();
    for port in items(spec, "ports") {
        if old.iter().any(|old| old.get("nodePort") == port.get("nodePort")) {
            port.remove("nodePort");
        }
    }
}

/// Defaults of Endpoints.
pub(in super::super) fn endpoints(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    for subset in items(fields, "subsets") {
        for port in items(subset, "ports") {
            fill_text(port, "protocol", "TCP");
        }
    }
}

/// Defaults of an EndpointSlice.
pub(in super::super) fn endpoint_slice(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    for port in items(fields, "ports") {
        fill(port, "name", "");
        fill_text(port, "protocol", "TCP");
    }
}

fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_service_is_completed() {
        let mut object =
            json!({"spec": {"ports": [{"port": 80}, {"port": 81, "targetPort": "http", "protocol": "UDP"}]}});
        service(&mut object);
        assert_eq!(
            object["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ports": [
                {"port": 80, "targetPort": 80, "protocol": "TCP"}, {"port": 81, "targetPort": "http", "protocol": "UDP"},
            ]})
        );
        let mut object = json!({"spec": {"sessionAffinity": "ClientIP"}});
        service(&mut object);
        assert_eq!(
            object["spec"]["sessionAffinityConfig"],
            json!({"clientIP": {"timeoutSeconds": 10800}})
        );
    }

    #[test]
    fn an_update_keeps_what_was_allocated() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]}});
        on_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
        assert_eq!(
            new["spec"]["ports"],
            json!([{"port": 80, "nodePort": 30080}, {"port": 81}])
        );
    }

    #[test]
    fn an_update_to_cluster_ip_gives_up_node_ports() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "externalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "nodePort": 30080}]}});
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        on_update(&mut new, &old);
        assert_eq!(
            new["spec"],
            json!({"type": "ClusterIP", "clusterIP": "10.96.0.9", "ports": [{"port": 80}]})
        );
    }
}
