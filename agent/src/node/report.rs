//! Tells the API of this node: registers it, keeps its lease and its status.
//!
//! The status is sent every five minutes or when something changed, here or in what the API server says of this node; the
//! lease is renewed four times in the time that it is good for. Kubernetes: "Nodes", heartbeats.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use super::{Machine, meminfo, storage};
use crate::client::{ClientError, ListWatchEvent, PatchKind};
use crate::config::AgentConfig;
use crate::nodes::Own;
use crate::pod::api::Api;

/// How often the lease is renewed in the time that it is good for.
const LEASE_RENEWALS: u32 = 4;
/// How often the status is sent when nothing changes.
const STATUS_PERIOD: Duration = Duration::from_secs(300);
/// How often the machine is looked at for changes.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// Shortest time between two corrections of what the API server says of this node.
const CORRECT_PERIOD: Duration = Duration::from_secs(1);
/// Pauses between attempts to register.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Less free space than this part of the file system is pressure, in percent.
const DISK_PRESSURE: u64 = 5;
/// Less available memory than this is pressure, in bytes.
const MEMORY_PRESSURE: i64 = 100 << 20;

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
    ready: bool,
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
            ready: true,
        }
    }

    /// Registers the node and tells `ready`, then keeps lease and status fresh, for ever. Ends when the node is deleted,
    /// as a kubelet's would: a node that somebody took out of the cluster comes back with a restart only.
    pub async fn run(mut self, ready: oneshot::Sender<()>, mut own: watch::Receiver<Own>) {
        let uid = self.register().await;
        let _ = ready.send(());
        // What was listed before the node was registered does not have it.
        let (mut seen, mut missed) = (false, false);
        let mut lease = tokio::time::interval(Duration::from_secs(self.config.lease_seconds.into()) / LEASE_RENEWALS);
        let mut look = tokio::time::interval(LOOK_PERIOD);
        let mut sent = tokio::time::Instant::now();
        lease.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if missed && let Some(gone) = self.is_gone(&uid).await {
                if gone {
                    tracing::warn!(
                        node = self.config.node_name,
                        "this node was deleted from the cluster; start the agent again to join anew"
                    );
                    return;
                }
                tracing::warn!(
                    node = self.config.node_name,
                    "a list of the nodes lacked this one, but the API server has it"
                );
                missed = false;
            }
            let differs = tokio::select! {
                _ = lease.tick() => {
                    if let Err(error) = self.renew().await {
                        tracing::warn!(%error, "the node's lease was not renewed");
                    }
                    continue;
                }
                _ = look.tick() => !own.borrow().ready && own.borrow().listed,
                () = changed(&mut own) => {
                    let same = own.borrow().uid.as_deref() == Some(uid.as_str());
                    seen |= same;
                    missed = seen && !same && own.borrow().listed;
                    // Whoever says so has not heard of us for a while: an answer is due now, not with the next look.
                    !own.borrow().ready && sent.elapsed() >= CORRECT_PERIOD
                }
            };
            if differs {
                // It was away for the others, whatever it thinks itself: it is ready since now.
                self.since[0] = Timestamp::now();
            }
            let pressure = Pressure::look(&self.config);
            if differs || self.last != Some(pressure) || sent.elapsed() >= STATUS_PERIOD {
                match self.send_status(pressure).await {
                    Ok(()) => sent = tokio::time::Instant::now(),
                    Err(error) => {
                        self.last = None;
                        tracing::warn!(%error, "the node's status was not sent");
                    }
                }
            }
        }
    }

    /// Registers the node before it has ranges for its pods, and waits until it is given some.
    pub async fn claim(&mut self) -> Vec<String> {
        self.ready = false;
        self.register().await;
        self.ready = true;
        let query = format!("fieldSelector=metadata.name%3D{}", self.config.node_name);
        let mut events = self.api.follow("/api/v1/nodes".to_owned(), query);
        while let Some(event) = events.recv().await {
            let nodes = match event {
                ListWatchEvent::Listed(items) => items,
                ListWatchEvent::Applied(item) => vec![item],
                ListWatchEvent::Deleted(_) => Vec::new(),
            };
            for node in nodes {
                let ranges = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
                let ranges: Vec<String> = ranges.filter_map(|range| range.as_str().map(str::to_owned)).collect();
                if !ranges.is_empty() {
                    return ranges;
                }
            }
        }
        Vec::new()
    }

    /// Whether the API server has no node of this uid any more; `None`: it does not say. A list may be old: only this counts.
    async fn is_gone(&self, uid: &str) -> Option<bool> {
        match self.api.get(self.path()).await {
            Ok(node) => Some(node["metadata"]["uid"].as_str() != Some(uid)),
            Err(error) if error.is_not_found() => Some(true),
            Err(_) => None,
        }
    }

    /// Returns the node's uid.
    async fn register(&mut self) -> String {
        let mut delay = RETRY.0;
        loop {
            match self.try_register().await {
                Ok(uid) => return uid,
                Err(error) => tracing::warn!(%error, retry_in = ?delay, "the node was not registered"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY.1);
        }
    }

    async fn try_register(&mut self) -> Result<String, ClientError> {
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
        let mut created = self.api.create("/api/v1/nodes".to_owned(), node.clone()).await;
        if created.as_ref().is_err_and(|error| error.code() == 403) && !self.config.pod_cidr.is_empty() {
            // Its ranges went to another node while this one was away: it gets others.
            node["spec"] = json!({});
            created = self.api.create("/api/v1/nodes".to_owned(), node).await;
        }
        let node = match created {
            Ok(node) => node,
            Err(error) if error.is_already_exists() => {
                let patch = json!({"metadata": {"labels": self.labels()}});
                self.api.patch(self.path(), PatchKind::Merge, patch).await?
            }
            Err(error) => return Err(error),
        };
        self.send_status(pressure).await?;
        self.renew().await?;
        Ok(node["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
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
        let mut patch = json!({"status": self.status(pressure, now)});
        // A strategic merge goes by type, and two addresses of one type would become one: the list is replaced.
        if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
            addresses.push(json!({"$patch": "replace"}));
        }
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
        let ranges: Vec<&str> = self
            .config
            .pod_cidr
            .split(',')
            .filter(|range| !range.is_empty())
            .collect();
        let spec = match ranges.first() {
            Some(first) => json!({"podCIDR": first, "podCIDRs": ranges}),
            None => json!({}),
        };
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.config.node_name, "labels": self.labels()},
            "spec": spec,
        })
    }

    fn status(&self, pressure: Pressure, now: Timestamp) -> Value {
        let machine = &self.machine;
        let mut addresses: Vec<Value> = machine
            .addresses()
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip.to_string()}))
            .collect();
        addresses.push(json!({"type": "Hostname", "address": self.config.node_name}));
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
            "addresses": addresses,
            "capacity": resources,
            "allocatable": resources,
            "conditions": [
                condition(1, "MemoryPressure", memory, pick(memory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
                    pick(memory, "the node is short of memory", "kubelet has sufficient memory available")),
                condition(2, "DiskPressure", disk, pick(disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
                    pick(disk, "the node is short of disk space", "kubelet has no disk pressure")),
                condition(3, "PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition(0, "Ready", self.ready, pick(self.ready, "KubeletReady", "KubeletNotReady"),
                    pick(self.ready, "kubelet is posting ready status", "the pod network waits for its ranges")),
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
        let patch = json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": self.config.lease_seconds, "renewTime": now}});
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

/// Waits for the next state of this node; for ever when there will be none.
async fn changed(own: &mut watch::Receiver<Own>) {
    if own.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    own.mark_unchanged();
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
mod tests;
