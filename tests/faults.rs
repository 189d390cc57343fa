//! Truth after trouble: kill -9 of hull's own processes, alone and in pairs, while containers run. Needs root and kubectl.

mod support;

use support::{TestCluster, pod, start_time};

/// Kills the given processes at once and checks that the running container never notices and that hull still tells the truth of it.
fn survives(name: &str, roles: &[&str]) {
    let cluster = TestCluster::start(name);
    let serve = "mkdir -p /tmp/w && echo alive > /tmp/w/index.html && (httpd -f -p 8080 -h /tmp/w &) ; i=0; while true; do echo line $i; i=$((i+1)); sleep 0.05; done";
    cluster.apply(&pod("steady", serve));
    cluster.apply(&pod("mortal", "while [ ! -e /die ]; do sleep 0.05; done; exit 5"));
    cluster.wait_ready("steady");
    cluster.wait_ready("mortal");
    cluster.kubectl(&["expose", "pod", "steady", "--port=80", "--target-port=8080"]);
    let address = cluster.get(&["service", "steady"])["spec"]["clusterIP"]
        .as_str()
        .expect("clusterIP")
        .to_owned();
    cluster.until("the service answers", || answers(&address));
    let before = cluster.container(&cluster.get(&["pod", "steady"]));
    for pid in roles.iter().map(|role| cluster.pid(role)).collect::<Vec<_>>() {
        cluster.kill(pid);
    }
    // Services do not depend on any of hull's processes.
    for _ in 0..20 {
        assert!(
            answers(&address),
            "the service stopped answering after kill -9 of {roles:?}"
        );
    }
    cluster.until("all four processes are back", || {
        ["control", "agent", "warden"].iter().all(|role| {
            let out = support::output(&mut cluster.hull(&["status", "-o", "json"]));
            let status: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
            status["processes"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|process| process["role"] == *role)
        })
    });
    cluster.apply(&pod("newcomer", "exec sleep 1000"));
    cluster.wait_ready("newcomer");
    assert_eq!(start_time(before.0), Some(before.1), "the container's process changed");
    let steady = cluster.get(&["pod", "steady"]);
    assert_eq!(
        steady["status"]["containerStatuses"][0]["restartCount"], 0,
        "{steady:#}"
    );
    assert_eq!(steady["status"]["phase"], "Running", "{steady:#}");
    assert_eq!(cluster.container(&steady), before);
    log_has_no_gap(&cluster);
    // The container may end before the exec does, and takes it along: only the file counts.
    cluster.try_kubectl(&["exec", "mortal", "--", "/bin/busybox", "touch", "/die"], "");
    cluster.until("the exit is reported", || {
        cluster.get(&["pod", "mortal"])["status"]["containerStatuses"][0]["restartCount"] == 1
    });
    let mortal = cluster.get(&["pod", "mortal"])["status"]["containerStatuses"][0].clone();
    assert_eq!(mortal["lastState"]["terminated"]["exitCode"], 5, "{mortal:#}");
    cluster.down(&["--purge"]);
    cluster.assert_nothing_left();
}

fn answers(address: &str) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = std::net::TcpStream::connect((address, 80)) else {
        return false;
    };
    let mut text = String::new();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_to_string(&mut text).is_ok()
        && text.contains("alive")
}

fn log_has_no_gap(cluster: &TestCluster) {
    let first = cluster.kubectl(&["logs", "steady"]).lines().count();
    cluster.until("the log goes on", || {
        cluster.kubectl(&["logs", "steady"]).lines().count() > first + 5
    });
    let log = cluster.kubectl(&["logs", "steady"]);
    for (i, line) in log.lines().enumerate() {
        assert_eq!(line, format!("line {i}"), "a log line is lost or repeated");
    }
}

#[test]
fn kill_agent() {
    survives("agent", &["agent"]);
}

#[test]
fn kill_control() {
    survives("control", &["control"]);
}

#[test]
fn kill_warden() {
    survives("warden", &["warden"]);
}

#[test]
fn kill_agent_and_control() {
    survives("agent-control", &["agent", "control"]);
}

#[test]
fn kill_agent_and_warden() {
    survives("agent-warden", &["agent", "warden"]);
}

#[test]
fn kill_control_and_warden() {
    survives("control-warden", &["control", "warden"]);
}

#[test]
fn a_pod_deleted_while_everything_is_down_is_completed() {
    let cluster = TestCluster::start("terminating");
    cluster.apply(&pod("doomed", "exec sleep 1000"));
    cluster.wait_ready("doomed");
    let doomed = cluster.get(&["pod", "doomed"]);
    let container = cluster.container(&doomed);
    let agent = cluster.pid("agent");
    let stopped = rustix::process::Pid::from_raw(agent).expect("a pid");
    rustix::process::kill_process(stopped, rustix::process::Signal::STOP).expect("stop the agent");
    cluster.kubectl(&["delete", "pod", "doomed", "--wait=false"]);
    cluster.kill(agent);
    cluster.until("the pod is gone", || {
        cluster.kubectl(&["get", "pods", "-o", "name"]).is_empty()
    });
    assert_ne!(
        start_time(container.0),
        Some(container.1),
        "the container outlived its pod"
    );
}

#[test]
fn pods_kept_by_down_are_adopted_by_up() {
    let cluster = TestCluster::start("keep");
    cluster.apply(&pod("kept", "exec sleep 1000"));
    cluster.wait_ready("kept");
    let before = cluster.container(&cluster.get(&["pod", "kept"]));
    cluster.down(&["--keep-pods"]);
    assert_eq!(
        start_time(before.0),
        Some(before.1),
        "down --keep-pods stopped the container"
    );
    cluster.up();
    cluster.wait_ready("kept");
    let kept = cluster.get(&["pod", "kept"]);
    assert_eq!(cluster.container(&kept), before);
    assert_eq!(kept["status"]["containerStatuses"][0]["restartCount"], 0);
}
