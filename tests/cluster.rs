//! One node, from `hull up` to `hull down`: what an operator and a kubectl user see. Needs root and kubectl.

mod support;

use support::{TestCluster, output, pod, text};

#[test]
fn up_says_ready_a_second_up_says_so_and_down_leaves_nothing() {
    let cluster = TestCluster::prepare("up");
    cluster.up();
    let again = output(&mut cluster.hull(&["up", "--detach"]));
    assert!(!again.status.success());
    assert!(text(&again).contains("already running"), "{}", text(&again));
    let status = output(&mut cluster.hull(&["status"]));
    assert!(text(&status).contains("node-1"), "{}", text(&status));
    cluster.down(&["--purge"]);
    cluster.assert_nothing_left();
    let down = output(&mut cluster.hull(&["down"]));
    assert!(
        down.status.success() && text(&down).contains("was not running"),
        "{}",
        text(&down)
    );
}

#[test]
fn a_pod_runs_logs_execs_and_is_deleted() {
    let cluster = TestCluster::start("pod");
    cluster.apply(&pod("talker", "echo out; echo err >&2; exec sleep 1000"));
    cluster.wait_ready("talker");
    cluster.until("both lines are in the log", || {
        cluster.kubectl(&["logs", "talker"]).lines().count() == 2
    });
    let said = cluster.kubectl(&[
        "exec",
        "talker",
        "--",
        "/bin/busybox",
        "sh",
        "-c",
        "echo inside; exit 0",
    ]);
    assert_eq!(said, "inside\n");
    let failed = cluster.try_kubectl(&["exec", "talker", "--", "/bin/busybox", "sh", "-c", "exit 7"], "");
    assert_eq!(failed.status.code(), Some(7), "{}", text(&failed));
    exec_over_spdy(&cluster);
    let through = cluster.try_kubectl(&["exec", "-i", "talker", "--", "/bin/busybox", "cat"], "a line\n");
    assert_eq!(
        String::from_utf8_lossy(&through.stdout),
        "a line\n",
        "{}",
        text(&through)
    );
    cluster.kubectl(&["delete", "pod", "talker", "--wait=true"]);
    assert!(cluster.kubectl(&["get", "pods", "-o", "name"]).is_empty());
    cluster.down(&["--purge"]);
    cluster.assert_nothing_left();
}

/// As kubectl before 1.31 and most programs made with client-go do it.
fn exec_over_spdy(cluster: &TestCluster) {
    let script = "echo out; echo err >&2; exit 7";
    let out = std::process::Command::new("kubectl")
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
        .args(["exec", "talker", "--", "/bin/busybox", "sh", "-c", script])
        .output()
        .expect("run kubectl");
    assert_eq!(out.status.code(), Some(7), "{}", text(&out));
    assert_eq!(String::from_utf8_lossy(&out.stdout), "out\n");
    assert!(
        String::from_utf8_lossy(&out.stderr).starts_with("err\n"),
        "{}",
        text(&out)
    );
}

#[test]
fn a_deployment_rolls_out_scales_and_rolls_back() {
    let cluster = TestCluster::start("rollout");
    let image = support::IMAGE;
    let run = ["/bin/busybox", "sh", "-c", "trap exit TERM; sleep 1000 & wait"];
    let create = [
        "create",
        "deployment",
        "web",
        &format!("--image={image}"),
        "--replicas=2",
        "--",
    ];
    cluster.kubectl(&[&create[..], &run[..]].concat());
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.kubectl(&["set", "env", "deployment/web", "A=b"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]);
    assert!(history.contains("1 ") && history.contains("2 "), "{history}");
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let deployment = cluster.get(&["deployment", "web"]);
    assert!(
        deployment["spec"]["template"]["spec"]["containers"][0]["env"].is_null(),
        "{deployment:#}"
    );
    assert_eq!(deployment["status"]["readyReplicas"], 3);
    cluster.kubectl(&["delete", "deployment", "web", "--cascade=foreground"]);
    assert!(cluster.kubectl(&["get", "pods,replicasets", "-o", "name"]).is_empty());
}

#[test]
fn a_service_answers_by_address_and_by_name() {
    let cluster = TestCluster::start("service");
    let serve = "mkdir -p /tmp/w && hostname > /tmp/w/index.html && exec httpd -f -p 8080 -h /tmp/w";
    for name in ["web-1", "web-2"] {
        cluster.apply(&pod(name, serve).replace(&format!(r#""app":"{name}""#), r#""app":"web""#));
    }
    cluster.apply(&pod("client", "exec sleep 1000"));
    for name in ["web-1", "web-2", "client"] {
        cluster.wait_ready(name);
    }
    cluster.kubectl(&[
        "expose",
        "pod",
        "web-1",
        "--name=web",
        "--port=80",
        "--target-port=8080",
        "--selector=app=web",
    ]);
    cluster.until("two endpoints", || {
        let slices = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"]);
        slices["items"][0]["endpoints"]
            .as_array()
            .is_some_and(|endpoints| endpoints.len() == 2)
    });
    let fetch = |from: &str| {
        let script = format!("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do wget -qO- http://{from}/ || exit 1; done");
        cluster.kubectl(&["exec", "client", "--", "/bin/busybox", "sh", "-c", &script])
    };
    for name in ["web", "web.default", "web.default.svc.cluster.local"] {
        let answers = fetch(name);
        assert_eq!(answers.lines().count(), 12, "{name}: {answers}");
        assert!(
            answers.contains("web-1") && answers.contains("web-2"),
            "{name}: {answers}"
        );
    }
    let rules = output(
        std::process::Command::new("sh").args(["-c", "iptables-save 2>/dev/null; nft list ruleset 2>/dev/null"]),
    );
    assert!(
        !text(&rules).contains("10."),
        "a packet filter rule exists: {}",
        text(&rules)
    );
}

#[test]
fn a_container_restarts_with_its_exit_code_and_previous_log() {
    let cluster = TestCluster::start("restart");
    cluster.apply(&pod("flaky", "echo try; sleep 1; exit 3"));
    cluster.until("one restart", || {
        cluster.get(&["pod", "flaky"])["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    });
    let status = cluster.get(&["pod", "flaky"])["status"]["containerStatuses"][0].clone();
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3, "{status:#}");
    assert_eq!(status["lastState"]["terminated"]["reason"], "Error", "{status:#}");
    assert_eq!(cluster.kubectl(&["logs", "flaky", "--previous"]), "try\n");
}
