//! A node cut off and returned under the load of several services (FAULTS 62). Needs root and kubectl.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;
use support::IMAGE;
use support::clients::{Answer, Caller, Lasting, Outside};
use support::nodes::{ECHO, Nodes, hasty};
use xtask::cluster::Machine;

const SERVICES: [&str; 2] = ["web", "other"];
/// Index of the node that is cut off.
const CUT: usize = 2;

/// Clients of both services, by node ports of healthy nodes, from pods on a healthy node, and from pods on the one that is cut off.
struct Clients {
    outside: Vec<(&'static str, Outside)>,
    pods: Vec<(&'static str, Caller)>,
    cut: Vec<(&'static str, Caller)>,
    lasting: Vec<Lasting>,
}

impl Clients {
    fn start(nodes: &Nodes) -> Self {
        let machines = nodes.cluster.nodes();
        let callers = |machine: &Machine| SERVICES.map(|service| (service, Caller::start(nodes, machine, service)));
        let outside = |machine: &Machine, service| (service, Outside::start(nodes.node_port(machine, service, 80)));
        let mut lasting = Vec::new();
        while lasting.len() < 3 {
            let connection = Lasting::open(nodes.node_port(&machines[0], "web", ECHO));
            if node_of(nodes, &connection.pod) != machines[CUT].name() {
                lasting.push(connection);
            }
        }
        Clients {
            outside: SERVICES
                .iter()
                .zip(machines)
                .map(|(service, machine)| outside(machine, service))
                .collect(),
            pods: callers(&machines[1]).into(),
            cut: callers(&machines[CUT]).into(),
            lasting,
        }
    }

    /// Every client goes on from here: those on healthy nodes without a failure and without an answer from a pod of `gone`.
    fn go_on(&mut self, since: Instant, gone: &BTreeSet<String>) {
        let seen: Vec<usize> = self.pods.iter().map(|(_, caller)| caller.answers().len()).collect();
        for (service, client) in &self.outside {
            client.wait_more(40);
            client.assert_served_by(service, since);
            let answers = client.answers();
            let stale =
                |answer: &&Answer| answer.begun >= since && answer.said.as_ref().is_ok_and(|pod| gone.contains(pod));
            let stale: Vec<&Answer> = answers.iter().filter(stale).collect();
            assert!(stale.is_empty(), "answers of pods that are gone: {stale:?}");
        }
        for ((service, caller), seen) in self.pods.iter().zip(seen) {
            for _ in 0..5 {
                caller.wait_more(8);
            }
            // One connection was begun before this.
            let prefix = format!("{service}-");
            let answers = caller.answers().split_off(seen + 1);
            let wrong: Vec<&String> = answers
                .iter()
                .filter(|said| !said.starts_with(&prefix) || gone.contains(*said))
                .collect();
            assert!(wrong.is_empty(), "{service}, from a pod: {wrong:?}");
        }
        self.lasting.iter_mut().for_each(Lasting::assert_alive);
    }

    /// Nobody ever had an answer from a pod of another service, wherever they are.
    fn assert_no_answer_of_others(&self) {
        for (service, client) in &self.outside {
            let (prefix, answers) = (format!("{service}-"), client.answers());
            let wrong = |answer: &&Answer| answer.said.as_ref().is_ok_and(|said| !said.starts_with(&prefix));
            let wrong: Vec<&Answer> = answers.iter().filter(wrong).collect();
            assert!(wrong.is_empty(), "{wrong:?}");
        }
        for (service, caller) in self.pods.iter().chain(&self.cut) {
            let prefix = format!("{service}-");
            let mut answers = caller.answers();
            answers.retain(|said| !said.starts_with(&prefix) && said != "FAILED");
            assert!(answers.is_empty(), "{service}: {answers:?}");
        }
    }

    /// How many connections from outside failed since then, and how long the slowest took.
    fn trouble(&self, since: Instant) -> (usize, Duration) {
        let answers = self.outside.iter().flat_map(|(_, client)| client.answers());
        let concerned: Vec<Answer> = answers.filter(|answer| answer.begun >= since).collect();
        let failed = concerned.iter().filter(|answer| answer.said.is_err()).count();
        let slowest = concerned.iter().map(|answer| answer.ended - answer.begun).max();
        (failed, slowest.unwrap_or_default())
    }
}

fn node_of(nodes: &Nodes, pod: &str) -> String {
    let node = nodes.get(&["pod", pod])["spec"]["nodeName"].clone();
    node.as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_node_cut_off_is_replaced_and_heals_without_a_wrong_answer() {
    let nodes = Nodes::start("cut", 3, hasty);
    for service in SERVICES {
        nodes.serve(service, 3, 1);
    }
    let cut = nodes.cluster.nodes()[CUT].name().to_owned();
    let on_cut: BTreeSet<String> = SERVICES
        .iter()
        .flat_map(|service| nodes.pods(service))
        .filter(|pod| pod["spec"]["nodeName"] == cut.as_str())
        .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(on_cut.len(), SERVICES.len(), "a pod of each service: {on_cut:?}");
    let mut clients = Clients::start(&nodes);
    let whole = Instant::now();
    clients.go_on(whole, &BTreeSet::new());

    let began = Instant::now();
    set_connected(&nodes, false);
    nodes.until("the node is given up", || nodes.is_ready(&cut, "Unknown"));
    let marked = began.elapsed();
    nodes.until("no pod of it is ready", || !has_ready_endpoints(&nodes, &cut));
    let (dropped, after) = (Instant::now(), began.elapsed());
    clients.go_on(dropped, &on_cut);
    let (failed, slowest) = clients.trouble(began);
    eprintln!(
        "cut off: marked after {marked:?}, its endpoints seen out after {after:?}; {failed} connections from outside failed, the slowest took {slowest:?}"
    );
    is_tainted(&nodes, &cut);
    nodes.until("its pods are replaced", || {
        SERVICES.iter().all(|service| {
            let pods = nodes.pods(service);
            let elsewhere = pods.iter().all(|pod| pod["spec"]["nodeName"] != cut.as_str());
            elsewhere && pods.len() == 3 && nodes.get(&["deployment", service])["status"]["readyReplicas"] == 3
        })
    });
    clients.go_on(dropped, &on_cut);

    let healed = Instant::now();
    set_connected(&nodes, true);
    nodes.until("the node is back", || nodes.is_ready(&cut, "True"));
    let back = healed.elapsed();
    nodes.until("taints are gone", || {
        nodes.get(&["node", &cut])["spec"]["taints"].is_null()
    });
    nodes.until("surplus pods are gone", || {
        let pods = nodes.list(&["pods", "-A", &format!("--field-selector=spec.nodeName={cut}")]);
        pods.iter().all(|pod| {
            pod["metadata"]["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("caller-"))
        })
    });
    eprintln!(
        "healed: ready after {back:?}, surplus pods gone after {:?}",
        healed.elapsed()
    );
    only_its_callers_are_left(&nodes, &cut);
    clients.go_on(dropped, &on_cut);
    for (service, caller) in &clients.cut {
        caller_is_served_again(caller, service, &on_cut);
    }
    clients.assert_no_answer_of_others();
    comes_back_to_work(&nodes, &cut);
}

fn set_connected(nodes: &Nodes, connected: bool) {
    let machine = &nodes.cluster.nodes()[CUT];
    nodes.cluster.set_connected(machine, connected).expect("the cable");
}

fn has_ready_endpoints(nodes: &Nodes, node: &str) -> bool {
    SERVICES.iter().any(|service| {
        let slices = nodes.list(&["endpointslices", "-l", &format!("kubernetes.io/service-name={service}")]);
        let mut endpoints = slices
            .iter()
            .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        endpoints.any(|endpoint| endpoint["nodeName"] == node && endpoint["conditions"]["ready"] == true)
    })
}

fn is_tainted(nodes: &Nodes, node: &str) {
    let taints = nodes.get(&["node", node])["spec"]["taints"]
        .as_array()
        .cloned()
        .expect("taints");
    for effect in ["NoSchedule", "NoExecute"] {
        let taint = taints.iter().find(|taint| taint["effect"] == effect).expect("a taint");
        assert_eq!(taint["key"], "node.kubernetes.io/unreachable");
        assert!(taint["timeAdded"].is_string(), "{taint}");
    }
}

/// Of the pods that were replaced no process is left on the machine.
fn only_its_callers_are_left(nodes: &Nodes, node: &str) {
    let pods = nodes.list(&["pods", &format!("--field-selector=spec.nodeName={node}")]);
    let left: BTreeSet<String> = pods
        .iter()
        .filter_map(|pod| Some(format!("pod{}", pod["metadata"]["uid"].as_str()?)))
        .collect();
    let cgroup = support::cgroup2_mount()
        .join(nodes.cluster.nodes()[CUT].cgroup())
        .join("hull");
    nodes.until("no process of them is left on the machine", || {
        let entries = fs::read_dir(&cgroup).expect("the pods' cgroup").filter_map(Result::ok);
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let running = names.filter(|name| name.starts_with("pod")).filter(|name| {
            let events = fs::read_to_string(cgroup.join(name).join("cgroup.events"));
            events.is_ok_and(|events| events.contains("populated 1"))
        });
        running.collect::<BTreeSet<_>>() == left
    });
}

/// A client on the node that was away has what all others have: pods that exist.
fn caller_is_served_again(caller: &Caller, service: &str, gone: &BTreeSet<String>) {
    let seen = caller.answers().len();
    let deadline = Instant::now() + support::PATIENCE;
    loop {
        let answers = caller.answers().split_off(seen);
        let right = |said: &&String| said.starts_with(service) && !gone.contains(*said);
        if answers.iter().rev().take_while(right).count() >= 20 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{service}, on the node that was away: {answers:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
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
