//! Many pods on one node: adopted in time after the agent is killed, and gone without a trace after they are deleted.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{TestCluster, cgroup2_mount, pod, start_time};

/// Pods that exist at once; a node offers 110.
const BATCH: usize = 100;

fn batch(prefix: &str) -> String {
    let pods: Vec<String> = (0..BATCH)
        .map(|i| pod(&format!("{prefix}-{i}"), "exec sleep 10000"))
        .collect();
    pods.join("\n")
}

fn all_running(cluster: &TestCluster) -> bool {
    let pods = cluster.get(&["pods"]);
    let items = pods["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    items.len() == BATCH && items.iter().all(|pod| pod["status"]["phase"] == "Running")
}

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the agent's descriptors")
        .count()
}

/// Everything on the machine that a pod could leave behind, counted.
fn traces(cluster: &TestCluster) -> BTreeMap<&'static str, usize> {
    let entries = |path: std::path::PathBuf| {
        fs::read_dir(path).map_or(0, |entries| {
            entries.filter_map(Result::ok).filter(|e| e.path().is_dir()).count()
        })
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mount table");
    let links = support::text(&support::output(std::process::Command::new("ip").args(["-o", "link"])));
    let routes = support::text(&support::output(std::process::Command::new("ip").args(["route"])));
    BTreeMap::from([
        (
            "mounts",
            mounts.lines().filter(|line| line.contains(cluster.name())).count(),
        ),
        ("interfaces", links.lines().filter(|line| line.contains("hull")).count()),
        ("routes", routes.lines().filter(|line| line.contains("hull")).count()),
        ("cgroups", entries(cgroup2_mount().join(cluster.name()))),
        ("records", entries(cluster.run_dir().join("pods"))),
        ("volumes", entries(cluster.data_dir().join("pods"))),
    ])
}

#[test]
fn a_hundred_containers_are_adopted_and_a_thousand_pods_leave_nothing() {
    let cluster = TestCluster::start("scale");
    let empty = traces(&cluster);
    cluster.apply(&batch("first"));
    cluster.until("100 pods run", || all_running(&cluster));
    adopted_after_kill(&cluster);
    cluster.kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force"]);
    cluster.until("the first hundred is gone", || traces(&cluster) == empty);
    let agent = cluster.pid("agent");
    let before = descriptors(agent);
    for round in 1..10 {
        cluster.apply(&batch(&format!("round-{round}")));
        cluster.until("100 pods run", || all_running(&cluster));
        cluster.kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force"]);
        cluster.until("they are gone", || traces(&cluster) == empty);
    }
    assert_eq!(cluster.pid("agent"), agent, "the agent was restarted");
    let after = descriptors(agent);
    assert!(
        after <= before + 4,
        "the agent's descriptors grew from {before} to {after} over 900 pods"
    );
    cluster.down(&["--purge"]);
    cluster.assert_nothing_left();
}

/// kill -9 of the agent: same processes, no restart, and a new agent that knows all pods within two seconds (times the debug build's slowness).
fn adopted_after_kill(cluster: &TestCluster) {
    let pods = cluster.get(&["pods"]);
    let items = pods["items"].as_array().expect("pods");
    let before: Vec<(i32, u64)> = items.iter().map(|pod| cluster.container(pod)).collect();
    cluster.kill(cluster.pid("agent"));
    let began = Instant::now();
    cluster.apply(&pod("after", "exec sleep 10000"));
    cluster.wait_ready("after");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "a new pod after the kill took {:?}",
        began.elapsed()
    );
    for (pid, started) in &before {
        assert_eq!(start_time(*pid), Some(*started), "a container's process changed");
    }
    let pods = cluster.get(&["pods"]);
    let restarted: Vec<&Value> = pods["items"]
        .as_array()
        .expect("pods")
        .iter()
        .filter(|pod| pod["status"]["containerStatuses"][0]["restartCount"] != 0)
        .collect();
    assert!(restarted.is_empty(), "restarted: {restarted:?}");
    cluster.kubectl(&["delete", "pod", "after", "--grace-period=0", "--force"]);
}

#[test]
fn a_container_sees_three_descriptors() {
    let cluster = TestCluster::start("fds");
    cluster.apply(&pod("fds", "ls /proc/self/fd; exec sleep 1000"));
    cluster.wait_ready("fds");
    // `ls` opens the directory it lists: 3.
    cluster.until("the list is logged", || {
        cluster.kubectl(&["logs", "fds"]) == "0\n1\n2\n3\n"
    });
    let fds = cluster.kubectl(&["exec", "fds", "--", "/bin/busybox", "ls", "/proc/self/fd"]);
    assert_eq!(fds, "0\n1\n2\n3\n");
}
