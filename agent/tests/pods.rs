//! Pods on a real machine: a whole agent with namespaces, images, proxy and warden, against an API server in memory.
//! Needs root, busybox and a built hull-runtime; fails, never skips, without them.

#[path = "pods_support/mod.rs"]
mod pods_support;

use std::fs;
use std::time::Duration;

use pods_support::{Machine, phase, pod};
use serde_json::json;

const LOOP: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

#[test]
fn a_pod_runs_with_its_address_and_is_deleted_without_a_trace() {
    let machine = Machine::new("life");
    let agent = machine.agent();
    machine.api.put_pod(pod("web", "uid-web", LOOP));
    let running = machine.api.wait_for("web", |pod| phase(pod) == "Running");
    let status = &running["status"];
    assert!(
        status["podIP"]
            .as_str()
            .is_some_and(|ip| ip.starts_with(&machine.pod_prefix())),
        "{status:#}"
    );
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert!(
        status["containerStatuses"][0]["containerID"]
            .as_str()
            .is_some_and(|id| id.starts_with("hull://"))
    );
    machine.api.delete_pod("web", 3);
    machine.api.wait_until_gone("web");
    machine.assert_no_pod_left();
    drop(agent);
}

#[test]
fn containers_restart_with_the_right_counts_and_reasons() {
    let machine = Machine::new("restart");
    let _agent = machine.agent();
    let mut object = pod("crash", "uid-crash", "echo last words > /dev/termination-log; exit 7");
    object["spec"]["containers"][0]["name"] = json!("main");
    machine.api.put_pod(object);
    let crashed = machine.api.wait_for("crash", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let container = &crashed["status"]["containerStatuses"][0];
    assert_eq!(
        container["restartCount"], 1,
        "the first restart is immediate: {container:#}"
    );
    let last = &container["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(7), &json!("Error")));
    assert_eq!(last["message"], "last words\n");
}

#[test]
fn many_pods_leave_no_descriptor_mount_interface_or_cgroup() {
    let machine = Machine::new("leak");
    let agent = machine.agent();
    let round = |number: usize| {
        for index in 0..8 {
            let name = format!("p{number}-{index}");
            machine.api.put_pod(pod(&name, &format!("uid-{name}"), LOOP));
        }
        for index in 0..8 {
            machine
                .api
                .wait_for(&format!("p{number}-{index}"), |pod| phase(pod) == "Running");
            machine.api.delete_pod(&format!("p{number}-{index}"), 3);
        }
        for index in 0..8 {
            machine.api.wait_until_gone(&format!("p{number}-{index}"));
        }
    };
    round(0);
    machine.until("the first pods are gone", || machine.pod_traces().is_empty());
    let before = machine.descriptors();
    for number in 1..4 {
        round(number);
    }
    machine.until("all pods are gone", || machine.pod_traces().is_empty());
    machine.until("all descriptors are closed", || machine.descriptors() <= before);
    drop(agent);
    machine.assert_no_pod_left();
}

#[test]
fn a_restarted_agent_keeps_what_runs() {
    let machine = Machine::new("adopt");
    let agent = machine.agent();
    machine.api.put_pod(pod("steady", "uid-steady", LOOP));
    let before =
        machine.api.wait_for("steady", |pod| phase(pod) == "Running")["status"]["containerStatuses"][0].clone();
    let pid = machine.container_pid(&before);
    drop(agent);
    assert_eq!(
        machine.container_pid(&before),
        pid,
        "the container does not need the agent"
    );
    let _agent = machine.agent();
    machine.api.put_pod(pod("newcomer", "uid-newcomer", LOOP));
    machine.api.wait_for("newcomer", |pod| phase(pod) == "Running");
    let after = machine.api.pod("steady")["status"]["containerStatuses"][0].clone();
    assert_eq!(machine.container_pid(&after), pid);
    assert_eq!(
        (&after["containerID"], &after["restartCount"]),
        (&before["containerID"], &json!(0))
    );
}

#[test]
fn what_happened_while_the_agent_was_away_is_caught_up() {
    let machine = Machine::new("away");
    let agent = machine.agent();
    machine.api.put_pod(pod("deleted", "uid-deleted", LOOP));
    machine.api.put_pod(pod("forgotten", "uid-forgotten", LOOP));
    let mut once = pod(
        "ended",
        "uid-ended",
        "while [ ! -e /data/go ]; do sleep 0.05; done; exit 5",
    );
    let directory = machine.path("shared");
    fs::create_dir(&directory).unwrap();
    once["spec"]["restartPolicy"] = json!("Never");
    once["spec"]["volumes"] = json!([{"name": "data", "hostPath": {"path": directory}}]);
    once["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    machine.api.put_pod(once);
    for name in ["deleted", "forgotten", "ended"] {
        machine.api.wait_for(name, |pod| phase(pod) == "Running");
    }
    drop(agent);
    machine.api.delete_pod("deleted", 1);
    machine.api.forget_pod("forgotten");
    fs::write(directory.join("go"), "").unwrap();
    let _agent = machine.agent();
    machine.api.wait_until_gone("deleted");
    let ended = machine.api.wait_for("ended", |pod| phase(pod) == "Failed");
    assert_eq!(
        ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 5,
        "{ended:#}"
    );
    machine.api.delete_pod("ended", 1);
    machine.api.wait_until_gone("ended");
    machine.until("the pod that the API forgot is gone", || {
        machine.pod_traces().is_empty()
    });
}

#[test]
fn sigterm_ignored_ends_by_sigkill_in_time() {
    let machine = Machine::new("stubborn");
    let _agent = machine.agent();
    machine.api.put_pod(pod(
        "stubborn",
        "uid-stubborn",
        "trap '' TERM; while :; do sleep 0.1; done",
    ));
    machine.api.wait_for("stubborn", |pod| phase(pod) == "Running");
    machine.api.delete_pod("stubborn", 1);
    machine.api.wait_until_gone("stubborn");
}

#[test]
fn volumes_follow_their_config_map() {
    let machine = Machine::new("volume");
    let _agent = machine.agent();
    machine.api.put(
        "configmaps",
        "conf",
        json!({"metadata": {"name": "conf"}, "data": {"key": "first"}}),
    );
    let shared = machine.path("seen");
    fs::create_dir(&shared).unwrap();
    let mut object = pod(
        "reader",
        "uid-reader",
        "while :; do cp /conf/key /seen/.k && mv /seen/.k /seen/k; sleep 0.05; done",
    );
    object["spec"]["volumes"] = json!([{"name": "conf", "configMap": {"name": "conf"}},
        {"name": "seen", "hostPath": {"path": shared}}]);
    object["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "conf", "mountPath": "/conf"},
        {"name": "seen", "mountPath": "/seen"}]);
    object["spec"]["terminationGracePeriodSeconds"] = json!(0);
    machine.api.put_pod(object);
    let seen = |text: &str| fs::read_to_string(shared.join("k")).is_ok_and(|content| content == text);
    machine.until("the first value is seen", || seen("first"));
    machine.api.put(
        "configmaps",
        "conf",
        json!({"metadata": {"name": "conf"}, "data": {"key": "second"}}),
    );
    machine.until("the second value is seen", || seen("second"));
}

/// Whether any log below `dir` has this text.
fn logged(dir: &std::path::Path, text: &str) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        path.is_dir() && logged(&path, text) || fs::read_to_string(&path).is_ok_and(|content| content.contains(text))
    })
}

#[test]
fn tear_down_needs_no_agent_and_leaves_nothing() {
    let machine = Machine::new("down");
    let agent = machine.agent();
    let mut object = pod(
        "web",
        "uid-down",
        "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done",
    );
    object["spec"]["volumes"] = json!([{"name": "m", "emptyDir": {"medium": "Memory"}}]);
    machine.api.put_pod(object);
    machine.api.wait_for("web", |pod| phase(pod) == "Running");
    // Running means started: before the shell has set its trap, SIGTERM would be ignored.
    machine.until("the shell is up", || logged(&machine.config.log_dir(), "up"));
    drop(agent);
    let report = hull_agent::teardown::teardown(&machine.config, Duration::from_secs(5)).unwrap();
    assert_eq!((report.pods, report.containers, report.killed), (1, 1, 0));
    machine.assert_nothing_left();
    hull_agent::teardown::teardown(&machine.config, Duration::ZERO).expect("a second time is fine");
}
