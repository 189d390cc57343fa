//! This machine as a Node: its capacity, its object in the API, its lease.
//!
//! Reading the machine is separate from telling the API: `Machine` is read once, the status is computed from it and
//! sent every five minutes or when something changed, the lease is renewed every ten seconds.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hull_runtime::cgroup::Hierarchy;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::client::{ClientError, PatchKind};
use crate::config::AgentConfig;
use crate::pod::api::Api;
use crate::pod::fields::NodeFacts;

/// How often the lease is renewed, and how long it is valid.
const LEASE_PERIOD: Duration = Duration::from_secs(10);
const LEASE_SECONDS: u32 = 40;
/// How often the status is sent when nothing changes.
const STATUS_PERIOD: Duration = Duration::from_secs(300);
/// How often the machine is looked at for changes.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// Pauses between attempts to register.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Less free space than this part of the file system is pressure, in percent.
const DISK_PRESSURE: u64 = 5;
/// Less available memory than this is pressure, in bytes.
const MEMORY_PRESSURE: i64 = 100 << 20;

/// What the machine has.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Processors this process may use.
    pub processors: usize,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of the file system of the data directory.
    pub storage: i64,
    /// Kernel release.
    pub kernel: String,
    /// `Debian GNU/Linux 12 (bookworm)`.
    pub os_image: String,
    /// /etc/machine-id.
    pub machine_id: String,
    /// Changes with each boot.
    pub boot_id: String,
    /// The node's address.
    pub ip: Option<IpAddr>,
}

impl Machine {
    /// Reads this machine.
    #[must_use]
    pub fn read(config: &AgentConfig) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Machine {
            processors,
            memory: meminfo("MemTotal").unwrap_or(0),
            storage: storage(&config.data_dir).map_or(0, |(total, _)| total),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: os_image(&text("/etc/os-release")),
            machine_id: text("/etc/machine-id"),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            ip: config.node_ip.or_else(route_address),
        }
    }

    /// The node's address, loopback when the machine has no other.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// What pods may know.
    #[must_use]
    pub fn facts(&self, config: &AgentConfig) -> NodeFacts {
        NodeFacts {
            name: config.node_name.clone(),
            host_ip: self.address().to_string(),
            cpu_milli: i64::try_from(self.processors * 1000).unwrap_or(i64::MAX),
            memory: self.memory,
            ephemeral_storage: self.storage,
        }
    }
}

/// Bytes of an entry of /proc/meminfo.
fn meminfo(name: &str) -> Option<i64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace()
        .next()?
        .parse::<i64>()
        .ok()
        .map(|kilobytes| kilobytes * 1024)
}

/// Total and free bytes of the file system that holds `path` or its nearest parent.
fn storage(path: &Path) -> Option<(i64, i64)> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX);
    Some((bytes(stat.f_blocks), bytes(stat.f_bavail)))
}

fn os_image(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The source address of the default route: connect(2) on a datagram socket sends nothing.
fn route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

/// Where cgroup v2 is mounted.
#[must_use]
pub fn cgroup_mount() -> Option<PathBuf> {
    Hierarchy::find().ok().map(|hierarchy| hierarchy.mount().to_owned())
}

/// The controllers that pods' cgroups can use.
#[must_use]
pub fn cgroup_controllers() -> BTreeSet<String> {
    let controllers = Hierarchy::find().and_then(|hierarchy| hierarchy.controllers());
    controllers.unwrap_or_default().into_iter().collect()
}

/// A pressure the kubelet reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pressure {
    memory: bool,
    disk: bool,
}

impl Pressure {
    fn look(config: &AgentConfig) -> Self {
        let low = |(total, free): (i64, i64)| {
            u64::try_from(free).unwrap_or(0).saturating_mul(100)
                < u64::try_from(total).unwrap_or(0).saturating_mul(DISK_PRESSURE)
        };
        Pressure {
            memory: meminfo("MemAvailable").is_some_and(|bytes| bytes < MEMORY_PRESSURE),
            disk: storage(&config.data_dir).is_some_and(low),
        }
    }
}

/// Tells the API of this node.
pub struct NodeReporter {
    config: AgentConfig,
    machine: Machine,
    api: Arc<dyn Api>,
    version: String,
    port: u16,
    since: [Timestamp; 4],
    last: Option<Pressure>,
}

impl NodeReporter {
    /// For a node whose kubelet API listens on `port`.
    #[must_use]
    pub fn new(config: AgentConfig, machine: Machine, api: Arc<dyn Api>, port: u16) -> Self {
        let now = Timestamp::now();
        NodeReporter {
            config,
            machine,
            api,
            version: String::new(),
            port,
            since: [now; 4],
            last: None,
        }
    }

    /// Registers the node and tells `ready`, then keeps lease and status fresh, for ever.
    pub async fn run(mut self, ready: oneshot::Sender<()>) {
        self.register().await;
        let _ = ready.send(());
        let mut lease = tokio::time::interval(LEASE_PERIOD);
        let mut look = tokio::time::interval(LOOK_PERIOD);
        let mut sent = tokio::time::Instant::now();
        lease.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = lease.tick() => {
                    if let Err(error) = self.renew().await {
                        tracing::warn!(%error, "the node's lease was not renewed");
                    }
                }
                _ = look.tick() => {
                    let pressure = Pressure::look(&self.config);
                    if self.last != Some(pressure) || sent.elapsed() >= STATUS_PERIOD {
                        match self.send_status(pressure).await {
                            Ok(()) => sent = tokio::time::Instant::now(),
                            Err(error) if error.is_not_found() => self.register().await,
                            Err(error) => {
                                self.last = None;
                                tracing::warn!(%error, "the node's status was not sent");
                            }
                        }
                    }
                }
            }
        }
    }

    async fn register(&mut self) {
        let mut delay = RETRY.0;
        while let Err(error) = self.try_register().await {
            tracing::warn!(%error, retry_in = ?delay, "the node was not registered");
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY.1);
        }
    }

    async fn try_register(&mut self) -> Result<(), ClientError> {
        if self.version.is_empty() {
            let version = self.api.get("/version".to_owned()).await?;
            version["gitVersion"]
                .as_str()
                .unwrap_or("v0.0.0")
                .clone_into(&mut self.version);
        }
        let pressure = Pressure::look(&self.config);
        let mut node = self.object();
        node["status"] = self.status(pressure, Timestamp::now());
        match self.api.create("/api/v1/nodes".to_owned(), node).await {
            Ok(_) => {}
            Err(error) if error.is_already_exists() => {
                let patch = json!({"metadata": {"labels": self.labels()}});
                self.api.patch(self.path(), PatchKind::Merge, patch).await?;
            }
            Err(error) => return Err(error),
        }
        self.send_status(pressure).await?;
        self.renew().await
    }

    async fn send_status(&mut self, pressure: Pressure) -> Result<(), ClientError> {
        let now = Timestamp::now();
        if let Some(last) = self.last {
            for (index, changed) in [(1, last.memory != pressure.memory), (2, last.disk != pressure.disk)] {
                if changed {
                    self.since[index] = now;
                }
            }
        }
        let patch = json!({"status": self.status(pressure, now)});
        self.api
            .patch(format!("{}/status", self.path()), PatchKind::Strategic, patch)
            .await?;
        self.last = Some(pressure);
        Ok(())
    }

    fn path(&self) -> String {
        format!("/api/v1/nodes/{}", self.config.node_name)
    }

    fn labels(&self) -> Value {
        json!({
            "kubernetes.io/hostname": self.config.node_name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": arch(),
            "beta.kubernetes.io/os": "linux",
            "beta.kubernetes.io/arch": arch(),
        })
    }

    fn object(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.config.node_name, "labels": self.labels()},
            "spec": {"podCIDR": self.config.pod_cidr, "podCIDRs": [self.config.pod_cidr]},
        })
    }

    fn status(&self, pressure: Pressure, now: Timestamp) -> Value {
        let machine = &self.machine;
        let resources = json!({
            "cpu": machine.processors.to_string(),
            "memory": format!("{}Ki", machine.memory / 1024),
            "ephemeral-storage": format!("{}Ki", machine.storage / 1024),
            "pods": self.config.max_pods.to_string(),
        });
        let condition = |index: usize, kind: &str, holds: bool, reason: &str, message: &str| {
            json!({
                "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message,
                "lastHeartbeatTime": seconds(now), "lastTransitionTime": seconds(self.since[index]),
            })
        };
        let (memory, disk) = (pressure.memory, pressure.disk);
        let pick = |bad: bool, yes: &'static str, no: &'static str| if bad { yes } else { no };
        json!({
            "addresses": [
                {"type": "InternalIP", "address": machine.address().to_string()},
                {"type": "Hostname", "address": self.config.node_name},
            ],
            "capacity": resources,
            "allocatable": resources,
            "conditions": [
                condition(1, "MemoryPressure", memory, pick(memory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
                    pick(memory, "the node is short of memory", "kubelet has sufficient memory available")),
                condition(2, "DiskPressure", disk, pick(disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
                    pick(disk, "the node is short of disk space", "kubelet has no disk pressure")),
                condition(3, "PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition(0, "Ready", true, "KubeletReady", "kubelet is posting ready status"),
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
            "nodeInfo": {
                "architecture": arch(),
                "bootID": machine.boot_id,
                "containerRuntimeVersion": concat!("hull://", env!("CARGO_PKG_VERSION")),
                "kernelVersion": machine.kernel,
                "kubeProxyVersion": "",
                "kubeletVersion": self.version,
                "machineID": machine.machine_id,
                "operatingSystem": "linux",
                "osImage": machine.os_image,
                "systemUUID": machine.machine_id,
            },
        })
    }

    /// Renews the lease in one request, or makes it.
    async fn renew(&self) -> Result<(), ClientError> {
        let collection = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let name = &self.config.node_name;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let patch = json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}});
        match self
            .api
            .patch(format!("{collection}/{name}"), PatchKind::Merge, patch.clone())
            .await
        {
            Err(error) if error.is_not_found() => {
                let mut lease = patch;
                lease["apiVersion"] = json!("coordination.k8s.io/v1");
                lease["kind"] = json!("Lease");
                lease["metadata"] = json!({"name": name, "namespace": "kube-node-lease"});
                self.api.create(collection.to_owned(), lease).await.map(drop)
            }
            other => other.map(drop),
        }
    }
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::api::ApiResult;
    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;
    use tokio::sync::mpsc;

    struct NoApi;
    impl Api for NoApi {
        fn get(&self, _: String) -> BoxFuture<'_, ApiResult> {
            async { Ok(Value::Null) }.boxed()
        }
        fn create(&self, _: String, _: Value) -> BoxFuture<'_, ApiResult> {
            async { Ok(Value::Null) }.boxed()
        }
        fn update(&self, _: String, _: Value) -> BoxFuture<'_, ApiResult> {
            async { Ok(Value::Null) }.boxed()
        }
        fn patch(&self, _: String, _: PatchKind, _: Value) -> BoxFuture<'_, ApiResult> {
            async { Ok(Value::Null) }.boxed()
        }
        fn delete(&self, _: String, _: Value) -> BoxFuture<'_, ApiResult> {
            async { Ok(Value::Null) }.boxed()
        }
        fn follow(&self, _: String, _: String) -> mpsc::Receiver<crate::client::ListWatchEvent> {
            mpsc::channel(1).1
        }
    }

    #[test]
    fn the_status_is_a_node_status() {
        let config = AgentConfig::new("n1");
        let machine = Machine {
            processors: 2,
            memory: 1 << 30,
            ip: "192.0.2.7".parse().ok(),
            ..Machine::default()
        };
        let reporter = NodeReporter::new(config, machine, Arc::new(NoApi), 10250);
        let mut node = reporter.object();
        node["status"] = reporter.status(
            Pressure {
                memory: true,
                disk: false,
            },
            Timestamp::now(),
        );
        let node: k8s_openapi::api::core::v1::Node = serde_json::from_value(node).unwrap();
        let status = node.status.unwrap();
        assert_eq!(status.capacity.unwrap()["memory"].0, "1048576Ki");
        let conditions = status.conditions.unwrap();
        let of = |kind: &str| {
            conditions
                .iter()
                .find(|condition| condition.type_ == kind)
                .unwrap()
                .status
                .clone()
        };
        assert_eq!(
            (of("Ready"), of("MemoryPressure"), of("DiskPressure")),
            ("True".into(), "True".into(), "False".into())
        );
        assert_eq!(status.daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port, 10250);
    }

    #[test]
    fn this_machine_can_be_read() {
        let machine = Machine::read(&AgentConfig::new("n1"));
        assert!(machine.processors > 0 && machine.memory > 0 && machine.storage > 0);
        assert!(!machine.kernel.is_empty() && !machine.boot_id.is_empty());
        assert_eq!(os_image("A=1\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }
}
