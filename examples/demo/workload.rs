//! The workload as its user sees it: applied, watched, scaled, broken and deleted through the Kubernetes API.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hull_agent::client::{Client, ListWatch, ListWatchEvent, PatchKind};
use serde_json::{Value, json};

use crate::cluster::{CGROUP, DemoCluster};

const NAMESPACE: &str = "web";
/// How long any step may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pod that answers: its name and where.
#[derive(Clone, Debug)]
pub struct ReadyPod {
    /// The pod's name.
    pub name: String,
    /// Where its server listens.
    pub address: SocketAddrV4,
}

/// The applied manifests.
pub struct Workload {
    client: Client,
}

impl Workload {
    /// Creates every object of a manifest file.
    ///
    /// # Errors
    /// The file is no manifest or the API server refuses an object.
    pub async fn apply(demo: &DemoCluster, manifest: &Path) -> Result<Self> {
        let client = demo.client()?;
        let text = fs::read_to_string(manifest).with_context(|| format!("read {}", manifest.display()))?;
        println!("applying {}", manifest.display());
        for document in hull_agent::manifest::documents(&text).with_context(|| manifest.display().to_string())? {
            client
                .create(&hull_agent::manifest::collection_path(&document)?, &document)
                .await?;
            println!(
                "  {} {}",
                document["kind"].as_str().unwrap_or("?"),
                document["metadata"]["name"].as_str().unwrap_or("?")
            );
        }
        Ok(Self { client })
    }

    fn path(rest: &str) -> String {
        format!("/api/v1/namespaces/{NAMESPACE}/{rest}")
    }

    /// Follows the pods, a line for each step, until `count` of them are ready and behind the service.
    ///
    /// # Errors
    /// It takes longer than a minute; the error holds the pods' states.
    pub async fn ready(&self, count: usize, what: &str) -> Result<Vec<ReadyPod>> {
        let began = Instant::now();
        println!("waiting for {count} ready pods");
        let mut pods: BTreeMap<String, (String, Value)> = BTreeMap::new();
        let mut follow = ListWatch::new(self.client.clone(), Self::path("pods"), "");
        loop {
            let left = PATIENCE.saturating_sub(began.elapsed());
            let Ok(event) = tokio::time::timeout(left, follow.next()).await else {
                bail!(
                    "{what}: {count} pods are not ready after {PATIENCE:?}: {:?}",
                    pods.values().map(|(state, _)| state).collect::<Vec<_>>()
                );
            };
            let changed = match event {
                ListWatchEvent::Listed(list) => list,
                ListWatchEvent::Applied(pod) => vec![pod],
                ListWatchEvent::Deleted(pod) => {
                    pods.remove(pod["metadata"]["name"].as_str().unwrap_or_default());
                    continue;
                }
            };
            for pod in changed {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let state = state(&pod);
                if pods.get(&name).is_none_or(|(old, _)| *old != state) {
                    println!("  {:>5} ms  {name}  {state}", began.elapsed().as_millis());
                }
                pods.insert(name, (state, pod));
            }
            let ready: Vec<ReadyPod> = pods
                .values()
                .filter(|(_, pod)| is_ready(pod))
                .filter_map(|(_, pod)| address(pod))
                .collect();
            if ready.len() == count {
                let behind = async {
                    while self.endpoints().await? != count {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    anyhow::Ok(())
                };
                tokio::time::timeout(left, behind)
                    .await
                    .with_context(|| format!("{what}: the service has not {count} endpoints"))??;
                println!(
                    "  {count} pods ready and behind the service after {} ms",
                    began.elapsed().as_millis()
                );
                return Ok(ready);
            }
        }
    }

    /// Ready endpoints of the service.
    async fn endpoints(&self) -> Result<usize> {
        let path = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dweb"
        );
        let slices = self.client.list(&path).await?;
        let endpoints = slices
            .iter()
            .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        Ok(endpoints
            .filter(|endpoint| endpoint["conditions"]["ready"] != false)
            .count())
    }

    /// Where the service answers.
    ///
    /// # Errors
    /// The service has no address.
    pub async fn service_address(&self) -> Result<SocketAddrV4> {
        let service = self.client.get(&Self::path("services/web")).await?;
        let ip: Ipv4Addr = service["spec"]["clusterIP"]
            .as_str()
            .context("the service has no clusterIP")?
            .parse()
            .context("clusterIP")?;
        Ok(SocketAddrV4::new(ip, 80))
    }

    /// Sets the number of replicas through the scale subresource.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn scale(&self, replicas: u32) -> Result<()> {
        println!("\nscaling to {replicas}");
        let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/web/scale");
        self.client
            .patch(&path, PatchKind::Merge, &json!({"spec": {"replicas": replicas}}))
            .await?;
        Ok(())
    }

    /// Kills the first process of one container and follows its restart.
    ///
    /// # Errors
    /// It does not come back within a minute.
    pub async fn kill_one(&self, _demo: &DemoCluster) -> Result<()> {
        let pods = self.client.list(&Self::path("pods")).await?;
        let pod = pods.iter().find(|pod| is_ready(pod)).context("no ready pod to kill")?;
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let pid = container_process(pod)?;
        println!("\nkilling the container of {name} (pid {pid})");
        let began = Instant::now();
        let target = rustix::process::Pid::from_raw(pid).context("pid 0")?;
        rustix::process::kill_process(target, rustix::process::Signal::KILL).with_context(|| format!("kill {pid}"))?;
        let mut follow = ListWatch::new(
            self.client.clone(),
            Self::path("pods"),
            format!("fieldSelector=metadata.name%3D{name}"),
        );
        let restarted = async {
            let mut last = String::new();
            loop {
                let seen = match follow.next().await {
                    ListWatchEvent::Listed(list) => list,
                    ListWatchEvent::Applied(pod) => vec![pod],
                    ListWatchEvent::Deleted(_) => bail!("{name} was deleted instead of restarted"),
                };
                for pod in seen {
                    let state = state(&pod);
                    if state != last {
                        println!("  {:>5} ms  {name}  {state}", began.elapsed().as_millis());
                        last = state;
                    }
                    if restarts(&pod) == 1 && is_ready(&pod) {
                        return Ok(());
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, restarted)
            .await
            .with_context(|| format!("{name} is not restarted after {PATIENCE:?}"))?
    }

    /// Deletes the namespace and waits until it and everything in it is gone.
    ///
    /// # Errors
    /// It takes longer than a minute.
    pub async fn delete(&self) -> Result<()> {
        println!("\ndeleting the namespace and all that is in it");
        let began = Instant::now();
        let path = format!("/api/v1/namespaces/{NAMESPACE}");
        self.client.delete(&path, &Value::Null).await?;
        let mut follow = ListWatch::new(
            self.client.clone(),
            "/api/v1/namespaces",
            format!("fieldSelector=metadata.name%3D{NAMESPACE}"),
        );
        let gone = async {
            loop {
                match follow.next().await {
                    ListWatchEvent::Deleted(_) => return,
                    ListWatchEvent::Listed(list) if list.is_empty() => return,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .with_context(|| format!("the namespace is still there after {PATIENCE:?}"))?;
        let left = self.client.list(&Self::path("pods")).await?;
        ensure!(left.is_empty(), "{} pods outlived their namespace", left.len());
        println!("  gone after {} ms", began.elapsed().as_millis());
        Ok(())
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"]
        .as_u64()
        .unwrap_or_default()
}

fn state(pod: &Value) -> String {
    let phase = pod["status"]["phase"].as_str().unwrap_or("Pending");
    let node = pod["spec"]["nodeName"]
        .as_str()
        .map_or("not scheduled".to_owned(), |node| format!("on {node}"));
    let waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
    let ready = if is_ready(pod) { ", ready" } else { "" };
    let count = restarts(pod);
    let restarted = if count > 0 {
        format!(", restarts {count}")
    } else {
        String::new()
    };
    format!(
        "{phase}{}{ready}{restarted} ({node})",
        waiting.map(|reason| format!(", {reason}")).unwrap_or_default()
    )
}

fn address(pod: &Value) -> Option<ReadyPod> {
    let ip: Ipv4Addr = pod["status"]["podIP"].as_str()?.parse().ok()?;
    Some(ReadyPod {
        name: pod["metadata"]["name"].as_str()?.to_owned(),
        address: SocketAddrV4::new(ip, 8080),
    })
}

/// The first process in the pod's cgroup.
fn container_process(pod: &Value) -> Result<i32> {
    let uid = pod["metadata"]["uid"].as_str().context("pod without uid")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let cgroup2 = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4));
    let dir = Path::new(cgroup2.context("no cgroup2 mount")?)
        .join(CGROUP)
        .join(format!("pod{uid}"));
    for entry in fs::read_dir(&dir)
        .with_context(|| format!("read {}", dir.display()))?
        .filter_map(Result::ok)
    {
        let procs = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
        if let Some(pid) = procs.lines().next() {
            return pid.parse().context("cgroup.procs");
        }
    }
    bail!("no process in {}", dir.display())
}
