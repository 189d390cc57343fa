//! When a probe's results change a container's state: thresholds, as a pure state machine.
//!
//! Follows "Configure Liveness, Readiness and Startup Probes": a result counts once it was seen `successThreshold` or
//! `failureThreshold` times in a row.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Until it succeeds the others wait; when it fails the container is restarted.
    Startup,
    /// When it fails the container is restarted.
    Liveness,
    /// Decides whether the container gets traffic.
    Readiness,
}

impl ProbeKind {
    /// As it stands in events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }

    /// The probe of this kind that `container` has.
    #[must_use]
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// The times of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From the container's start to the first probe.
    pub initial_delay: Duration,
    /// Between probes.
    pub period: Duration,
    /// For one probe.
    pub timeout: Duration,
}

impl Timing {
    /// With the API's defaults where nothing is said.
    #[must_use]
    pub fn of(probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64, least: u64| {
            Duration::from_secs(
                value
                    .and_then(|v| u64::try_from(v).ok())
                    .filter(|v| *v >= least)
                    .unwrap_or(default),
            )
        };
        Timing {
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
        }
    }
}

/// A change that the thresholds confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds now.
    Succeeded,
    /// It no longer holds, or never did.
    Failed,
}

/// Counts results.
#[derive(Clone, Debug)]
pub struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    run: u32,
    last: Option<bool>,
    verdict: Option<Verdict>,
}

impl Counter {
    /// For `probe` of `kind`.
    #[must_use]
    pub fn new(kind: ProbeKind, probe: &Probe) -> Self {
        let threshold = |value: Option<i32>, default| {
            value
                .and_then(|v| u32::try_from(v).ok())
                .filter(|v| *v > 0)
                .unwrap_or(default)
        };
        let success = threshold(probe.success_threshold, 1);
        Counter {
            success_threshold: if kind == ProbeKind::Readiness { success } else { 1 },
            failure_threshold: threshold(probe.failure_threshold, 3),
            run: 0,
            last: None,
            verdict: None,
        }
    }

    /// Notes one result; a verdict that differs from the last one given.
    pub fn observe(&mut self, success: bool) -> Option<Verdict> {
        self.run = if self.last == Some(success) {
            self.run.saturating_add(1)
        } else {
            1
        };
        self.last = Some(success);
        let (threshold, verdict) = if success {
            (self.success_threshold, Verdict::Succeeded)
        } else {
            (self.failure_threshold, Verdict::Failed)
        };
        if self.run < threshold || self.verdict == Some(verdict) {
            return None;
        }
        self.verdict = Some(verdict);
        Some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn verdicts(kind: ProbeKind, probe: Value, results: &str) -> String {
        let mut counter = Counter::new(kind, &from_value(probe).unwrap());
        let verdict = |result: char| match counter.observe(result == '+') {
            None => '.',
            Some(Verdict::Succeeded) => 'S',
            Some(Verdict::Failed) => 'F',
        };
        results.chars().map(verdict).collect()
    }

    #[test]
    fn results_count_in_a_row() {
        let defaults = json!({});
        assert_eq!(verdicts(ProbeKind::Liveness, defaults.clone(), "+--+---"), "S.....F");
        assert_eq!(verdicts(ProbeKind::Readiness, defaults, "---+-+---"), "..FS....F");
        let strict = json!({"successThreshold": 2, "failureThreshold": 1});
        assert_eq!(verdicts(ProbeKind::Readiness, strict.clone(), "+-++-"), ".F.SF");
        assert_eq!(
            verdicts(ProbeKind::Startup, strict, "+"),
            "S",
            "only readiness may ask for more than one success"
        );
    }

    #[test]
    fn times_have_the_documented_defaults() {
        let timing = Timing::of(&from_value(json!({"timeoutSeconds": 0, "periodSeconds": 3})).unwrap());
        let seconds = Duration::from_secs;
        assert_eq!(
            timing,
            Timing {
                initial_delay: seconds(0),
                period: seconds(3),
                timeout: seconds(1)
            }
        );
    }
}
