//! What became of the proxy's work, for metrics: counts that are read while it goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::Usage;

/// Counts of one proxy.
#[derive(Debug, Default)]
pub struct Status {
    frontends: AtomicU64,
    backends: AtomicU64,
    rejected: AtomicU64,
    updates: AtomicU64,
    failures: AtomicU64,
    nanoseconds: AtomicU64,
    changed: Notify,
}

impl Status {
    /// Takes note of a round of changes and how long it took.
    pub fn updated(&self, usage: &Usage, took: Duration) {
        let set = |count: &AtomicU64, value: usize| count.store(value as u64, Ordering::Relaxed);
        set(&self.frontends, usage.frontends);
        set(&self.backends, usage.backends);
        set(&self.rejected, usage.rejected);
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
        let gauges = [
            (
                "frontends",
                "Addresses that lead to services on this node.",
                &self.frontends,
            ),
            (
                "backends",
                "Backends of services, counted for each port.",
                &self.backends,
            ),
            (
                "services_rejected",
                "Services of which something does not fit into the maps or is taken by another one.",
                &self.rejected,
            ),
        ];
        for (name, help, count) in gauges {
            let _ = writeln!(
                out,
                "# HELP hull_proxy_{name} {help}\n# TYPE hull_proxy_{name} gauge\nhull_proxy_{name} {}",
                read(count)
            );
        }
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
        };
        status.updated(&usage, Duration::from_millis(2));
        status.failed();
        let mut text = String::new();
        status.write_metrics(&mut text);
        for line in [
            "hull_proxy_services_rejected 1",
            "hull_proxy_update_failures_total 1",
            "hull_proxy_update_seconds_sum 0.002000000",
            "hull_proxy_update_seconds_count 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
    }
}
