//! `cargo xtask demo`: builds hull in release mode and runs `examples/demo` against it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::host;

/// Flags of the demo.
#[derive(clap::Args)]
pub struct Options {
    /// Leave the cluster running and print what to try next
    #[arg(long)]
    keep: bool,
}

/// Builds and runs the demo; does not return if it could be started.
///
/// # Errors
/// A package cannot be installed, the build fails, or the demo cannot be started.
pub fn run(options: &Options) -> Result<()> {
    host::require_root("the demo makes namespaces, cgroups and network devices")?;
    host::install(&[
        ("gcc", "linker, and C parts of the TLS library"),
        ("binutils", "strip, for a small image"),
    ])?;
    host::say("building hull (release); the first time takes some minutes");
    let directory = host::build_release(&["demo", "web"])?;
    let mut command = Command::new(directory.join("examples/demo"));
    command.arg("--binaries").arg(&directory).current_dir(host::workspace());
    if options.keep {
        command.arg("--keep");
    }
    Err(command.exec()).context("start the demo")
}
