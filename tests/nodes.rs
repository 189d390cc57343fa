//! Several machines: joining, pods and services across them, draining, leaving, coming back. Needs root and kubectl.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::nodes::{Nodes, hasty};
use support::{IMAGE, output, text};
use xtask::cluster::{Families, Layout};

fn strings<'a>(values: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    values
        .into_iter()
        .map(|value| value.as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn machines_join_work_together_are_drained_and_leave() {
    let mut nodes = Nodes::start("join", 3, |options| {
        hasty(options);
        options.layout = Layout::Routed;
        options.families = Families::Dual;
    });
    joined(&nodes);
    pods_reach_each_other(&nodes);
    direct_return_is_told_to_be_impossible(&nodes);
    drained_as_the_budget_allows(&nodes);
    deleted_and_back(&mut nodes);
    let machine = &nodes.cluster.nodes()[2];
    nodes.down(machine);
    nodes.assert_nothing_left(machine);
}

/// Certificates, ranges, and what a token does not open.
fn joined(nodes: &Nodes) {
    let list = nodes.list(&["nodes"]);
    let ranges = strings(list.iter().map(|node| &node["spec"]["podCIDR"]));
    assert_eq!(
        ranges,
        BTreeSet::from(["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"].map(str::to_owned))
    );
    for node in ["node-1", "node-2", "node-3"] {
        nodes.until("the node is ready", || nodes.is_ready(node, "True"));
    }
    nodes.until("serving certificates are issued", || {
        let requests = nodes.list(&["csr"]);
        requests.len() == 6
            && requests
                .iter()
                .all(|request| request["status"]["certificate"].is_string())
    });
    for machine in nodes.cluster.nodes() {
        for file in ["client.pem", "serving.pem", "kubeconfig"] {
            let path = machine.data_dir().join("agent").join(file);
            nodes.until("the file is there", || path.exists());
            let mode = fs::metadata(&path).expect("its metadata").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
    // A node reads its own pods and no other node's, and is nobody else (FAULTS 49).
    let own = nodes.cluster.nodes()[0].data_dir().join("agent/kubeconfig");
    let as_node = |arguments: &[&str]| {
        let kubeconfig = format!("--kubeconfig={}", own.display());
        let all: Vec<&str> = std::iter::once(kubeconfig.as_str())
            .chain(arguments.iter().copied())
            .collect();
        nodes.try_kubectl(&all, "")
    };
    for (arguments, allowed) in [
        (
            &["get", "pods", "-A", "--field-selector=spec.nodeName=node-1"][..],
            true,
        ),
        (&["get", "pods", "-A", "--field-selector=spec.nodeName=node-2"], false),
        (&["get", "secrets", "-A"], false),
        (&["label", "node", "node-2", "stolen=yes"], false),
        (&["label", "node", "node-1", "mine=yes"], true),
        (&["delete", "node", "node-2"], false),
        (&["get", "configmap", "-n", "kube-system", "hull-node-settings"], true),
    ] {
        let out = as_node(arguments);
        assert_eq!(out.status.success(), allowed, "{arguments:?}: {}", text(&out));
    }
    let machine = &nodes.cluster.nodes()[0];
    let server = format!("https://{}:6443", nodes.cluster.control().ips()[0]);
    let elsewhere = tempfile::tempdir().expect("temporary directory");
    let join = |token: &str, hash: Option<&str>| {
        let mut command = machine
            .command(std::path::Path::new(env!("CARGO_BIN_EXE_hull")))
            .expect("a process");
        command.args([
            "agent",
            "--node-name=thief",
            "--agent-listen=127.0.0.1:0",
            "--token",
            token,
            "--join",
            &server,
        ]);
        command.arg(format!("--data-dir={}", elsewhere.path().join("data").display()));
        command.arg(format!("--run-dir={}", elsewhere.path().join("run").display()));
        command.args(hash.map(|hash| format!("--ca-hash={hash}")));
        output(&mut command)
    };
    let said = text(&join("aaaaaa.0123456789abcdef", None));
    assert!(said.contains("did not prove to know bootstrap token aaaaaa"), "{said}");
    let token = text(&output(
        &mut nodes.cluster.hull(nodes.cluster.control(), &["token", "create"]),
    ));
    let said = text(&join(token.trim(), Some(&format!("sha256:{}", "0".repeat(64)))));
    assert!(said.contains("this is another cluster"), "{said}");
}

/// Each pod, each node and each host, by address and through a service; logs and exec on every node.
fn pods_reach_each_other(nodes: &Nodes) {
    nodes.serve("web", 3, 300);
    let (pods, service) = (nodes.pods("web"), nodes.get(&["service", "web"]));
    let services = strings(service["spec"]["clusterIPs"].as_array().expect("addresses"));
    assert_eq!(services.len(), 2, "one of each family: {services:?}");
    assert_eq!(
        strings(pods.iter().map(|pod| &pod["spec"]["nodeName"])).len(),
        3,
        "one on each node"
    );
    for from in &pods {
        let name = from["metadata"]["name"].as_str().expect("a name");
        for to in &pods {
            let addresses = to["status"]["podIPs"].as_array().expect("addresses");
            assert_eq!(addresses.len(), 2, "one of each family: {addresses:?}");
            for address in addresses.iter().filter_map(|entry| entry["ip"].as_str()) {
                let said = nodes.ask_from_pod(name, address, 8080);
                assert_eq!(said, to["metadata"]["name"], "{address} from {name}");
            }
        }
        for service in &services {
            let said = nodes.ask_from_pod(name, service, 80);
            assert!(
                pods.iter().any(|pod| pod["metadata"]["name"] == said.as_str()),
                "{service}: {said}"
            );
        }
        nodes.kubectl(&["logs", name]);
        nodes.names_are_found(name, "web");
    }
    for machine in nodes.cluster.nodes() {
        for service in &services {
            let host = if service.contains(':') {
                format!("[{service}]")
            } else {
                service.clone()
            };
            let answer = nodes.fetch(machine, &format!("http://{host}/"));
            assert!(
                answer.is_some(),
                "no answer of {service} to a process of {}",
                machine.name()
            );
        }
    }
}

/// Behind a router backends cannot answer clients of another node directly: the service goes on without, and says so.
fn direct_return_is_told_to_be_impossible(nodes: &Nodes) {
    nodes.kubectl(&["annotate", "service", "web", "hull.dev/forwarding=direct-return"]);
    nodes.until("there is a warning", || {
        let events = nodes.list(&["events", "--field-selector=reason=DirectReturnImpossible"]);
        events
            .iter()
            .any(|event| event["type"] == "Warning" && event["involvedObject"]["name"] == "web")
    });
    let machine = &nodes.cluster.nodes()[0];
    for _ in 0..10 {
        let answer = nodes.fetch(machine, &format!("http://{}/", nodes.node_port(machine, "web", 80)));
        assert!(answer.is_some_and(|said| said.starts_with("web-")));
    }
    nodes.kubectl(&["annotate", "service", "web", "hull.dev/forwarding-"]);
}

/// `kubectl drain` waits for the budget, and goes through when it allows.
fn drained_as_the_budget_allows(nodes: &Nodes) {
    nodes.apply(
        &json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
        "spec": {"minAvailable": 3, "selector": {"matchLabels": {"app": "web"}}}}),
    );
    nodes.until("the budget is computed", || {
        nodes.get(&["pdb", "web"])["status"]["currentHealthy"] == 3
    });
    let drain = [
        "drain",
        "node-2",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=2s",
    ];
    let refused = nodes.try_kubectl(&drain, "");
    assert!(
        !refused.status.success() && text(&refused).contains("would violate the pod's disruption budget"),
        "{}",
        text(&refused)
    );
    nodes.kubectl(&["patch", "pdb", "web", "-p", r#"{"spec":{"minAvailable":2}}"#]);
    nodes.kubectl(&[
        "drain",
        "node-2",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=60s",
    ]);
    let left = nodes.list(&["pods", "--field-selector=spec.nodeName=node-2"]);
    assert!(left.is_empty(), "{left:?}");
    nodes.until("the pod runs elsewhere", || {
        let ready = nodes.get(&["deployment", "web"])["status"]["readyReplicas"] == 3;
        ready && nodes.pods("web").iter().all(|pod| pod["spec"]["nodeName"] != "node-2")
    });
    assert_eq!(nodes.get(&["node", "node-2"])["spec"]["unschedulable"], true);
    nodes.kubectl(&["uncordon", "node-2"]);
    nodes.kubectl(&["delete", "pdb", "web"]);
}

/// A node that was deleted stays away until its agent is started again, and is then a new node of the same name.
fn deleted_and_back(nodes: &mut Nodes) {
    let before = nodes.get(&["node", "node-3"])["metadata"]["uid"].clone();
    nodes.kubectl(&["delete", "node", "node-3"]);
    nodes
        .cluster
        .node_mut(2)
        .end(Signal::TERM)
        .expect("the agent ends when it is asked to");
    assert!(
        !nodes.try_kubectl(&["get", "node", "node-3"], "").status.success(),
        "it is gone"
    );
    nodes.cluster.start_agent(2).expect("join again");
    nodes.until("the node is ready", || nodes.is_ready("node-3", "True"));
    let after = nodes.get(&["node", "node-3"]);
    assert_ne!(after["metadata"]["uid"], before);
    nodes.kubectl(&["rollout", "restart", "deployment/web"]);
    nodes.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    nodes.until("it has pods again", || {
        !nodes
            .list(&["pods", "--field-selector=spec.nodeName=node-3"])
            .is_empty()
    });
}

#[test]
fn certificates_are_renewed_while_everything_goes_on() {
    let nodes = Nodes::start("renew", 1, |options| {
        options.control_flags.push("--cluster-signing-duration=15s".to_owned());
        options.control_flags.push("--node-monitor-grace-period=8s".to_owned());
        options.agent_flags.push("--node-lease-duration=4s".to_owned());
    });
    let machine = &nodes.cluster.nodes()[0];
    let files = ["client.pem", "serving.pem"].map(|file| machine.data_dir().join("agent").join(file));
    let read = || files.clone().map(|path| fs::read(path).unwrap_or_default());
    nodes.until("both certificates are there", || {
        read().iter().all(|content| !content.is_empty())
    });
    let server_certificate = nodes.cluster.control().data_dir().join("pki/apiserver.crt");
    let (first, first_server) = (
        read(),
        fs::read(&server_certificate).expect("the API server's certificate"),
    );
    let mut generations = 0;
    let mut last = first.clone();
    nodes.until("everything was renewed twice", || {
        assert!(
            nodes.is_ready("node-1", "True"),
            "the node was given up:\n{}",
            nodes.logs()
        );
        let now = read();
        if now.iter().zip(&last).all(|(now, last)| now != last) {
            (generations, last) = (generations + 1, now);
        }
        generations == 2
    });
    assert_ne!(
        fs::read(&server_certificate).expect("the API server's certificate"),
        first_server
    );
    nodes.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "talker"}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": IMAGE, "command": ["/bin/busybox", "sh", "-c", "echo here; exec sleep 1000"]}]}}));
    nodes.kubectl(&["wait", "--for=condition=Ready", "pod/talker", "--timeout=60s"]);
    nodes.until("the API server reaches the agent", || {
        nodes.kubectl(&["logs", "talker"]) == "here\n"
    });
    assert!(!nodes.logs().contains("panicked"), "{}", nodes.logs());
}
