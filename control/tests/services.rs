//! Services of a control plane with two families, as clients see them: through the API, with kubectl, over a restart.

mod support;

use serde_json::{Value, json};
use support::Cluster;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const MERGE: &str = "application/merge-patch+json";

/// An API with both families.
struct Api(Cluster);

impl Api {
    fn start() -> Api {
        Api(Cluster::start_with(|config| {
            config.service_cidr = "10.96.0.0/16,fd00:10:96::/112".to_owned();
        }))
    }

    fn create(&self, name: &str, spec: Value) -> (u16, Value) {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        self.0.request("POST", SERVICES, "application/json", object.to_string())
    }

    fn made(&self, name: &str, spec: Value) -> Value {
        let (code, object) = self.create(name, spec);
        assert_eq!(code, 201, "{object}");
        object["spec"].clone()
    }

    fn patch(&self, path: &str, patch: Value) -> (u16, Value) {
        self.0
            .request("PATCH", &format!("{SERVICES}/{path}"), MERGE, patch.to_string())
    }

    fn patched(&self, path: &str, patch: Value) -> Value {
        let (code, object) = self.patch(path, patch);
        assert_eq!(code, 200, "{object}");
        object
    }

    fn message(&self, (code, object): (u16, Value)) -> String {
        assert_eq!(code, 422, "{object}");
        object["message"].as_str().unwrap().to_owned()
    }
}

fn ports() -> Value {
    json!([{"name": "http", "port": 80}])
}

#[test]
fn families_come_and_go_with_the_policy() {
    let api = Api::start();
    let spec = api.made("a", json!({"ports": ports(), "selector": {"a": "b"}}));
    assert_eq!(
        (&spec["ipFamilies"], &spec["ipFamilyPolicy"]),
        (&json!(["IPv4"]), &json!("SingleStack"))
    );
    let dual = api.patched("a", json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}}));
    let addresses = dual["spec"]["clusterIPs"].as_array().unwrap().clone();
    assert_eq!(dual["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(addresses[0], spec["clusterIP"], "the first one stays");
    assert!(addresses[1].as_str().unwrap().starts_with("fd00:10:96::"));
    assert!(
        api.message(api.patch("a", json!({"spec": {"clusterIPs": [addresses[0]]}})))
            .contains("spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary cluster IP")
    );
    assert!(
        api.message(api.patch("a", json!({"spec": {"clusterIP": "10.96.0.77"}})))
            .contains("may not change once set")
    );
    let single = api.patched("a", json!({"spec": {"ipFamilyPolicy": "SingleStack"}}));
    assert_eq!(single["spec"]["clusterIPs"], json!([addresses[0]]));
    let taken = json!({"clusterIP": addresses[1], "clusterIPs": [addresses[1]], "ports": ports()});
    assert_eq!(
        api.made("b", taken)["ipFamilies"],
        json!(["IPv6"]),
        "and its address is free again"
    );

    let external = api.patched(
        "a",
        json!({"spec": {"type": "ExternalName", "externalName": "x.example.org"}}),
    );
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        assert_eq!(external["spec"].get(field), None, "{field}");
    }
    let back = api.patched("a", json!({"spec": {"type": "ClusterIP", "externalName": null}}));
    assert!(back["spec"]["clusterIP"].as_str().unwrap().starts_with("10.96."));
    let headless = api.made("c", json!({"clusterIP": "None"}));
    assert_eq!(headless["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(
        headless["ipFamilyPolicy"], "RequireDualStack",
        "headless without selector"
    );
}

#[test]
fn a_load_balancer_has_its_ports_and_its_status() {
    let api = Api::start();
    let spec = api.made(
        "lb",
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]}),
    );
    assert_eq!(spec["allocateLoadBalancerNodePorts"], true);
    let node_port = &spec["ports"][0]["nodePort"];
    assert_eq!(node_port, &spec["ports"][1]["nodePort"]);
    let health = &spec["healthCheckNodePort"];
    assert!(
        health.as_u64().unwrap() >= 30086,
        "the upper part of the range: {health}"
    );
    assert!(
        api.message(api.patch("lb", json!({"spec": {"healthCheckNodePort": 30001}})))
            .contains("spec.healthCheckNodePort: Forbidden: field is immutable")
    );
    assert!(
        api.message(api.create(
            "other",
            json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": health}]})
        ))
        .contains("provided port is already allocated")
    );
    let status =
        json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.80"}, {"hostname": "lb.example.org"}]}}});
    let object = api.patched("lb/status", status.clone());
    assert_eq!(
        object["status"]["loadBalancer"]["ingress"],
        json!([{"ip": "192.0.2.80", "ipMode": "VIP"}, {"hostname": "lb.example.org"}])
    );
    let row = api.0.kubectl("get service lb --no-headers");
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(columns[1], "LoadBalancer");
    assert_eq!(columns[3], "192.0.2.80,lb.example.org");
    assert_eq!(columns[4], format!("53:{node_port}/UDP,53:{node_port}/TCP"));

    let object = api.patched("lb", json!({"spec": {"type": "ClusterIP"}}));
    assert_eq!(object["status"], json!({"loadBalancer": {}}));
    for field in [
        "healthCheckNodePort",
        "externalTrafficPolicy",
        "allocateLoadBalancerNodePorts",
    ] {
        assert_eq!(object["spec"].get(field), None, "{field}");
    }
    assert_eq!(object["spec"]["ports"][0].get("nodePort"), None);
    api.made(
        "other",
        json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": health}]}),
    );
    assert!(
        api.message(api.patch("other/status", status))
            .contains("may only be used when `spec.type` is 'LoadBalancer'")
    );
}

#[test]
fn nothing_is_given_twice_after_a_restart() {
    let mut api = Api::start();
    let spec = api.made(
        "a",
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ipFamilyPolicy": "RequireDualStack", "ports": ports()}),
    );
    api.0.restart();
    let refused = |wish: Value| {
        let mut spec = json!({"type": "NodePort", "ports": ports()});
        for (name, value) in wish.as_object().unwrap() {
            spec[name] = value.clone();
        }
        assert!(api.message(api.create("b", spec)).contains("already allocated"));
    };
    for address in spec["clusterIPs"].as_array().unwrap() {
        refused(json!({"clusterIP": address, "clusterIPs": [address]}));
    }
    for port in [&spec["ports"][0]["nodePort"], &spec["healthCheckNodePort"]] {
        refused(json!({"ports": [{"port": 80, "nodePort": port}]}));
    }
    api.0.kubectl("delete service a");
    let again = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ipFamilyPolicy": "RequireDualStack",
        "clusterIP": spec["clusterIP"], "clusterIPs": spec["clusterIPs"], "healthCheckNodePort": spec["healthCheckNodePort"],
        "ports": spec["ports"]});
    let again = api.made("b", again);
    assert_eq!(again, spec, "deleted, all of it is free");
}

#[test]
fn kubectl_exposes_and_describes() {
    let api = Api::start();
    let cluster = &api.0;
    cluster.kubectl("create deployment web --image=web --replicas=0 --port=8080");
    cluster.kubectl("expose deployment web --port=80 --target-port=8080 --type=NodePort --session-affinity=ClientIP");
    let text = cluster.kubectl("describe service web");
    for line in [
        "Type:NodePort",
        "IPFamilyPolicy:SingleStack",
        "IPFamilies:IPv4",
        "Port:<unset>80/TCP",
        "TargetPort:8080/TCP",
        "SessionAffinity:ClientIP",
        "ExternalTrafficPolicy:Cluster",
        "InternalTrafficPolicy:Cluster",
        "Selector:app=web",
    ] {
        let squeezed = |text: &str| text.split_whitespace().collect::<String>();
        assert!(
            text.lines().any(|shown| squeezed(shown) == line),
            "{line} is not in\n{text}"
        );
    }
    cluster.kubectl("create service externalname far --external-name=far.example.org");
    let row = cluster.kubectl("get service far --no-headers");
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(columns[1..5], ["ExternalName", "<none>", "far.example.org", "<none>"]);
    cluster.kubectl("patch service web -p {\"spec\":{\"externalIPs\":[\"192.0.2.7\"]}}");
    assert!(cluster.kubectl("get service web --no-headers").contains("192.0.2.7"));
}
