//! `hull top`, `hull bench` and `hull trace` of a service in a real cluster: one service with two pods behind it, asked
//! from a third, seen through its addresses. Needs root and kubectl.

mod support;

use serde_json::{Value, json};
use support::{IMAGE, TestCluster, output, pod, text};

/// Connections that the pod `client` makes.
const ASKED: u64 = 12;

fn server(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": IMAGE, "ports": [{"containerPort": 8080}],
            "command": ["/bin/busybox", "nc", "-ll", "-p", "8080", "-e", "/bin/busybox", "echo", name]}]}})
}

fn json_of(cluster: &TestCluster, arguments: &[&str]) -> Value {
    let out = output(&mut cluster.hull(arguments));
    assert!(out.status.success(), "{arguments:?}: {}", text(&out));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", text(&out)))
}

#[test]
fn a_service_is_seen_measured_and_traced() {
    let cluster = TestCluster::start("latency");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
        "type": "NodePort", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    cluster.apply(&service.to_string());
    for name in ["one", "two"] {
        cluster.apply(&server(name).to_string());
    }
    cluster.apply(&pod("client", "exec sleep 1000"));
    ["one", "two", "client"]
        .iter()
        .for_each(|name| cluster.wait_ready(name));
    let address = cluster.get(&["service", "web"])["spec"]["clusterIP"]
        .as_str()
        .expect("a cluster address")
        .to_owned();
    let ask = |times: u64| {
        let one = format!("echo | /bin/busybox timeout 5 /bin/busybox nc {address} 80");
        let script = format!("for i in $(/bin/busybox seq {times}); do {one} || exit 1; done");
        cluster.try_kubectl(&["exec", "client", "--", "/bin/busybox", "sh", "-c", &script], "")
    };
    cluster.until("the service answers", || ask(1).status.success());

    let opened = || {
        let top = json_of(&cluster, &["top", "services", "-n", "default", "--once", "-o", "json"]);
        let all = top.to_string();
        let rows = top["services"].as_array().cloned().unwrap_or_default();
        let row = rows.into_iter().find(|row| row["name"] == "web");
        row.unwrap_or_else(|| panic!("no row in {all}"))
    };
    let before = opened()["connections"].as_u64().expect("a count");
    let out = ask(ASKED);
    assert!(out.status.success(), "{}", text(&out));
    let row = opened();
    assert_eq!(row["connections"].as_u64(), Some(before + ASKED), "{row}");

    trace(&cluster);
    measure(&cluster);
    cluster.down(&["--purge"]);
    cluster.assert_nothing_left();
}

fn trace(cluster: &TestCluster) {
    let trace = json_of(
        cluster,
        &[
            "trace",
            "service",
            "default/web",
            "--from",
            "default/client",
            "-o",
            "json",
        ],
    );
    let said = trace.to_string();
    for pod in ["one", "two"] {
        assert!(said.contains(&format!("default/{pod}")), "{pod} is a candidate: {said}");
    }
    assert!(said.contains("opened") && said.contains("closed"), "the diary: {said}");
    let out = output(&mut cluster.hull(&["trace", "service", "default/web"]));
    assert!(
        out.status.success() && text(&out).contains("default/web"),
        "{}",
        text(&out)
    );
    let out = output(&mut cluster.hull(&["trace", "service", "default/nobody"]));
    assert!(!out.status.success() && text(&out).contains("nobody"), "{}", text(&out));
}

fn measure(cluster: &TestCluster) {
    let svg = cluster.data_dir().join("web.svg");
    let file = svg.to_string_lossy().into_owned();
    let report = json_of(
        cluster,
        &[
            "bench",
            "service",
            "default/web",
            "--duration",
            "3",
            "--rate",
            "100",
            "--request",
            "connect",
            "--against",
            "direct",
            "--svg",
            &file,
            "-o",
            "json",
        ],
    );
    let paths = report["paths"].as_array().expect("paths");
    let names: Vec<&str> = paths.iter().filter_map(|path| path["path"].as_str()).collect();
    assert_eq!(names, ["pod", "clusterip", "nodeport"]);
    let against = report["againstDirect"].as_array().expect("overheads");
    let compared = |name: &str| against.iter().any(|one| one["path"] == name);
    assert!(compared("clusterip") && compared("nodeport"), "{report}");
    let picture = std::fs::read_to_string(&svg).expect("the picture");
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    for name in names {
        assert!(picture.contains(&format!("class=\"line {name}\"")), "{name} is drawn");
    }
}
