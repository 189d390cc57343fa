//! `hull up`: makes the certificates, starts `hull control` and `hull agent`, and starts again whichever dies.
//!
//! The supervisor holds a lock on the run directory for as long as it lives and does nothing else: it can be killed and started again
//! like the rest. Interrupting it (ctrl-c) stops the pods too; SIGTERM leaves them running, as a service manager's restart should.

use std::fs;
use std::io::IsTerminal as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::net::UnixDatagram;
use tokio::process::Child;

use crate::cluster::Cluster;
use crate::lock::Lock;
use crate::{detach, down, notify, process};

/// How long a stopped child may take before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay before the first and the last of several restarts in a row.
const RESTART_DELAY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// A child that lived this long starts over with the first delay.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Starts the cluster; in the foreground, returns when it is stopped.
///
/// # Errors
/// Not root, already running, or a part of the start failed.
pub fn run(cluster: Cluster, options: &detach::Detach) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "hull up needs root: it makes namespaces, cgroups and network devices. Run it with sudo"
    );
    let cluster = cluster.complete()?;
    let began = Instant::now();
    for dir in [&cluster.run_dir, &cluster.data_dir] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("create {}", dir.display()))?;
    }
    let lock = Lock::take(&cluster)?;
    if options.detach {
        drop(lock);
        return detach::start(&cluster.log_path(), began);
    }
    process::log("up");
    cluster.remember()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    let end = runtime.block_on(supervise(&cluster, began, options.background))?;
    drop(lock);
    if end == End::WithPods {
        down::tear_down(&cluster, down::GRACE)?;
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum End {
    /// Pods keep running.
    KeepPods,
    /// Pods stop too.
    WithPods,
}

/// One of the two supervised processes.
struct Part {
    name: &'static str,
    child: Option<Child>,
    started: Instant,
    delay: Duration,
    due: Instant,
}

impl Part {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            child: None,
            started: Instant::now(),
            delay: RESTART_DELAY.0,
            due: Instant::now(),
        }
    }

    fn start(&mut self, cluster: &Cluster, notify_socket: &std::path::Path) -> Result<()> {
        let mut command = tokio::process::Command::new(std::env::current_exe().context("path of the running binary")?);
        command
            .arg(self.name)
            .arg("--supervised")
            .args(flags(cluster))
            .env(notify::VARIABLE, notify_socket);
        // Standard output of a background supervisor is the pipe to `hull up --detach`, which waits for its end.
        command.stdin(Stdio::null()).stdout(std::io::stderr());
        self.child = Some(command.spawn().with_context(|| format!("start hull {}", self.name))?);
        self.started = Instant::now();
        Ok(())
    }

    /// Waits for the child's end; for ever if there is none.
    async fn ended(&mut self) -> String {
        match self.child.as_mut() {
            Some(child) => child
                .wait()
                .await
                .map_or_else(|e| e.to_string(), |status| status.to_string()),
            None => {
                tokio::time::sleep_until(self.due.into()).await;
                String::new()
            }
        }
    }

    /// After [`Part::ended`]: starts again, now or after a delay.
    fn again(&mut self, how: &str, cluster: &Cluster, notify_socket: &std::path::Path) -> Result<()> {
        if self.child.take().is_none() {
            return self.start(cluster, notify_socket);
        }
        let stable = self.started.elapsed() > STABLE_AFTER;
        self.delay = if stable {
            RESTART_DELAY.0
        } else {
            (self.delay * 2).min(RESTART_DELAY.1)
        };
        self.due = Instant::now() + self.delay;
        tracing::warn!(part = self.name, how, again_in = ?self.delay, "a part of hull ended; starting it again");
        Ok(())
    }

    async fn stop(&mut self) {
        let Some(child) = self.child.as_mut() else { return };
        if let Some(pid) = child
            .id()
            .and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
            tracing::warn!(part = self.name, "did not stop within {STOP_TIMEOUT:?}; killing it");
            let _ = child.kill().await;
        }
    }
}

fn join(ips: &[std::net::IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The cluster's settings as flags for a child.
fn flags(cluster: &Cluster) -> Vec<String> {
    let mut flags = vec![
        format!("--data-dir={}", cluster.data_dir.display()),
        format!("--run-dir={}", cluster.run_dir.display()),
        format!("--node-name={}", cluster.node()),
        format!("--node-ip={}", join(&cluster.node_ips)),
        format!("--listen={}", cluster.listen),
        format!("--agent-listen={}", cluster.agent_listen),
        format!("--cluster-cidr={}", cluster.cluster_cidr),
        format!("--service-cidr={}", cluster.service_cidr),
        format!("--pod-network={}", cluster.pod_network),
        format!("--node-cgroup={}", cluster.node_cgroup),
        format!("--cgroup={}", cluster.cgroup),
        format!("--bpf-dir={}", cluster.bpf_dir.display()),
        format!(
            "--node-monitor-grace-period={}s",
            cluster.node_monitor_grace_period.as_secs()
        ),
        format!("--node-lease-duration={}s", cluster.node_lease_duration.as_secs()),
        format!(
            "--cluster-signing-duration={}s",
            cluster.cluster_signing_duration.as_secs()
        ),
    ];
    flags.extend(cluster.pod_cidr.iter().map(|range| format!("--pod-cidr={range}")));
    for (flag, ranges) in [
        ("--external-cidrs", &cluster.external_cidrs),
        ("--nodeport-addresses", &cluster.nodeport_addresses),
        ("--non-masquerade-cidr", &cluster.non_masquerade_cidrs),
    ] {
        flags.extend(ranges.iter().map(|range| format!("{flag}={range}")));
    }
    flags.extend(cluster.tls_sans.iter().map(|name| format!("--tls-san={name}")));
    flags.extend(
        cluster
            .insecure_registries
            .iter()
            .map(|registry| format!("--insecure-registry={registry}")),
    );
    flags
}

async fn supervise(cluster: &Cluster, began: Instant, background: bool) -> Result<End> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    make_certificates(cluster)?;
    let socket_path = cluster.run_dir.join("notify.sock");
    let _ = fs::remove_file(&socket_path);
    let socket = UnixDatagram::bind(&socket_path).with_context(|| format!("bind {}", socket_path.display()))?;
    let (mut control, mut agent) = (Part::new("control"), Part::new("agent"));
    control.start(cluster, &socket_path)?;
    agent.start(cluster, &socket_path)?;
    let mut unready = 2;
    let mut message = [0; 64];
    let end = loop {
        tokio::select! {
            how = control.ended() => control.again(&how, cluster, &socket_path)?,
            how = agent.ended() => agent.again(&how, cluster, &socket_path)?,
            got = socket.recv(&mut message), if unready > 0 => {
                got.context("receive a readiness message")?;
                unready -= 1;
                if unready == 0 {
                    say_ready(cluster, began, background)?;
                }
            }
            _ = terminate.recv() => break End::KeepPods,
            _ = interrupt.recv() => break End::WithPods,
        }
    };
    // The agent first, while the API server still takes its last status.
    agent.stop().await;
    control.stop().await;
    let _ = fs::remove_file(&socket_path);
    Ok(end)
}

fn make_certificates(cluster: &Cluster) -> Result<()> {
    hull_control::pki::ensure(&cluster.pki_dir(), &cluster.pki_config()?).context("make certificates")?;
    Ok(())
}

fn say_ready(cluster: &Cluster, began: Instant, background: bool) -> Result<()> {
    let text = format!(
        "hull is ready after {} ms: node {}, API server {}\n\n  export KUBECONFIG={}\n  kubectl get pods -A\n",
        began.elapsed().as_millis(),
        cluster.node(),
        cluster.server_url(),
        cluster.kubeconfig().display()
    );
    let hint = if !background && std::io::stdout().is_terminal() {
        "\nctrl-c stops the cluster and its pods\n"
    } else {
        ""
    };
    detach::say_ready(&format!("{text}{hint}"), background)?;
    process::ready();
    Ok(())
}
