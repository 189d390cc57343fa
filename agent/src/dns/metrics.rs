//! What the DNS server counts: questions by type, replies by code, lookups elsewhere, the cache, how long it takes.
//!
//! Plain counters that only grow; a scrape reads them one by one. Names follow CoreDNS' where it counts the same.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::reply::Transport;
use super::wire::kind;

const KINDS: [(u16, &str); 12] = [
    (kind::A, "A"),
    (kind::AAAA, "AAAA"),
    (kind::SRV, "SRV"),
    (kind::PTR, "PTR"),
    (kind::TXT, "TXT"),
    (kind::CNAME, "CNAME"),
    (kind::NS, "NS"),
    (kind::SOA, "SOA"),
    (kind::MX, "MX"),
    (kind::HTTPS, "HTTPS"),
    (kind::ANY, "ANY"),
    (0, "other"),
];
const CODES: [&str; 7] = [
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other",
];
/// Upper bounds of the histogram's buckets, microseconds: from an answer out of memory to a client that gives up.
const BUCKETS: [u64; 14] = [
    5, 10, 25, 50, 100, 250, 500, 1_000, 5_000, 25_000, 100_000, 500_000, 1_000_000, 5_000_000,
];

type Counter = AtomicU64;

fn add(counter: &Counter) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &Counter) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// The counters of a server.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    requests: [[Counter; KINDS.len()]; 2],
    responses: [Counter; CODES.len()],
    local: Histogram,
    forward: Histogram,
    forward_failures: Counter,
    cache_hits: Counter,
    cache_misses: Counter,
    stale: Counter,
    refused_connections: Counter,
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [Counter; BUCKETS.len() + 1],
    microseconds: Counter,
}

impl Histogram {
    fn add(&self, time: Duration) {
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        add(&self.buckets[BUCKETS.partition_point(|bound| *bound < microseconds)]);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str) {
        let mut total = 0;
        let bounds = BUCKETS.iter().map(|bound| (*bound as f64 / 1e6).to_string());
        for (bucket, bound) in self.buckets.iter().zip(bounds.chain(["+Inf".to_owned()])) {
            total += read(bucket);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(out, "{name}_sum {}", read(&self.microseconds) as f64 / 1e6);
        let _ = writeln!(out, "{name}_count {total}");
    }
}

impl Metrics {
    /// A question came.
    pub(super) fn request(&self, transport: Transport, kind: u16) {
        let place = KINDS.iter().position(|(known, _)| *known == kind);
        add(&self.requests[transport as usize][place.unwrap_or(KINDS.len() - 1)]);
    }

    /// A reply goes.
    pub(super) fn response(&self, reply: &[u8]) {
        let code = reply.get(3).map_or(CODES.len(), |flags| usize::from(flags & 0x0f));
        add(&self.responses[code.min(CODES.len() - 1)]);
    }

    /// A reply from memory took this long.
    pub(super) fn local(&self, time: Duration) {
        self.local.add(time);
    }

    /// A lookup elsewhere ended.
    pub(super) fn forwarded(&self, answered: bool, time: Duration) {
        self.forward.add(time);
        if !answered {
            add(&self.forward_failures);
        }
    }

    /// The cache was asked.
    pub(super) fn cache(&self, hit: bool) {
        add(if hit { &self.cache_hits } else { &self.cache_misses });
    }

    /// An answer past its time was served.
    pub(super) fn stale(&self) {
        add(&self.stale);
    }

    /// A connection was closed because there are too many.
    pub(super) fn refused_connection(&self) {
        add(&self.refused_connections);
    }

    /// All of them in Prometheus' text format.
    pub(super) fn write(&self, out: &mut String, cache: (usize, usize)) {
        head(out, "hull_dns_requests_total", "counter", "DNS questions received.");
        for (requests, proto) in self.requests.iter().zip(["udp", "tcp"]) {
            for (counter, (_, kind)) in requests.iter().zip(KINDS) {
                let count = read(counter);
                if count > 0 {
                    let _ = writeln!(
                        out,
                        "hull_dns_requests_total{{proto=\"{proto}\",type=\"{kind}\"}} {count}"
                    );
                }
            }
        }
        head(out, "hull_dns_responses_total", "counter", "DNS replies sent.");
        for (counter, code) in self.responses.iter().zip(CODES) {
            let _ = writeln!(out, "hull_dns_responses_total{{rcode=\"{code}\"}} {}", read(counter));
        }
        let text = "Time to answer a DNS question from memory.";
        head(out, "hull_dns_request_duration_seconds", "histogram", text);
        self.local.write(out, "hull_dns_request_duration_seconds");
        let text = "Time until the host's resolvers answered, or were given up.";
        head(out, "hull_dns_forward_duration_seconds", "histogram", text);
        self.forward.write(out, "hull_dns_forward_duration_seconds");
        for (name, text, counter) in [
            (
                "hull_dns_forward_failures_total",
                "Lookups that no resolver answered.",
                &self.forward_failures,
            ),
            (
                "hull_dns_cache_hits_total",
                "Questions for other domains answered from the cache.",
                &self.cache_hits,
            ),
            (
                "hull_dns_cache_misses_total",
                "Questions for other domains not in the cache.",
                &self.cache_misses,
            ),
            (
                "hull_dns_cache_served_stale_total",
                "Answers served past their time.",
                &self.stale,
            ),
            (
                "hull_dns_connections_refused_total",
                "TCP connections above the limits.",
                &self.refused_connections,
            ),
        ] {
            head(out, name, "counter", text);
            let _ = writeln!(out, "{name} {}", read(counter));
        }
        for (name, text, value) in [
            ("hull_dns_cache_entries", "Replies in the cache.", cache.0),
            ("hull_dns_cache_bytes", "Memory of the cache.", cache.1),
        ] {
            head(out, name, "gauge", text);
            let _ = writeln!(out, "{name} {value}");
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, text: &str) {
    let _ = writeln!(out, "# HELP {name} {text}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told() {
        let metrics = Metrics::default();
        metrics.request(Transport::Udp, kind::A);
        metrics.request(Transport::Tcp, 9999);
        metrics.response(&[0, 0, 0x80, 0x83]);
        metrics.local(Duration::from_micros(7));
        metrics.local(Duration::from_secs(9));
        metrics.forwarded(false, Duration::from_secs(1));
        let mut text = String::new();
        metrics.write(&mut text, (3, 400));
        for line in [
            "hull_dns_requests_total{proto=\"udp\",type=\"A\"} 1",
            "hull_dns_requests_total{proto=\"tcp\",type=\"other\"} 1",
            "hull_dns_responses_total{rcode=\"NXDOMAIN\"} 1",
            "hull_dns_request_duration_seconds_bucket{le=\"0.000005\"} 0",
            "hull_dns_request_duration_seconds_bucket{le=\"0.00001\"} 1",
            "hull_dns_request_duration_seconds_bucket{le=\"+Inf\"} 2",
            "hull_dns_request_duration_seconds_count 2",
            "hull_dns_forward_failures_total 1",
            "hull_dns_cache_entries 3",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is missing in {text}");
        }
    }
}
