//! The worker, its sandbox and its volumes: making, keeping fresh, taking down.

use super::*;

impl Worker {
    pub(super) fn prepare(&mut self) {
        self.state.sandbox = Sandbox::Preparing;
        let (host, pod, sender) = (Arc::clone(&self.host), Arc::clone(&self.pod), self.sender.clone());
        tokio::spawn(async move {
            let _ = sender.send(Message::Prepared(pod_sandbox::prepare(&host, &pod).await));
        });
    }

    pub(super) fn prepared(&mut self, result: Result<Prepared, pod_sandbox::Failure>) {
        match result {
            Ok(prepared) => {
                self.retries = 0;
                self.record_sandbox(Some(prepared.ips.clone()));
                self.host.host_ports.open(&self.pod, &prepared.ips);
                self.state.sandbox = Sandbox::Ready { ips: prepared.ips };
                self.feed_from(prepared.fed);
            }
            Err(failure) => {
                self.host
                    .events
                    .pod(&self.pod, None, Kind::Warning, failure.reason, failure.message.clone());
                let retry_at = Timestamp::now() + self.next_retry();
                self.state.sandbox = Sandbox::Failed {
                    message: failure.message,
                    retry_at,
                };
            }
        }
    }

    pub(super) fn next_retry(&mut self) -> Duration {
        let delay = (RETRY_FIRST * 2u32.saturating_pow(self.retries.min(16))).min(RETRY_MAX);
        self.retries += 1;
        delay
    }

    pub(super) fn tear_down(&mut self) {
        self.state.sandbox = Sandbox::TearingDown;
        self.host.host_ports.close(&self.uid);
        for follower in self.followers.drain(..) {
            follower.abort();
        }
        self.fed = None;
        let cleanups = std::mem::take(&mut self.cleanups);
        let (host, uid, sender) = (Arc::clone(&self.host), self.uid.clone(), self.sender.clone());
        tokio::spawn(async move {
            for cleanup in cleanups {
                let _ = cleanup.await;
            }
            let done = tokio::task::spawn_blocking(move || pod_sandbox::tear_down(&host, &uid)).await;
            let result = done.unwrap_or_else(|error| Err(error.to_string()));
            let _ = sender.send(Message::TornDown(result));
        });
    }

    pub(super) fn torn_down(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.retries = 0;
                self.record_sandbox(None);
                self.state.sandbox = Sandbox::Gone;
            }
            Err(message) => {
                tracing::warn!(pod = self.uid, message, "the pod's sandbox was not taken down");
                self.host
                    .events
                    .pod(&self.pod, None, Kind::Warning, "FailedKillPod", message.clone());
                let delay = self.next_retry();
                let sender = self.sender.clone();
                self.state.sandbox = Sandbox::TearingDown;
                let (host, uid) = (Arc::clone(&self.host), self.uid.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let done = tokio::task::spawn_blocking(move || pod_sandbox::tear_down(&host, &uid)).await;
                    let _ = sender.send(Message::TornDown(done.unwrap_or_else(|error| Err(error.to_string()))));
                });
            }
        }
    }

    pub(super) fn refresh(&mut self) {
        if self.feeding || !matches!(self.state.sandbox, Sandbox::Ready { .. }) || self.state.ending.is_some() {
            return;
        }
        self.feeding = true;
        let (host, pod, sender) = (Arc::clone(&self.host), Arc::clone(&self.pod), self.sender.clone());
        tokio::spawn(async move {
            let _ = sender.send(Message::Fed(pod_sandbox::feed(&host, &pod, false).await));
        });
    }

    pub(super) fn is_fed(&mut self, result: Result<Fed, String>) {
        self.feeding = false;
        match result {
            Ok(fed) => self.feed_from(fed),
            Err(message) => {
                self.host
                    .events
                    .pod(&self.pod, None, Kind::Warning, "FailedMount", message);
                let again = Timestamp::now() + self.next_retry();
                if let Some(fed) = &mut self.fed {
                    fed.renew_at = Some(fed.renew_at.map_or(again, |at| at.max(again)));
                } else {
                    self.fed = Some(Fed {
                        followed: Vec::new(),
                        renew_at: Some(again),
                    });
                }
            }
        }
    }

    /// Follows what the volumes show.
    pub(super) fn feed_from(&mut self, fed: Fed) {
        self.retries = 0;
        for follower in self.followers.drain(..) {
            follower.abort();
        }
        for object in &fed.followed {
            let (changed, sender) = (object.changed(), self.sender.clone());
            let task = tokio::spawn(async move {
                changed.await;
                let _ = sender.send(Message::Stale);
            });
            self.followers.push(task.abort_handle());
        }
        self.fed = Some(fed);
    }
}
