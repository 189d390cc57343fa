//! Truth after trouble: kill -9 of hull's own processes, alone and in pairs, while containers run. Needs root and kubectl.

mod support;

use std::fs;

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

/// FAULTS 73: the agent is stopped, then killed, while the pod is told to go.
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

/// FAULTS 70, the hard way: all processes die, but namespaces, interfaces, cgroups and records of another boot are still there.
#[test]
fn a_reboot_starts_pods_anew_and_clears_away_what_was_before() {
    let cluster = TestCluster::start("reboot");
    cluster.apply(&pod("phoenix", "exec sleep 1000"));
    cluster.wait_ready("phoenix");
    let before = cluster.get(&["pod", "phoenix"]);
    let (uid, old) = (
        before["metadata"]["uid"].as_str().expect("a uid").to_owned(),
        cluster.container(&before),
    );
    let links = support::interfaces();
    let mark = ["link", "add", "mark", "type", "veth", "peer", "name", "mark2"];
    assert!(ip_in(&cluster, &uid, &mark), "the old namespace is marked");
    // A process that is started again would not be gone.
    ["supervisor", "control", "agent", "warden"]
        .map(|role| cluster.pid(role))
        .into_iter()
        .for_each(|pid| cluster.kill(pid));
    let pods = support::cgroup2_mount().join(cluster.name());
    fs::write(pods.join("cgroup.kill"), "1").expect("kill the containers");
    cluster.until("nothing runs", || {
        fs::read_to_string(pods.join("cgroup.events")).is_ok_and(|events| events.contains("populated 0"))
    });
    let note = cluster.run_dir().join("pods/boot_id");
    assert!(note.exists(), "{}", note.display());
    fs::write(&note, "00000000-0000-0000-0000-000000000000\n").expect("another boot");
    cluster.up();
    let status = || cluster.get(&["pod", "phoenix"])["status"]["containerStatuses"][0].clone();
    cluster.until("it runs again", || {
        status()["ready"] == true && status()["restartCount"] == 1
    });
    let after = cluster.get(&["pod", "phoenix"]);
    assert_eq!(after["metadata"]["uid"], uid.as_str());
    assert_ne!(cluster.container(&after), old, "another process");
    assert!(!ip_in(&cluster, &uid, &["link", "show", "mark"]), "another namespace");
    assert_eq!(support::interfaces().len(), links.len(), "no interface of before");
    let containers = fs::read_dir(pods.join(format!("pod{uid}")))
        .expect("its cgroup")
        .filter_map(Result::ok);
    let containers = containers.filter(|entry| entry.path().is_dir()).count();
    assert_eq!(containers, 1, "no cgroup of before");
    cluster.kubectl(&["delete", "pod", "phoenix", "--now"]);
    cluster.until("its interface is gone", || support::interfaces().len() < links.len());
    cluster.down(&["--purge"]);
    cluster.assert_nothing_left();
}

/// ip(8) in a pod's network namespace; whether it succeeded.
fn ip_in(cluster: &TestCluster, uid: &str, arguments: &[&str]) -> bool {
    let path = cluster.run_dir().join("netns").join(uid).join("net");
    let mut command = std::process::Command::new("nsenter");
    let command = command
        .arg(format!("--net={}", path.display()))
        .args(["--", "ip"])
        .args(arguments);
    support::output(command).status.success()
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
