//! Endpoints of simulated services.

mod hints;
mod mirror;
mod scale;
mod slices;

use serde_json::{Value, json};

use super::*;
use crate::controllers::memory::World;
use crate::controllers::view::View;

fn world(spec: Value) -> World {
    let mut world = World::new(controllers());
    let service = json!({"metadata": {"name": "web", "labels": {"team": "x"}}, "spec": spec});
    world.memory.put(SERVICES, "d", service);
    world
}

fn plain() -> Value {
    json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.9",
        "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]})
}

fn add_pod(world: &mut World, name: &str, address: &str, port: i32, ready: bool) {
    let status = if ready { "True" } else { "False" };
    world.memory.put(
        "pods",
        "d",
        json!({
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": status}]},
        }),
    );
}

fn endpoints(world: &World) -> Vec<Value> {
    let slices = world.memory.values(SLICES);
    slices
        .iter()
        .flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default())
        .collect()
}
