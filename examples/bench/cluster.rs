//! A whole cluster: start, memory, pods.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hull_agent::client::{Client, WatchKind};
use serde_json::{Value, json};

use crate::quantile;

pub const DATA_DIR: &str = "/var/lib/hull-bench";
const RUN_DIR: &str = "/run/hull-bench";
pub const BPF_DIR: &str = "/sys/fs/bpf/hull-bench";
const IMAGE: &str = "busybox:bench";
/// How long a pod may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster of the benchmark's own; goes with the value.
pub struct Cluster {
    hull: PathBuf,
}

impl Cluster {
    pub fn new(binaries: &Path) -> Cluster {
        Cluster {
            hull: binaries.join("hull"),
        }
    }

    /// Runs a command of hull on it.
    pub fn hull(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.hull);
        command.args([
            "--data-dir",
            DATA_DIR,
            "--run-dir",
            RUN_DIR,
            "--cgroup",
            "hull-bench",
            "--bpf-dir",
            BPF_DIR,
        ]);
        let out = command.args(arguments).output().context("start hull")?;
        ensure!(
            out.status.success(),
            "hull {arguments:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.hull(&["down", "--purge", "--grace", "0"]) {
            eprintln!("clean-up: {error:#}");
        }
    }
}

/// Runs the cluster benchmark.
///
/// # Errors
/// The cluster does not start or a pod does not run.
pub fn run(binaries: &Path, starts: usize, pods: usize) -> Result<()> {
    let cluster = Cluster::new(binaries);
    let mut ready = Vec::new();
    for _ in 0..starts {
        cluster.hull(&["down", "--purge", "--grace", "0"])?;
        let began = Instant::now();
        cluster.hull(&["up", "--detach"])?;
        ready.push(began.elapsed().as_secs_f64() * 1e3);
    }
    println!(
        "hull up, nothing to ready   median {:7.0} ms   max {:7.0} ms   ({starts} starts)",
        quantile(&ready, 0.5),
        quantile(&ready, 1.0)
    );
    std::thread::sleep(Duration::from_secs(5));
    let status: Value = serde_json::from_str(&cluster.hull(&["status", "-o", "json"])?).context("hull status")?;
    let mut total = 0.0;
    for process in status["processes"].as_array().into_iter().flatten() {
        let mib = process["residentKiB"].as_f64().unwrap_or_default() / 1024.0;
        total += mib;
        println!(
            "resident memory at rest     {:10} {mib:7.1} MiB",
            process["role"].as_str().unwrap_or("?")
        );
    }
    println!("resident memory at rest     total      {total:7.1} MiB");
    let archive = Path::new(DATA_DIR).join("bench.tar");
    hull_agent::image::build::of_binary(&archive, IMAGE, Path::new("/bin/busybox"), "/bin/busybox")?;
    cluster.hull(&["image", "import", &archive.to_string_lossy()])?;
    std::fs::remove_file(&archive).context("remove the archive")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    let client = Client::from_kubeconfig(&Path::new(DATA_DIR).join("pki/admin.kubeconfig"))?;
    let mut started = Vec::new();
    for i in 0..pods {
        started.push(
            runtime
                .block_on(start_pod(&client, &format!("bench-{i}")))?
                .as_secs_f64()
                * 1e3,
        );
    }
    let [p50, p90, max] = [0.5, 0.9, 1.0].map(|q| quantile(&started, q));
    println!("pod, POST to Running seen   median {p50:7.1} ms   p90 {p90:7.1} ms   max {max:7.1} ms   ({pods} pods)");
    Ok(())
}

/// Creates a pod and waits until a watcher that was there before sees it Running; then deletes it.
async fn start_pod(client: &Client, name: &str) -> Result<Duration> {
    let collection = "/api/v1/namespaces/default/pods";
    let list = client.get(&format!("{collection}?limit=1")).await?;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
    let mut watch = client
        .watch(&format!(
            "{collection}?watch=true&resourceVersion={version}&fieldSelector=metadata.name%3D{name}"
        ))
        .await?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": IMAGE, "command": ["/bin/busybox", "sleep", "1000"]}]},
    });
    let began = Instant::now();
    client.create(collection, &pod).await?;
    let running = async {
        while let Some(event) = watch.next().await? {
            if event.kind != WatchKind::Deleted && event.object["status"]["phase"] == "Running" {
                return Ok(began.elapsed());
            }
        }
        anyhow::bail!("the watch ended")
    };
    let took = tokio::time::timeout(PATIENCE, running)
        .await
        .with_context(|| format!("{name} is not Running after {PATIENCE:?}"))??;
    client
        .delete(&format!("{collection}/{name}"), &json!({"gracePeriodSeconds": 0}))
        .await?;
    Ok(took)
}
