//! The table that is printed, and its lines as JSON has them.

use serde::Serialize;

use super::{Path, Results, Round};
use crate::quantile;

/// A way to the servers, with so many services. Ratios are to the pod's own address by the same hops.
#[derive(Serialize)]
pub struct Line {
    services: u32,
    path: &'static str,
    connect_p50_us: f64,
    connect_p99_us: f64,
    connect_ratio: f64,
    request_p50_us: f64,
    request_ratio: f64,
    round_trip_p50_us: f64,
    round_trip_ratio: f64,
    cpu_us: f64,
    cpu_ratio: f64,
    add_one_ms: Option<f64>,
    full_load_ms: Option<f64>,
}

/// Sums a path up; `loads` are the times to add a service and to load all.
pub fn line(services: u32, path: &Path, floor: &Path, loads: (Option<f64>, Option<f64>)) -> Line {
    let all = |of: fn(&Round) -> &[f64]| -> Vec<f64> { path.rounds.iter().flat_map(of).copied().collect() };
    let ratio = |of: fn(&Round) -> f64| {
        let rounds = path.rounds.iter().zip(&floor.rounds);
        let ratios: Vec<f64> = rounds.map(|(mine, floor)| of(mine) / of(floor)).collect();
        quantile(&ratios, 0.5)
    };
    let connects = all(|round| &round.made.connects);
    let cpu: Vec<f64> = path.rounds.iter().map(|round| round.made.cpu).collect();
    Line {
        services,
        path: path.name,
        connect_p50_us: quantile(&connects, 0.5),
        connect_p99_us: quantile(&connects, 0.99),
        connect_ratio: ratio(|round| quantile(&round.made.connects, 0.5)),
        request_p50_us: quantile(&all(|round| &round.made.requests), 0.5),
        request_ratio: ratio(|round| quantile(&round.made.requests, 0.5)),
        round_trip_p50_us: quantile(&all(|round| &round.trips), 0.5),
        round_trip_ratio: ratio(|round| quantile(&round.trips, 0.5)),
        cpu_us: quantile(&cpu, 0.5),
        cpu_ratio: ratio(|round| round.made.cpu),
        add_one_ms: loads.0,
        full_load_ms: loads.1,
    }
}

/// Prints all of it.
pub fn print(results: &Results) {
    println!(
        "services  path                connect p50     p99  ratio   + request  ratio   round trip  ratio   cpu/conn  ratio   add one ms   load ms"
    );
    let time = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    for line in &results.lines {
        println!(
            "{:8}  {:18} {:8.1} us {:7.1} {:6.3} {:8.1} us {:6.3} {:9.1} us {:6.3} {:7.1} us {:6.3} {:>12} {:>9}",
            line.services,
            line.path,
            line.connect_p50_us,
            line.connect_p99_us,
            line.connect_ratio,
            line.request_p50_us,
            line.request_ratio,
            line.round_trip_p50_us,
            line.round_trip_ratio,
            line.cpu_us,
            line.cpu_ratio,
            time(line.add_one_ms),
            time(line.full_load_ms)
        );
    }
    for (services, costs) in &results.hull {
        println!(
            "hull, {services} services of {} endpoints: full sync {:.1} ms, restart {:.1} ms, one change {:.0} us (p99 {:.0} us), maps {:.1} MB, mirror {:.1} MB",
            super::ENDPOINTS,
            costs.full_sync_ms,
            costs.restart_ms,
            costs.change_us,
            costs.change_p99_us,
            costs.map_bytes as f64 / 1e6,
            costs.mirror_bytes as f64 / 1e6
        );
    }
    if let Some(found) = &results.end_to_end {
        println!(
            "cluster with {} services, {} endpoints: a change is in the kernel {:.2} ms after its acknowledgement (p99 {:.2} ms; {:.2} ms after the request)",
            found.services, found.endpoints, found.change_p50_ms, found.change_p99_ms, found.from_request_p50_ms
        );
        let resident = found
            .resident_mib
            .iter()
            .map(|(role, mib)| format!("{role} {mib:.1} MiB"));
        println!(
            "resident with all of them: {}; maps {:.1} MB",
            resident.collect::<Vec<_>>().join(", "),
            found.map_bytes as f64 / 1e6
        );
    }
}
