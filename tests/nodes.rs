//! Several machines: joining, pods and services across them, draining, leaving, coming back. Needs root and kubectl.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::nodes::{Load, Nodes, hasty};
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
    drained_as_the_budget_allows(&nodes);
    deleted_and_back(&mut nodes);
    down_leaves_nothing(&mut nodes);
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

/// `hull down` on a machine that joined.
fn down_leaves_nothing(nodes: &mut Nodes) {
    let machine = &nodes.cluster.nodes()[2];
    let mut command = machine
        .command(std::path::Path::new(env!("CARGO_BIN_EXE_hull")))
        .expect("a process");
    command
        .args(machine.directories())
        .args(["down", "--purge", "--grace=1"]);
    let out = output(&mut command);
    assert!(out.status.success(), "hull down: {}", text(&out));
    let mut links = machine.command(std::path::Path::new("/sbin/ip")).expect("a process");
    let links = text(&output(links.args(["-o", "link"])));
    assert!(!links.contains("hull"), "interfaces are left: {links}");
    let mut routes = machine.command(std::path::Path::new("/sbin/ip")).expect("a process");
    let routes = text(&output(routes.args(["route"])));
    assert!(!routes.contains("10.244."), "routes are left: {routes}");
    assert!(
        !machine.bpf_dir().exists() && !machine.run_dir().exists(),
        "pins or state are left"
    );
    assert!(!machine.data_dir().join("agent").exists(), "certificates are left");
    let pods = support::cgroup2_mount().join(machine.cgroup()).join("hull");
    assert!(!pods.exists(), "cgroups are left");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mount table");
    let data = machine.data_dir();
    let left = mounts.lines().find(|line| line.contains(&*data.to_string_lossy()));
    assert_eq!(left, None, "a mount is left");
}

#[test]
fn a_node_cut_off_is_replaced_and_heals_without_a_wrong_answer() {
    let mut nodes = Nodes::start("cut", 3, hasty);
    let service = nodes.serve("web", 3, 1);
    nodes.serve("other", 3, 1);
    let url = format!("http://{service}/");
    let load = Load::start(&nodes.cluster.nodes()[0], &url);
    load.wait_more(20);
    agent_killed_under_load(&mut nodes, &load);

    let cut = nodes.cluster.nodes()[2].name().to_owned();
    nodes
        .cluster
        .set_connected(&nodes.cluster.nodes()[2], false)
        .expect("cut the cable");
    nodes.until("the node is given up", || nodes.is_ready(&cut, "Unknown"));
    let taints = nodes.get(&["node", &cut])["spec"]["taints"]
        .as_array()
        .cloned()
        .expect("taints");
    for effect in ["NoSchedule", "NoExecute"] {
        let taint = taints.iter().find(|taint| taint["effect"] == effect).expect("a taint");
        assert_eq!(taint["key"], "node.kubernetes.io/unreachable");
        assert!(taint["timeAdded"].is_string(), "{taint}");
    }
    nodes.until("its pods are replaced", || {
        let pods = nodes.pods("web");
        pods.len() == 3
            && pods.iter().all(|pod| pod["spec"]["nodeName"] != cut.as_str())
            && nodes.get(&["deployment", "web"])["status"]["readyReplicas"] == 3
    });
    let replaced = load.count();
    load.wait_more(30);
    assert!(
        load.answers(replaced + 2)
            .iter()
            .all(|answer| answer.starts_with("web-")),
        "{:?}",
        load.answers(replaced)
    );

    let healed = load.count();
    nodes
        .cluster
        .set_connected(&nodes.cluster.nodes()[2], true)
        .expect("mend the cable");
    nodes.until("the node is back", || nodes.is_ready(&cut, "True"));
    nodes.until("taints are gone", || {
        nodes.get(&["node", &cut])["spec"]["taints"].is_null()
    });
    nodes.until("surplus pods are gone", || {
        nodes
            .list(&["pods", "-A", &format!("--field-selector=spec.nodeName={cut}")])
            .is_empty()
    });
    let pods = support::cgroup2_mount()
        .join(nodes.cluster.nodes()[2].cgroup())
        .join("hull");
    nodes.until("no process of them is left on the machine", || {
        fs::read_to_string(pods.join("cgroup.events")).is_ok_and(|events| events.contains("populated 0"))
    });
    load.wait_more(30);
    assert!(
        load.answers(healed).iter().all(|answer| answer.starts_with("web-")),
        "{:?}",
        load.answers(healed)
    );
    let wrong: Vec<String> = load
        .answers(0)
        .into_iter()
        .filter(|answer| !answer.starts_with("web-") && answer != "FAILED")
        .collect();
    assert!(wrong.is_empty(), "answers of others: {wrong:?}");
    comes_back_to_work(&nodes, &cut);
}

/// kill -9 of the client's own agent: no connection fails, before or after it is back.
fn agent_killed_under_load(nodes: &mut Nodes, load: &Load) {
    let before = load.count();
    nodes.cluster.node_mut(0).end(Signal::KILL).expect("kill the agent");
    load.wait_more(30);
    nodes.cluster.start_agent(0).expect("start it again");
    load.wait_more(30);
    let answers = load.answers(before);
    assert!(answers.iter().all(|answer| answer.starts_with("web-")), "{answers:?}");
}

/// A node that was away gets new pods, and they work.
fn comes_back_to_work(nodes: &Nodes, node: &str) {
    let script = "mkdir -p /www && echo back > /www/index.html && exec httpd -f -p 8080 -h /www";
    nodes.apply(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "back"}, "spec": {
        "terminationGracePeriodSeconds": 1, "nodeSelector": {"kubernetes.io/hostname": node},
        "containers": [{"name": "main", "image": IMAGE, "command": ["/bin/busybox", "sh", "-c", script]}]}}),
    );
    nodes.kubectl(&["wait", "--for=condition=Ready", "pod/back", "--timeout=60s"]);
    let address = nodes.get(&["pod", "back"])["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    nodes.until("it answers from another node", || {
        nodes
            .fetch(&nodes.cluster.nodes()[0], &format!("http://{address}:8080/"))
            .as_deref()
            == Some("back")
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
