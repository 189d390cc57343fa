//! `/metrics`: what the control plane holds and uses, in Prometheus' text format (exposition format 0.0.4). Names are those
//! of Kubernetes' API server and of Prometheus' client libraries.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;

use super::Api;
use super::body::{self, Response};
use super::health::GIT_VERSION;
use crate::schema::resources;

/// The media type of the text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of this process.
pub fn answer(api: &Api) -> Response {
    let cache = api.registry.cache();
    let mut text = Exposition::default();
    text.metric(
        "kubernetes_build_info",
        "gauge",
        "The version that is served; always 1.",
    );
    text.sample(
        "kubernetes_build_info",
        &format!("{{git_version=\"{GIT_VERSION}\"}}"),
        1,
    );
    text.metric("apiserver_storage_objects", "gauge", "Objects stored, by resource.");
    let mut counted = HashSet::new();
    // Two groups may show the same objects (events): they are counted once.
    for resource in resources().iter().filter(|one| one.storage && counted.insert(one.key)) {
        let separator = if resource.group.is_empty() { "" } else { "." };
        let labels = format!("{{resource=\"{}{separator}{}\"}}", resource.plural, resource.group);
        text.sample(
            "apiserver_storage_objects",
            &labels,
            cache.snapshot(resource.key).len() as u64,
        );
    }
    process(&mut text);
    body::respond(200, TEXT, body::full(text.0))
}

/// What the kernel says of this process (proc_pid_status(5)); what it does not say is left out.
fn process(text: &mut Exposition) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let gauges = [
        (
            "process_resident_memory_bytes",
            "VmRSS:",
            1024,
            "Resident memory, bytes.",
        ),
        (
            "process_virtual_memory_bytes",
            "VmSize:",
            1024,
            "Virtual memory, bytes.",
        ),
        ("process_threads", "Threads:", 1, "Threads."),
    ];
    for (name, field, unit, help) in gauges {
        if let Some(value) = field_of(&status, field) {
            text.metric(name, "gauge", help);
            text.sample(name, "", value * unit);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        text.metric("process_open_fds", "gauge", "Open file descriptors.");
        text.sample("process_open_fds", "", open.count() as u64);
    }
}

fn field_of(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_with_their_unit_left_out() {
        let status = "Name:\thull\nVmRSS:\t    5120 kB\nThreads:\t3\n";
        assert_eq!(field_of(status, "VmRSS:"), Some(5120));
        assert_eq!(field_of(status, "Threads:"), Some(3));
        assert_eq!(field_of(status, "VmSize:"), None);
    }

    #[test]
    fn a_metric_has_its_help_and_its_samples() {
        let mut text = Exposition::default();
        text.metric("m", "gauge", "A number.");
        text.sample("m", "{a=\"b\"}", 2);
        assert_eq!(text.0, "# HELP m A number.\n# TYPE m gauge\nm{a=\"b\"} 2\n");
    }
}
