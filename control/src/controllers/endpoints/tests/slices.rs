//! Which slices there are, and what is in them.

use super::*;

#[test]
fn a_pod_becomes_an_endpoint_with_all_its_particulars() {
    let mut world = world(plain());
    world.settle();
    assert_eq!(world.memory.values(SLICES).len(), 1, "an empty slice holds the place");
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    world.settle();
    let slices = world.memory.values(SLICES);
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0]["addressType"], "IPv4");
    assert_eq!(
        slices[0]["ports"],
        json!([{"name": "http", "protocol": "TCP", "port": 8080}])
    );
    assert_eq!(slices[0]["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    assert_eq!(slices[0]["metadata"]["labels"]["team"], "x");
    let endpoint = &endpoints(&world)[0];
    assert_eq!(endpoint["addresses"], json!(["10.244.0.2"]));
    assert_eq!(
        endpoint["conditions"],
        json!({"ready": true, "serving": true, "terminating": false})
    );
    assert_eq!(endpoint["nodeName"], "n1");
    assert_eq!(endpoint["targetRef"]["name"], "a");
    let legacy = world.memory.get("endpoints", "d", "web").unwrap().value();
    assert_eq!(legacy["subsets"][0]["addresses"][0]["ip"], "10.244.0.2");
    assert_eq!(legacy["subsets"][0]["ports"][0]["port"], 8080);
}

#[test]
fn readiness_and_termination_show() {
    let mut world = world(plain());
    add_pod(&mut world, "a", "10.244.0.2", 8080, false);
    world.settle();
    assert_eq!(endpoints(&world)[0]["conditions"]["ready"], false);
    let legacy = || world.memory.get("endpoints", "d", "web").unwrap().value();
    assert_eq!(legacy()["subsets"][0]["notReadyAddresses"][0]["ip"], "10.244.0.2");
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    world.memory.patch("pods", "d", "a", &going);
    world.settle();
    let conditions = endpoints(&world)[0]["conditions"].clone();
    assert_eq!(
        conditions,
        json!({"ready": false, "serving": true, "terminating": true})
    );
    world.memory.remove("pods", "d", "a");
    world.settle();
    assert!(endpoints(&world).is_empty());
    assert_eq!(
        world.memory.get("endpoints", "d", "web").unwrap().value()["subsets"],
        Value::Null
    );
}

#[test]
fn not_ready_addresses_are_published_on_request() {
    let mut spec = plain();
    spec["publishNotReadyAddresses"] = true.into();
    let mut world = world(spec);
    add_pod(&mut world, "a", "10.244.0.2", 8080, false);
    world.settle();
    assert_eq!(
        endpoints(&world)[0]["conditions"],
        json!({"ready": true, "serving": false, "terminating": false})
    );
}

#[test]
fn different_targets_of_a_named_port_get_slices_of_their_own() {
    let mut world = world(plain());
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    add_pod(&mut world, "b", "10.244.0.3", 9090, true);
    world.settle();
    let mut ports = world
        .memory
        .values(SLICES)
        .iter()
        .map(|s| s["ports"][0]["port"].clone())
        .collect::<Vec<_>>();
    ports.sort_by_key(Value::as_i64);
    assert_eq!(ports, [8080, 9090]);
}

#[test]
fn slices_hold_a_hundred_and_endpoints_stay_where_they_are() {
    let mut world = world(plain());
    for i in 0..150 {
        add_pod(&mut world, &format!("p{i:03}"), &format!("10.244.0.{i}"), 8080, true);
    }
    world.settle();
    let count = |s: &Value| s["endpoints"].as_array().map_or(0, Vec::len);
    let mut counts = world.memory.values(SLICES).iter().map(count).collect::<Vec<_>>();
    counts.sort_unstable();
    assert_eq!(counts, [50, 100]);
    let before = world.memory.objects(SLICES);
    world.memory.patch(
        "pods",
        "d",
        "p003",
        &json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
    );
    world.settle();
    let after = world.memory.objects(SLICES);
    let changed = before
        .iter()
        .zip(&after)
        .filter(|(b, a)| b.revision != a.revision)
        .count();
    assert_eq!(changed, 1, "one slice is rewritten");
}

#[test]
fn headless_members_have_names() {
    let mut spec = plain();
    spec["clusterIP"] = "None".into();
    let mut world = world(spec);
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    world.memory.patch(
        "pods",
        "d",
        "a",
        &json!({"spec": {"hostname": "one", "subdomain": "web"}}),
    );
    world.settle();
    assert_eq!(endpoints(&world)[0]["hostname"], "one");
    assert_eq!(world.memory.values(SLICES)[0]["metadata"]["labels"][HEADLESS], "");
}

#[test]
fn each_family_has_slices_of_its_own() {
    let mut spec = plain();
    spec["ipFamilies"] = json!(["IPv6", "IPv4"]);
    let mut world = world(spec);
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    world.memory.patch(
        "pods",
        "d",
        "a",
        &json!({"status": {"podIPs": [{"ip": "10.244.0.2"}, {"ip": "fd00::2"}]}}),
    );
    add_pod(&mut world, "b", "10.244.0.3", 8080, true);
    world.settle();
    let mut slices = world.memory.values(SLICES);
    slices.sort_by_key(|slice| slice["addressType"].to_string());
    let addresses = |slice: &Value| -> Vec<String> {
        let endpoints = slice["endpoints"].as_array().unwrap();
        endpoints
            .iter()
            .map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(addresses(&slices[0]), ["10.244.0.2", "10.244.0.3"]);
    assert_eq!(addresses(&slices[1]), ["fd00::2"], "b has no IPv6");
    let legacy = world.memory.get("endpoints", "d", "web").unwrap().value();
    assert_eq!(legacy["subsets"][0]["addresses"].as_array().unwrap().len(), 1);
    assert_eq!(
        legacy["subsets"][0]["addresses"][0]["ip"], "fd00::2",
        "the service's first family"
    );
}

#[test]
fn slices_of_an_earlier_service_of_that_name_go() {
    let mut world = world(plain());
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    world.settle();
    let old = world.memory.objects(SLICES)[0].name.clone();
    world.memory.remove(SERVICES, "d", "web");
    world
        .memory
        .put(SERVICES, "d", json!({"metadata": {"name": "web"}, "spec": plain()}));
    world.settle();
    let slices = world.memory.objects(SLICES);
    assert_eq!(slices.len(), 1);
    assert_ne!(slices[0].name, old);
}

#[test]
fn a_pod_whose_labels_change_leaves() {
    let mut world = world(plain());
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    world.settle();
    world
        .memory
        .patch("pods", "d", "a", &json!({"metadata": {"labels": {"app": "debug"}}}));
    world.settle();
    assert!(endpoints(&world).is_empty());
}

#[test]
fn weights_and_the_time_of_the_change_are_annotations() {
    const WEIGHTS: &str = "hull.dev/weights";
    let annotation =
        |world: &World, name: &str| world.memory.values(SLICES)[0]["metadata"]["annotations"][name].clone();
    let mut world = world(plain());
    add_pod(&mut world, "a", "10.244.0.2", 8080, true);
    add_pod(&mut world, "b", "10.244.0.3", 8080, true);
    add_pod(&mut world, "c", "10.244.0.4", 8080, true);
    world.settle();
    assert_eq!(annotation(&world, WEIGHTS), Value::Null);
    let asks = |weight: &str| json!({"metadata": {"annotations": {"hull.dev/weight": weight}}});
    for (pod, weight) in [("a", "7"), ("b", "0"), ("c", "257")] {
        world.memory.patch("pods", "d", pod, &asks(weight));
    }
    world.settle();
    assert_eq!(annotation(&world, WEIGHTS), r#"{"10.244.0.2":7}"#);
    world.memory.patch("pods", "d", "b", &asks("256"));
    world.settle();
    assert_eq!(annotation(&world, WEIGHTS), r#"{"10.244.0.2":7,"10.244.0.3":256}"#);
    for pod in ["a", "b"] {
        let none = json!({"metadata": {"annotations": {"hull.dev/weight": null}}});
        world.memory.patch("pods", "d", pod, &none);
    }
    let ready = json!([{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-02T03:04:05Z"}]);
    world
        .memory
        .patch("pods", "d", "a", &json!({"status": {"conditions": ready}}));
    world.settle();
    assert_eq!(annotation(&world, WEIGHTS), Value::Null);
    assert_eq!(annotation(&world, TRIGGER), "2026-01-02T03:04:05Z");
    world.memory.remove("pods", "d", "c");
    world.settle();
    assert_eq!(annotation(&world, TRIGGER), Value::Null, "nobody knows when a pod went");
}
