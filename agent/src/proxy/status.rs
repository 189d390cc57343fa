//! What became of the proxy's work, for metrics: counts that are read while it goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Fill, Usage};

/// Counts of one proxy.
#[derive(Debug, Default)]
pub struct Status {
    usage: Mutex<Usage>,
    updates: AtomicU64,
    failures: AtomicU64,
    nanoseconds: AtomicU64,
    changed: Notify,
}

impl Status {
    /// Takes note of a round of changes and how long it took.
    pub fn updated(&self, usage: &Usage, took: Duration) {
        *self.usage.lock() = *usage;
        self.updates.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(took, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Returns after the next round of changes; for one who waits.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes note of a round that failed as a whole.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Appends the counts in Prometheus' text format.
    pub fn write_metrics(&self, out: &mut String) {
        use std::fmt::Write as _;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let usage = *self.usage.lock();
        let gauges = [
            (
                "frontends",
                "Addresses that lead to services on this node.",
                usage.frontends,
            ),
            (
                "backends",
                "Backends of services, counted for each port.",
                usage.backends,
            ),
            (
                "services_rejected",
                "Services of which something does not fit into the maps or is taken by another one.",
                usage.rejected,
            ),
        ];
        for (name, help, count) in gauges {
            let _ = writeln!(
                out,
                "# HELP hull_proxy_{name} {help}\n# TYPE hull_proxy_{name} gauge\nhull_proxy_{name} {count}"
            );
        }
        write_fill(out, &usage.maps);
        let _ = writeln!(
            out,
            "# HELP hull_proxy_untold_sockets_total Datagram sockets that will not be told when their backend goes: no place.\n\
             # TYPE hull_proxy_untold_sockets_total counter\nhull_proxy_untold_sockets_total {}",
            usage.untold
        );
        let _ = writeln!(
            out,
            "# HELP hull_proxy_update_failures_total Rounds in which the maps could not be written at all.\n\
             # TYPE hull_proxy_update_failures_total counter\nhull_proxy_update_failures_total {}\n\
             # HELP hull_proxy_update_seconds Time from a change that was seen to the kernel's maps.\n\
             # TYPE hull_proxy_update_seconds summary\nhull_proxy_update_seconds_sum {:.9}\nhull_proxy_update_seconds_count {}",
            read(&self.failures),
            Duration::from_nanos(read(&self.nanoseconds)).as_secs_f64(),
            read(&self.updates)
        );
    }
}

/// How full each map is, how large, and how large it can be.
fn write_fill(out: &mut String, maps: &[Fill]) {
    use std::fmt::Write as _;
    type Family = (&'static str, &'static str, fn(&Fill) -> u32);
    let families: [Family; 3] = [
        ("entries", "Elements of a map.", |fill| fill.entries),
        (
            "capacity",
            "Elements that a map has room for; it grows before it is full.",
            |fill| fill.capacity,
        ),
        ("limit", "Elements that a map can grow to.", |fill| fill.limit),
    ];
    for (name, help, value) in families {
        let _ = writeln!(
            out,
            "# HELP hull_proxy_map_{name} {help}\n# TYPE hull_proxy_map_{name} gauge"
        );
        for fill in maps {
            let _ = writeln!(out, "hull_proxy_map_{name}{{map=\"{}\"}} {}", fill.map, value(fill));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_services_show() {
        let status = Status::default();
        let usage = Usage {
            frontends: 7,
            backends: 9,
            rejected: 1,
            maps: [Fill {
                map: "slots",
                entries: 9,
                capacity: 1024,
                limit: 4096,
            }; 6],
            untold: 3,
        };
        status.updated(&usage, Duration::from_millis(2));
        status.failed();
        let mut text = String::new();
        status.write_metrics(&mut text);
        for line in [
            "hull_proxy_services_rejected 1",
            "hull_proxy_map_entries{map=\"slots\"} 9",
            "hull_proxy_map_capacity{map=\"slots\"} 1024",
            "hull_proxy_map_limit{map=\"slots\"} 4096",
            "hull_proxy_untold_sockets_total 3",
            "hull_proxy_update_failures_total 1",
            "hull_proxy_update_seconds_sum 0.002000000",
            "hull_proxy_update_seconds_count 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
    }
}
