//! `cargo xtask bench`: builds hull in release mode and runs `examples/bench` against it; figures side by side, in one run.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::host;

/// Flags of the benchmarks.
#[derive(clap::Args)]
pub struct Options {
    /// Passed on: which benchmark (`cluster`, `runtime`) and its flags
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<String>,
}

/// Builds and runs a benchmark; does not return if it could be started.
///
/// # Errors
/// The build fails or the benchmark cannot be started.
pub fn run(options: &Options) -> Result<()> {
    host::require_root("benchmarks run real clusters and containers")?;
    host::install(&[
        ("gcc", "linker, and C parts of the TLS library"),
        ("busybox-static", "programs inside containers"),
    ])?;
    let directory = host::build_release(&["bench", "floor", "web"])?;
    let mut command = Command::new(directory.join("examples/bench"));
    command
        .arg("--binaries")
        .arg(&directory)
        .args(&options.arguments)
        .current_dir(host::workspace());
    Err(command.exec()).context("start the benchmark")
}
