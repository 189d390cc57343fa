//! The OCI runtime alone, against others: the same bundle, in turn, in a private mount namespace with one cgroup2.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::quantile;

/// Peers that are measured if they are on the PATH.
const PEERS: &[&str] = &["crun", "runc", "youki"];

struct Runtime {
    name: String,
    path: PathBuf,
    run: Vec<f64>,
    steps: Vec<f64>,
}

/// Runs the runtime benchmark.
///
/// # Errors
/// The namespace or the bundle cannot be made, or a runtime fails.
pub fn run(binaries: &Path, rounds: usize, inside: bool) -> Result<()> {
    if !inside {
        let script = "mount --make-rprivate / && umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup /sys/fs/cgroup && exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", script])
            .arg(std::env::current_exe()?)
            .arg("--binaries")
            .arg(binaries);
        return Err(command
            .args(["runtime", "--rounds", &rounds.to_string(), "--inside"])
            .exec())
        .context("start unshare");
    }
    let bundle = tempfile::tempdir().context("make a temporary directory")?;
    let ours = binaries.join("hull-runtime");
    write_bundle(&ours, bundle.path())?;
    let mut runtimes = vec![Runtime {
        name: "hull-runtime".into(),
        path: ours,
        run: vec![],
        steps: vec![],
    }];
    let path = std::env::var_os("PATH").unwrap_or_default();
    for peer in PEERS {
        if let Some(found) = std::env::split_paths(&path)
            .map(|dir| dir.join(peer))
            .find(|path| path.is_file())
        {
            runtimes.push(Runtime {
                name: (*peer).to_owned(),
                path: found,
                run: vec![],
                steps: vec![],
            });
        }
    }
    for round in 0..rounds + 3 {
        for runtime in &mut runtimes {
            let id = format!("bench-{}-{round}", std::process::id());
            let run = timed(|| step(&runtime.path, bundle.path(), &["run", &id]))?;
            let steps = timed(|| {
                step(&runtime.path, bundle.path(), &["create", &id])?;
                step(&runtime.path, bundle.path(), &["start", &id])?;
                step(&runtime.path, bundle.path(), &["delete", "--force", &id])
            })?;
            if round >= 3 {
                runtime.run.push(run);
                runtime.steps.push(steps);
            }
        }
    }
    let base = (quantile(&runtimes[0].run, 0.5), quantile(&runtimes[0].steps, 0.5));
    for runtime in &runtimes {
        let (run, steps) = (quantile(&runtime.run, 0.5), quantile(&runtime.steps, 0.5));
        println!(
            "{:14} run {run:7.2} ms ({:5.2}x)   create+start+delete {steps:7.2} ms ({:5.2}x)   median of {rounds}",
            runtime.name,
            run / base.0,
            steps / base.1
        );
    }
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

fn step(runtime: &Path, bundle: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(runtime);
    command
        .args(arguments)
        .current_dir(bundle)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let status = command
        .status()
        .with_context(|| format!("start {}", runtime.display()))?;
    ensure!(status.success(), "{} {arguments:?}: {status}", runtime.display());
    Ok(())
}

/// The default spec with `true` of busybox instead of a shell; without resources, because old crun cannot load its device program here.
fn write_bundle(ours: &Path, bundle: &Path) -> Result<()> {
    step(ours, bundle, &["spec"])?;
    let path = bundle.join("config.json");
    let mut spec: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).context("read config.json")?).context("config.json")?;
    // Old peers know no newer version; nothing in this spec needs one.
    spec["ociVersion"] = "1.0.2".into();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    if let Some(process) = spec["process"].as_object_mut() {
        process.remove("rlimits");
    }
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("resources");
    }
    fs::write(&path, spec.to_string()).context("write config.json")?;
    for dir in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(bundle.join("rootfs").join(dir)).context("make the root file system")?;
    }
    fs::copy("/bin/busybox", bundle.join("rootfs/bin/true")).context("copy /bin/busybox")?;
    Ok(())
}
