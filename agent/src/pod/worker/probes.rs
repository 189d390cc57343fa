//! The worker and its probes: which run when, and what their verdicts do.

use super::*;

impl Worker {
    /// Starts the startup probe, or when there is none or it is through, the others.
    pub(super) fn probe(&mut self, container: &Container, id: &str, since: Timestamp) {
        let startup_done = matches!(
            self.state.containers.get(&container.name).map(|state| &state.phase),
            Some(Phase::Running { started: true, .. })
        );
        let kinds: &[ProbeKind] = match (&container.startup_probe, startup_done) {
            (Some(_), false) => &[ProbeKind::Startup],
            _ => &[ProbeKind::Liveness, ProbeKind::Readiness],
        };
        for &kind in kinds {
            let Some(probe) = kind.of(container).cloned() else {
                continue;
            };
            let prober = Prober {
                host: Arc::clone(&self.host),
                pod: Arc::clone(&self.pod),
                target: self.target(container, id),
                kind,
                probe,
                since,
                sender: self.sender.clone(),
            };
            let task = tokio::spawn(prober.run());
            self.attend(&container.name, task.abort_handle());
        }
    }

    pub(super) fn probed(&mut self, name: &str, id: &str, kind: ProbeKind, verdict: Verdict) {
        if !self.is_running(name, id) {
            return;
        }
        let Some(container) = find_container(&self.pod, name).cloned() else {
            return;
        };
        let Some(state) = self.state.containers.get_mut(name) else {
            return;
        };
        let Phase::Running {
            started,
            ready,
            started_at,
            killing,
        } = &mut state.phase
        else {
            return;
        };
        let since = *started_at;
        match (kind, verdict) {
            (ProbeKind::Startup, Verdict::Succeeded) => {
                *started = true;
                self.probe(&container, id, since);
            }
            (ProbeKind::Readiness, verdict) => *ready = verdict == Verdict::Succeeded,
            (ProbeKind::Liveness, Verdict::Succeeded) => return,
            (ProbeKind::Startup | ProbeKind::Liveness, Verdict::Failed) => {
                if *killing {
                    return;
                }
                let own = kind
                    .of(&container)
                    .and_then(|probe| probe.termination_grace_period_seconds);
                let own = own
                    .and_then(|seconds| u64::try_from(seconds).ok())
                    .map(Duration::from_secs);
                let grace = own.unwrap_or_else(|| decide::grace(&self.pod));
                let text = format!(
                    "Container {name} failed {} probe, will be restarted",
                    kind.as_str().to_lowercase()
                );
                self.kill(name, grace, &text);
            }
        }
        self.record(name);
    }
}
