//! Command line of xtask; see the library for what each command does.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// What a developer of hull runs.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build hull, start a cluster here, run a real workload on it, show it, and clean up
    Demo(xtask::demo::Options),
    /// Run every test: unit, root and VM ones
    Test(xtask::test::Options),
    /// Start a cluster of several machines on this one, until ctrl-c: network namespaces stand for hosts
    Cluster(xtask::cluster::Arguments),
    /// Run a shell script in a throw-away virtual machine
    Vm {
        /// The script; hull and hull-runtime are in /bin of the guest
        script: PathBuf,
        /// Seconds until the machine is killed
        #[arg(long, default_value_t = 300)]
        timeout: u64,
    },
    /// Measure: prints ratios, side by side in one run
    Bench(xtask::bench::Options),
    /// Build the eBPF objects, or check that the committed ones belong to their sources
    Ebpf {
        /// Only check
        #[arg(long)]
        check: bool,
        /// Only this program
        #[arg(long)]
        only: Option<String>,
    },
    /// Find the functions that hull-runtime's commands execute, for the linker (runtime/link-order.txt)
    Layout {
        /// Set in the private mount namespace
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// Regenerate the committed table of API types: `--definitions FILE --pb DIR`
    Schema {
        /// Passed on to the generator
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Arguments::parse().command {
        Command::Demo(options) => xtask::demo::run(&options),
        Command::Test(options) => xtask::test::run(&options),
        Command::Cluster(arguments) => xtask::cluster::run(&arguments),
        Command::Vm { script, timeout } => vm(&script, Duration::from_secs(timeout)),
        Command::Bench(options) => xtask::bench::run(&options),
        Command::Ebpf { check: true, only } => xtask::ebpf::check(only.as_deref()),
        Command::Ebpf { check: false, only } => xtask::ebpf::build(only.as_deref()),
        Command::Layout { inside } => xtask::layout::run(inside),
        Command::Schema { arguments } => xtask::schema::run(&arguments),
    }
}

fn vm(script: &std::path::Path, timeout: Duration) -> Result<()> {
    let kit = xtask::vm::Kit::prepare()?;
    let job = xtask::vm::Job {
        name: script.display().to_string(),
        files: xtask::vm::hull_binaries()?,
        script: std::fs::read_to_string(script)?,
        disk: None,
        memory_mib: 1024,
        timeout,
    };
    let outcome = xtask::vm::run(&kit, &job, |line| {
        println!("{line}");
        xtask::vm::Verdict::Continue
    })?;
    std::process::exit(outcome.exit.unwrap_or(1));
}
