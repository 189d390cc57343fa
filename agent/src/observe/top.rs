//! `hull top services`: what all nodes saw, added up, as a table.
//!
//! Counts and latencies are those between two looks, or since the backends were first used where there is one look
//! only. Percentiles come from histograms added up over the nodes, never from percentiles.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::bench::report::{columns, duration_text};
use super::names::ServicePort;
use super::snapshot::{Seen, Snapshot};

/// By what the lines are sorted, the largest first; names the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Namespace, name, port.
    Name,
    /// New connections a second.
    Rate,
    /// Connections open.
    Open,
    /// Median time to connect.
    P50,
    /// Its 99th percentile.
    P99,
    /// Median round-trip time.
    Rtt,
    /// Bytes sent and received.
    Bytes,
    /// Failures and refusals.
    Failures,
    /// Segments sent again.
    Retransmits,
}

impl Sort {
    /// The words on the command line.
    pub const WORDS: [&'static str; 9] = [
        "name",
        "rate",
        "open",
        "p50",
        "p99",
        "rtt",
        "bytes",
        "failures",
        "retransmits",
    ];

    /// From the command line.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Sort> {
        let all = [
            Sort::Name,
            Sort::Rate,
            Sort::Open,
            Sort::P50,
            Sort::P99,
            Sort::Rtt,
            Sort::Bytes,
            Sort::Failures,
            Sort::Retransmits,
        ];
        Sort::WORDS
            .iter()
            .position(|known| *known == word)
            .map(|index| all[index])
    }
}

/// What is shown.
#[derive(Clone, Debug)]
pub struct View {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// A line for each backend.
    pub by_backend: bool,
    /// The order.
    pub sort: Sort,
}

type Subject = (ServicePort, String);

/// What all nodes saw at one time.
#[derive(Clone, Debug, Default)]
pub struct Look {
    seen: BTreeMap<Subject, Seen>,
    clients: BTreeMap<ServicePort, (u64, u64)>,
}

impl Look {
    /// Adds up what the nodes told.
    #[must_use]
    pub fn of(snapshots: &[Snapshot]) -> Look {
        let mut look = Look::default();
        for snapshot in snapshots {
            for view in &snapshot.backends {
                let subject = (view.service.clone(), view.backend.clone());
                look.seen.entry(subject).or_default().add(&view.seen);
            }
            for view in &snapshot.clients {
                let sum = look.clients.entry(view.service.clone()).or_default();
                sum.0 += view.translated;
                sum.1 += view.refused;
            }
        }
        look
    }
}

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The service's port.
    #[serde(flatten)]
    pub service: ServicePort,
    /// The backend, where each has a line.
    pub backend: Option<String>,
    /// Backends that were used.
    pub backends: usize,
    /// Clients: connections made, and datagrams of UDP.
    pub clients: u64,
    /// Those a second; absent with one look only.
    pub rate: Option<f64>,
    /// Connections open now.
    pub open: u64,
    /// Connections established.
    pub connections: u64,
    /// Percentiles of the time to connect, microseconds.
    pub connect: Percentiles,
    /// Percentiles of the smoothed round-trip time, microseconds.
    pub rtt: Percentiles,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Failures by kind; `noBackend` are clients refused for want of one.
    pub failures: BTreeMap<String, u64>,
}

/// Microseconds; absent where nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Percentiles {
    /// The median.
    pub p50: Option<f64>,
    /// 90 of 100 were faster.
    pub p90: Option<f64>,
    /// 99 of 100 were faster.
    pub p99: Option<f64>,
}

impl Percentiles {
    fn of(latencies: &super::Latencies) -> Percentiles {
        Percentiles {
            p50: latencies.quantile(0.5),
            p90: latencies.quantile(0.9),
            p99: latencies.quantile(0.99),
        }
    }
}

impl Row {
    fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// The lines for `now`, compared with an `earlier` look some seconds ago.
#[must_use]
pub fn rows(now: &Look, earlier: Option<(&Look, f64)>, view: &View) -> Vec<Row> {
    let mut all: BTreeMap<(ServicePort, Option<String>), (Seen, usize)> = BTreeMap::new();
    let shown = |service: &ServicePort| {
        view.namespace
            .as_ref()
            .is_none_or(|wanted| *wanted == service.namespace)
    };
    for (subject, seen) in now.seen.iter().filter(|((service, _), _)| shown(service)) {
        let before = earlier.and_then(|(look, _)| look.seen.get(subject));
        let seen = before.map_or_else(|| seen.clone(), |before| seen.since(before));
        let backend = view.by_backend.then(|| subject.1.clone());
        let sum = all.entry((subject.0.clone(), backend)).or_default();
        sum.0.add(&seen);
        sum.1 += 1;
    }
    // Services whose clients left no other trace: UDP, and those that only ever refused.
    for service in now.clients.keys().filter(|service| shown(service)) {
        if !all.keys().any(|(known, _)| known == service) {
            all.insert((service.clone(), None), (Seen::default(), 0));
        }
    }
    let seconds = earlier.map(|(_, seconds)| seconds);
    let mut rows: Vec<Row> = all
        .into_iter()
        .map(|((service, backend), (seen, backends))| {
            let clients = clients_since(now, earlier.map(|(look, _)| look), &service);
            row(service, backend, &seen, backends, clients, seconds)
        })
        .collect();
    sort(&mut rows, view.sort);
    rows
}

fn clients_since(now: &Look, earlier: Option<&Look>, service: &ServicePort) -> (u64, u64) {
    let of = |look: &Look| look.clients.get(service).copied().unwrap_or_default();
    let (now, before) = (of(now), earlier.map(of).unwrap_or_default());
    if now.0 < before.0 || now.1 < before.1 {
        return now;
    }
    (now.0 - before.0, now.1 - before.1)
}

fn row(
    service: ServicePort,
    backend: Option<String>,
    seen: &Seen,
    backends: usize,
    (translated, refused): (u64, u64),
    seconds: Option<f64>,
) -> Row {
    let mut failures = seen.failures.clone();
    // Nobody knows which backend they would have got.
    if refused > 0 && backend.is_none() {
        failures.insert("noBackend".to_owned(), refused);
    }
    let clients = if service.protocol == "UDP" && backend.is_none() {
        translated
    } else {
        seen.opened
    };
    Row {
        service,
        backend,
        backends,
        clients,
        rate: seconds.map(|seconds| clients as f64 / seconds.max(f64::EPSILON)),
        open: seen.open,
        connections: seen.opened,
        connect: Percentiles::of(&seen.connect),
        rtt: Percentiles::of(&seen.rtt),
        sent: seen.sent,
        received: seen.received,
        retransmits: seen.retransmits,
        failures,
    }
}

fn sort(rows: &mut [Row], by: Sort) {
    let key = |row: &Row| -> f64 {
        match by {
            Sort::Name => 0.0,
            Sort::Rate => row.rate.unwrap_or(row.clients as f64),
            Sort::Open => row.open as f64,
            Sort::P50 => row.connect.p50.unwrap_or_default(),
            Sort::P99 => row.connect.p99.unwrap_or_default(),
            Sort::Rtt => row.rtt.p50.unwrap_or_default(),
            Sort::Bytes => (row.sent + row.received) as f64,
            Sort::Failures => row.failed() as f64,
            Sort::Retransmits => row.retransmits as f64,
        }
    };
    // The lines come in the order of names, and stay so where the key is equal.
    rows.sort_by(|one, other| key(other).total_cmp(&key(one)));
}

/// The table, with the percentiles of connects in front.
#[must_use]
pub fn text(rows: &[Row], by_backend: bool) -> String {
    let mut head = vec!["SERVICE", "PORT"];
    head.push(if by_backend { "BACKEND" } else { "BACKENDS" });
    head.extend([
        "CONNS", "RATE", "OPEN", "P50", "P99", "RTT P50", "RTT P99", "SENT", "RECEIVED", "RETRANS", "FAILED",
    ]);
    let mut table: Vec<Vec<String>> = vec![head.iter().map(|cell| (*cell).to_owned()).collect()];
    table.extend(rows.iter().map(|row| {
        let name = if row.service.namespace.is_empty() {
            row.service.name.clone()
        } else {
            format!("{}/{}", row.service.namespace, row.service.name)
        };
        let backend = if by_backend {
            row.backend.clone().unwrap_or_else(|| "-".to_owned())
        } else {
            row.backends.to_string()
        };
        vec![
            name,
            format!("{}/{}", row.service.port, row.service.protocol),
            backend,
            row.clients.to_string(),
            row.rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}/s")),
            row.open.to_string(),
            microseconds(row.connect.p50),
            microseconds(row.connect.p99),
            microseconds(row.rtt.p50),
            microseconds(row.rtt.p99),
            bytes(row.sent),
            bytes(row.received),
            row.retransmits.to_string(),
            failures(&row.failures),
        ]
    }));
    columns(&table, 3)
}

fn microseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| duration_text((value * 1e3) as u64))
}

/// With a binary prefix.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

fn failures(all: &BTreeMap<String, u64>) -> String {
    if all.is_empty() {
        return "0".to_owned();
    }
    let kinds: Vec<String> = all.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    kinds.join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::{BackendView, ClientsView};
    use super::*;

    fn service(name: &str, protocol: &str) -> ServicePort {
        ServicePort {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            port: "main".to_owned(),
            protocol: protocol.to_owned(),
        }
    }

    fn node(backend: &str, opened: u64, microseconds: usize, refused: u64) -> Snapshot {
        let mut seen = Seen {
            opened,
            sent: 10 * opened,
            ..Seen::default()
        };
        seen.connect.counts.insert(microseconds, opened);
        Snapshot {
            node: "n".to_owned(),
            backends: vec![BackendView {
                service: service("web", "TCP"),
                backend: backend.to_owned(),
                seen,
            }],
            clients: vec![
                ClientsView {
                    service: service("web", "TCP"),
                    translated: opened,
                    refused,
                },
                ClientsView {
                    service: service("dns", "UDP"),
                    translated: 7,
                    refused: 0,
                },
            ],
        }
    }

    fn view(by_backend: bool, sort: Sort) -> View {
        View {
            namespace: None,
            by_backend,
            sort,
        }
    }

    #[test]
    fn nodes_add_up_and_backends_may_have_lines() {
        let look = Look::of(&[node("a", 3, 20, 1), node("b", 1, 60, 0), node("a", 2, 20, 0)]);
        let all = rows(&look, None, &view(false, Sort::Rate));
        let names: Vec<(&str, u64, usize)> = all
            .iter()
            .map(|r| (r.service.name.as_str(), r.clients, r.backends))
            .collect();
        assert_eq!(
            names,
            [("dns", 21, 0), ("web", 6, 2)],
            "UDP has clients and no connections"
        );
        assert_eq!(all[1].failures.get("noBackend"), Some(&1));
        assert!(all[1].connect.p99 > all[1].connect.p50);
        let each = rows(&look, None, &view(true, Sort::P50));
        let backends: Vec<Option<&str>> = each.iter().map(|row| row.backend.as_deref()).collect();
        assert_eq!(backends, [Some("b"), Some("a"), None], "the slowest first");
    }

    #[test]
    fn between_two_looks_only_what_is_new_counts() {
        let (before, now) = (Look::of(&[node("a", 3, 20, 1)]), Look::of(&[node("a", 13, 20, 1)]));
        let all = rows(&now, Some((&before, 2.0)), &view(false, Sort::Name));
        let web = all.iter().find(|row| row.service.name == "web").unwrap();
        assert_eq!((web.clients, web.rate, web.sent, web.failed()), (10, Some(5.0), 100, 0));
    }

    #[test]
    fn a_namespace_can_be_picked() {
        let look = Look::of(&[node("a", 3, 20, 0)]);
        let other = View {
            namespace: Some("other".to_owned()),
            ..view(false, Sort::Name)
        };
        assert!(rows(&look, None, &other).is_empty());
    }

    #[test]
    fn the_table_is_aligned_and_has_units() {
        let look = Look::of(&[node("a", 3, 20, 2)]);
        let table = text(&rows(&look, None, &view(false, Sort::Name)), false);
        let web = table.lines().find(|line| line.starts_with("shop/web")).unwrap();
        assert!(web.contains("main/TCP") && web.ends_with("2 noBackend"), "{table}");
        assert_eq!(
            [bytes(1023), bytes(1536), bytes(5 << 30)],
            ["1023 B", "1.5 KiB", "5.0 GiB"]
        );
        assert!(Sort::WORDS.iter().all(|word| Sort::from_word(word).is_some()));
    }
}
