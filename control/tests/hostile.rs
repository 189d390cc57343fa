//! Hostile requests get a Kubernetes `Status` and the server goes on (FAULTS 39, 40, 41).

mod support;

use serde_json::json;
use support::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";

/// Every refusal has this form, and afterwards the server still works.
fn refuses(cluster: &Cluster, what: &str, expected: &[u16], (code, status): (u16, serde_json::Value)) {
    assert!(expected.contains(&code), "{what}: {code} {status}");
    assert_eq!(status["kind"], "Status", "{what}");
    assert_eq!(status["status"], "Failure", "{what}");
    assert_eq!(status["code"], code, "{what}");
    assert!(!status["message"].as_str().unwrap_or_default().is_empty(), "{what}");
    assert_eq!(cluster.request("GET", "/readyz", JSON, "").0, 200, "{what}");
}

#[test]
fn malformed_bodies_are_bad_requests() {
    let cluster = Cluster::start();
    let bodies: [(&str, &[u8]); 10] = [
        (JSON, b"{"),
        (JSON, b"[1,2,3]"),
        (JSON, b"\"text\""),
        (JSON, b"{\"metadata\":{\"name\":\"a\"},\"data\":{\"k\":\"\xff\xfe\"}}"),
        (JSON, b"{\"metadata\":5}"),
        (JSON, b""),
        ("application/yaml", b"a: [b"),
        ("application/yaml", b"\xff\xff\xff"),
        ("application/vnd.kubernetes.protobuf", b"k8s\0\xff\xff\xff\xff\xff\xff"),
        ("application/vnd.kubernetes.protobuf", b"not protobuf"),
    ];
    for (media_type, body) in bodies {
        let answer = cluster.request("POST", MAPS, media_type, body.to_vec());
        refuses(&cluster, &format!("{media_type} {body:?}"), &[400], answer);
    }
    let answer = cluster.request("POST", MAPS, "text/html", "x");
    refuses(&cluster, "html", &[415], answer);
    let answer = cluster.request(
        "PATCH",
        &format!("{MAPS}/kube-root-ca.crt"),
        "application/apply-patch+yaml",
        "{}",
    );
    refuses(&cluster, "apply", &[415], answer);
}

#[test]
fn deep_nesting_is_refused_at_once() {
    let cluster = Cluster::start();
    let deep = 100_000;
    let arrays = format!("{{\"data\":{}{}}}", "[".repeat(deep), "]".repeat(deep));
    let objects = format!("{}1{}", "{\"a\":".repeat(deep), "}".repeat(deep));
    let flow = format!("a: {}{}", "[".repeat(deep), "]".repeat(deep));
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let below = level - 1;
        bomb += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{below}"); 9].join(","));
    }
    for (what, media_type, body) in [
        ("arrays", JSON, arrays),
        ("objects", JSON, objects),
        ("yaml", "application/yaml", flow),
        ("aliases", "application/yaml", bomb),
    ] {
        let answer = cluster.request("POST", MAPS, media_type, body);
        refuses(&cluster, what, &[400, 413], answer);
    }
    let patch = format!("{{\"data\":{}1{}}}", "{\"a\":".repeat(deep), "}".repeat(deep));
    for kind in [
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
        "application/json-patch+json",
    ] {
        let answer = cluster.request("PATCH", &format!("{MAPS}/kube-root-ca.crt"), kind, patch.clone());
        refuses(&cluster, kind, &[400], answer);
    }
}

#[test]
fn giants_are_too_large() {
    let cluster = Cluster::start();
    let body = json!({"metadata": {"name": "big"}, "data": {"k": "x".repeat(10 << 20)}}).to_string();
    let answer = cluster.request("POST", MAPS, JSON, body);
    refuses(&cluster, "10 MB body", &[413], answer);
    let body = json!({"metadata": {"name": "big"}, "data": {"k": "x".repeat(2 << 20)}}).to_string();
    let answer = cluster.request("POST", MAPS, JSON, body);
    refuses(&cluster, "2 MiB config map", &[413, 422], answer);
    let body = json!({"metadata": {"name": "big", "annotations": {"k": "x".repeat(300 << 10)}}}).to_string();
    let answer = cluster.request("POST", MAPS, JSON, body);
    refuses(&cluster, "300 KiB annotation", &[422], answer);
}

#[test]
fn wrong_types_names_and_fields_are_explained() {
    let cluster = Cluster::start();
    let pod = |spec: serde_json::Value, name: &str| json!({"metadata": {"name": name}, "spec": spec}).to_string();
    let container = json!({"containers": [{"name": "a", "image": "x"}]});
    let pods = "/api/v1/namespaces/default/pods";
    let cases = [
        (pods, pod(json!({"containers": "none"}), "p"), 400),
        (pods, pod(json!({"containers": []}), "p"), 422),
        (
            pods,
            pod(json!({"containers": [{"name": "A_b", "image": "x"}]}), "p"),
            422,
        ),
        (pods, pod(container.clone(), "Upper_Case"), 422),
        (pods, pod(container.clone(), &"x".repeat(300)), 422),
        (
            pods,
            json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "p"}}).to_string(),
            400,
        ),
        (
            pods,
            json!({"metadata": {"name": "p", "namespace": "other"}, "spec": container}).to_string(),
            400,
        ),
        (
            pods,
            json!({"metadata": {"name": "p", "resourceVersion": "7"}, "spec": container}).to_string(),
            400,
        ),
        ("/api/v1/namespaces/none/pods", pod(container.clone(), "p"), 404),
        ("/api/v1/namespaces/default/gadgets", pod(container.clone(), "p"), 404),
        (
            "/apis/apps/v1/namespaces/default/deployments",
            json!({"metadata": {"name": "d"}, "spec": {"replicas": -1}}).to_string(),
            422,
        ),
    ];
    for (path, body, expected) in cases {
        let answer = cluster.request("POST", path, JSON, body.clone());
        refuses(&cluster, &body[..body.len().min(120)], &[expected], answer);
    }
    let unknown = pod(
        json!({"containers": [{"name": "a", "image": "x", "colour": "red"}]}),
        "p",
    );
    let strict = cluster.request("POST", &format!("{pods}?fieldValidation=Strict"), JSON, unknown.clone());
    assert!(
        strict.1["message"]
            .as_str()
            .unwrap()
            .contains(r#"unknown field "spec.containers[0].colour""#),
        "{}",
        strict.1
    );
    refuses(&cluster, "strict", &[400], strict);
    let (code, made) = cluster.request("POST", &format!("{pods}?fieldValidation=Ignore"), JSON, unknown);
    assert_eq!((code, made["spec"]["containers"][0].get("colour")), (201, None));
}
