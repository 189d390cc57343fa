//! The real kubectl against the control plane: every verb that needs no agent.

mod support;

use std::os::unix::fs::PermissionsExt;

use support::Cluster;

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: app, labels: {tier: one}}
data: {a: "1", b: "2"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "web:1"}
      - {name: side, image: "side:1"}
"#;

/// Waits (by kubectl itself) until a jsonpath of an object has a value.
fn until(cluster: &Cluster, object: &str, path: &str, value: &str) {
    cluster.kubectl(&format!("wait {object} --for=jsonpath={path}={value} --timeout=20s"));
}

#[test]
fn discovery_and_explain() {
    let cluster = Cluster::start();
    assert!(cluster.kubectl("version").contains("Server Version: v1.37.0+hull."));
    let resources = cluster.kubectl("api-resources");
    for kind in [
        "pods",
        "deployments",
        "endpointslices",
        "clusterroles",
        "leases",
        "events",
    ] {
        assert!(resources.contains(kind), "{kind} in {resources}");
    }
    assert!(cluster.kubectl("api-versions").contains("apps/v1"));
    assert!(
        cluster
            .kubectl("explain deployment.spec.strategy.rollingUpdate.maxSurge")
            .contains("maxSurge")
    );
    assert_eq!(cluster.kubectl("auth can-i create pods").trim(), "yes");
    assert!(cluster.kubectl("auth whoami").contains("kubernetes-admin"));
    assert!(cluster.kubectl("auth can-i --list").contains("*.*"));
}

#[test]
fn apply_changes_and_removes() {
    let cluster = Cluster::start();
    let first = cluster.kubectl_in("apply -f -", MANIFEST);
    assert!(
        first.contains("configmap/app created") && first.contains("deployment.apps/web created"),
        "{first}"
    );
    let again = cluster.kubectl_in("apply -f -", MANIFEST);
    assert_eq!(again.matches("unchanged").count(), 2, "{again}");
    let changed = MANIFEST
        .replace(r#"{a: "1", b: "2"}"#, r#"{a: "3"}"#)
        .replace("      - {name: side, image: \"side:1\"}\n", "");
    let arguments: Vec<&str> = "diff -f -".split(' ').collect();
    assert_eq!(
        cluster.kubectl_with(&arguments, &changed, &[]).status.code(),
        Some(1),
        "diff sees the change"
    );
    assert_eq!(
        cluster.kubectl_in("apply -f -", &changed).matches("configured").count(),
        2
    );
    assert_eq!(cluster.kubectl("get cm app -o jsonpath={.data}"), r#"{"a":"3"}"#);
    assert_eq!(
        cluster.kubectl("get deploy web -o jsonpath={.spec.template.spec.containers[*].name}"),
        "web"
    );
    cluster.kubectl_in("delete -f -", &changed);
    assert!(
        cluster
            .refused("get cm app", "")
            .contains("configmaps \"app\" not found")
    );
}

#[test]
fn lists_apply_and_old_clients_explain_by_openapi_v2() {
    let cluster = Cluster::start();
    let list = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: one}, data: {a: "1"}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: two}}
"#;
    let applied = cluster.kubectl_in("apply -f -", list);
    assert!(
        applied.contains("configmap/one created") && applied.contains("configmap/two created"),
        "{applied}"
    );
    let wrong = list.replace("data: {a", "dada: {a");
    assert!(cluster.refused("apply -f -", &wrong).contains("unknown field \"dada\""));
    let explained = cluster.kubectl("explain pod.spec.containers --output=plaintext-openapiv2");
    assert!(
        explained.contains("imagePullPolicy") && explained.contains("List of containers belonging to the pod"),
        "{explained}"
    );
    let (code, document) = cluster.request("GET", "/openapi/v2", "application/json", "");
    assert_eq!((code, document["swagger"].as_str()), (200, Some("2.0")));
}

#[test]
fn typed_creates_and_edits() {
    let cluster = Cluster::start();
    cluster.kubectl("create namespace one");
    cluster.kubectl("create configmap cm --from-literal=a=b -n one");
    cluster.kubectl("create secret generic s --from-literal=p=q -n one");
    cluster.kubectl("create serviceaccount robot -n one");
    cluster.kubectl("create role reader --verb=get --resource=pods -n one");
    cluster.kubectl("create rolebinding robot --role=reader --serviceaccount=one:robot -n one");
    cluster.kubectl("create deployment web --image=web:1 --replicas=2 -n one");
    cluster.kubectl("expose deployment web --port=80 --type=NodePort -n one");
    let token = cluster.kubectl("create token robot -n one");
    assert_eq!(token.trim().split('.').count(), 3, "a JWT");
    assert_eq!(
        cluster
            .kubectl("auth can-i get pods -n one --as=system:serviceaccount:one:robot")
            .trim(),
        "yes"
    );
    assert!(cluster.refused("get secrets -n one --as=system:serviceaccount:one:robot", "").contains(
        r#"User "system:serviceaccount:one:robot" cannot list resource "secrets" in API group "" in the namespace "one""#
    ));
    cluster.kubectl("label cm cm x=y -n one");
    cluster.kubectl("annotate cm cm note=well -n one");
    assert_eq!(cluster.kubectl("get cm -n one -l x=y -o name").trim(), "configmap/cm");
    let editor = cluster.path().join("editor");
    std::fs::write(&editor, "#!/bin/sh\nsed -i 's/a: b/a: c/' \"$1\"\n").unwrap();
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    let editor = editor.to_string_lossy().into_owned();
    let edited = cluster.kubectl_with(&["edit", "cm", "cm", "-n", "one"], "", &[("KUBE_EDITOR", &editor)]);
    assert!(edited.status.success(), "{}", String::from_utf8_lossy(&edited.stderr));
    assert_eq!(cluster.kubectl("get cm cm -n one -o jsonpath={.data.a}"), "c");
    cluster.kubectl(r#"patch cm cm -n one --type=merge -p {"data":{"a":null,"m":"1"}}"#);
    cluster.kubectl(r#"patch cm cm -n one --type=json -p [{"op":"add","path":"/data/j","value":"2"}]"#);
    cluster.kubectl(r#"patch cm cm -n one -p {"data":{"s":"3"}}"#);
    assert_eq!(
        cluster.kubectl("get cm cm -n one -o jsonpath={.data}"),
        r#"{"j":"2","m":"1","s":"3"}"#
    );
    assert!(
        cluster
            .kubectl("create cm dry --dry-run=server -n one -o name")
            .contains("configmap/dry")
    );
    assert!(cluster.refused("get cm dry -n one", "").contains("not found"));
    cluster.kubectl("delete namespace one --timeout=30s");
    assert!(cluster.refused("get namespace one", "").contains("not found"));
}

#[test]
fn workloads_scale_roll_out_and_end() {
    let cluster = Cluster::start();
    cluster.kubectl_in("apply -f -", MANIFEST);
    until(&cluster, "deploy/web", "{.status.replicas}", "2");
    cluster.kubectl("scale deploy web --replicas=3");
    until(&cluster, "deploy/web", "{.status.replicas}", "3");
    cluster.kubectl("set image deploy/web web=web:2");
    until(&cluster, "deploy/web", "{.status.updatedReplicas}", "1");
    assert_eq!(
        cluster
            .kubectl("rollout history deploy/web")
            .lines()
            .filter(|line| line.starts_with(['1', '2']))
            .count(),
        2
    );
    cluster.kubectl("rollout restart deploy/web");
    cluster.kubectl("rollout undo deploy/web --to-revision=1");
    until(
        &cluster,
        "deploy/web",
        "{.spec.template.spec.containers[0].image}",
        "web:1",
    );
    assert!(cluster.kubectl("get events").contains("ScalingReplicaSet"));
    assert!(cluster.kubectl("events").contains("ScalingReplicaSet"));
    assert!(cluster.kubectl("describe deploy web").contains("RollingUpdateStrategy"));
    let wide = cluster.kubectl("get deploy,rs -o wide");
    assert!(wide.contains("UP-TO-DATE") && wide.contains("web:1,side:1"), "{wide}");
    cluster.kubectl("run one --image=x --labels=solo=yes");
    assert!(cluster.kubectl("describe pod one").contains("kube-api-access-"));
    cluster.kubectl("delete pod -l solo=yes");
    cluster.kubectl("delete deploy web --cascade=foreground --timeout=30s");
    cluster.kubectl("wait --for=delete pod -l app=web --timeout=20s");
    assert_eq!(cluster.kubectl("get pods -o name"), "");
}
