//! Runs one probe of one container for as long as the container lives (the worker aborts it with the container).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Probe};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::check::{Handler, Target};
use super::host::Host;
use super::probe::{Counter, ProbeKind, Timing, Verdict};
use super::worker::Message;
use crate::events::Kind;

/// A running probe.
pub struct Prober {
    /// The node.
    pub host: Arc<Host>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// What is checked.
    pub target: Target,
    /// Which probe.
    pub kind: ProbeKind,
    /// Its definition.
    pub probe: Probe,
    /// When the container started.
    pub since: Timestamp,
    /// Where verdicts go.
    pub sender: mpsc::UnboundedSender<Message>,
}

impl Prober {
    /// Probes until a verdict that ends it, or until it is aborted.
    pub async fn run(self) {
        let Some(handler) = Handler::of_probe(&self.probe) else {
            return;
        };
        let timing = Timing::of(&self.probe);
        let mut counter = Counter::new(self.kind, &self.probe);
        let age = Duration::try_from(Timestamp::now().duration_since(self.since)).unwrap_or_default();
        let mut ticks =
            tokio::time::interval_at(Instant::now() + timing.initial_delay.saturating_sub(age), timing.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let result = self.target.check(&handler, timing.timeout).await;
            if let Err(message) = &result {
                self.tell(message);
            }
            let Some(verdict) = counter.observe(result.is_ok()) else {
                continue;
            };
            let news = Message::Probed {
                container: self.target.container.name.clone(),
                id: self.target.id.clone(),
                kind: self.kind,
                verdict,
            };
            let ends = match self.kind {
                ProbeKind::Startup => true,
                ProbeKind::Liveness => verdict == Verdict::Failed,
                ProbeKind::Readiness => false,
            };
            if self.sender.send(news).is_err() || ends {
                return;
            }
        }
    }

    fn tell(&self, message: &str) {
        let text = format!("{} probe failed: {message}", self.kind.as_str());
        self.host.events.pod(
            &self.pod,
            Some(&self.target.container.name),
            Kind::Warning,
            "Unhealthy",
            text,
        );
    }
}
