//! A real one-node cluster for a test: the built binaries, directories, ports, address ranges and a cgroup of its own, removed on drop.

#![allow(dead_code, reason = "each test binary uses its own part of the support code")]

pub mod clients;
pub mod nodes;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before a test fails; generous, because CI has two cores and a debug build.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The image that test pods run: busybox.
pub const IMAGE: &str = "busybox:test";

static NEXT: AtomicU8 = AtomicU8::new(0);

/// A running cluster.
pub struct TestCluster {
    data_dir: tempfile::TempDir,
    run_dir: PathBuf,
    name: String,
    flags: Vec<String>,
    /// hull's interfaces that were there before: another cluster of this machine's owner.
    foreign_interfaces: Vec<String>,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

impl TestCluster {
    /// Starts a cluster and imports [`IMAGE`]. Needs root; fails, never skips, without it.
    pub fn start(name: &str) -> Self {
        let cluster = Self::prepare(name);
        cluster.up();
        cluster.import_busybox();
        cluster
    }

    /// Directories and flags, nothing started yet.
    pub fn prepare(name: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test needs root: it starts a real cluster"
        );
        let number = (std::process::id() as u8).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 200;
        let name = format!("hull-test-{name}-{}", std::process::id());
        let data_dir = tempfile::Builder::new()
            .prefix(&name)
            .tempdir()
            .expect("temporary directory");
        let run_dir = Path::new("/run").join(&name);
        let flags = vec![
            format!("--data-dir={}", data_dir.path().display()),
            format!("--run-dir={}", run_dir.display()),
            format!("--listen=0.0.0.0:{}", free_port()),
            format!("--agent-listen=0.0.0.0:{}", free_port()),
            format!("--pod-cidr=10.{}.0.0/24", 20 + number),
            format!("--service-cidr=10.{}.128.0/17", 20 + number),
            format!("--cgroup={name}"),
            format!("--bpf-dir=/sys/fs/bpf/{name}"),
            "--node-name=node-1".to_owned(),
        ];
        Self {
            data_dir,
            run_dir,
            name,
            flags,
            foreign_interfaces: interfaces(),
        }
    }

    /// `hull` with this cluster's flags.
    pub fn hull(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hull"));
        command.args(&self.flags).args(arguments).stdin(Stdio::null());
        command
    }

    /// `hull up --detach`, which returns when the cluster is ready.
    pub fn up(&self) {
        let out = output(&mut self.hull(&["up", "--detach"]));
        assert!(out.status.success(), "hull up: {}\nlog:\n{}", text(&out), self.log());
    }

    /// `hull down` with further flags.
    pub fn down(&self, arguments: &[&str]) {
        let all: Vec<&str> = ["down", "--grace", "2"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        let out = output(&mut self.hull(&all));
        assert!(out.status.success(), "hull down: {}\nlog:\n{}", text(&out), self.log());
    }

    /// What hull's processes logged.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.data_dir.path().join("hull.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Packs the host's static busybox as an image and imports it.
    pub fn import_busybox(&self) {
        let archive = self.data_dir.path().join("busybox.tar");
        hull_agent::image::build::of_binary(&archive, IMAGE, Path::new("/bin/busybox"), "/bin/busybox")
            .expect("make the image");
        let out = output(self.hull(&["image", "import"]).arg(&archive));
        assert!(out.status.success(), "hull image import: {}", text(&out));
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.path().join("pki/admin.kubeconfig")
    }

    /// Runtime state.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Durable state.
    pub fn data_dir(&self) -> &Path {
        self.data_dir.path()
    }

    /// The pods' cgroup, pin directory and the like carry this name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs kubectl; panics with what it said if it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let out = self.try_kubectl(arguments, "");
        assert!(
            out.status.success(),
            "kubectl {arguments:?}: {}\nlog:\n{}",
            text(&out),
            self.log()
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Runs kubectl with `input` on its standard input.
    pub fn try_kubectl(&self, arguments: &[&str], input: &str) -> Output {
        use std::io::Write as _;
        let mut command = Command::new("kubectl");
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.data_dir.path())
            .args(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .expect("kubectl must be installed (cargo xtask test installs it)");
        child
            .stdin
            .take()
            .expect("its standard input")
            .write_all(input.as_bytes())
            .expect("write to kubectl");
        child.wait_with_output().expect("wait for kubectl")
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, manifest: &str) {
        let out = self.try_kubectl(&["apply", "-f", "-"], manifest);
        assert!(
            out.status.success(),
            "kubectl apply: {}\nlog:\n{}",
            text(&out),
            self.log()
        );
    }

    /// An object as JSON.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = ["get", "-o", "json"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        serde_json::from_str(&self.kubectl(&all)).expect("JSON from kubectl")
    }

    /// Waits until `condition` holds; panics with `what` and the log otherwise.
    pub fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(
                Instant::now() < deadline,
                "not after {PATIENCE:?}: {what}\npods:\n{}\nlog:\n{}",
                self.pods_text(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn pods_text(&self) -> String {
        text(&self.try_kubectl(&["get", "pods,events", "-A", "-o", "wide"], ""))
    }

    /// Waits for a pod to be Ready.
    pub fn wait_ready(&self, pod: &str) {
        let out = self.try_kubectl(
            &["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"],
            "",
        );
        assert!(
            out.status.success(),
            "{pod} not ready: {}\npods:\n{}\nlog:\n{}",
            text(&out),
            self.pods_text(),
            self.log()
        );
    }

    /// The pid of one of hull's processes: `supervisor`, `control`, `agent` or `warden`.
    pub fn pid(&self, role: &str) -> i32 {
        let out = output(&mut self.hull(&["status", "-o", "json"]));
        let status: Value =
            serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("hull status: {e}: {}", text(&out)));
        let found = status["processes"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|process| process["role"] == role);
        found
            .and_then(|process| process["pid"].as_i64())
            .unwrap_or_else(|| panic!("no {role} in {status:#}")) as i32
    }

    /// kill -9.
    pub fn kill(&self, pid: i32) {
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    }

    /// The first process in a pod's cgroups, with its start time: the identity of a running container.
    pub fn container(&self, pod: &Value) -> (i32, u64) {
        let uid = pod["metadata"]["uid"].as_str().expect("uid");
        let dir = cgroup2_mount().join(&self.name).join(format!("pod{uid}"));
        let procs = fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .filter_map(Result::ok)
            .find_map(|entry| {
                fs::read_to_string(entry.path().join("cgroup.procs"))
                    .ok()?
                    .lines()
                    .next()?
                    .parse::<i32>()
                    .ok()
            });
        let pid = procs.unwrap_or_else(|| panic!("no process in {}", dir.display()));
        (pid, start_time(pid).expect("the container's process"))
    }

    /// Fails if anything of this cluster is left on the machine.
    pub fn assert_nothing_left(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mount table");
        let mine = |line: &&str| {
            line.contains(&*self.run_dir.to_string_lossy()) || line.contains(&*self.data_dir.path().to_string_lossy())
        };
        assert_eq!(mounts.lines().find(mine), None, "a mount is left");
        assert!(
            !self.run_dir.exists(),
            "{} is left: {:?}",
            self.run_dir.display(),
            list(&self.run_dir)
        );
        assert!(!cgroup2_mount().join(&self.name).exists(), "the cgroup is left");
        assert!(!Path::new("/sys/fs/bpf").join(&self.name).exists(), "BPF pins are left");
        let left: Vec<String> = interfaces()
            .into_iter()
            .filter(|name| !self.foreign_interfaces.contains(name))
            .collect();
        assert!(left.is_empty(), "interfaces are left: {left:?}");
        let processes = output(Command::new("ps").args(["-eo", "pid,args"]));
        let left: Vec<String> = text(&processes)
            .lines()
            .filter(|line| line.contains(&self.name))
            .map(str::to_owned)
            .collect();
        assert!(left.is_empty(), "processes are left: {left:?}");
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        let out = output(&mut self.hull(&["down", "--purge", "--grace", "0"]));
        if !out.status.success() {
            eprintln!("clean-up of {}: {}", self.name, text(&out));
        }
    }
}

/// Names of the interfaces that hull makes.
pub fn interfaces() -> Vec<String> {
    let names = fs::read_dir("/sys/class/net")
        .expect("interfaces")
        .filter_map(Result::ok)
        .map(|entry| entry.file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("hull"))
        .collect()
}

/// Runs a command to its end.
pub fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("start {command:?}: {e}"))
}

/// Standard output and error of a command, for messages.
pub fn text(out: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

fn list(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect()
}

/// Where the unified hierarchy is mounted.
pub fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mount table");
    let line = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .expect("a cgroup2 mount");
    PathBuf::from(line.split(' ').nth(4).expect("its mount point"))
}

/// Start time of a process in clock ticks since boot (proc(5), /proc/pid/stat field 22); `None`: it is gone.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split(' ').nth(20)?.parse().ok()
}

/// A pod that runs a shell command in busybox.
pub fn pod(name: &str, command: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","labels":{{"app":"{name}"}}}},"spec":{{"terminationGracePeriodSeconds":1,
        "containers":[{{"name":"main","image":"{IMAGE}","command":["/bin/busybox","sh","-c",{}]}}]}}}}"#,
        Value::from(command)
    )
}
