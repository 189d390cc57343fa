//! Defaults of services. Addresses and node ports are allocated by the registry.
//!
//! A Service is a union with `type` as its tag: what an update does not mention is kept as long as it means something, and
//! dropped when a change of type makes it meaningless and the client did not touch it.

use std::collections::HashMap;

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
    if is_reached_from_outside(spec) {
        fill_text(spec, "externalTrafficPolicy", "Cluster");
    }
    let kind = text(spec, "type").to_owned();
    if kind != "ExternalName" {
        fill_text(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
        ingress_mode(object);
    }
}

/// An address of a load balancer is one that packets arrive with, unless it says otherwise.
fn ingress_mode(object: &mut Value) {
    let Some(balancer) = object
        .pointer_mut("/status/loadBalancer")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    for ingress in items(balancer, "ingress") {
        if !text(ingress, "ip").is_empty() {
            fill_text(ingress, "ipMode", "VIP");
        }
    }
}

fn is_reached_from_outside(spec: &Fields) -> bool {
    match kind(spec) {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => spec
            .get("externalIPs")
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty()),
        _ => false,
    }
}

fn is_empty(value: &Value) -> bool {
    value == &json!(0) || value == &json!("")
}

fn session_affinity(spec: &mut Fields) {
    if text(spec, "sessionAffinity") != "ClientIP" {
        if text(spec, "sessionAffinity") == "None" {
            spec.remove("sessionAffinityConfig");
        }
        return;
    }
    let config = spec.entry("sessionAffinityConfig").or_insert(Value::Null);
    if config.is_null() {
        *config = json!({});
    }
    if let Some(client) = member(config, "clientIP") {
        fill(client, "timeoutSeconds", AFFINITY_SECONDS);
    }
}

/// A client may give the first address alone; every service shows where its load balancer is, even if nowhere.
pub(in super::super) fn on_create(new: &mut Value) {
    let Some(fields) = new.as_object_mut() else { return };
    fields.insert("status".into(), json!({"loadBalancer": {}}));
    let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let first = text(spec, "clusterIP").to_owned();
    if !first.is_empty() && is_unset(spec, "clusterIPs") {
        spec.insert("clusterIPs".into(), json!([first]));
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
    keep_allocated(spec, before);
    follow_first_address(spec, before);
    drop_meaningless(spec, before);
    if kind(spec) != "LoadBalancer"
        && let Some(status) = member(new, "status")
    {
        status.insert("loadBalancer".into(), json!({}));
    }
}

fn keep_allocated(spec: &mut Fields, before: &Fields) {
    if kind(spec) != "ExternalName" && kind(before) != "ExternalName" {
        keep(spec, before, "clusterIP");
        keep(spec, before, "clusterIPs");
    }
    if has_node_ports(spec) && has_node_ports(before) {
        keep_node_ports(spec, before);
    }
    if has_health_check(spec) && has_health_check(before) {
        keep(spec, before, "healthCheckNodePort");
    }
}

/// A client that knows only `clusterIP` changes that alone.
fn follow_first_address(spec: &mut Fields, before: &Fields) {
    let first = text(spec, "clusterIP").to_owned();
    if first != text(before, "clusterIP") && spec.get("clusterIPs") == before.get("clusterIPs") {
        if first.is_empty() {
            spec.remove("clusterIPs");
        } else {
            spec.insert("clusterIPs".into(), json!([first]));
        }
    }
}

fn drop_meaningless(spec: &mut Fields, before: &Fields) {
    let (kind, old_kind) = (kind(spec).to_owned(), kind(before));
    if kind == "ExternalName" && old_kind != "ExternalName" {
        if spec.get("clusterIP") == before.get("clusterIP") && spec.get("clusterIPs") == before.get("clusterIPs") {
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
        }
        drop_unchanged(spec, before, "ipFamilies");
        drop_unchanged(spec, before, "ipFamilyPolicy");
    }
    if has_node_ports(before) && !has_node_ports(spec) {
        drop_node_ports(spec, before);
    }
    if has_health_check(before) && !has_health_check(spec) {
        drop_unchanged(spec, before, "healthCheckNodePort");
    }
    if kind != "LoadBalancer" && old_kind == "LoadBalancer" {
        drop_unchanged(spec, before, "allocateLoadBalancerNodePorts");
        drop_unchanged(spec, before, "loadBalancerClass");
    }
    if is_reached_from_outside(before) && !is_reached_from_outside(spec) {
        drop_unchanged(spec, before, "externalTrafficPolicy");
    }
}

fn kind(spec: &Fields) -> &str {
    match text(spec, "type") {
        "" => "ClusterIP",
        kind => kind,
    }
}

fn has_node_ports(spec: &Fields) -> bool {
    matches!(kind(spec), "NodePort" | "LoadBalancer")
}

fn has_health_check(spec: &Fields) -> bool {
    kind(spec) == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn is_unset(spec: &Fields, name: &str) -> bool {
    spec.get(name)
        .is_none_or(|value| value.is_null() || is_empty(value) || value == &json!([]))
}

fn keep(spec: &mut Fields, before: &Fields, name: &str) {
    if let (true, Some(value)) = (is_unset(spec, name), before.get(name)) {
        spec.insert(name.to_owned(), value.clone());
    }
}

fn drop_unchanged(spec: &mut Fields, before: &Fields, name: &str) {
    if spec.get(name) == before.get(name) {
        spec.remove(name);
    }
}

/// A port without a node port gets that of the port of its name, unless another one has it by now.
fn keep_node_ports(spec: &mut Fields, before: &Fields) {
    let ports = |spec: &Fields| spec.get("ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let (now, old) = (ports(spec), ports(before));
    let by_name: HashMap<&str, i64> = old.iter().map(|port| (name(port), node_port(port))).collect();
    let is_used = |number: i64| now.iter().any(|port| node_port(port) == number);
    for port in items(spec, "ports") {
        if port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0 {
            continue;
        }
        let number = by_name.get(text(port, "name")).copied().unwrap_or(0);
        if number != 0 && !is_used(number) {
            port.insert("nodePort".into(), number.into());
        }
    }
}

fn name(port: &Value) -> &str {
    port["name"].as_str().unwrap_or_default()
}

fn node_port(port: &Value) -> i64 {
    port["nodePort"].as_i64().unwrap_or(0)
}

/// All node ports go, if none of them is new.
fn drop_node_ports(spec: &mut Fields, before: &Fields) {
    let of = |spec: &Fields| -> Vec<i64> {
        let ports = spec.get("ports").and_then(Value::as_array).into_iter().flatten();
        ports.map(node_port).filter(|number| *number != 0).collect()
    };
    let old = of(before);
    if of(spec).iter().all(|number| old.contains(number)) {
        for port in items(spec, "ports") {
            port.remove("nodePort");
        }
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
        for config in [
            json!({}),
            json!({"sessionAffinityConfig": null}),
            json!({"sessionAffinityConfig": {"clientIP": {}}}),
        ] {
            let mut object = json!({"spec": config});
            object["spec"]["sessionAffinity"] = json!("ClientIP");
            service(&mut object);
            assert_eq!(
                object["spec"]["sessionAffinityConfig"],
                json!({"clientIP": {"timeoutSeconds": 10800}})
            );
        }
    }

    #[test]
    fn what_is_reached_from_outside_has_a_policy() {
        let policy = |spec: Value| {
            let mut object = json!({"spec": spec});
            service(&mut object);
            object["spec"]["externalTrafficPolicy"].clone()
        };
        assert_eq!(policy(json!({"type": "NodePort"})), "Cluster");
        assert_eq!(policy(json!({"externalIPs": ["192.0.2.1"]})), "Cluster");
        assert_eq!(policy(json!({})), Value::Null);
        let mut object = json!({"spec": {"type": "LoadBalancer"},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "a.b"}, {"ip": "192.0.2.2", "ipMode": "Proxy"}]}}});
        service(&mut object);
        assert_eq!(object["spec"]["allocateLoadBalancerNodePorts"], true);
        assert_eq!(
            object["status"]["loadBalancer"]["ingress"],
            json!([{"ip": "192.0.2.1", "ipMode": "VIP"}, {"hostname": "a.b"}, {"ip": "192.0.2.2", "ipMode": "Proxy"}])
        );
    }

    #[test]
    fn an_update_keeps_what_was_allocated() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
            "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30081}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [
            {"name": "a", "port": 8080}, {"name": "b", "port": 81, "nodePort": 30099}, {"name": "c", "port": 82, "nodePort": 30081}]}});
        on_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.9"]));
        assert_eq!(
            new["spec"]["ports"],
            json!([{"name": "a", "port": 8080, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30099},
                {"name": "c", "port": 82, "nodePort": 30081}])
        );
    }

    #[test]
    fn a_change_of_type_gives_up_what_belonged_to_the_old_one() {
        let old = json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001,
            "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "a/b", "ports": [{"port": 80, "nodePort": 30080}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        let changed = |kind: &str| {
            let mut new = old.clone();
            new["spec"]["type"] = json!(kind);
            on_update(&mut new, &old);
            assert_eq!(new["status"], json!({"loadBalancer": {}}));
            new["spec"].take()
        };
        assert_eq!(
            changed("ClusterIP"),
            json!({"type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80}]})
        );
        assert_eq!(
            changed("ExternalName"),
            json!({"type": "ExternalName", "ports": [{"port": 80}]})
        );
        assert_eq!(changed("NodePort")["externalTrafficPolicy"], "Local");
        assert_eq!(changed("NodePort")["ports"][0]["nodePort"], 30080);
    }

    #[test]
    fn old_clients_know_only_the_first_address() {
        let mut new = json!({"spec": {"clusterIP": "None"}});
        on_create(&mut new);
        assert_eq!(new["spec"]["clusterIPs"], json!(["None"]));
        let old = json!({"spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}});
        let mut new = json!({"spec": {"clusterIP": "10.96.0.10"}});
        on_update(&mut new, &old);
        assert_eq!(
            new["spec"]["clusterIPs"],
            json!(["10.96.0.10"]),
            "for validation to refuse"
        );
    }
}
