//! `hull down`: ends the supervisor, then the pods, then what they leave behind; works as well after a crash.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::cluster::Cluster;

/// How long pods get between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(10);
/// How long the supervisor may take to stop its two children.
const STOP_TIMEOUT: Duration = Duration::from_secs(25);
/// What hull keeps below the data directory; `--purge` removes these and nothing else.
const DATA: &[&str] = &[
    "store",
    "pki",
    "images",
    "pods",
    "logs",
    "containers",
    "agent",
    "hull.log",
];

/// Flags of `hull down`.
#[derive(Args)]
pub struct Options {
    /// Leave the pods running; the next hull up adopts them
    #[arg(long)]
    keep_pods: bool,
    /// Remove all data too: objects, certificates, images, logs
    #[arg(long, conflicts_with = "keep_pods")]
    purge: bool,
    /// Seconds that pods get between SIGTERM and SIGKILL
    #[arg(long, default_value_t = GRACE.as_secs(), value_name = "SECONDS")]
    grace: u64,
}

/// Stops the cluster.
///
/// # Errors
/// Not root, the supervisor does not end, or something could not be removed.
pub fn run(cluster: &Cluster, options: &Options) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "hull down needs root. Run it with sudo"
    );
    let began = Instant::now();
    let was_running = stop_supervisor(cluster)?;
    if options.keep_pods {
        println!("hull is stopped; its pods keep running. hull up adopts them, hull down stops them");
        return Ok(());
    }
    tear_down(cluster, Duration::from_secs(options.grace))?;
    if options.purge {
        purge(cluster)?;
    }
    let what = if was_running {
        "hull is stopped"
    } else {
        "hull was not running; nothing of it is left"
    };
    println!(
        "{what} ({} ms){}",
        began.elapsed().as_millis(),
        if options.purge { "; all data is removed" } else { "" }
    );
    Ok(())
}

/// Stops all pods and removes what they leave: mounts, namespaces, interfaces, cgroups, BPF pins, the warden.
///
/// # Errors
/// Names what could not be removed.
pub fn tear_down(cluster: &Cluster, grace: Duration) -> Result<()> {
    let report = hull_agent::teardown::teardown(&cluster.agent_config()?, grace).context("tear down pods")?;
    tracing::debug!(?report, "torn down");
    if cluster.run_dir.is_dir() {
        fs::remove_dir_all(&cluster.run_dir).with_context(|| format!("remove {}", cluster.run_dir.display()))?;
    }
    Ok(())
}

/// Sends the supervisor SIGTERM and waits for its end. `false`: there was none.
fn stop_supervisor(cluster: &Cluster) -> Result<bool> {
    let path = cluster.lock_path();
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    if file.try_lock().is_ok() {
        return Ok(false);
    }
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.with_context(|| format!("{}: no pid in it, but it is locked", path.display()))?;
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("open a pidfd of hull up (pid {pid})")),
    };
    rustix::process::pidfd_send_signal(&pidfd, Signal::TERM)
        .with_context(|| format!("send SIGTERM to hull up (pid {pid})"))?;
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec {
        tv_sec: STOP_TIMEOUT.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    if rustix::event::poll(&mut fds, Some(&timeout)).context("wait for hull up to end")? == 0 {
        bail!(
            "hull up (pid {pid}) did not end within {STOP_TIMEOUT:?}; see {}",
            cluster.log_path().display()
        );
    }
    Ok(true)
}

fn purge(cluster: &Cluster) -> Result<()> {
    for name in DATA {
        remove(&cluster.data_dir.join(name))?;
    }
    match fs::remove_dir(&cluster.data_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            println!(
                "{} holds files that are not hull's; they stay",
                cluster.data_dir.display()
            );
            Ok(())
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", cluster.data_dir.display()))
        }
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    result.with_context(|| format!("remove {}", path.display()))
}
