//! Running a program in a container and waiting for it: exec probes, exec hooks.
//!
//! The output is kept up to a limit and the rest drained, so a chatty program neither blocks nor fills memory. A
//! time-out kills the program and everything it started.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hull_runtime::spec::Process;
use hull_runtime::warden::ExecRequest;
use rustix::process::{Pid, Signal, kill_process, pidfd_send_signal};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::fd;
use super::warden::Warden;

/// How much output is kept.
const OUTPUT_MAX: usize = 10 << 10;
/// How long output is still read after the program ended: something it left behind may hold the pipe.
const DRAIN: Duration = Duration::from_millis(100);

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ended: exit code (128 + signal) and output.
    Exited(i32, String),
    /// It was killed when its time was up.
    TimedOut,
}

/// A name for an exec, unique in this process.
#[must_use]
pub fn next_exec_id() -> String {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let stamp = jiff::Timestamp::now().as_nanosecond();
    format!("e{:x}-{:x}", stamp, SERIAL.fetch_add(1, Ordering::Relaxed))
}

/// The process of the container's configuration with another command.
pub fn process_like(config: &Path, command: &[String], terminal: bool) -> Result<Process, String> {
    let failed = |error: &dyn std::fmt::Display| format!("reading {}: {error}", config.display());
    let bytes = std::fs::read(config).map_err(|error| failed(&error))?;
    let mut spec: Value = serde_json::from_slice(&bytes).map_err(|error| failed(&error))?;
    let mut process = spec["process"].take();
    process["args"] = command.into();
    process["terminal"] = terminal.into();
    if terminal
        && let Some(env) = process["env"].as_array_mut()
        && !env
            .iter()
            .any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with("TERM=")))
    {
        env.push("TERM=xterm".into());
    }
    serde_json::from_value(process).map_err(|error| failed(&error))
}

/// Runs `command` in the container `id` whose configuration is at `config`.
pub async fn run(
    warden: &Warden,
    id: &str,
    config: &Path,
    command: &[String],
    timeout: Duration,
) -> Result<Outcome, String> {
    let process = process_like(config, command, false)?;
    let exec_id = next_exec_id();
    let request = ExecRequest {
        id: id.to_owned(),
        exec_id: exec_id.clone(),
        process,
        terminal: false,
        stdin: false,
    };
    let started = warden.exec(request).await.map_err(|error| error.to_string())?;
    let pidfd = fd::watch(started.pidfd).map_err(|error| format!("waiting for the exec: {error}"))?;
    let output = collect(started.stdout, started.stderr);
    let finished = async {
        let mut output = std::pin::pin!(output);
        tokio::select! {
            ready = pidfd.readable() => {
                drop(ready.map_err(|error| format!("waiting for the exec: {error}"))?);
                Ok(tokio::time::timeout(DRAIN, &mut output).await.unwrap_or_default())
            }
            text = &mut output => {
                drop(pidfd.readable().await.map_err(|error| format!("waiting for the exec: {error}"))?);
                Ok::<_, String>(text)
            }
        }
    };
    match tokio::time::timeout(timeout, finished).await {
        Ok(text) => {
            let exit = warden
                .exec_exit(id, &exec_id)
                .await
                .map_err(|error| error.to_string())?;
            let code = exit.and_then(|exit| exit.status()).unwrap_or(-1);
            Ok(Outcome::Exited(code, text?))
        }
        Err(_) => {
            kill_tree(started.pid);
            let _ = pidfd_send_signal(pidfd.get_ref(), Signal::KILL);
            let _ = tokio::time::timeout(Duration::from_secs(1), pidfd.readable()).await;
            let _ = warden.exec_exit(id, &exec_id).await;
            Ok(Outcome::TimedOut)
        }
    }
}

async fn collect(stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) -> String {
    let (out, err) = tokio::join!(drain(stdout), drain(stderr));
    let mut bytes = out;
    bytes.extend(err);
    bytes.truncate(OUTPUT_MAX);
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn drain(fd: Option<OwnedFd>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(Ok(mut pipe)) = fd.map(pipe::Receiver::from_owned_fd) else {
        return kept;
    };
    let mut chunk = [0; 2048];
    while let Ok(read @ 1..) = pipe.read(&mut chunk).await {
        let room = OUTPUT_MAX - kept.len();
        kept.extend_from_slice(&chunk[..read.min(room)]);
    }
    kept
}

/// Kills the descendants of `pid`, from /proc/<pid>/task/<tid>/children (proc_pid_children(5)).
pub fn kill_tree(pid: i32) {
    let mut pending = vec![pid];
    while let Some(next) = pending.pop() {
        let tasks = std::fs::read_dir(format!("/proc/{next}/task"))
            .into_iter()
            .flatten()
            .flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
                pending.push(child);
            }
        }
        if next != pid
            && let Some(victim) = Pid::from_raw(next)
        {
            let _ = kill_process(victim, Signal::KILL);
        }
    }
}
