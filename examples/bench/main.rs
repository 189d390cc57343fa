//! `cargo xtask bench`: the figures that hull publishes, measured side by side in one run.

mod cluster;
mod dns;
mod proxy;
mod runtime;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

/// Measure hull
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Options {
    /// Directory with the hull and hull-runtime binaries
    #[arg(long)]
    binaries: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Time from nothing to ready, memory at rest, time from POST of a pod to Running
    Cluster {
        /// How many clusters are started from nothing
        #[arg(long, default_value_t = 5)]
        starts: usize,
        /// How many pods are started, one after the other
        #[arg(long, default_value_t = 50)]
        pods: usize,
    },
    /// DNS from a pod beside other servers found here (unbound, dnsmasq) and beside an echo
    Dns {
        /// How many questions each server is asked
        #[arg(long, default_value_t = 20_000)]
        questions: usize,
    },
    /// Services beside the rule sets of kube-proxy (iptables, nftables) and beside no proxy at all
    Proxy(proxy::Options),
    /// The OCI runtime beside others found here (crun, runc, youki) and beside the bare floor
    Runtime(runtime::Options),
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse();
    ensure!(rustix::process::geteuid().is_root(), "benchmarks need root");
    match options.command {
        Command::Cluster { starts, pods } => cluster::run(&options.binaries, starts, pods),
        Command::Dns { questions } => dns::run(questions),
        Command::Proxy(figures) => proxy::run(&options.binaries, &figures),
        Command::Runtime(figures) => runtime::run(&options.binaries, &figures),
    }
}

/// The q-quantile of unsorted samples.
fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get(((sorted.len().max(1) - 1) as f64 * q).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}
