//! `--detach`: this program started again in the background, and what it says when it is ready.
//!
//! The background process has a pipe as its standard output, whose end tells that it is ready or has ended. Its log goes to a
//! file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

/// How long it may take until the background process is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Flags of the commands that can go on in the background.
#[derive(Args)]
pub struct Detach {
    /// Return as soon as it is ready; it goes on in the background
    #[arg(long, short)]
    pub detach: bool,
    /// Set in the background process
    #[arg(long, hide = true)]
    pub background: bool,
}

/// Starts this program again in the background and waits until it says that it is ready.
///
/// # Errors
/// It ended, or is not ready in time; then it goes on trying.
pub fn start(log: &Path, began: Instant) -> Result<()> {
    let (mut reader, writer) = std::io::pipe().context("make a pipe")?;
    let log_file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe().context("path of the running binary")?);
    let arguments = std::env::args_os().skip(1);
    command
        .args(arguments.filter(|argument| argument != "--detach" && argument != "-d"))
        .arg("--background");
    command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(log_file)
        .process_group(0);
    let mut child = command.spawn().context("start the background process")?;
    drop(command);
    let mut said = String::new();
    let waiter = std::thread::spawn(move || {
        let _ = reader.read_to_string(&mut said);
        said
    });
    let deadline = began + READY_TIMEOUT;
    while !waiter.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    if !waiter.is_finished() {
        bail!(
            "not ready after {READY_TIMEOUT:?}; it goes on trying. See {} and hull status",
            log.display()
        );
    }
    match waiter.join() {
        Ok(said) if !said.is_empty() => {
            print!("{said}");
            Ok(())
        }
        _ => {
            let status = child.wait().context("wait for the background process")?;
            bail!(
                "hull did not start ({status}). Last lines of {}:\n{}",
                log.display(),
                last_lines(log, 5)
            )
        }
    }
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Says that this process is ready, and in the background lets go of whoever waited for that.
///
/// # Errors
/// Standard output cannot be written.
pub fn say_ready(text: &str, background: bool) -> Result<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `--detach` has given up waiting, and said that it goes on here.
        Err(error) if background && error.kind() == std::io::ErrorKind::BrokenPipe => {}
        told => told.context("write to standard output")?,
    }
    if background {
        let null = File::options()
            .write(true)
            .open("/dev/null")
            .context("open /dev/null")?;
        rustix::stdio::dup2_stdout(&null).context("close standard output")?;
    }
    Ok(())
}
