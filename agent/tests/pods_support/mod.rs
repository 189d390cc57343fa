//! A machine for pod tests: directories, ranges, cgroup and pins of its own, an API server in memory, an agent that can
//! be dropped like a killed process. Everything is removed on drop.

mod api;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hull_agent::AgentConfig;
use hull_agent::image::{ImageStore, build};
use hull_agent::pod::api::Api;
use hull_agent::{node, run};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

pub use api::MemoryApi;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// The image of test pods: busybox.
const IMAGE: &str = "busybox:test";

static NEXT: AtomicU8 = AtomicU8::new(0);

/// The machine.
pub struct Machine {
    pub config: AgentConfig,
    pub api: Arc<MemoryApi>,
    dir: tempfile::TempDir,
}

/// A running agent; dropping it ends it at once, as kill does.
pub struct Agent {
    runtime: Option<Runtime>,
    agent: Option<run::Agent>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Machine {
    /// A machine with the test image on it.
    pub fn new(name: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hull-pods-{name}-{}", std::process::id());
        let dir = tempfile::Builder::new().prefix(&name).tempdir().unwrap();
        let mut config = AgentConfig::new("node-1");
        // Tests run as processes side by side: the ranges follow from the process and its counter.
        let range = (std::process::id() % 100) as u8 + 100;
        config.pod_cidr = format!("10.{range}.{number}.0/24");
        config.service_cidr = format!("10.{range}.128.0/17");
        config.cluster_dns = Ipv4Addr::new(10, range, 128, 10);
        config.run_dir = dir.path().join("run");
        config.data_dir = dir.path().join("data");
        config.cgroup_parent = name.clone();
        config.bpf_dir = Path::new("/sys/fs/bpf").join(&name);
        config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.runtime_binary = runtime_binary();
        write_certificates(&mut config, dir.path());
        let machine = Machine {
            config,
            api: MemoryApi::new(),
            dir,
        };
        machine.import_image();
        machine
    }

    fn import_image(&self) {
        let archive = self.path("busybox.tar");
        build::of_binary(&archive, IMAGE, Path::new("/bin/busybox"), "/bin/busybox")
            .expect("busybox-static is installed");
        let store = ImageStore::open(&self.config.image_dir()).unwrap();
        store.import(&archive, None).unwrap();
    }

    /// A path in the machine's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts an agent; returns when its node is registered.
    pub fn agent(&self) -> Agent {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (ready, registered) = oneshot::channel();
        let api: Arc<dyn Api> = Arc::clone(&self.api) as Arc<dyn Api>;
        let agent = runtime
            .block_on(run::start(self.config.clone(), api, ready))
            .expect("the agent starts");
        runtime.block_on(registered).expect("the node registers");
        Agent {
            runtime: Some(runtime),
            agent: Some(agent),
        }
    }

    /// The beginning of every pod's address.
    pub fn pod_prefix(&self) -> String {
        self.config.pod_cidr.trim_end_matches("0/24").to_owned()
    }

    /// The pid of a container, from its status and the cgroup that carries its id.
    pub fn container_pid(&self, status: &Value) -> i32 {
        let id = status["containerID"]
            .as_str()
            .unwrap()
            .trim_start_matches("hull://")
            .to_owned();
        let parent = node::cgroup_mount().unwrap().join(&self.config.cgroup_parent);
        let cgroup = fs::read_dir(parent)
            .unwrap()
            .map(|entry| entry.unwrap().path().join(&id));
        let cgroup = cgroup
            .into_iter()
            .find(|path| path.exists())
            .expect("the container's cgroup");
        let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        pids.lines()
            .filter_map(|line| line.parse().ok())
            .min()
            .expect("a process in the container")
    }

    /// Descriptors of this process, which is the agent.
    pub fn descriptors(&self) -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    /// Everything on the machine that belongs to pods.
    pub fn pod_traces(&self) -> Vec<String> {
        let below = |dir: PathBuf| -> Vec<String> {
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            let entries = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            entries.map(|entry| entry.path().display().to_string()).collect()
        };
        let mut traces = Vec::new();
        for dir in [
            self.config.records_dir(),
            self.config.netns_dir(),
            self.config.volumes_dir(),
            self.config.log_dir(),
        ] {
            traces.extend(below(dir));
        }
        traces.extend(below(self.config.warden_dir().join("c")));
        traces.extend(below(node::cgroup_mount().unwrap().join(&self.config.cgroup_parent)));
        let own = self.dir.path().to_str().unwrap().to_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let memory = self.config.memory_dir();
        let mounts = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|path| path.starts_with(&own));
        traces.extend(mounts.filter(|path| Path::new(path) != memory).map(str::to_owned));
        traces.extend(self.routes());
        traces
    }

    /// Routes into the pod range: one for each pod's interface.
    fn routes(&self) -> Vec<String> {
        let out = std::process::Command::new("ip")
            .args(["-4", "route", "show"])
            .output()
            .expect("iproute2 is installed");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.lines()
            .filter(|line| line.starts_with(&self.pod_prefix()))
            .map(str::to_owned)
            .collect()
    }

    /// Waits until `condition` holds.
    pub fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(
                Instant::now() < deadline,
                "{what}: not within {PATIENCE:?}; left: {:#?}",
                self.pod_traces()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// After an agent that has deleted its pods.
    pub fn assert_no_pod_left(&self) {
        self.until("no trace of a pod is left", || self.pod_traces().is_empty());
    }

    /// After tear-down.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.pod_traces(), Vec::<String>::new());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "{mounts}");
        let cgroup = node::cgroup_mount().unwrap().join(&self.config.cgroup_parent);
        assert!(!cgroup.exists() && !self.config.bpf_dir.exists() && !self.config.warden_dir().exists());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = hull_agent::teardown::teardown(&self.config, Duration::ZERO) {
            eprintln!("cleaning up after the test: {error}");
        }
    }
}

/// hull-runtime beside the test's own build.
fn runtime_binary() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let binary = here.ancestors().nth(2).unwrap().join("hull-runtime");
    assert!(
        binary.exists(),
        "{} is missing: cargo build -p hull-runtime",
        binary.display()
    );
    binary
}

fn write_certificates(config: &mut AgentConfig, dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["node-1".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    config.serving_cert = dir.join("agent.crt");
    config.serving_key = dir.join("agent.key");
    config.client_ca = config.serving_cert.clone();
    fs::write(&config.serving_cert, certificate.pem()).unwrap();
    fs::write(&config.serving_key, key.serialize_pem()).unwrap();
}

/// A pod with one container that runs `script`.
pub fn pod(name: &str, uid: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": uid},
        "spec": {"nodeName": "node-1", "terminationGracePeriodSeconds": 5, "containers": [{
            "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/busybox", "sh", "-c", busybox(script)],
        }]},
    })
}

/// The image has nothing but busybox: its shell finds applets by itself only where links to them exist.
fn busybox(script: &str) -> String {
    let applets = ["sleep", "cp", "mv"].map(|name| format!("{name}() {{ /bin/busybox {name} \"$@\"; }}; "));
    format!("{}{script}", applets.concat())
}

/// The phase that the API shows.
pub fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}
