//! A cluster whose only addresses are IPv6, a partition in one direction, an agent in the background. Needs root and kubectl.

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::nodes::{Nodes, hasty};
use support::{output, text};
use xtask::cluster::Families;

#[test]
fn a_cluster_of_ipv6_alone_works_and_a_one_way_partition_is_one_absence() {
    let mut nodes = Nodes::start("six", 2, |options| {
        hasty(options);
        options.families = Families::Ipv6;
    });
    nodes.serve("web", 2, 300);
    let (pods, service) = (nodes.pods("web"), nodes.get(&["service", "web"]));
    let address = service["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    assert!(address.starts_with("fd00:10:96:"), "{address}");
    let own = nodes.get(&["service", "kubernetes"])["spec"]["clusterIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    assert_eq!(own, "fd00:10:96::1");
    for from in &pods {
        let name = from["metadata"]["name"].as_str().expect("a name");
        for to in &pods {
            let ips = to["status"]["podIPs"].as_array().expect("addresses");
            assert!(
                ips.len() == 1 && ips[0]["ip"].as_str().is_some_and(|ip| ip.contains(':')),
                "{ips:?}"
            );
            let said = nodes.ask_from_pod(name, ips[0]["ip"].as_str().unwrap_or_default(), 8080);
            assert_eq!(said, to["metadata"]["name"], "from {name}");
        }
        assert!(nodes.ask_from_pod(name, &address, 80).starts_with("web-"));
        nodes.names_are_found(name, "web");
        // The API server answers there, if only that it does not speak plain HTTP.
        let script = format!("/bin/busybox timeout 5 /bin/busybox nc {own} 443 < /dev/null");
        nodes.kubectl(&["exec", name, "--", "/bin/busybox", "sh", "-c", &script]);
    }
    for machine in nodes.cluster.nodes() {
        let answer = nodes.fetch(machine, &format!("http://[{address}]/"));
        assert!(
            answer.is_some_and(|answer| answer.starts_with("web-")),
            "{}",
            machine.name()
        );
    }
    heard_but_not_answered(&nodes);
    detached(&mut nodes);
}

/// FAULTS 63: what the node says arrives, what it is told does not. It is given up once, and comes back once.
fn heard_but_not_answered(nodes: &Nodes) {
    let (control, node) = (nodes.cluster.control(), &nodes.cluster.nodes()[1]);
    let route = |action: &str| {
        let mut ip = control.command(std::path::Path::new("/sbin/ip")).expect("a process");
        let to = format!("{}/128", node.ips()[0]);
        let out = output(ip.args(["-6", "route", action, "blackhole", &to]));
        assert!(out.status.success(), "ip route {action}: {}", text(&out));
    };
    let state = |name: &str| {
        let conditions = nodes.get(&["node", name])["status"]["conditions"].clone();
        let ready = conditions
            .as_array()
            .and_then(|all| all.iter().find(|one| one["type"] == "Ready"));
        ready.map(|one| (one["status"].clone(), one["lastTransitionTime"].clone()))
    };
    let before = state(node.name());
    route("add");
    nodes.until("the node is given up", || nodes.is_ready(node.name(), "Unknown"));
    let given_up = state(node.name());
    let (other, until) = (state("node-1"), Instant::now() + Duration::from_secs(9));
    while Instant::now() < until {
        assert_eq!(state(node.name()), given_up, "it changes its mind");
        assert_eq!(state("node-1"), other, "the other node is not concerned");
        std::thread::sleep(Duration::from_millis(200));
    }
    route("del");
    nodes.until("the node is back", || nodes.is_ready(node.name(), "True"));
    assert_ne!(state(node.name()), before, "it was away");
}

/// `hull agent --detach` returns when the node is ready, and says so.
fn detached(nodes: &mut Nodes) {
    nodes
        .cluster
        .node_mut(0)
        .end(Signal::TERM)
        .expect("the agent ends when it is asked to");
    let machine = &nodes.cluster.nodes()[0];
    nodes.detach_agent(machine, std::path::Path::new(env!("CARGO_BIN_EXE_hull")));
    nodes.until("the node is ready", || nodes.is_ready("node-1", "True"));
    let mut down = machine
        .command(std::path::Path::new(env!("CARGO_BIN_EXE_hull")))
        .expect("a process");
    let out = output(down.args(machine.directories()).args(["down", "--purge", "--grace=1"]));
    assert!(out.status.success(), "hull down: {}", text(&out));
}
