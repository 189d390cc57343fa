//! Many containers at once, and what they cost in memory: of the runtime while it runs one, of the warden that keeps all.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use hull_runtime::warden::{self, Client, CreateRequest};
use serde_json::{Value, json};

use super::bundle::{self, Spec};
use super::{Runtime, process};

/// Starts `count` containers with each runtime, all at the same moment: as `spec` has them by default, and as a kubelet asks.
pub fn all(runtimes: &[Runtime], default: &Value, directory: &Path, rootfs: &Path, count: usize) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for spec in [Spec::Default, Spec::Kubelet] {
        let bundles = (0..count)
            .map(|number| {
                let bundle = directory.join("crowd").join(number.to_string());
                let cgroup = format!("/hull-bench/crowd-{number}");
                bundle::write(default, spec, &bundle, rootfs, &["/bin/true"], &cgroup)?;
                Ok(bundle)
            })
            .collect::<Result<Vec<PathBuf>>>()?;
        for runtime in runtimes {
            rows.push(at_once(runtime, spec, &bundles)?);
        }
    }
    Ok(rows)
}

fn at_once(runtime: &Runtime, spec: Spec, bundles: &[PathBuf]) -> Result<Value> {
    let began = Instant::now();
    let mut running = HashSet::new();
    for (number, bundle) in bundles.iter().enumerate() {
        let arguments = ["run", "-b", &bundle.to_string_lossy(), &format!("crowd-{number}")];
        running.insert(process::start(&runtime.path, &arguments)?.pid());
    }
    let (mut failed, mut cpu) = (0, 0.0);
    while !running.is_empty() {
        let (pid, code, used) = process::reap(-1)?;
        if running.remove(&pid) {
            failed += u32::from(code != 0);
            cpu += used;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let count = bundles.len() as f64;
    Ok(json!({
        "name": runtime.name, "spec": spec.name(), "containers": bundles.len(), "failed": failed,
        "perSecond": count / seconds, "cpuEach": cpu / count
    }))
}

/// Resident memory, in KiB: the most of one `run`, and that of a warden with `count` containers.
pub fn warden(ours: &Path, default: &Value, directory: &Path, rootfs: &Path, count: usize) -> Result<Value> {
    let peak = runtime_peak(ours, default, Spec::Default, directory, rootfs)?;
    let kubelet_peak = runtime_peak(ours, default, Spec::Kubelet, directory, rootfs)?;
    let dir = directory.join("warden");
    warden::spawn(ours, &dir).context("start the warden")?;
    let client = Client::connect(&dir).context("reach the warden")?;
    let filled = fill(&client, default, directory, rootfs, count);
    let resident = filled.and_then(|()| memory(client.warden_pid()?, "VmRSS"));
    client.shutdown(true).context("stop the warden")?;
    Ok(json!({"containers": count, "resident": resident?, "runtimePeak": peak, "runtimePeakKubelet": kubelet_peak}))
}

fn fill(client: &Client, default: &Value, directory: &Path, rootfs: &Path, count: usize) -> Result<()> {
    for number in 0..count {
        let id = format!("warden-{number}");
        let bundle = directory.join("crowd").join(&id);
        let cgroup = format!("/hull-bench/{id}");
        bundle::write(
            default,
            Spec::Default,
            &bundle,
            rootfs,
            &["/bin/sleep", "100000"],
            &cgroup,
        )?;
        client.create(CreateRequest {
            id: id.clone(),
            bundle,
            log: None,
            stdin: false,
            terminal: false,
            labels: Default::default(),
        })?;
        client.start(&id)?;
    }
    Ok(())
}

/// VmHWM of a `run` that waits for its container.
fn runtime_peak(ours: &Path, default: &Value, spec: Spec, directory: &Path, rootfs: &Path) -> Result<u64> {
    let bundle = directory.join("peak");
    let program = ["/bin/sleep", "100000"];
    bundle::write(default, spec, &bundle, rootfs, &program, "/hull-bench/peak")?;
    let started = process::start(ours, &["run", "-b", &bundle.to_string_lossy(), "bench-peak"])?;
    let pid = started.pid();
    let group = Path::new("/sys/fs/cgroup/hull-bench/peak/cgroup.procs");
    let deadline = Instant::now() + std::time::Duration::from_secs(10);
    while fs::read_to_string(group).unwrap_or_default().is_empty() || children_program(pid) != Some("sleep".into()) {
        if Instant::now() > deadline {
            bail!("the container did not start within 10 s");
        }
        std::thread::yield_now();
    }
    let peak = memory(pid, "VmHWM");
    process::run(ours, &["delete", "--force", "bench-peak"])?;
    started.wait()?;
    peak
}

/// Name of the program that the only child of `pid` runs.
fn children_program(pid: i32) -> Option<String> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let child = children.split_whitespace().next()?;
    let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    Some(name.trim().to_owned())
}

/// A figure of /proc/<pid>/status, in KiB.
fn memory(pid: i32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(':')?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("{path} has no {name}"))
}
