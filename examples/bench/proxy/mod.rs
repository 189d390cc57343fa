//! The service proxy against the rule sets of kube-proxy and against no proxy at all: the same clients and servers in
//! namespaces-as-hosts, in turn, so that what else the machine does hits all alike.
//!
//! Each round takes a batch of connections by every path, on one processor, beginning with another path each time.
//! Reported are medians over all of a path's samples, and the median over the rounds of the ratio to the pod address,
//! which drifts less than any time.

mod change;
mod hosts;
mod ours;
mod outside;
mod peers;
mod table;
mod traffic;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use change::EndToEnd;
use hosts::{CLIENT, Cgroups, Node, SERVERS, within};
use ours::{Costs, Ours};
use outside::Outside;
use peers::Peer;
use table::Line;
use traffic::Connections;

const PORT: u16 = 8080;
const TARGET: Ipv4Addr = Ipv4Addr::new(172, 30, 255, 1);
/// Endpoints of each service that nobody asks for, in hull's maps.
const ENDPOINTS: u32 = 10;
/// Round trips of a batch.
const ROUND_TRIPS: usize = 500;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Numbers of services; the one that is asked for is the last
    #[arg(long, value_delimiter = ',', default_value = "1,1000,10000")]
    services: Vec<u32>,
    /// Rounds for each number
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Connections of a batch
    #[arg(long, default_value_t = 300)]
    connections: usize,
    /// Most services that nftables is given: it takes minutes for 10,000
    #[arg(long, default_value_t = 1000)]
    nftables_most: u32,
    /// Without the peers
    #[arg(long)]
    alone: bool,
    /// Without the cluster in which changes are timed end to end
    #[arg(long)]
    no_cluster: bool,
    /// The processor that clients and servers run on
    #[arg(long, default_value_t = 1)]
    cpu: usize,
    /// `json` instead of a table
    #[arg(short, long)]
    output: Option<String>,
}

/// A way to the servers.
struct Path {
    name: &'static str,
    namespace: PathBuf,
    cgroup: PathBuf,
    address: SocketAddr,
    rounds: Vec<Round>,
}

struct Round {
    made: Connections,
    trips: Vec<f64>,
}

#[derive(Serialize)]
struct Results {
    lines: Vec<Line>,
    hull: Vec<(u32, Costs)>,
    end_to_end: Option<EndToEnd>,
}

/// Runs the benchmark.
///
/// # Errors
/// A namespace, cgroup or program cannot be made, or a connection fails.
pub fn run(binaries: &std::path::Path, options: &Options) -> Result<()> {
    let before = sched_getaffinity(None).context("sched_getaffinity")?;
    let mut one = CpuSet::new();
    one.set(options.cpu);
    sched_setaffinity(None, &one).with_context(|| format!("run on processor {}", options.cpu))?;
    let mut results = measure_all(options)?;
    sched_setaffinity(None, &before).context("run on all processors")?;
    if !options.no_cluster {
        let services = options.services.iter().copied().max().unwrap_or(1);
        results.end_to_end = Some(change::run(binaries, services)?);
    }
    match options.output.as_deref() {
        Some("json") => println!("{}", serde_json::to_string_pretty(&results)?),
        _ => table::print(&results),
    }
    Ok(())
}

fn measure_all(options: &Options) -> Result<Results> {
    let cgroups = Cgroups::enter()?;
    let dir = tempfile::tempdir().context("make a temporary directory")?;
    let node = Node::create("p")?;
    let mut rivals = Vec::new();
    for peer in [Peer::Iptables, Peer::Nftables] {
        if let (Some(loader), false) = (peer.loader(), options.alone) {
            rivals.push((peer, loader, Node::create(&peer.name()[..1])?));
        }
    }
    for node in [&node].into_iter().chain(rivals.iter().map(|rival| &rival.2)) {
        for server in SERVERS {
            traffic::serve(&node.namespace(server), PORT)?;
        }
    }
    for (peer, loader, node) in &rivals {
        if *peer == Peer::Iptables {
            let file = dir.path().join("base");
            std::fs::write(&file, peers::IPTABLES_BASE)?;
            node.run(loader, &["--noflush", &file.to_string_lossy()])?;
        }
    }
    let mut results = Results {
        lines: Vec::new(),
        hull: Vec::new(),
        end_to_end: None,
    };
    for services in &options.services {
        measure(options, *services, &cgroups, dir.path(), &node, &rivals, &mut results)?;
    }
    let outside = Outside::create(dir.path(), &cgroups.path("hull"))?;
    let mut paths = outside.paths(&cgroups.path("plain"))?;
    take_rounds(options, &mut paths)?;
    for pair in paths.chunks(2) {
        let lines = pair.iter().map(|path| table::line(1, path, &pair[0], (None, None)));
        results.lines.extend(lines);
    }
    Ok(results)
}

fn backends() -> Result<[(Ipv4Addr, u16); 2]> {
    Ok([(SERVERS[0].address.parse()?, PORT), (SERVERS[1].address.parse()?, PORT)])
}

fn measure(
    options: &Options,
    services: u32,
    cgroups: &Cgroups,
    dir: &std::path::Path,
    node: &Node,
    rivals: &[(Peer, &'static str, Node)],
    results: &mut Results,
) -> Result<()> {
    let backends = backends()?;
    let addresses = backends.map(SocketAddr::from);
    let target = SocketAddr::from((TARGET, 80));
    let hull = cgroups.path("hull");
    let (mut ours, mut costs) = Ours::fill(dir, &hull, services, ENDPOINTS, (TARGET, &addresses))?;
    let path = |name, node: &Node, cgroup, address| Path {
        name,
        namespace: node.namespace(CLIENT),
        cgroup: cgroups.path(cgroup),
        address,
        rounds: Vec::new(),
    };
    let mut paths = vec![
        path("pod address", node, "plain", addresses[0]),
        path("hull", node, "hull", target),
        path("hull, observing", node, "hull/observed", target),
        path("hull, pod address", node, "hull", addresses[0]),
    ];
    ours.observe(&cgroups.path("hull/observed"))?;
    let mut loads = vec![(None, None); paths.len()];
    loads[1].1 = Some(costs.full_sync_ms);
    let entries = peers::entries(services, TARGET, backends);
    for (peer, loader, node) in rivals {
        if *peer == Peer::Nftables && services > options.nftables_most {
            continue;
        }
        let load = peer.load(node, loader, dir, &entries)?;
        let add = peer.add(node, loader, dir, &entries, peers::filler(100_000 + services))?;
        paths.push(path(peer.name(), node, "plain", target));
        loads.push((Some(add), Some(load)));
    }
    take_rounds(options, &mut paths).with_context(|| format!("with {services} services"))?;
    ours.change(&mut costs)?;
    loads[1].0 = Some(costs.change_us / 1e3);
    results.hull.push((services, costs));
    let lines = paths.iter().zip(loads);
    results
        .lines
        .extend(lines.map(|(path, loads)| table::line(services, path, &paths[0], loads)));
    Ok(())
}

/// Every path in turn, another one first each time.
fn take_rounds(options: &Options, paths: &mut [Path]) -> Result<()> {
    for round in 0..options.rounds {
        let count = paths.len();
        for index in 0..count {
            let path = &mut paths[(round + index) % count];
            let (address, connections) = (path.address, options.connections);
            let round = within(&path.namespace, Some(&path.cgroup), || {
                Ok(Round {
                    made: traffic::connections(address, connections)?,
                    trips: traffic::round_trips(address, ROUND_TRIPS)?,
                })
            });
            path.rounds.push(round.with_context(|| path.name.to_owned())?);
        }
    }
    Ok(())
}
