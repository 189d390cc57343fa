//! What an agent answers to a measurement, and how people read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::hdr::Hdr;
use super::plan::{Path, Schedule, Talk};
use super::run::Measured;
use super::stats::{Overhead, overhead};

/// The quantiles of every table.
pub const QUANTILES: [(&str, f64); 6] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
    ("max", 1.0),
];

/// The answer to `POST /observe/bench`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Where it was measured.
    pub node: String,
    /// In whose network namespace: a pod's `namespace/name`, or the node's own.
    pub pod: Option<String>,
    /// `namespace/name`.
    pub service: String,
    /// The service's port.
    pub port: u16,
    /// What was said.
    pub talk: Talk,
    /// When operations began.
    pub schedule: Schedule,
    /// Clients.
    pub connections: u32,
    /// Path by path, in the order asked for.
    pub paths: Vec<PathReport>,
}

/// One path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathReport {
    /// Which.
    pub path: Path,
    /// The addresses used.
    pub addresses: Vec<String>,
    /// Operations that succeeded.
    pub operations: u64,
    /// Those a second.
    pub throughput: f64,
    /// Operations that failed, by why.
    pub failures: BTreeMap<String, u64>,
    /// Operations that were due and never begun.
    pub unstarted: u64,
    /// Time to connect.
    pub connect: Latency,
    /// Time to the first byte of the answer; absent if nothing was asked.
    pub first_byte: Option<Latency>,
    /// Time of a request on an open connection; absent if the service closes after one.
    pub round_trip: Option<Latency>,
}

/// Latencies, all in nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// The smallest.
    pub min: u64,
    /// Their mean.
    pub mean: u64,
    /// By name, see [`QUANTILES`].
    pub quantiles: BTreeMap<String, u64>,
    /// The median of each round, zero where there was none.
    pub rounds: Vec<u64>,
    /// Upper bound and count of each bucket of the histogram.
    pub buckets: Vec<(u64, u64)>,
}

impl Latency {
    fn of(hdr: &Hdr, rounds: Vec<u64>) -> Option<Latency> {
        (hdr.count() > 0).then(|| Latency {
            count: hdr.count(),
            min: hdr.min(),
            mean: hdr.mean(),
            quantiles: QUANTILES
                .iter()
                .map(|(name, share)| ((*name).to_owned(), hdr.quantile(*share)))
                .collect(),
            rounds,
            buckets: hdr.buckets(),
        })
    }

    fn none() -> Latency {
        Latency {
            count: 0,
            min: 0,
            mean: 0,
            quantiles: BTreeMap::new(),
            rounds: Vec::new(),
            buckets: Vec::new(),
        }
    }
}

impl PathReport {
    /// From what was measured.
    #[must_use]
    pub fn of(path: Path, addresses: Vec<String>, measured: &Measured) -> PathReport {
        let rounds = |index: usize| measured.rounds.iter().map(|round| round[index]).collect();
        PathReport {
            path,
            addresses,
            operations: measured.connect.count(),
            throughput: measured.connect.count() as f64 / measured.time.as_secs_f64().max(f64::EPSILON),
            failures: measured.failures.clone(),
            unstarted: measured.unstarted,
            connect: Latency::of(&measured.connect, rounds(0)).unwrap_or_else(Latency::none),
            first_byte: Latency::of(&measured.first_byte, rounds(1)),
            round_trip: Latency::of(&measured.round_trip, rounds(2)),
        }
    }

    /// The three latencies with their names, those that there are.
    pub fn latencies(&self) -> impl Iterator<Item = (&'static str, &Latency)> {
        let connect = (self.connect.count > 0).then_some(&self.connect);
        [
            ("connect", connect),
            ("first byte", self.first_byte.as_ref()),
            ("round trip", self.round_trip.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, latency)| Some((name, latency?)))
    }
}

/// What a path costs beside the pod's own address.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// The path.
    pub path: Path,
    /// `connect`, `first byte` or `round trip`.
    pub latency: String,
    /// How much more of it.
    pub overhead: Overhead,
}

impl Report {
    /// Every other path against the pod's address; empty without that one, or with too few rounds.
    #[must_use]
    pub fn against_direct(&self) -> Vec<Comparison> {
        let Some(direct) = self.paths.iter().find(|one| one.path == Path::Pod) else {
            return Vec::new();
        };
        let others = self.paths.iter().filter(|one| one.path != Path::Pod);
        others
            .flat_map(|other| {
                other.latencies().filter_map(|(name, latency)| {
                    let (_, base) = direct.latencies().find(|(base, _)| *base == name)?;
                    Some(Comparison {
                        path: other.path,
                        latency: name.to_owned(),
                        overhead: overhead(&latency.rounds, &base.rounds)?,
                    })
                })
            })
            .collect()
    }

    /// For people.
    #[must_use]
    pub fn text(&self, against_direct: bool) -> String {
        let from = self
            .pod
            .as_ref()
            .map_or_else(|| self.node.clone(), |pod| format!("pod {pod} on {}", self.node));
        let load = match self.schedule {
            Schedule::Rate(rate) => format!("{rate}/s on a fixed schedule, {} clients", self.connections),
            Schedule::Closed => format!("{} clients, each as fast as it is answered", self.connections),
        };
        let mut out = format!(
            "{} port {} from {from}: {}; {load}\n\n",
            self.service,
            self.port,
            talk_text(&self.talk)
        );
        out += &self.table();
        for path in &self.paths {
            for (why, count) in &path.failures {
                out += &format!("{}: {count} failed: {why}\n", path.path.name());
            }
            if path.unstarted > 0 {
                out += &format!(
                    "{}: {} were due and never begun: it cannot keep this rate; lower --rate or give more --connections\n",
                    path.path.name(),
                    path.unstarted
                );
            }
        }
        if against_direct {
            out += &self.comparison_text();
        }
        out
    }

    fn table(&self) -> String {
        let mut rows = vec![
            [
                "LATENCY",
                "PATH",
                "COUNT",
                "MIN",
                "P50",
                "P90",
                "P99",
                "P99.9",
                "P99.99",
                "MAX",
                "PER SECOND",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for name in ["connect", "first byte", "round trip"] {
            for path in &self.paths {
                let Some((_, latency)) = path.latencies().find(|(own, _)| *own == name) else {
                    continue;
                };
                let mut row = vec![name.to_owned(), path.path.name().to_owned(), latency.count.to_string()];
                row.push(duration_text(latency.min));
                let values = QUANTILES.iter().map(|(quantile, share)| {
                    // A quantile finer than the samples is only their maximum again.
                    let known = *share == 1.0 || latency.count as f64 * (1.0 - share) >= 1.0;
                    let value = latency.quantiles.get(*quantile).filter(|_| known);
                    value.map_or_else(|| "-".to_owned(), |value| duration_text(*value))
                });
                row.extend(values);
                row.push(format!("{:.1}", path.throughput));
                rows.push(row);
            }
        }
        columns(&rows, 2)
    }

    fn comparison_text(&self) -> String {
        let comparisons = self.against_direct();
        if comparisons.is_empty() {
            return "\ntoo little was measured for a comparison: measure pod and another path for longer\n".to_owned();
        }
        let mut out =
            "\nagainst the pod's own address (ratio of medians in paired rounds, 95 % interval by bootstrap):\n"
                .to_owned();
        for one in comparisons {
            let Overhead {
                ratio,
                low,
                high,
                rounds,
            } = one.overhead;
            let verdict = if low > 1.0 {
                "slower"
            } else if high < 1.0 {
                "faster"
            } else {
                "no difference shown"
            };
            out += &format!(
                "  {:9}  {:10}  {ratio:.3}x [{low:.3}, {high:.3}] over {rounds} rounds: {verdict}\n",
                one.path.name(),
                one.latency
            );
        }
        out
    }
}

fn talk_text(talk: &Talk) -> String {
    match talk {
        Talk::Connect => "connect only (the port says no protocol; see --request)".to_owned(),
        Talk::Http(path) => format!("HTTP GET {path}"),
        Talk::Echo(text) => format!("echo of {} bytes", text.len()),
        Talk::Raw(text) => format!("a request of {} bytes", text.len()),
    }
}

/// Nanoseconds as people read them.
#[must_use]
pub fn duration_text(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..100_000 => format!("{:.1} us", value / 1e3),
        100_000..1_000_000 => format!("{:.0} us", value / 1e3),
        1_000_000..100_000_000 => format!("{:.2} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

/// Columns as wide as their widest cell; the first `left` of them begin at the left, the others end at the right.
#[must_use]
pub fn columns(rows: &[Vec<String>], left: usize) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if column < left {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
        out += cells.collect::<Vec<_>>().join("  ").trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(base: u64, rounds: u64) -> Measured {
        let mut measured = Measured {
            time: std::time::Duration::from_secs(2),
            ..Measured::default()
        };
        for round in 0..rounds {
            for step in 0..100 {
                measured.connect.record(base + step + round);
                measured.round_trip.record(2 * base + step);
            }
            measured.rounds.push([base + 50 + round, 0, 2 * base + 50]);
        }
        measured
    }

    fn report() -> Report {
        let path = |path, base| PathReport::of(path, vec!["192.0.2.1:80".to_owned()], &measured(base, 5));
        Report {
            node: "n1".to_owned(),
            pod: None,
            service: "default/web".to_owned(),
            port: 80,
            talk: Talk::Http("/".to_owned()),
            schedule: Schedule::Rate(100),
            connections: 8,
            paths: vec![path(Path::Pod, 10_000), path(Path::ClusterIp, 11_000)],
        }
    }

    #[test]
    fn a_path_is_compared_with_the_pods_address() {
        let found = report().against_direct();
        let names: Vec<&str> = found.iter().map(|one| one.latency.as_str()).collect();
        assert_eq!(
            names,
            ["connect", "round trip"],
            "nothing was measured to the first byte"
        );
        assert!((found[0].overhead.ratio - 1.1).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn the_table_has_a_line_for_each_latency_and_path() {
        let text = report().text(true);
        for line in [
            "connect     pod          500",
            "connect     clusterip    500",
            "round trip  clusterip",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(text.contains("over 5 rounds: slower"), "{text}");
        // 500 samples cannot tell the 99.99th percentile.
        let row = text
            .lines()
            .find(|line| line.starts_with("connect     pod"))
            .unwrap_or_default();
        assert_eq!(row.split_whitespace().filter(|cell| *cell == "-").count(), 2, "{row}");
    }

    #[test]
    fn it_survives_the_way_to_the_client() {
        let report = report();
        let back: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(back.text(true), report.text(true));
    }

    #[test]
    fn durations_have_three_digits() {
        let shown: Vec<String> = [999, 36_040, 150_400, 2_345_678, 3_000_000_000]
            .map(duration_text)
            .into();
        assert_eq!(shown, ["999 ns", "36.0 us", "150 us", "2.35 ms", "3.00 s"]);
    }
}
