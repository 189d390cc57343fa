//! The service proxy against the rule sets of kube-proxy and against no proxy at all: the same clients and servers in
//! namespaces-as-hosts, in turn, so that what else the machine does hits all alike.
//!
//! Each round takes a batch of connections by every path. Reported are medians over all of a path's samples, and the
//! median over the rounds of the ratio to the pod address, which drifts less than any time.

mod hosts;
mod ours;
mod peers;
mod traffic;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::quantile;
use hosts::{CLIENT, Cgroups, Node, SERVERS, within};
use ours::{Costs, Ours};
use peers::Peer;

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
    connects: Vec<f64>,
    trips: Vec<f64>,
}

/// A line of the table.
#[derive(Serialize)]
struct Line {
    services: u32,
    path: &'static str,
    connect_p50_us: f64,
    connect_p99_us: f64,
    connect_ratio: f64,
    round_trip_p50_us: f64,
    round_trip_ratio: f64,
    add_one_ms: Option<f64>,
    full_load_ms: Option<f64>,
}

#[derive(Serialize)]
struct Results {
    lines: Vec<Line>,
    hull: Vec<(u32, Costs)>,
}

/// Runs the benchmark.
///
/// # Errors
/// A namespace, cgroup or program cannot be made, or a connection fails.
pub fn run(options: &Options) -> Result<()> {
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
    };
    for services in &options.services {
        measure(options, *services, &cgroups, dir.path(), &node, &rivals, &mut results)?;
    }
    match options.output.as_deref() {
        Some("json") => println!("{}", serde_json::to_string_pretty(&results)?),
        _ => print(&results),
    }
    Ok(())
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
        path("hull, pod address", node, "hull", addresses[0]),
    ];
    let mut loads = vec![(None, None), (None, Some(costs.full_sync_ms)), (None, None)];
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
    for _ in 0..options.rounds {
        for path in &mut paths {
            let (address, connections) = (path.address, options.connections);
            let round = within(&path.namespace, Some(&path.cgroup), || {
                Ok(Round {
                    connects: traffic::connects(address, connections)?,
                    trips: traffic::round_trips(address, ROUND_TRIPS)?,
                })
            });
            path.rounds
                .push(round.with_context(|| format!("{} with {services} services", path.name))?);
        }
    }
    ours.change(&mut costs)?;
    loads[1].0 = Some(costs.change_us / 1e3);
    results.hull.push((services, costs));
    for (path, (add, load)) in paths.iter().zip(loads) {
        results.lines.push(line(services, path, &paths[0], add, load));
    }
    Ok(())
}

fn line(services: u32, path: &Path, floor: &Path, add_one_ms: Option<f64>, full_load_ms: Option<f64>) -> Line {
    let all = |of: fn(&Round) -> &Vec<f64>| -> Vec<f64> { path.rounds.iter().flat_map(of).copied().collect() };
    let ratio = |of: fn(&Round) -> &Vec<f64>| {
        let rounds = path.rounds.iter().zip(&floor.rounds);
        let ratios: Vec<f64> = rounds
            .map(|(mine, floor)| quantile(of(mine), 0.5) / quantile(of(floor), 0.5))
            .collect();
        quantile(&ratios, 0.5)
    };
    let (connects, trips) = (all(|round| &round.connects), all(|round| &round.trips));
    Line {
        services,
        path: path.name,
        connect_p50_us: quantile(&connects, 0.5),
        connect_p99_us: quantile(&connects, 0.99),
        connect_ratio: ratio(|round| &round.connects),
        round_trip_p50_us: quantile(&trips, 0.5),
        round_trip_ratio: ratio(|round| &round.trips),
        add_one_ms,
        full_load_ms,
    }
}

fn print(results: &Results) {
    println!(
        "services  path                connect p50     p99   ratio   round trip   ratio   add one ms   full load ms"
    );
    let time = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    for line in &results.lines {
        println!(
            "{:8}  {:18} {:8.1} us {:7.1} {:6.3}x {:9.1} us {:6.3}x {:>12} {:>14}",
            line.services,
            line.path,
            line.connect_p50_us,
            line.connect_p99_us,
            line.connect_ratio,
            line.round_trip_p50_us,
            line.round_trip_ratio,
            time(line.add_one_ms),
            time(line.full_load_ms)
        );
    }
    for (services, costs) in &results.hull {
        println!(
            "hull, {services} services of {ENDPOINTS} endpoints: full sync {:.1} ms, restart {:.1} ms, one change {:.0} us (p99 {:.0} us), maps {:.1} MB",
            costs.full_sync_ms,
            costs.restart_ms,
            costs.change_us,
            costs.change_p99_us,
            costs.map_bytes as f64 / 1e6
        );
    }
}
