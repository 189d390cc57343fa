//! `cargo xtask cluster`: arguments, what is printed, and ctrl-c.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use super::{Cluster, Families, Layout, Options, remove};
use crate::host;

/// Flags of `cargo xtask cluster`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many nodes, beside the host of the control plane
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// l2: all hosts on one link; routed: two on each link, a router between
    #[arg(long, default_value = "l2", value_parser = ["l2", "routed"])]
    layout: String,
    /// IPv6 only
    #[arg(long, conflicts_with = "dual")]
    ipv6: bool,
    /// IPv4 and IPv6
    #[arg(long)]
    dual: bool,
    /// Name of the cluster, for several at a time
    #[arg(long, default_value = "dev")]
    name: String,
    /// Image archive to import on every node; may be repeated
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Build and run in release mode
    #[arg(long)]
    release: bool,
    /// Build nothing, take hull and hull-runtime from here
    #[arg(long, value_name = "DIR", conflicts_with = "release")]
    binaries: Option<PathBuf>,
    /// Remove the cluster of that name, also after a crash
    #[arg(long)]
    down: bool,
}

/// Starts a cluster and keeps it until ctrl-c, or removes one.
///
/// # Errors
/// A part does not start, or cannot be removed.
pub fn run(arguments: &Arguments) -> Result<()> {
    host::require_root("hosts are network namespaces with interfaces, cgroups and BPF programs")?;
    if arguments.down {
        return remove(&arguments.name);
    }
    host::install(&[
        ("iproute2", "network namespaces that stand for hosts"),
        ("util-linux", "nsenter"),
    ])?;
    let mut options = Options::new(&arguments.name, arguments.nodes, &binaries(arguments)?);
    options.layout = if arguments.layout == "routed" {
        Layout::Routed
    } else {
        Layout::L2
    };
    options.families = match (arguments.ipv6, arguments.dual) {
        (true, _) => Families::Ipv6,
        (_, true) => Families::Dual,
        _ => Families::Ipv4,
    };
    let interrupted = host::Interrupted::take()?;
    let began = Instant::now();
    let cluster = Cluster::start(options)?;
    for image in &arguments.images {
        cluster.import(image)?;
    }
    println!(
        "{} nodes are ready after {} ms\n",
        arguments.nodes,
        began.elapsed().as_millis()
    );
    println!("  export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("  kubectl get nodes -o wide\n");
    for node in cluster.nodes() {
        println!(
            "  {:<8} {:<40} sudo nsenter --net=/run/netns/{}",
            node.name(),
            node.addresses(),
            node.namespace()
        );
    }
    println!("\nlogs are beside the kubeconfig; ctrl-c removes everything (after a crash: cargo xtask cluster --down)");
    interrupted.wait()
}

fn binaries(arguments: &Arguments) -> Result<PathBuf> {
    if let Some(dir) = &arguments.binaries {
        return Ok(dir.clone());
    }
    host::say("building hull");
    if arguments.release {
        return host::build_release(&[]);
    }
    host::run(host::cargo().args(["build", "--package", "hull", "--package", "hull-runtime", "--bins"]))?;
    host::binaries()
}
