//! Zones, and for whom endpoints are meant.

use super::*;

fn in_zone(world: &mut World, node: &str, zone: &str, cpu: &str) {
    world.memory.put(
        "nodes",
        "",
        json!({"metadata": {"name": node, "labels": {ZONE: zone}},
            "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]}}),
    );
}

fn hints(world: &World) -> Vec<Value> {
    endpoints(world)
        .iter()
        .map(|endpoint| endpoint["hints"].clone())
        .collect()
}

#[test]
fn hints_follow_the_distribution_and_the_zones() {
    let mut world = world(plain());
    in_zone(&mut world, "n1", "east", "4");
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    world.settle();
    assert_eq!(endpoints(&world)[0]["zone"], "east");
    assert_eq!(hints(&world), [Value::Null]);
    for (distribution, expected) in [
        ("PreferClose", json!({"forZones": [{"name": "east"}]})),
        ("PreferSameZone", json!({"forZones": [{"name": "east"}]})),
        (
            "PreferSameNode",
            json!({"forZones": [{"name": "east"}], "forNodes": [{"name": "n1"}]}),
        ),
    ] {
        world.memory.patch(
            SERVICES,
            "d",
            "web",
            &json!({"spec": {"trafficDistribution": distribution}}),
        );
        world.settle();
        assert_eq!(hints(&world), [expected]);
    }
    in_zone(&mut world, "n1", "west", "4");
    world.settle();
    assert_eq!(hints(&world)[0]["forZones"][0]["name"], "west", "the node has moved");
    world.memory.patch(
        "pods",
        "d",
        "a",
        &json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
    );
    world.settle();
    assert_eq!(hints(&world), [Value::Null], "what is not ready is for no one");
}

#[test]
fn the_annotation_shares_endpoints_out() {
    let mut world = world(plain());
    world.memory.patch(
        SERVICES,
        "d",
        "web",
        &json!({"metadata": {"annotations": {"service.kubernetes.io/topology-mode": "Auto"}}}),
    );
    in_zone(&mut world, "n1", "east", "4");
    for name in ["a", "b", "c", "d"] {
        add_pod(&mut world, name, "10.244.0.2", 8080, true);
    }
    world.settle();
    assert!(hints(&world).iter().all(Value::is_null), "one zone");
    in_zone(&mut world, "n2", "west", "4000m");
    world.settle();
    let zones: Vec<Value> = hints(&world)
        .iter()
        .map(|hints| hints["forZones"][0]["name"].clone())
        .collect();
    assert_eq!(zones.iter().filter(|zone| **zone == "west").count(), 2, "{zones:?}");
}
