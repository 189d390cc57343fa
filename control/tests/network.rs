//! The network's part of the API as Kubernetes' own conformance tests use it: every kind from creation to the deletion of a
//! collection, and services through their changes of type and status.

mod support;

use serde_json::{Value, json};
use support::{Cluster, ask, items, until};

const JSON: &str = "application/json";
const NAMESPACED: &str = "/api/v1/namespaces/default";
const NETWORKING: &str = "/apis/networking.k8s.io/v1";

/// Create, read, list, patch, update, write the status, delete one, delete the rest.
fn lifecycle(
    cluster: &Cluster,
    collection: &str,
    kind: (&str, &str),
    names: [&str; 3],
    body: &dyn Fn(&str) -> Value,
    status: bool,
) {
    let (version, kind) = kind;
    for name in names {
        let mut object = body(name);
        object["apiVersion"] = json!(version);
        object["kind"] = json!(kind);
        object["metadata"] = json!({"name": name, "labels": {"special": "label"}});
        let made = ask(cluster, "POST", collection, &object);
        assert_eq!(made["kind"], kind, "{made}");
    }
    let [first, second, _] = names;
    let of = |name: &str| format!("{collection}/{name}");
    let selected = format!("{collection}?labelSelector=special%3Dlabel");
    assert_eq!(items(&ask(cluster, "GET", &selected, &Value::Null)).len(), 3);
    let patch = json!({"metadata": {"annotations": {"patched": "true"}}});
    let mut object = ask(cluster, "PATCH", &of(first), &patch);
    assert_eq!(object["metadata"]["annotations"]["patched"], "true");
    // Controllers may write too: the update is to the state it was made from, or is made again.
    loop {
        object["metadata"]["annotations"]["updated"] = json!("true");
        let (code, answer) = cluster.request("PUT", &of(first), JSON, object.to_string());
        match code {
            200 => break assert_eq!(answer["metadata"]["annotations"]["updated"], "true"),
            409 => object = ask(cluster, "GET", &of(first), &Value::Null),
            _ => panic!("{code} {answer}"),
        }
    }
    if status {
        let path = format!("{}/status", of(first));
        let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}}});
        let patched = ask(cluster, "PATCH", &path, &patch);
        assert_eq!(patched["metadata"]["annotations"]["patchedstatus"], "true");
        assert_eq!(ask(cluster, "GET", &path, &Value::Null)["metadata"]["name"], first);
    }
    ask(cluster, "DELETE", &of(second), &Value::Null);
    until("the one is gone", || {
        cluster.request("GET", &of(second), JSON, "").0 == 404
    });
    ask(cluster, "DELETE", &selected, &Value::Null);
    until("the collection is gone", || {
        items(&ask(cluster, "GET", &selected, &Value::Null)).is_empty()
    });
}

#[test]
fn every_kind_of_the_group_is_served_from_creation_to_deletion() {
    let cluster = Cluster::start();
    let networking = "networking.k8s.io/v1";
    let discovery = ask(&cluster, "GET", NETWORKING, &Value::Null);
    let resources = discovery["resources"].as_array().unwrap();
    for name in [
        "ingresses",
        "ingresses/status",
        "ingressclasses",
        "ipaddresses",
        "networkpolicies",
        "servicecidrs",
        "servicecidrs/status",
    ] {
        assert!(resources.iter().any(|resource| resource["name"] == name), "{name}");
    }
    let service = json!({"service": {"name": "a", "port": {"number": 80}}});
    let ingress = |_: &str| json!({"spec": {"defaultBackend": service}});
    let path = format!("{NETWORKING}/namespaces/default/ingresses");
    lifecycle(
        &cluster,
        &path,
        (networking, "Ingress"),
        ["a", "b", "c"],
        &ingress,
        true,
    );
    let class = |_: &str| json!({"spec": {"controller": "example.com/controller"}});
    let path = format!("{NETWORKING}/ingressclasses");
    lifecycle(
        &cluster,
        &path,
        (networking, "IngressClass"),
        ["a", "b", "c"],
        &class,
        false,
    );
    let default = json!({"apiVersion": networking, "kind": "IngressClass",
        "metadata": {"name": "usual", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": "example.com/controller"}});
    ask(&cluster, "POST", &path, &default);
    let unspoken = json!({"apiVersion": networking, "kind": "Ingress", "metadata": {"name": "unspoken"},
        "spec": {"defaultBackend": service}});
    let path = format!("{NETWORKING}/namespaces/default/ingresses");
    assert_eq!(
        ask(&cluster, "POST", &path, &unspoken)["spec"]["ingressClassName"],
        "usual"
    );
    let policy = |_: &str| json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
    let path = format!("{NETWORKING}/namespaces/default/networkpolicies");
    lifecycle(
        &cluster,
        &path,
        (networking, "NetworkPolicy"),
        ["a", "b", "c"],
        &policy,
        false,
    );
    let range = |name: &str| json!({"spec": {"cidrs": [format!("10.24{name}.0.0/24")]}});
    let path = format!("{NETWORKING}/servicecidrs");
    lifecycle(
        &cluster,
        &path,
        (networking, "ServiceCIDR"),
        ["1", "2", "3"],
        &range,
        true,
    );
    let address = |_: &str| json!({"spec": {"parentRef": {"group": "", "resource": "endpoints", "name": "x"}}});
    let path = format!("{NETWORKING}/ipaddresses");
    let names = ["192.168.1.1", "192.168.1.2", "fd00::3"];
    lifecycle(&cluster, &path, (networking, "IPAddress"), names, &address, false);
    let slice = |_: &str| json!({"addressType": "IPv4", "endpoints": [{"addresses": ["1.2.3.4"]}], "ports": []});
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let kind = ("discovery.k8s.io/v1", "EndpointSlice");
    lifecycle(&cluster, path, kind, ["a", "b", "c"], &slice, false);
    let warned = cluster.kubectl_with(
        &["apply", "-f", "-"],
        r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p"},"spec":{"podSelector":{}}}"#,
        &[],
    );
    let said = String::from_utf8_lossy(&warned.stderr).into_owned();
    assert!(said.contains("does not enforce"), "{said}");
}

#[test]
fn replication_controllers_make_pods_and_scale() {
    let cluster = Cluster::start();
    let template =
        json!({"metadata": {"labels": {"name": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let object = json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "template": template}});
    cluster.kubectl_in("create -f -", &object.to_string());
    let pods = || {
        ask(
            &cluster,
            "GET",
            &format!("{NAMESPACED}/pods?labelSelector=name%3Dweb"),
            &Value::Null,
        )
    };
    until("there are two", || items(&pods()).len() == 2);
    assert_eq!(
        items(&pods())[0]["metadata"]["ownerReferences"][0]["kind"],
        "ReplicationController"
    );
    cluster.kubectl("scale rc web --replicas=3");
    until("there are three", || items(&pods()).len() == 3);
    let shown = cluster.kubectl("get rc web --no-headers");
    assert_eq!(
        shown.split_whitespace().collect::<Vec<_>>()[..3],
        ["web", "3", "3"],
        "{shown}"
    );
    cluster.kubectl("delete rc web");
    until("they went with it", || items(&pods()).is_empty());
}

#[test]
fn service_addresses_are_objects_too() {
    let cluster = Cluster::start();
    let addresses = || {
        let list = ask(&cluster, "GET", &format!("{NETWORKING}/ipaddresses"), &Value::Null);
        let names = items(&list)
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        names.collect::<Vec<_>>()
    };
    let default = ask(
        &cluster,
        "GET",
        &format!("{NETWORKING}/servicecidrs/kubernetes"),
        &Value::Null,
    );
    assert_eq!(default["spec"]["cidrs"], json!(["10.96.0.0/16"]));
    until("the API server's is there", || addresses() == ["10.96.0.1"]);
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.99.0.0/24"]}});
    ask(&cluster, "POST", &format!("{NETWORKING}/servicecidrs"), &object);
    cluster.kubectl("create service clusterip other --tcp=80 --clusterip=10.99.0.7");
    let refused = cluster.refused("create service clusterip third --tcp=80 --clusterip=10.98.0.7", "");
    assert!(refused.contains("not in the valid range"), "{refused}");
    until("its address is shown", || addresses() == ["10.96.0.1", "10.99.0.7"]);
    ask(
        &cluster,
        "DELETE",
        &format!("{NETWORKING}/servicecidrs/more"),
        &Value::Null,
    );
    let ready = |cluster: &Cluster| {
        let (_, range) = cluster.request("GET", &format!("{NETWORKING}/servicecidrs/more"), JSON, "");
        range["status"]["conditions"][0]["status"].clone()
    };
    until("the range waits for its service", || ready(&cluster) == "False");
    cluster.kubectl("delete service other");
    until("the range is gone", || ready(&cluster).is_null());
    until("the address is free", || addresses() == ["10.96.0.1"]);
}

#[test]
fn a_service_changes_its_type_its_status_and_goes_with_a_collection() {
    let cluster = Cluster::start();
    let services = format!("{NAMESPACED}/services");
    let port = json!([{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 9376}]);
    let named = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"type": "ExternalName", "externalName": "foo.example.com"}});
    ask(&cluster, "POST", &services, &named);
    let path = format!("{services}/s");
    let change = |spec: Value| ask(&cluster, "PATCH", &path, &json!({"spec": spec}))["spec"].clone();
    let spec = change(json!({"type": "ClusterIP", "externalName": "", "ports": port}));
    assert!(spec["clusterIP"].as_str().unwrap().starts_with("10.96."), "{spec}");
    let spec = change(json!({"type": "NodePort"}));
    assert!(spec["ports"][0]["nodePort"].as_u64().unwrap() >= 30000, "{spec}");
    let spec = change(json!({"type": "ClusterIP", "ports": port}));
    assert!(spec["ports"][0]["nodePort"].is_null(), "{spec}");
    let spec = change(json!({"type": "ExternalName", "externalName": "bar.example.com", "clusterIP": ""}));
    assert!(
        spec["clusterIPs"].is_null() && spec["clusterIP"].as_str().unwrap_or_default().is_empty(),
        "{spec}"
    );
    // TCP and UDP on the same port.
    let both = json!([{"name": "t", "port": 80, "protocol": "TCP"}, {"name": "u", "port": 80, "protocol": "UDP"}]);
    let spec = change(json!({"type": "ClusterIP", "externalName": "", "ports": both}));
    assert_eq!(spec["ports"].as_array().unwrap().len(), 2);
    // Status: by patch and by update, of a load balancer.
    change(json!({"type": "LoadBalancer"}));
    let status = json!({"metadata": {"annotations": {"patchedstatus": "true"}},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}});
    let patched = ask(&cluster, "PATCH", &format!("{path}/status"), &status);
    assert_eq!(patched["status"]["loadBalancer"]["ingress"][0]["ip"], "203.0.113.1");
    assert_eq!(patched["metadata"]["annotations"]["patchedstatus"], "true");
    let mut updated = patched;
    updated["status"]["conditions"] = json!([{"type": "StatusUpdate", "status": "True", "reason": "E2E",
        "message": "Set from a test", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let updated = ask(&cluster, "PUT", &format!("{path}/status"), &updated);
    assert_eq!(updated["status"]["conditions"][0]["type"], "StatusUpdate");
    for name in ["a", "b"] {
        cluster.kubectl(&format!("create service clusterip {name} --tcp=80"));
        cluster.kubectl(&format!("label service {name} e2e=yes"));
    }
    let all = ask(&cluster, "GET", "/api/v1/services", &Value::Null);
    assert!(
        items(&all)
            .iter()
            .any(|service| service["metadata"]["name"] == "kubernetes")
    );
    ask(
        &cluster,
        "DELETE",
        &format!("{services}?labelSelector=e2e%3Dyes"),
        &Value::Null,
    );
    assert_eq!(items(&ask(&cluster, "GET", &services, &Value::Null)).len(), 2);
}

#[test]
fn the_api_servers_own_endpoints_are_there_in_both_forms() {
    let cluster = Cluster::start();
    let slice = ask(
        &cluster,
        "GET",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
        &Value::Null,
    );
    let endpoints = ask(
        &cluster,
        "GET",
        &format!("{NAMESPACED}/endpoints/kubernetes"),
        &Value::Null,
    );
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "kubernetes");
    assert_eq!(slice["addressType"], "IPv4");
    assert_eq!(
        slice["endpoints"][0]["addresses"][0],
        endpoints["subsets"][0]["addresses"][0]["ip"]
    );
    assert_eq!(slice["ports"][0]["port"], endpoints["subsets"][0]["ports"][0]["port"]);
    let slices = ask(
        &cluster,
        "GET",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
        &Value::Null,
    );
    assert_eq!(items(&slices).len(), 1, "not mirrored a second time");
}
