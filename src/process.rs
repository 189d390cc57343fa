//! `hull control` and `hull agent`: one process each, started by `hull up` or by an operator's own service manager.

use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use hull_agent::run::End;
use tracing_subscriber::EnvFilter;

use crate::cluster::Cluster;
use crate::lock::Lock;
use crate::{detach, notify};

/// After this long the work of the start is over.
const SETTLED_AFTER: std::time::Duration = std::time::Duration::from_secs(2);

/// Flags of the long-running processes.
#[derive(Args)]
pub struct Options {
    /// End when the process that started this one ends (set by hull up)
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// Logs to standard error, `RUST_LOG` choosing what (default: info).
pub fn log(name: &'static str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(true)
        .try_init();
    tracing::debug!(name, "log started");
}

/// Resolves when the process is asked to end: SIGTERM or SIGINT.
pub async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "signal handlers: this process ends only by SIGKILL");
            std::future::pending().await
        }
    }
}

/// Gives back the pages of program text that only the start needed; what runs at rest is read again from the page cache.
///
/// Start-up walks through most of a large static binary once (certificates, schemas, the BPF loader), and every page it touched would
/// count as resident for ever.
pub fn release_startup_text() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    let Ok(binary) = std::env::current_exe() else { return };
    let text = maps
        .lines()
        .filter(|line| line.contains(" r-xp ") && line.ends_with(&*binary.to_string_lossy()));
    for line in text {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let bounds = range.and_then(|(from, to)| {
            Some((
                usize::from_str_radix(from, 16).ok()?,
                usize::from_str_radix(to, 16).ok()?,
            ))
        });
        let Some((from, to)) = bounds else { continue };
        let address = std::ptr::with_exposed_provenance_mut(from);
        // SAFETY: the range is one mapping of this binary's text as the kernel lists it: file-backed, never writable, so no page of it
        // differs from the file, and a dropped page is mapped again, unchanged, when it is next executed (madvise(2), MADV_DONTNEED).
        if let Err(error) = unsafe { rustix::mm::madvise(address, to - from, rustix::mm::Advice::LinuxDontNeed) } {
            tracing::debug!(%error, line, "giving back start-up text");
        }
    }
}

/// What a process does when it is ready: says so, and becomes small a moment later.
pub fn ready() {
    notify::ready();
    tokio::spawn(async {
        tokio::time::sleep(SETTLED_AFTER).await;
        release_startup_text();
        // SAFETY: malloc_trim(3) gives free pages back to the kernel; what is allocated stays where it is.
        unsafe { libc::malloc_trim(0) };
    });
}

fn prepare(options: &Options, name: &'static str) -> Result<()> {
    log(name);
    if options.supervised {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
            .context("set the parent-death signal")?;
        ensure!(
            rustix::process::getppid().is_some_and(|pid| pid != rustix::process::Pid::INIT),
            "the supervisor is gone"
        );
    }
    Ok(())
}

/// Few threads: a node's work is waiting, and every thread costs memory.
fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .context("start tokio")
}

/// Runs the control plane until it is asked to end.
///
/// # Errors
/// It cannot start, or its store fails.
pub fn control(cluster: &Cluster, options: &Options) -> Result<()> {
    prepare(options, "control")?;
    let runtime = runtime()?;
    let config = cluster.control_config()?;
    runtime.block_on(async {
        let server = hull_control::server::Server::start(config)
            .await
            .context("control plane")?;
        ready();
        asked_to_end().await;
        server.stop().await;
        Ok(())
    })
}

/// Flags of `hull agent`.
#[derive(Args)]
pub struct AgentOptions {
    /// The cluster to be a node of, https://HOST:PORT of its API server
    #[arg(long, value_name = "URL")]
    join: Option<String>,
    /// Bootstrap token, ID.SECRET; needed the first time only (on the control plane: hull token create)
    #[arg(long, value_name = "TOKEN", requires = "join")]
    token: Option<String>,
    /// Hash of the cluster authority's public key, sha256:HEX; without it the token alone vouches for the cluster
    #[arg(long, value_name = "HASH", requires = "join")]
    ca_hash: Option<String>,
    #[command(flatten)]
    detach: detach::Detach,
    #[command(flatten)]
    process: Options,
}

/// Runs the node agent until it is asked to end; its pods go on.
///
/// # Errors
/// It cannot start: not root, no warden, no API server credentials.
pub fn agent(mut cluster: Cluster, options: AgentOptions) -> Result<()> {
    let began = Instant::now();
    cluster.joined.clone_from(&options.join);
    let cluster = cluster.complete()?;
    ensure!(
        rustix::process::geteuid().is_root(),
        "hull agent needs root: it makes namespaces, cgroups and network devices. Run it with sudo"
    );
    let lock = if options.process.supervised {
        None
    } else {
        make_private(&cluster.run_dir)?;
        let lock = Lock::take(&cluster)?;
        if options.detach.detach {
            drop(lock);
            make_private(&cluster.data_dir)?;
            return detach::start(&cluster.log_path(), began);
        }
        cluster.remember()?;
        Some(lock)
    };
    prepare(&options.process, "agent")?;
    let runtime = runtime()?;
    let config = cluster.agent_config()?;
    let background = options.detach.background;
    let node = cluster.node().to_owned();
    let on_ready = move || {
        let text = format!("node {node} is ready after {} ms\n", began.elapsed().as_millis());
        if background && let Err(error) = detach::say_ready(&text, true) {
            tracing::warn!(%error, "whoever waits for this node was not told that it is ready");
        }
        ready();
    };
    let end = runtime.block_on(async {
        if let Some(server) = options.join {
            let join = hull_agent::join::Join {
                server,
                token: options.token,
                ca_hash: options.ca_hash,
            };
            hull_agent::join::join(&config, &join)
                .await
                .context("join the cluster")?;
        }
        hull_agent::run::run(config, on_ready, asked_to_end())
            .await
            .context("agent")
    })?;
    drop(runtime);
    drop(lock);
    match end {
        End::Asked => Ok(()),
        End::NewRanges => again(),
    }
}

fn make_private(dir: &std::path::Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create {}", dir.display()))
}

/// Starts this program again in the same process, with the same arguments; returns only if that fails.
fn again() -> Result<()> {
    let binary = std::env::current_exe().context("path of the running binary")?;
    let error = std::process::Command::new(binary)
        .args(std::env::args_os().skip(1))
        .exec();
    Err(error).context("start the agent again")
}
