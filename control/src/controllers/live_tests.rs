//! Controllers and scheduler on the real store, cache and registry, with a simulated agent: the whole chain but the node.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::system_user;
use crate::cache::EventKind;
use crate::pki::PkiConfig;
use crate::registry::{DeleteOptions, Patch, Propagation, Registry, WriteOptions};
use crate::schema::{self, Resource};
use crate::server::{ControlConfig, Server};

struct Plane {
    registry: Arc<Registry>,
    agent: JoinHandle<()>,
    _server: Server,
    _dir: tempfile::TempDir,
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

fn row(key: &str) -> &'static Resource {
    schema::by_key(key).unwrap()
}

impl Plane {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut pki = PkiConfig::new("n1", "https://127.0.0.1:6443");
        pki.ips = vec!["127.0.0.1".parse().unwrap()];
        let (listen, advertise) = ("127.0.0.1:0".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let server = Server::start(ControlConfig::new(dir.path(), pki, listen, advertise))
            .await
            .unwrap();
        let registry = server.registry().clone();
        let agent = tokio::spawn(agent(registry.clone()));
        Self {
            registry,
            agent,
            _server: server,
            _dir: dir,
        }
    }

    async fn create(&self, key: &str, namespace: &str, object: Value) {
        let user = system_user("test");
        let created = self.registry.create(
            &user,
            row(key),
            namespace,
            with_defaults(key, object),
            WriteOptions::default(),
        );
        created.await.unwrap();
    }

    async fn patch(&self, key: &str, name: &str, patch: Value) {
        let user = system_user("test");
        let (patch, options) = (Patch::Merge(patch), WriteOptions::default());
        self.registry
            .patch(&user, row(key), None, "shop", name, patch, options)
            .await
            .unwrap();
    }

    async fn delete(&self, key: &str, namespace: &str, name: &str, propagation: Propagation) {
        let options = DeleteOptions {
            propagation: Some(propagation),
            ..DeleteOptions::default()
        };
        self.registry
            .delete(&system_user("test"), row(key), namespace, name, options)
            .await
            .unwrap();
    }

    fn values(&self, key: &str) -> Vec<Value> {
        self.registry
            .cache()
            .snapshot(key)
            .namespace("shop")
            .map(|o| o.value())
            .collect()
    }

    /// Wait until something holds; half a minute without it is a failure.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let resources = schema::resources()
            .iter()
            .filter(|r| r.storage)
            .map(|r| r.key)
            .collect::<Vec<_>>();
        let mut watcher = self.registry.cache().watch_all(&resources);
        let wait = async {
            while !holds(self) {
                watcher.next().await.unwrap();
            }
        };
        if tokio::time::timeout(Duration::from_secs(30), wait).await.is_err() {
            let seen = ["events", "apps/deployments", "apps/replicasets", "pods"].map(|key| self.values(key));
            panic!(
                "never: {what}; there is {}",
                serde_json::to_string_pretty(&seen).unwrap()
            );
        }
    }

    async fn set_up(&self) {
        let status = json!({"conditions": [{"type": "Ready", "status": "True"}],
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}});
        self.create(
            "nodes",
            "",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}),
        )
        .await;
        let (user, patch) = (system_user("test"), Patch::Merge(json!({"status": status})));
        let options = WriteOptions::default();
        self.registry
            .patch(&user, row("nodes"), Some("status"), "", "n1", patch, options)
            .await
            .unwrap();
        self.create(
            "namespaces",
            "",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        )
        .await;
    }
}

/// What the API does to a body before the registry sees it.
fn with_defaults(key: &str, mut object: Value) -> Value {
    (row(key).default)(&mut object);
    object
}

/// Runs what is bound, removes what is deleted.
async fn agent(registry: Arc<Registry>) {
    let user = system_user("agent");
    let mut watcher = registry.cache().watch_all(&["pods"]);
    let mut address = 1;
    while let Ok(event) = watcher.next().await {
        let (namespace, name) = (&*event.object.namespace, &*event.object.name);
        let pod = event.object.value();
        if event.kind == EventKind::Deleted || !pod["spec"]["nodeName"].is_string() {
            continue;
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            let now = DeleteOptions {
                grace_period_seconds: Some(0),
                ..DeleteOptions::default()
            };
            registry.delete(&user, row("pods"), namespace, name, now).await.ok();
        } else if pod["status"]["phase"] != "Running" {
            address += 1;
            let ip = format!("10.244.0.{address}");
            let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": registry.environment().now_text()}]});
            let patch = Patch::Strategic(json!({"status": status}));
            let options = WriteOptions::default();
            registry
                .patch(&user, row("pods"), Some("status"), namespace, name, patch, options)
                .await
                .ok();
        }
    }
}

fn deployment(image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]},
        }},
    })
}

fn is_rolled_out(plane: &Plane, image: &str) -> bool {
    let pods = plane.values("pods");
    let deployments = plane.values("apps/deployments");
    let status = &deployments[0]["status"];
    pods.len() == 3
        && pods.iter().all(|p| p["spec"]["containers"][0]["image"] == image)
        && status["observedGeneration"] == deployments[0]["metadata"]["generation"]
        && status["updatedReplicas"] == 3
        && status["availableReplicas"] == 3
}

#[tokio::test]
async fn from_a_deployment_to_endpoints_and_back_to_nothing() {
    let plane = Plane::start().await;
    plane.set_up().await;
    plane.create("apps/deployments", "shop", deployment("web:1")).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    plane.create("services", "shop", service).await;
    let serves_three = |plane: &Plane| {
        let slices = plane.values("discovery.k8s.io/endpointslices");
        let endpoints = slices
            .iter()
            .flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default());
        endpoints.filter(|e| e["conditions"]["ready"] == true).count() == 3
    };
    plane.until("three ready endpoints", serves_three).await;
    plane.until("the first rollout", |p| is_rolled_out(p, "web:1")).await;
    let template = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "web:2"}]}}}});
    plane.patch("apps/deployments", "web", template).await;
    plane.until("the second rollout", |p| is_rolled_out(p, "web:2")).await;
    assert_eq!(
        plane.values("apps/replicasets").len(),
        2,
        "the old one is kept as history"
    );
    let scheduled = |p: &Plane| p.values("events").iter().any(|e| e["reason"] == "Scheduled");
    plane.until("an event about scheduling", scheduled).await;

    plane
        .delete("apps/deployments", "shop", "web", Propagation::Foreground)
        .await;
    let empty = |p: &Plane| {
        ["apps/deployments", "apps/replicasets", "pods"]
            .iter()
            .all(|key| p.values(key).is_empty())
    };
    plane.until("foreground deletion", empty).await;

    plane.create("apps/deployments", "shop", deployment("web:3")).await;
    plane.until("the third rollout", |p| is_rolled_out(p, "web:3")).await;
    plane.delete("namespaces", "", "shop", Propagation::Background).await;
    let gone = |p: &Plane| p.registry.cache().get("namespaces", "", "shop").is_none();
    plane.until("the end of the namespace", gone).await;
    let stored = schema::resources()
        .iter()
        .filter(|r| r.namespaced && r.storage && r.key != "events");
    let left = stored.flat_map(|r| plane.values(r.key)).collect::<Vec<_>>();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_says_why_and_starts_when_there_is_room() {
    let plane = Plane::start().await;
    plane.set_up().await;
    let account = |p: &Plane| p.registry.cache().get("serviceaccounts", "shop", "default").is_some();
    plane.until("the service account", account).await;
    let pod = |name: &str, cpu: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [
            {"name": "c", "image": "web", "resources": {"requests": {"cpu": cpu}}}]}})
    };
    plane.create("pods", "shop", pod("first", "3")).await;
    let runs = |p: &Plane, name: &str| {
        p.registry
            .cache()
            .get("pods", "shop", name)
            .is_some_and(|o| o.value()["status"]["phase"] == "Running")
    };
    plane.until("the first pod", |p| runs(p, "first")).await;
    plane.create("pods", "shop", pod("second", "2")).await;
    let expected = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
        1 No preemption victims found for incoming pod.";
    let explained = |p: &Plane| {
        let pod = p.registry.cache().get("pods", "shop", "second").unwrap().value();
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .iter()
            .any(|c| c["type"] == "PodScheduled" && c["message"] == expected)
    };
    plane.until("the condition", explained).await;
    let warned = |p: &Plane| {
        p.values("events")
            .iter()
            .any(|e| e["message"] == expected && e["type"] == "Warning")
    };
    plane.until("the event", warned).await;
    plane.delete("pods", "shop", "first", Propagation::Background).await;
    plane.until("the second pod", |p| runs(p, "second")).await;
}
