//! Agents killed, changed and upgraded under load (FAULTS 55, 56, 57): nobody's connection notices. Needs root and kubectl.

mod support;

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rustix::process::Signal;
use rustix::thread::LinkNameSpaceType;
use support::clients::{Caller, Lasting, Outside};
use support::nodes::{ECHO, Load, Nodes};
use support::{output, text};

/// Connections that every client opens after each fault.
const MORE: usize = 25;
/// All addresses that hosts of clusters here can have, but no pod and no service: 10.100.0.0 to 10.199.255.255.
const HOSTS: &str = "10.100.0.0/14,10.104.0.0/13,10.112.0.0/12,10.128.0.0/10,10.192.0.0/13";
/// A host of the world, at the machine of the control plane.
const WORLD: &str = "192.0.2.77";

#[test]
fn agents_come_and_go_and_no_connection_notices() {
    let mut nodes = Nodes::start("agents", 3, |options| {
        // Nodes are not given up: this is about what goes on without an agent.
        options.agent_flags.push(format!("--non-masquerade-cidr={HOSTS}"));
    });
    nodes.serve("web", 3, 300);
    let other = nodes.serve("other", 3, 300);
    let mut clients = Clients::start(&nodes);
    pods_are_seen_by_their_own_addresses(&nodes);
    killed(&mut nodes, &mut clients);
    changed_meanwhile(&mut nodes, &mut clients, &other);
    upgraded(&mut nodes, &mut clients);
    clients.assert_nothing_failed();
    drop(clients);
    nothing_is_left(&nodes);
}

/// Whoever uses the service `web`: processes outside by every node's port, a pod on every node by the cluster address.
struct Clients {
    since: Instant,
    outside: Vec<Outside>,
    pods: Vec<Caller>,
    lasting: Vec<Lasting>,
}

impl Clients {
    fn start(nodes: &Nodes) -> Self {
        let machines = nodes.cluster.nodes();
        let open = |machine| Lasting::open(nodes.node_port(machine, "web", ECHO));
        let mut lasting: Vec<Lasting> = machines.iter().chain(machines).map(open).collect();
        // Pods on other nodes than the one whose port it is are among them.
        while lasting.iter().all(|connection| connection.pod == lasting[0].pod) {
            lasting.push(open(&machines[0]));
        }
        let clients = Clients {
            since: Instant::now(),
            outside: machines
                .iter()
                .map(|machine| Outside::start(nodes.node_port(machine, "web", 80)))
                .collect(),
            pods: machines
                .iter()
                .map(|machine| Caller::start(nodes, machine, "web"))
                .collect(),
            lasting,
        };
        clients.outside.iter().for_each(|client| client.wait_more(MORE));
        clients
    }

    /// Every client goes on.
    fn go_on(&mut self) {
        self.outside.iter().for_each(|client| client.wait_more(MORE));
        self.pods.iter().for_each(|client| client.wait_more(MORE));
        self.pods.iter().for_each(Caller::wait_tick);
        self.lasting.iter_mut().for_each(Lasting::assert_alive);
        self.assert_nothing_failed();
    }

    fn assert_nothing_failed(&self) {
        let asked = self
            .outside
            .iter()
            .map(|client| client.assert_served_by("web", self.since));
        let asked: usize = asked.sum();
        self.pods.iter().for_each(|client| client.assert_served_by("web"));
        let from_pods: usize = self.pods.iter().map(|client| client.answers().len()).sum();
        eprintln!("connections so far, none of which failed: {asked} by node ports, {from_pods} of pods");
    }
}

/// kill -9: of one agent, of another one as soon as the first is back, of all at once.
fn killed(nodes: &mut Nodes, clients: &mut Clients) {
    for index in [0, 1] {
        nodes.cluster.node_mut(index).end(Signal::KILL).expect("kill the agent");
        clients.go_on();
        nodes.cluster.start_agent(index).expect("start it again");
        clients.go_on();
    }
    for index in 0..3 {
        nodes.cluster.node_mut(index).end(Signal::KILL).expect("kill the agent");
    }
    clients.go_on();
    for index in 0..3 {
        nodes.cluster.start_agent(index).expect("start it again");
    }
    clients.go_on();
}

/// A service gets other pods while the agent is dead: until there is an agent the old ones answer, soon after it only the new
/// ones.
fn changed_meanwhile(nodes: &mut Nodes, clients: &mut Clients, other: &str) {
    let load = Load::start(&nodes.cluster.nodes()[0], &format!("http://{other}/"));
    load.wait_more(5);
    nodes.cluster.node_mut(0).end(Signal::KILL).expect("kill the agent");
    let dead = load.count();
    nodes.kubectl(&[
        "patch",
        "service",
        "other",
        "-p",
        r#"{"spec":{"selector":{"app":"web"}}}"#,
    ]);
    nodes.until("the endpoints are others", || {
        let slices = nodes.list(&["endpointslices", "-l", "kubernetes.io/service-name=other"]);
        let endpoints = slices
            .iter()
            .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        let mut pods = endpoints.map(|endpoint| endpoint["targetRef"]["name"].as_str().unwrap_or_default());
        pods.all(|pod| pod.starts_with("web-"))
    });
    load.wait_more(10);
    let answers = load.answers(dead);
    assert!(
        answers.iter().all(|said| said.starts_with("other-")),
        "without an agent: {answers:?}"
    );
    nodes.cluster.start_agent(0).expect("start it again");
    nodes.until("the new pods answer", || {
        load.answers(0).last().is_some_and(|said| said.starts_with("web-"))
    });
    let new = load.count();
    load.wait_more(10);
    let answers = load.answers(new);
    assert!(answers.iter().all(|said| said.starts_with("web-")), "{answers:?}");
    assert!(!load.answers(0).iter().any(|said| said == "FAILED"));
    clients.go_on();
}

/// Another binary in the background takes over what the first one left; pods and connections stay what they are.
fn upgraded(nodes: &mut Nodes, clients: &mut Clients) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let built = Path::new(env!("CARGO_BIN_EXE_hull"));
    for name in ["hull", "hull-runtime"] {
        fs::copy(built.with_file_name(name), directory.path().join(name)).expect("copy a binary");
    }
    let restarts = |nodes: &Nodes| -> u64 {
        let pods = nodes.pods("web");
        let counts = pods
            .iter()
            .map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64());
        counts.map(Option::unwrap_or_default).sum()
    };
    let pins = |nodes: &Nodes| -> Vec<String> {
        let entries = fs::read_dir(nodes.cluster.nodes()[1].bpf_dir()).expect("its pins");
        let names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
        let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let before = pins(nodes);
    nodes
        .cluster
        .node_mut(1)
        .end(Signal::TERM)
        .expect("the agent ends when it is asked to");
    clients.go_on();
    nodes.detach_agent(&nodes.cluster.nodes()[1], &directory.path().join("hull"));
    clients.go_on();
    assert_eq!(restarts(nodes), 0, "containers went on");
    assert_eq!(pins(nodes), before, "the same maps and links are in force");
    nodes.until("the node is ready", || nodes.is_ready("node-2", "True"));
}

/// `--non-masquerade-cidr`: hosts in the range see pods, the rest of the world sees nodes.
fn pods_are_seen_by_their_own_addresses(nodes: &Nodes) {
    let (control, node) = (nodes.cluster.control(), &nodes.cluster.nodes()[0]);
    let range = nodes.get(&["node", node.name()])["spec"]["podCIDR"].clone();
    ip(control, &format!("addr add {WORLD}/32 dev lo"));
    ip(
        control,
        &format!("route add {} via {}", range.as_str().expect("a range"), node.ips()[0]),
    );
    ip(node, &format!("route add {WORLD}/32 via {}", control.ips()[0]));
    let pod = "caller-node-1-web";
    let own = nodes.get(&["pod", pod])["status"]["podIP"].clone();
    let world: IpAddr = WORLD.parse().expect("an address");
    for (server, seen) in [
        (control.ips()[0], own.as_str().expect("an address").to_owned()),
        (world, node.ips()[0].to_string()),
    ] {
        let port = says_who_asks(&control.namespace(), server);
        let script = format!("/bin/busybox timeout 5 /bin/busybox nc {server} {port} < /dev/null");
        let said = nodes.kubectl(&["exec", pod, "--", "/bin/busybox", "sh", "-c", &script]);
        assert_eq!(said.trim(), seen, "{server}");
    }
}

/// A server in a host's network that tells one client the address it has seen; its port.
fn says_who_asks(namespace: &str, address: IpAddr) -> u16 {
    let network = fs::File::open(format!("/run/netns/{namespace}")).expect("the host's network");
    let (bound, is_bound) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter it");
        let listener = TcpListener::bind(SocketAddr::new(address, 0)).expect("listen");
        bound
            .send(listener.local_addr().expect("its address").port())
            .expect("tell");
        if let Ok((mut stream, client)) = listener.accept() {
            let _ = writeln!(stream, "{}", client.ip());
        }
    });
    is_bound.recv().expect("it listens")
}

fn ip(machine: &xtask::cluster::Machine, arguments: &str) {
    let mut command = Command::new("ip");
    command.args(["-n", &machine.namespace()]).args(arguments.split(' '));
    let out = output(&mut command);
    assert!(out.status.success(), "ip {arguments}: {}", text(&out));
}

/// `hull down --purge` on every node, the agents running, killed and detached.
fn nothing_is_left(nodes: &Nodes) {
    for machine in nodes.cluster.nodes() {
        nodes.down(machine);
        nodes.assert_nothing_left(machine);
    }
}
