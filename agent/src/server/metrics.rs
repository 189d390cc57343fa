//! `GET /metrics`: what the kernel measured on services, and how the agent is doing.
//!
//! `?backends=false` leaves the backends out: one series for each port of a service, for clusters where one for each
//! backend is too many.

use std::collections::BTreeMap;
use std::fs;

use hull_ebpf_types::observe::Health;

use super::exposition::{Exposition, Kind, Labels};
use crate::observe::Latencies;
use crate::observe::names::ServicePort;
use crate::observe::snapshot::{BackendView, ClientsView, Seen, Snapshot};

/// Bounds of the buckets: these powers of two in microseconds, 32 us to 8.4 s.
const BOUNDS: std::ops::RangeInclusive<u32> = 5..=23;
const MICROSECONDS: f64 = 1e6;
/// USER_HZ, which is 100 on every architecture that the agent runs on; proc(5).
const TICKS: f64 = 100.0;

/// Everything that is shown.
pub struct Facts<'a> {
    /// What was observed; absent where observing does not work.
    pub snapshot: Option<&'a Snapshot>,
    /// Whether each backend is shown for itself.
    pub by_backend: bool,
    /// What the observing program could not do.
    pub health: Health,
    /// Pods on the node by phase.
    pub pods: BTreeMap<String, u64>,
}

/// Writes all families.
pub fn write(out: &mut Exposition, facts: &Facts<'_>) {
    if let Some(snapshot) = facts.snapshot {
        services(out, &gathered(&snapshot.backends, facts.by_backend));
        clients(out, &snapshot.clients);
        health(out, &facts.health);
    }
    out.family(
        "hull_observer_up",
        Kind::Gauge,
        "Whether the node's program that observes sockets is in force.",
    );
    out.sample("", &[], u8::from(facts.snapshot.is_some()));
    out.family("hull_pods", Kind::Gauge, "Pods of this node by phase.");
    for (phase, count) in &facts.pods {
        out.sample("", &[("phase", phase)], count);
    }
    process(out);
}

/// What a line is about: a port of a service and, where each backend has a line, the backend.
type Subject = (ServicePort, Option<String>);

fn gathered(backends: &[BackendView], by_backend: bool) -> Vec<(Subject, Seen)> {
    let mut all: BTreeMap<Subject, Seen> = BTreeMap::new();
    for view in backends {
        let backend = by_backend.then(|| view.backend.clone());
        all.entry((view.service.clone(), backend)).or_default().add(&view.seen);
    }
    all.into_iter().collect()
}

fn services(out: &mut Exposition, all: &[(Subject, Seen)]) {
    out.family(
        "hull_service_connect_duration_seconds",
        Kind::Histogram,
        "Time from connect(2) to the established connection.",
    );
    each(all, |labels, seen| histogram(out, labels, &seen.connect));
    out.family(
        "hull_service_rtt_seconds",
        Kind::Histogram,
        "Smoothed round-trip time of open connections, sampled.",
    );
    each(all, |labels, seen| histogram(out, labels, &seen.rtt));
    out.family(
        "hull_service_connections",
        Kind::Counter,
        "Connections established by clients on this node.",
    );
    each(all, |labels, seen| out.sample("_total", labels, seen.opened));
    out.family(
        "hull_service_open_connections",
        Kind::Gauge,
        "Connections of clients on this node open now.",
    );
    each(all, |labels, seen| out.sample("", labels, seen.open));
    out.family(
        "hull_service_sent_bytes",
        Kind::Counter,
        "Bytes that backends have acknowledged.",
    );
    each(all, |labels, seen| out.sample("_total", labels, seen.sent));
    out.family(
        "hull_service_received_bytes",
        Kind::Counter,
        "Bytes received from backends.",
    );
    each(all, |labels, seen| out.sample("_total", labels, seen.received));
    out.family(
        "hull_service_retransmits",
        Kind::Counter,
        "Segments sent again to backends.",
    );
    each(all, |labels, seen| out.sample("_total", labels, seen.retransmits));
    out.family(
        "hull_service_failures",
        Kind::Counter,
        "Connections not made, or ended other than by being closed, by kind.",
    );
    each(all, |labels, seen| {
        for (kind, count) in &seen.failures {
            let with_kind: Vec<(&str, &str)> = labels.iter().copied().chain([("kind", kind.as_str())]).collect();
            out.sample("_total", &with_kind, count);
        }
    });
}

fn clients(out: &mut Exposition, all: &[ClientsView]) {
    let mut family = |name, help, value: fn(&ClientsView) -> u64| {
        out.family(name, Kind::Counter, help);
        for view in all {
            out.sample("_total", &labels(&view.service), value(view));
        }
    };
    family(
        "hull_service_translations",
        "Clients sent to a backend: connects, and datagrams without one.",
        |view| view.translated,
    );
    family(
        "hull_service_refusals",
        "Clients refused for want of a backend.",
        |view| view.refused,
    );
}

fn labels(service: &ServicePort) -> [(&'static str, &str); 4] {
    [
        ("namespace", &service.namespace),
        ("service", &service.name),
        ("port", &service.port),
        ("protocol", &service.protocol),
    ]
}

fn each(all: &[(Subject, Seen)], mut write: impl FnMut(Labels<'_>, &Seen)) {
    for ((service, backend), seen) in all {
        let mut labels = labels(service).to_vec();
        labels.extend(backend.as_deref().map(|backend| ("backend", backend)));
        write(&labels, seen);
    }
}

fn histogram(out: &mut Exposition, labels: Labels<'_>, latencies: &Latencies) {
    let bounds: Vec<(f64, u64)> = BOUNDS
        .map(|power| (f64::from(1u32 << power) / MICROSECONDS, latencies.below(1 << power)))
        .collect();
    out.histogram(labels, &bounds, latencies.count(), latencies.sum as f64 / MICROSECONDS);
}

fn health(out: &mut Exposition, health: &Health) {
    out.family(
        "hull_observer_missed",
        Kind::Counter,
        "Connections that could not be counted because a map is full, by map; those left out of the diary by its rate limit.",
    );
    for (map, count) in [
        ("observed", health.unobserved),
        ("load", health.unweighed),
        ("diary", health.unwritten),
    ] {
        out.sample("_total", &[("map", map)], count);
    }
}

/// The names that Prometheus' own client libraries use.
fn process(out: &mut Exposition) {
    let Some(own) = Process::read() else { return };
    out.family(
        "process_resident_memory_bytes",
        Kind::Gauge,
        "Resident memory of the agent.",
    );
    out.sample("", &[], own.resident);
    out.family(
        "process_cpu_seconds",
        Kind::Counter,
        "Processor time of the agent, user and system.",
    );
    out.sample("_total", &[], own.cpu_seconds);
    out.family(
        "process_open_fds",
        Kind::Gauge,
        "File descriptors that the agent has open.",
    );
    out.sample("", &[], own.descriptors);
    out.family("process_threads", Kind::Gauge, "Threads of the agent.");
    out.sample("", &[], own.threads);
}

struct Process {
    resident: u64,
    cpu_seconds: f64,
    descriptors: usize,
    threads: u64,
}

impl Process {
    /// Of this process; proc(5).
    fn read() -> Option<Process> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: u64 = resident.split_whitespace().next()?.parse().ok()?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name in parentheses may hold anything; the third field follows the last of them.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Process {
            resident: kibibytes << 10,
            cpu_seconds: (number(14)? + number(15)?) as f64 / TICKS,
            descriptors: fs::read_dir("/proc/self/fd").ok()?.count(),
            threads: number(20)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::exposition::Format;

    fn view(backend: &str, microseconds: usize) -> BackendView {
        let mut connect = Latencies::default();
        connect.counts.insert(microseconds, 2);
        connect.sum = 80;
        BackendView {
            service: ServicePort {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
                port: "http".to_owned(),
                protocol: "TCP".to_owned(),
            },
            backend: backend.to_owned(),
            seen: Seen {
                opened: 2,
                failures: [("refused".to_owned(), 1)].into(),
                connect,
                ..Seen::default()
            },
        }
    }

    fn text(by_backend: bool) -> String {
        let backends = vec![view("10.0.0.1:80", 26), view("10.0.0.2:80", 26)];
        let snapshot = Snapshot {
            node: "n1".to_owned(),
            clients: vec![ClientsView {
                service: backends[0].service.clone(),
                translated: 4,
                refused: 9,
            }],
            backends,
        };
        let mut out = Exposition::new(Format::Text);
        let facts = Facts {
            snapshot: Some(&snapshot),
            by_backend,
            health: Health::default(),
            pods: [("Running".to_owned(), 3)].into(),
        };
        write(&mut out, &facts);
        out.finish()
    }

    #[test]
    fn each_backend_has_its_series_or_none_has() {
        let port = "namespace=\"shop\",service=\"web\",port=\"http\",protocol=\"TCP\"";
        let all = text(true);
        for line in [
            format!("hull_service_connections_total{{{port},backend=\"10.0.0.2:80\"}} 2"),
            format!("hull_service_failures_total{{{port},backend=\"10.0.0.1:80\",kind=\"refused\"}} 1"),
            format!("hull_service_refusals_total{{{port}}} 9"),
            "hull_pods{phase=\"Running\"} 3".to_owned(),
        ] {
            assert!(all.contains(&line), "{line} in\n{all}");
        }
        let few = text(false);
        assert!(!few.contains("backend="));
        assert!(
            few.contains(&format!("hull_service_connections_total{{{port}}} 4")),
            "{few}"
        );
    }

    #[test]
    fn buckets_are_cumulative_and_end_with_all() {
        // Bucket 26 holds 40 to 43 us.
        let few = text(false);
        let bucket = |bound: &str| {
            few.lines().any(|line| {
                line.contains("connect_duration") && line.contains(&format!("le=\"{bound}\"")) && line.ends_with(" 4")
            })
        };
        let empty = few
            .lines()
            .any(|line| line.contains("connect_duration") && line.contains("le=\"0.000032\"") && line.ends_with(" 0"));
        assert!(
            empty && bucket("0.000064") && bucket("8.388608") && bucket("+Inf"),
            "{few}"
        );
        assert!(few.contains("hull_service_connect_duration_seconds_sum{namespace=\"shop\",service=\"web\",port=\"http\",protocol=\"TCP\"} 0.00016"), "{few}");
    }

    #[test]
    fn the_process_knows_itself() {
        let own = Process::read().unwrap();
        assert!(own.resident > 100_000 && own.descriptors >= 3 && own.threads >= 1);
    }
}
