//! A node's agent: its own node and lease, its own pods, its own pods' tokens; nothing of others (FAULTS 49).

use super::*;

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

async fn with_nodes() -> (Arc<Api>, Arc<Peer>, Arc<Peer>) {
    let api = api().await;
    let admin = peer("admin", "system:masters");
    for name in ["kube-node-lease", "other"] {
        let namespace = json!({"metadata": {"name": name}}).to_string();
        assert_eq!(
            call(&api, request("POST", "/api/v1/namespaces", namespace), &admin)
                .await
                .0,
            201
        );
    }
    (api, admin, peer("system:node:n1", "system:nodes"))
}

async fn create(api: &Arc<Api>, who: &Arc<Peer>, path: &str, object: Value) -> (u16, Value) {
    call(api, request("POST", path, object.to_string()), who).await
}

async fn merge(api: &Arc<Api>, who: &Arc<Peer>, path: &str, patch: Value) -> (u16, Value) {
    let mut patch = request("PATCH", path, patch.to_string());
    let media_type = HeaderValue::from_static("application/merge-patch+json");
    patch.headers_mut().insert(header::CONTENT_TYPE, media_type);
    call(api, patch, who).await
}

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

#[tokio::test]
async fn it_creates_its_own_node_and_lease_only() {
    let (api, _, node) = with_nodes().await;
    let elsewhere = LEASES.replace("kube-node-lease", "other");
    let role = json!({"metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/x": ""}}});
    let hostname = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}});
    for (path, object, code) in [
        (NODES, named("n2"), 403),
        (NODES, json!({"metadata": {"generateName": "n1"}}), 403),
        (NODES, role, 403),
        (NODES, hostname, 201),
        (LEASES, named("n2"), 403),
        (LEASES, named("n1"), 201),
        (&elsewhere, named("n1"), 403),
        // The authorizer looks at names; one in a selector must not stand for the object's.
        (&format!("{LEASES}?fieldSelector=metadata.name%3Dn1"), named("n3"), 403),
    ] {
        let (got, status) = create(&api, &node, path, object.clone()).await;
        assert_eq!(got, code, "{path} {object}: {status}");
    }
}

#[tokio::test]
async fn it_changes_neither_taints_nor_labels_that_attract_pods() {
    let (api, admin, node) = with_nodes().await;
    let mut own = named("n1");
    own["spec"] = json!({"taints": [{"key": "a", "effect": "NoSchedule"}]});
    assert_eq!(create(&api, &admin, NODES, own).await.0, 201);
    assert_eq!(create(&api, &admin, NODES, named("n2")).await.0, 201);
    let label = |name: &str| json!({"metadata": {"labels": {name: "x"}}});
    for (path, patch, code) in [
        ("n1", label("kubernetes.io/os"), 200),
        ("n1", label("node-restriction.kubernetes.io/tenant"), 403),
        ("n1/status", label("node-restriction.kubernetes.io/tenant"), 403),
        ("n1", json!({"spec": {"taints": null}}), 403),
        ("n1", json!({"spec": {"podCIDR": "10.244.0.0/24"}}), 200),
        ("n2", label("kubernetes.io/os"), 403),
        ("n2/status", json!({"status": {"phase": "Running"}}), 403),
    ] {
        let (got, status) = merge(&api, &node, &format!("{NODES}/{path}"), patch.clone()).await;
        assert_eq!(got, code, "{path} {patch}: {status}");
    }
}

/// Makes a pod of the service account `a` on a node; its uid.
async fn place(api: &Arc<Api>, name: &str, node: &str) -> Value {
    let admin = peer("admin", "system:masters");
    let spec = json!({"nodeName": node, "serviceAccountName": "a", "containers": [{"name": "c", "image": "x"}]});
    let (code, pod) = create(api, &admin, PODS, json!({"metadata": {"name": name}, "spec": spec})).await;
    assert_eq!(code, 201, "{pod}");
    pod["metadata"]["uid"].clone()
}

#[tokio::test]
async fn it_sees_its_own_pods_and_gets_their_tokens() {
    let (api, admin, node) = with_nodes().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(create(&api, &admin, accounts, named("a")).await.0, 201);
    let mine = place(&api, "mine", "n1").await;
    let theirs = place(&api, "theirs", "n2").await;
    for (query, code) in [
        ("", 403),
        ("?fieldSelector=spec.nodeName%3Dn2", 403),
        ("?fieldSelector=spec.nodeName%3Dn1", 200),
        ("?fieldSelector=spec.nodeName%3Dn1&watch=true&timeoutSeconds=1", 200),
        ("?fieldSelector=metadata.name%3Dtheirs", 403),
        ("?watch=true&timeoutSeconds=1", 403),
    ] {
        let (got, answer) = call(&api, request("GET", &format!("{PODS}{query}"), ""), &node).await;
        assert_eq!(got, code, "{query}: {answer}");
    }
    let bound = |name: &str, uid: &Value| json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid});
    for (reference, code) in [
        (Value::Null, 403),
        (bound("theirs", &theirs), 403),
        (bound("mine", &Value::Null), 403),
        (bound("mine", &mine), 201),
    ] {
        let body = json!({"spec": {"audiences": [], "boundObjectRef": reference}});
        let (got, answer) = create(&api, &node, &format!("{accounts}/a/token"), body).await;
        assert_eq!(got, code, "{reference}: {answer}");
    }
    let (code, _) = merge(
        &api,
        &node,
        &format!("{PODS}/mine/status"),
        json!({"metadata": {"labels": {"app": "web"}}}),
    )
    .await;
    assert_eq!(code, 403, "a label would make it a backend of a service");
    let running = json!({"status": {"phase": "Running"}});
    assert_eq!(
        merge(&api, &node, &format!("{PODS}/mine/status"), running.clone())
            .await
            .0,
        200
    );
    assert_eq!(
        merge(&api, &node, &format!("{PODS}/theirs/status"), running).await.0,
        403
    );
}

#[tokio::test]
async fn what_verifiers_of_tokens_need_is_served() {
    let (api, admin, node) = with_nodes().await;
    let (code, discovery) = call(&api, request("GET", "/.well-known/openid-configuration", ""), &admin).await;
    assert_eq!((code, discovery["issuer"].as_str()), (200, Some(ISSUER)));
    let (code, keys) = call(&api, request("GET", "/openid/v1/jwks", ""), &admin).await;
    assert_eq!((code, keys["keys"][0]["kty"].as_str()), (200, Some("EC")));
    let review = json!({"spec": {"token": "nonsense"}});
    let (code, answer) = create(&api, &node, "/apis/authentication.k8s.io/v1/tokenreviews", review).await;
    assert_eq!(
        (code, answer["status"]["authenticated"].as_bool()),
        (201, Some(false)),
        "{answer}"
    );
}
