//! `cargo xtask demo`: a one-node cluster from nothing to nothing, with a real workload in between.
//!
//! Everything goes the way a user's would: the `hull` binary for the cluster and the image, the Kubernetes API for the rest, plain
//! connections to the service address and to the pods for the measurement. It has directories of its own, so that a cluster of the
//! machine's owner is never touched.

mod cluster;
mod measure;
mod workload;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use cluster::DemoCluster;

/// Number of requests to the ClusterIP, and of those to pod addresses.
const REQUESTS: usize = 1000;

/// Start a cluster, run examples/web.yaml on it, measure it, clean up
#[derive(Parser)]
#[command(name = "cargo xtask demo")]
struct Options {
    /// Leave the cluster running and print what to try next
    #[arg(long)]
    keep: bool,
    /// Directory with the hull and hull-runtime binaries
    #[arg(long)]
    binaries: PathBuf,
    /// The manifests to apply
    #[arg(long, default_value = "examples/web.yaml")]
    manifest: PathBuf,
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse();
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo needs root: it makes namespaces, cgroups and network devices. Run it with sudo"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    let began = Instant::now();
    let demo = DemoCluster::start(&options.binaries)?;
    let outcome = runtime.block_on(show(&demo, &options, began));
    if options.keep && outcome.is_ok() {
        demo.keep();
        return Ok(());
    }
    let stopped = demo.stop();
    outcome?;
    stopped?;
    println!(
        "\ndone: {:.2} s of cluster time, nothing is left",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn show(demo: &DemoCluster, options: &Options, began: Instant) -> Result<()> {
    demo.import_image(&options.binaries.join("examples/web"))?;
    let workload = workload::Workload::apply(demo, &options.manifest).await?;
    let pods = workload.ready(3, "apply").await?;
    let service = workload.service_address().await?;
    measure::run(service, &pods, REQUESTS)?;
    workload.scale(5).await?;
    workload.ready(5, "scale").await?;
    workload.kill_one(demo).await?;
    if options.keep {
        println!("\n{:.2} s of cluster time so far", began.elapsed().as_secs_f64());
        return Ok(());
    }
    workload.delete().await
}
