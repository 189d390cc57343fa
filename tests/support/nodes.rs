//! A real cluster of several machines for a test: `xtask::cluster` with what tests ask of it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value, json};
use xtask::cluster::{Cluster, Machine, Options};

use super::{IMAGE, PATIENCE, output, text};

/// Port of [`Nodes::serve`]'s services behind which a pod says its name and sends back what it is sent.
pub const ECHO: u16 = 81;

/// Nodes are given up after seconds, so that the test need not wait.
pub fn hasty(options: &mut Options) {
    options.control_flags.push("--node-monitor-grace-period=4s".to_owned());
    options.agent_flags.push("--node-lease-duration=4s".to_owned());
}

/// A running cluster with [`IMAGE`] on every node.
pub struct Nodes {
    /// The machines.
    pub cluster: Cluster,
}

impl Nodes {
    /// Starts `nodes` machines and the control plane; `change` adds flags.
    pub fn start(name: &str, nodes: usize, change: impl FnOnce(&mut Options)) -> Self {
        let binaries = Path::new(env!("CARGO_BIN_EXE_hull")).parent().expect("a directory");
        let mut options = Options::new(&format!("{name}-{}", std::process::id()), nodes, binaries);
        change(&mut options);
        let cluster = Cluster::start(options).unwrap_or_else(|error| panic!("start the cluster: {error:#}"));
        let dir = tempfile::tempdir().expect("temporary directory");
        let archive = dir.path().join("busybox.tar");
        hull_agent::image::build::of_binary(&archive, IMAGE, Path::new("/bin/busybox"), "/bin/busybox")
            .expect("make the image");
        cluster.import(&archive).expect("import the image");
        Self { cluster }
    }

    /// Runs kubectl with `input` on its standard input.
    pub fn try_kubectl(&self, arguments: &[&str], input: &str) -> Output {
        use std::io::Write as _;
        let mut child = Command::new("kubectl")
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .env("HOME", "/nonexistent")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl must be installed (cargo xtask test installs it)");
        let mut stdin = child.stdin.take().expect("its standard input");
        stdin.write_all(input.as_bytes()).expect("write to kubectl");
        drop(stdin);
        child.wait_with_output().expect("wait for kubectl")
    }

    /// Runs kubectl; panics with what it said if it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let out = self.try_kubectl(arguments, "");
        assert!(
            out.status.success(),
            "kubectl {arguments:?}: {}\n{}",
            text(&out),
            self.logs()
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, object: &Value) {
        let out = self.try_kubectl(&["apply", "-f", "-"], &object.to_string());
        assert!(out.status.success(), "kubectl apply: {}\n{}", text(&out), self.logs());
    }

    /// An object or a list as JSON.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = ["get", "-o", "json"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        serde_json::from_str(&self.kubectl(&all)).expect("JSON from kubectl")
    }

    /// Items of a list.
    pub fn list(&self, arguments: &[&str]) -> Vec<Value> {
        self.get(arguments)["items"].as_array().cloned().expect("a list")
    }

    /// Waits until `condition` holds; panics with `what` and the logs otherwise.
    pub fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            let state = || text(&self.try_kubectl(&["get", "nodes,pods,csr,events", "-A", "-o", "wide"], ""));
            assert!(
                Instant::now() < deadline,
                "not after {PATIENCE:?}: {what}\n{}\n{}",
                state(),
                self.logs()
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// The last lines of what all hull processes said.
    pub fn logs(&self) -> String {
        let machines = std::iter::once(self.cluster.control()).chain(self.cluster.nodes());
        machines
            .map(|machine| {
                let log = machine.log();
                let lines: Vec<&str> = log.lines().collect();
                format!(
                    "--- {}\n{}\n",
                    machine.name(),
                    lines[lines.len().saturating_sub(12)..].join("\n")
                )
            })
            .collect()
    }

    /// Whether a node's Ready condition has a status.
    pub fn is_ready(&self, node: &str, status: &str) -> bool {
        let node = self.get(&["node", node]);
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == status)
    }

    /// Makes a deployment of web servers that answer with the name of their pod, and a service `name` on port 80, with
    /// [`ECHO`] beside it, and node ports. Its cluster address.
    pub fn serve(&self, name: &str, replicas: usize, toleration: i64) -> String {
        let script = "mkdir -p /www && hostname > /www/index.html && \
            (nc -ll -p 9090 -e /bin/busybox sh -c 'hostname; exec cat' &) && exec httpd -f -p 8080 -h /www";
        let tolerations: Vec<Value> = ["not-ready", "unreachable"]
            .iter()
            .map(|what| {
                json!({"key": format!("node.kubernetes.io/{what}"), "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": toleration})
            })
            .collect();
        self.apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 1, "tolerations": tolerations,
                    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": name}}}],
                    "containers": [{"name": "web", "image": IMAGE, "command": ["/bin/busybox", "sh", "-c", script],
                        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}}]}}}}));
        self.apply(
            &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "NodePort", "selector": {"app": name}, "ipFamilyPolicy": "PreferDualStack", "ports": [
                {"name": "web", "port": 80, "targetPort": 8080}, {"name": "echo", "port": ECHO, "targetPort": 9090}]}}),
        );
        self.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
        let address = self.get(&["service", name])["spec"]["clusterIP"].clone();
        address.as_str().expect("clusterIP").to_owned()
    }

    /// Where a node serves a service's node port: of the web servers, or of [`ECHO`].
    pub fn node_port(&self, machine: &Machine, service: &str, port: u16) -> SocketAddr {
        let ports = self.get(&["service", service])["spec"]["ports"].clone();
        let mut ports = ports.as_array().into_iter().flatten();
        let found = ports.find(|entry| entry["port"] == port).expect("the port");
        let number = found["nodePort"].as_u64().expect("its number");
        SocketAddr::new(machine.ips()[0], u16::try_from(number).expect("a port"))
    }

    /// `hull agent --detach` of another binary on a machine whose agent has ended; returns when the node is ready.
    pub fn detach_agent(&self, machine: &Machine, hull: &Path) {
        let token = text(&output(
            &mut self.cluster.hull(self.cluster.control(), &["token", "create"]),
        ));
        let server = SocketAddr::new(self.cluster.control().ips()[0], 6443);
        let mut agent = machine.command(hull).expect("a process");
        agent.args(machine.directories()).args([
            "agent",
            "--detach",
            &format!("--join=https://{server}"),
            "--token",
            token.trim(),
        ]);
        agent.args([
            format!("--node-name={}", machine.name()),
            format!("--node-ip={}", machine.ips()[0]),
        ]);
        let out = output(&mut agent);
        let ready = format!("node {} is ready", machine.name());
        assert!(out.status.success() && text(&out).contains(&ready), "{}", text(&out));
    }

    /// `hull down --purge` on a machine that joined.
    pub fn down(&self, machine: &Machine) {
        let mut command = machine
            .command(Path::new(env!("CARGO_BIN_EXE_hull")))
            .expect("a process");
        command
            .args(machine.directories())
            .args(["down", "--purge", "--grace=1"]);
        let out = output(&mut command);
        assert!(out.status.success(), "hull down: {}", text(&out));
    }

    /// Fails if anything of hull is left on a machine.
    pub fn assert_nothing_left(&self, machine: &Machine) {
        let ip = |arguments: &[&str]| {
            let mut command = machine.command(Path::new("/sbin/ip")).expect("a process");
            text(&output(command.args(arguments)))
        };
        let links = ip(&["-o", "link"]);
        assert!(!links.contains("hull"), "interfaces are left: {links}");
        let routes = ip(&["route"]);
        assert!(!routes.contains("10.244."), "routes are left: {routes}");
        let mut tc = machine.command(Path::new("/sbin/tc")).expect("a process");
        let filters = text(&output(tc.args(["filter", "show", "dev", "eth0", "ingress"])));
        assert!(filters.trim().is_empty(), "filters are left: {filters}");
        assert!(
            !machine.bpf_dir().exists() && !machine.run_dir().exists(),
            "pins or state are left"
        );
        assert!(!machine.data_dir().join("agent").exists(), "certificates are left");
        let pods = super::cgroup2_mount().join(machine.cgroup()).join("hull");
        assert!(!pods.exists(), "cgroups are left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mount table");
        let data = machine.data_dir();
        let left = mounts.lines().find(|line| line.contains(&*data.to_string_lossy()));
        assert_eq!(left, None, "a mount is left");
    }

    /// Pods of a deployment that are not going.
    pub fn pods(&self, name: &str) -> Vec<Value> {
        let mut pods = self.list(&["pods", "-l", &format!("app={name}")]);
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods
    }

    /// What a pod gets from a web server. (wget of a static busybox needs files that the image does not have.)
    pub fn ask_from_pod(&self, pod: &str, address: &str, port: u16) -> String {
        let script = format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox timeout 5 /bin/busybox nc {address} {port} | /bin/busybox tail -n 1"
        );
        let said = self.kubectl(&["exec", pod, "--", "/bin/busybox", "sh", "-c", &script]);
        said.trim().to_owned()
    }

    /// A pod finds a service by name, with the resolver that it was given, over each family.
    pub fn names_are_found(&self, pod: &str, service: &str) {
        let wanted = self.get(&["service", service])["spec"]["clusterIPs"].clone();
        let servers = self.kubectl(&["exec", pod, "--", "/bin/busybox", "cat", "/etc/resolv.conf"]);
        let servers: Vec<&str> = servers
            .lines()
            .filter_map(|line| line.strip_prefix("nameserver "))
            .collect();
        let wanted = wanted.as_array().expect("addresses");
        assert_eq!(servers.len(), wanted.len(), "a server of each family: {servers:?}");
        for server in servers {
            let name = format!("{service}.default.svc.cluster.local");
            let said = self.kubectl(&["exec", pod, "--", "/bin/busybox", "nslookup", &name, server]);
            for address in wanted {
                let address = address.as_str().expect("an address");
                assert!(said.contains(address), "{server} on {name}: {said}");
            }
        }
    }

    /// What a process of that host gets from a URL; `None`: nothing within a second.
    pub fn fetch(&self, machine: &Machine, url: &str) -> Option<String> {
        let mut command = machine
            .command(Path::new("/bin/busybox"))
            .expect("a process of the host");
        let out = command
            .args(["timeout", "1", "/bin/busybox", "wget", "-q", "-O", "-", url])
            .output();
        let out = out.expect("run wget");
        let answer = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        (out.status.success() && !answer.is_empty()).then_some(answer)
    }
}

/// A process of a host that asks a URL over and over.
pub struct Load {
    child: Child,
    answers: Arc<Mutex<Vec<String>>>,
}

impl Load {
    /// Starts asking.
    pub fn start(machine: &Machine, url: &str) -> Self {
        let script = format!("while :; do /bin/busybox timeout 2 /bin/busybox wget -q -O - {url} || echo FAILED; done");
        let mut child = machine
            .command(Path::new("/bin/sh"))
            .expect("a process of the host")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the load");
        let answers = Arc::new(Mutex::new(Vec::new()));
        let (lines, kept) = (
            BufReader::new(child.stdout.take().expect("its output")).lines(),
            answers.clone(),
        );
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().expect("the list").push(line);
            }
        });
        Self { child, answers }
    }

    /// How many answers there are.
    pub fn count(&self) -> usize {
        self.answers.lock().expect("the list").len()
    }

    /// The answers so far from the `from`th on.
    pub fn answers(&self, from: usize) -> Vec<String> {
        self.answers.lock().expect("the list")[from..].to_vec()
    }

    /// Waits for so many answers more.
    pub fn wait_more(&self, more: usize) {
        let (begin, deadline) = (self.count(), Instant::now() + PATIENCE);
        while self.count() < begin + more {
            assert!(
                Instant::now() < deadline,
                "only {} answers after {PATIENCE:?}",
                self.count() - begin
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
