//! The developer's machine: where the workspace is, which Debian packages are missing, running commands with readable errors.

use std::io::Read as _;
use std::os::fd::IntoRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// A line that tells the developer what is going on.
pub fn say(what: &str) {
    eprintln!("xtask: {what}");
}

/// Fails unless the effective user is root.
///
/// # Errors
/// Says what root is needed for.
pub fn require_root(why: &str) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this needs root: {why}. Run it again with sudo"
    );
    Ok(())
}

/// Runs a command to its end, with its output shown.
///
/// # Errors
/// It cannot be started, or ends with another status than 0.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// It cannot be started, or ends with another status than 0: with what it said.
pub fn output(mut command: Command) -> Result<String> {
    let out = command.output().with_context(|| format!("start {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        out.status.success(),
        "{command:?}: {}\n{}{}",
        out.status,
        text(&out.stdout),
        text(&out.stderr)
    );
    Ok(text(&out.stdout))
}

/// Tells when ctrl-c was pressed or SIGTERM came, from now on.
pub struct Interrupted(std::io::PipeReader);

impl Interrupted {
    /// Takes these signals.
    ///
    /// # Errors
    /// No pipe, or the kernel refuses.
    pub fn take() -> Result<Self> {
        let (reader, writer) = std::io::pipe().context("make a pipe")?;
        // Never closed: the handler may run until the process ends.
        let writer = writer.into_raw_fd();
        SIGNALLED.store(writer, Ordering::Release);
        let action = SigAction::new(SigHandler::Handler(note_signal), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            // SAFETY: the handler only calls write(2), which is async-signal-safe, on a descriptor that stays open.
            unsafe { sigaction(signal, &action) }.with_context(|| format!("handle {signal}"))?;
        }
        Ok(Self(reader))
    }

    /// Waits for one.
    ///
    /// # Errors
    /// The pipe cannot be read.
    pub fn wait(mut self) -> Result<()> {
        self.0.read_exact(&mut [0]).context("wait for a signal")
    }
}

static SIGNALLED: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note_signal(_: libc::c_int) {
    let fd = SIGNALLED.load(Ordering::Acquire);
    // SAFETY: the descriptor was leaked for this handler, so it is open; one byte is read from a static.
    unsafe { libc::write(fd, b"!".as_ptr().cast(), 1) };
}

fn is_installed(package: &str) -> bool {
    let out = Command::new("dpkg-query")
        .args(["-W", "-f", "${Status}", package])
        .output();
    out.is_ok_and(|out| out.stdout.ends_with(b"install ok installed"))
}

/// Refreshes apt's package lists, once per process.
///
/// # Errors
/// `apt-get update` failed.
pub fn apt_update_once() -> Result<()> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, Ordering::Relaxed) {
        run(Command::new("apt-get").args(["update", "-qq"]))?;
    }
    Ok(())
}

/// Installs those of the Debian `packages` (name, what it is for) that are missing, saying so.
///
/// # Errors
/// Something is missing and apt cannot install it, or this is no Debian.
pub fn install(packages: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = packages.iter().filter(|(name, _)| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (name, why) in &missing {
        say(&format!("installing {name}: {why}"));
    }
    require_root("installing Debian packages")?;
    if Command::new("apt-get").arg("--version").output().is_err() {
        let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
        bail!(
            "no apt-get here: install by hand what these Debian packages hold: {}",
            names.join(" ")
        );
    }
    apt_update_once()?;
    let names = missing.iter().map(|(name, _)| *name);
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-qq", "-y", "--no-install-recommends"])
        .args(names);
    run(command.stdout(std::process::Stdio::null()))
}

/// Whether a program is on the PATH.
pub fn has_program(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}

/// Where cargo put the binaries of this build (`hull`, `hull-runtime`): beside xtask itself.
///
/// # Errors
/// The running program's path is unknown.
pub fn binaries() -> Result<PathBuf> {
    let here = std::env::current_exe().context("path of the running program")?;
    let dir = here.parent().context("the running program has no directory")?;
    // Test binaries live one level below, in `deps`.
    Ok(if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir).to_path_buf()
    } else {
        dir.to_path_buf()
    })
}

/// A cargo command in the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Builds both binaries and the given `examples` in release mode; returns the directory they are in.
///
/// The binaries are built by the command that a user builds them with, and examples of the package that has them alone: so
/// neither asks for crates with other features than the other, and what one has built is good for all (`tests/builds.rs`).
///
/// # Errors
/// The build fails.
pub fn build_release(examples: &[&str]) -> Result<PathBuf> {
    run(cargo().args(["build", "--release"]))?;
    if !examples.is_empty() {
        let named = examples.iter().flat_map(|name| ["--example", name]);
        run(cargo().args(["build", "--release", "--package", "hull"]).args(named))?;
    }
    let debug = binaries()?;
    Ok(debug.with_file_name("release"))
}

/// Makes sure that there is a kubectl for the whole-system tests.
///
/// # Errors
/// There is none and Debian's cannot be installed.
pub fn install_kubectl() -> Result<()> {
    if has_program("kubectl") {
        return Ok(());
    }
    install(&[("kubernetes-client", "kubectl, the client that hull is tested with")])
}
