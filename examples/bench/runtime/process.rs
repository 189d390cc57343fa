//! One command, timed: wall and processor time of it and of what it waited for, from getrusage's sibling wait4(2).

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

/// What a command took, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub wall: f64,
    pub cpu: f64,
}

/// A command that was started.
pub struct Started {
    pid: libc::pid_t,
    began: Instant,
}

/// Starts `program` with its streams at /dev/null, but for standard error.
pub fn start(program: &Path, arguments: &[&str]) -> Result<Started> {
    let began = Instant::now();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    let child = command
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    Ok(Started {
        pid: child.id().cast_signed(),
        began,
    })
}

impl Started {
    /// Waits for it; its exit code and its cost.
    pub fn wait(self) -> Result<(i32, Cost)> {
        let (_, code, cpu) = reap(self.pid)?;
        let wall = self.began.elapsed().as_secs_f64() * 1e3;
        Ok((code, Cost { wall, cpu }))
    }

    /// Its pid, for [`reap`].
    pub fn pid(&self) -> libc::pid_t {
        self.pid
    }
}

/// Waits for `pid`, or with -1 for any child: pid, exit code, processor time in milliseconds.
pub fn reap(pid: libc::pid_t) -> Result<(libc::pid_t, i32, f64)> {
    let mut status = 0;
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both structures live through the call.
    let pid = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    ensure!(pid > 0, "wait4: {}", std::io::Error::last_os_error());
    let milliseconds = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    let code = if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        128 + libc::WTERMSIG(status)
    };
    Ok((pid, code, milliseconds(usage.ru_utime) + milliseconds(usage.ru_stime)))
}

/// Runs a command that must succeed.
pub fn run(program: &Path, arguments: &[&str]) -> Result<Cost> {
    let (code, cost) = start(program, arguments)?.wait()?;
    ensure!(code == 0, "{} {arguments:?}: exit code {code}", program.display());
    Ok(cost)
}
