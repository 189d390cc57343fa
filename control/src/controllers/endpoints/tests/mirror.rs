//! Endpoints that users write.

use super::*;

#[test]
fn endpoints_that_users_write_are_mirrored() {
    let mut world = world(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}));
    let mine = json!({"metadata": {"name": "web", "labels": {"a": "b"}, "annotations": {"c": "d"}}, "subsets": [
        {"addresses": [{"ip": "192.0.2.1", "hostname": "one"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}]});
    world.memory.put("endpoints", "d", mine.clone());
    world.settle();
    let mut slices = world.memory.values(SLICES);
    slices.sort_by_key(|slice| slice["addressType"].to_string());
    assert_eq!(slices.len(), 2);
    assert_eq!(
        slices[0]["endpoints"],
        json!([{"addresses": ["192.0.2.1"], "conditions": {"ready": true}, "hostname": "one"},
            {"addresses": ["192.0.2.2"], "conditions": {"ready": false}}])
    );
    assert_eq!(slices[1]["endpoints"][0]["addresses"], json!(["2001:db8::1"]));
    assert_eq!(
        slices[0]["ports"],
        json!([{"name": "http", "port": 8080, "protocol": "TCP"}])
    );
    let metadata = &slices[0]["metadata"];
    assert_eq!(
        metadata["labels"],
        json!({"a": "b", SERVICE_NAME: "web", MANAGED_BY: "endpointslicemirroring-controller.k8s.io"})
    );
    assert_eq!(metadata["annotations"], json!({"c": "d"}));
    assert_eq!(metadata["ownerReferences"][0]["kind"], "Endpoints");
    assert_eq!(
        world.memory.get("endpoints", "d", "web").unwrap().value()["subsets"],
        mine["subsets"]
    );

    let fewer = json!([{"addresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 9090, "protocol": "TCP"}]}]);
    world.memory.patch("endpoints", "d", "web", &json!({"subsets": fewer}));
    world.settle();
    let left = world.memory.values(SLICES);
    assert_eq!(
        (left.len(), &left[0]["metadata"]["name"]),
        (1, &metadata["name"]),
        "the slice is used again"
    );
    assert_eq!(left[0]["ports"][0]["port"], 9090);

    world.memory.patch(
        "endpoints",
        "d",
        "web",
        &json!({"metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}}),
    );
    world.settle();
    assert!(world.memory.values(SLICES).is_empty());
}

#[test]
fn with_a_service_go_the_endpoints_of_its_users() {
    let mut world = world(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}));
    let mine = json!({"metadata": {"name": "web"}, "subsets": [{"addresses": [{"ip": "192.0.2.1"}]}]});
    let other = json!({"metadata": {"name": "early"}, "subsets": [{"addresses": [{"ip": "192.0.2.2"}]}]});
    world.memory.put("endpoints", "d", mine);
    world.memory.put("endpoints", "d", other);
    world.settle();
    assert_eq!(
        world.memory.values(SLICES).len(),
        1,
        "without a service nothing is mirrored"
    );
    world.memory.remove(SERVICES, "d", "web");
    world.settle();
    assert!(world.memory.values(SLICES).is_empty());
    assert!(world.memory.get("endpoints", "d", "web").is_none());
    assert!(
        world.memory.get("endpoints", "d", "early").is_some(),
        "its service may still come"
    );
}
