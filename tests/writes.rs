//! kill -9 of the control plane under writes: whatever was acknowledged is there afterwards, and revisions only grow. Needs root.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hull_agent::client::Client;
use serde_json::{Value, json};
use support::TestCluster;

/// How often the control plane is killed.
const KILLS: usize = 8;

/// Creates ConfigMaps one after the other; returns name and resource version of those that were acknowledged.
async fn write_until(client: Client, writer: usize, stop: Arc<AtomicBool>) -> Vec<(String, u64)> {
    let mut acknowledged = Vec::new();
    let mut i = 0;
    while !stop.load(Ordering::Relaxed) {
        let name = format!("w{writer}-{i}");
        i += 1;
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"name": name}});
        match client.create("/api/v1/namespaces/default/configmaps", &object).await {
            Ok(created) => acknowledged.push((name, revision(&created))),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    acknowledged
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .expect("a resource version")
        .parse()
        .expect("a number")
}

#[test]
fn no_acknowledged_write_is_lost() {
    let cluster = TestCluster::prepare("writes");
    cluster.up();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("tokio");
    let client = Client::from_kubeconfig(&cluster.kubeconfig()).expect("kubeconfig");
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| runtime.spawn(write_until(client.clone(), writer, stop.clone())))
        .collect();
    for _ in 0..KILLS {
        std::thread::sleep(Duration::from_millis(700));
        cluster.until("the control plane answers", || {
            runtime.block_on(client.get("/readyz")).is_ok() || runtime.block_on(client.get("/version")).is_ok()
        });
        cluster.kill(cluster.pid("control"));
    }
    cluster.until("the control plane answers", || {
        runtime.block_on(client.get("/version")).is_ok()
    });
    stop.store(true, Ordering::Relaxed);
    let list = runtime
        .block_on(client.get("/api/v1/namespaces/default/configmaps"))
        .expect("list");
    let items = list["items"].as_array().expect("items");
    let mut total = 0;
    for writer in writers {
        let acknowledged = runtime.block_on(writer).expect("a writer");
        assert!(
            acknowledged.is_sorted_by(|a, b| a.1 < b.1),
            "resource versions went back"
        );
        total += acknowledged.len();
        for (name, revision_then) in acknowledged {
            let found = items.iter().find(|item| item["metadata"]["name"] == name.as_str());
            let found = found.cloned().unwrap_or_else(|| {
                runtime
                    .block_on(client.get(&format!("/api/v1/namespaces/default/configmaps/{name}")))
                    .unwrap_or_else(|e| panic!("lost: {name}: {e}"))
            });
            assert_eq!(found["data"]["name"], name.as_str(), "a half object: {found}");
            assert_eq!(revision(&found), revision_then);
        }
    }
    assert!(
        total > 50,
        "only {total} writes were acknowledged: the test tried nothing"
    );
    cluster.down(&["--purge"]);
    cluster.assert_nothing_left();
}
