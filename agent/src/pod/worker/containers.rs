//! The worker and its containers: starting, hooks, ends, and what is told about them.

use super::*;

impl Worker {
    pub(super) fn start(&mut self, name: &str, now: Timestamp) {
        let Some(container) = find_container(&self.pod, name).cloned() else {
            return;
        };
        let state = self.state.containers.entry(name.to_owned()).or_default();
        if let Phase::Exited(exit) = &state.phase {
            state.last = Some(exit.clone());
            state.attempt += 1;
            state.backoff.attempt(now);
            state.replaced = false;
        }
        let id = new_id();
        state.id = Some(id.clone());
        state.image = container.image.clone().unwrap_or_default();
        state.phase = Phase::Starting;
        let number = state.attempt;
        self.record(name);
        let attempt = Attempt {
            host: Arc::clone(&self.host),
            pod: Arc::clone(&self.pod),
            container: Arc::new(container),
            number,
            id: id.clone(),
            ips: self.state.ips().to_vec(),
            exits: self.exit_sender.clone(),
        };
        self.live.insert(name.to_owned(), Live::new(&id));
        let (sender, container) = (self.sender.clone(), name.to_owned());
        tokio::spawn(async move {
            let result = attempt.make().await;
            let _ = sender.send(Message::Started { container, id, result });
        });
    }

    pub(super) fn started(&mut self, name: &str, id: &str, result: Result<Started, NotStarted>) {
        let Some(state) = self
            .state
            .containers
            .get_mut(name)
            .filter(|state| state.id.as_deref() == Some(id))
        else {
            return;
        };
        if state.phase != Phase::Starting {
            // It ended before the news of its start came through.
            if let (Ok(started), Phase::Exited(exit)) = (result, &mut state.phase) {
                exit.started_at = Some(started.at.min(exit.finished_at));
                state.image_id = started.image_id;
            }
            return self.record(name);
        }
        match result {
            Ok(started) => {
                state.image_id = started.image_id;
                state.create_backoff = Backoff::default();
                self.tell_missing_limits(&started.missing_limits);
                self.runs(name, id, started.at);
            }
            Err(NotStarted::Refused { reason, message }) => self.refused(name, reason, message),
            Err(NotStarted::Failed { message, image_id }) => {
                state.image_id = image_id;
                state.phase = Phase::Exited(start_error(id, message.clone(), Timestamp::now()));
                self.live.remove(name);
                self.host.events.pod(
                    &self.pod,
                    Some(name),
                    Kind::Warning,
                    "Failed",
                    format!("Error: {message}"),
                );
                self.tell_back_off(name);
            }
        }
        self.record(name);
    }

    /// A container runs: its hook first, then its probes.
    pub(super) fn runs(&mut self, name: &str, id: &str, started_at: Timestamp) {
        let Some(container) = find_container(&self.pod, name).cloned() else {
            return;
        };
        let hook = container
            .lifecycle
            .as_ref()
            .and_then(|l| l.post_start.as_ref())
            .and_then(Handler::of_hook);
        let started = hook.is_none() && container.startup_probe.is_none();
        let ready = container.readiness_probe.is_none();
        if let Some(state) = self.state.containers.get_mut(name) {
            state.phase = Phase::Running {
                started_at,
                started,
                ready,
                killing: false,
            };
        }
        match hook {
            Some(handler) => self.post_start(&container, id, handler),
            None => self.probe(&container, id, started_at),
        }
    }

    pub(super) fn post_start(&mut self, container: &Container, id: &str, handler: Handler) {
        let target = self.target(container, id);
        let (sender, name, id) = (self.sender.clone(), container.name.clone(), id.to_owned());
        let task = tokio::spawn(async move {
            let result = target.check(&handler, HOOK_MAX).await;
            let _ = sender.send(Message::Hooked {
                container: name,
                id,
                result,
            });
        });
        self.attend(&container.name, task.abort_handle());
    }

    pub(super) fn refused(&mut self, name: &str, reason: &'static str, message: String) {
        let now = Timestamp::now();
        self.live.remove(name);
        let Some(state) = self.state.containers.get_mut(name) else {
            return;
        };
        state.id = None;
        let pull = matches!(reason, "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName");
        let not_before = if pull {
            state.create_backoff.attempt(now);
            now + state.create_backoff.delay()
        } else {
            now + CONFIG_RETRY
        };
        let tell = |kind, reason, text| self.host.events.pod(&self.pod, Some(name), kind, reason, text);
        if reason == "ErrImagePull" {
            tell(
                Kind::Normal,
                "BackOff",
                format!("Back-off pulling image {:?}", state.image),
            );
            tell(Kind::Warning, "Failed", "Error: ImagePullBackOff".to_owned());
        } else if !pull {
            tell(Kind::Warning, "Failed", format!("Error: {message}"));
        }
        state.phase = Phase::Waiting {
            reason: reason.to_owned(),
            message: Some(message),
            not_before: Some(not_before),
        };
    }

    pub(super) fn hooked(&mut self, name: &str, id: &str, result: Result<(), String>) {
        if !self.is_running(name, id) {
            return;
        }
        match result {
            Ok(()) => {
                let Some(container) = find_container(&self.pod, name).cloned() else {
                    return;
                };
                let mut since = Timestamp::now();
                if let Some(Phase::Running {
                    started, started_at, ..
                }) = self.state.containers.get_mut(name).map(|state| &mut state.phase)
                {
                    *started = container.startup_probe.is_none();
                    since = *started_at;
                }
                self.probe(&container, id, since);
                self.record(name);
            }
            Err(message) => {
                let message = format!("PostStartHook failed: {message}");
                self.host
                    .events
                    .pod(&self.pod, Some(name), Kind::Warning, "FailedPostStartHook", message);
                self.kill(name, decide::grace(&self.pod), "FailedPostStartHook");
            }
        }
    }

    pub(super) fn is_running(&self, name: &str, id: &str) -> bool {
        self.state
            .containers
            .get(name)
            .is_some_and(|state| state.is_running() && state.id.as_deref() == Some(id))
    }

    pub(super) fn target(&self, container: &Container, id: &str) -> Target {
        Target {
            warden: self.host.warden.clone(),
            id: id.to_owned(),
            config: self.records.bundle(id).join("config.json"),
            container: Arc::new(container.clone()),
            ip: self.state.ips().first().copied().unwrap_or_else(|| self.host.ip()),
        }
    }

    pub(super) fn attend(&mut self, name: &str, task: AbortHandle) {
        match self.live.get_mut(name) {
            Some(live) => live.tasks.push(task),
            None => task.abort(),
        }
    }

    pub(super) fn kill(&mut self, name: &str, grace: Duration, message: &str) {
        let Some(container) = find_container(&self.pod, name).cloned() else {
            return;
        };
        let Some(state) = self.state.containers.get_mut(name) else {
            return;
        };
        let (Some(id), Phase::Running { killing, .. }) = (state.id.clone(), &mut state.phase) else {
            return;
        };
        *killing = true;
        state.replaced = self.state.ending.is_none() && state.image != container.image.clone().unwrap_or_default();
        let image = state.image.clone();
        self.host
            .events
            .pod(&self.pod, Some(name), Kind::Normal, "Killing", message);
        let (deadline_sender, deadline) = watch::channel(Instant::now() + grace);
        let target = self.target(&container, &id);
        let Some(live) = self.live.get_mut(name) else { return };
        live.deadline = Some(deadline_sender);
        let stop = Stop {
            host: Arc::clone(&self.host),
            pod: Arc::clone(&self.pod),
            container: Arc::new(container),
            target,
            image,
            ended: live.ended.subscribe(),
            deadline,
        };
        tokio::spawn(stop.carry_out());
    }

    pub(super) fn exited(&mut self, id: &str, exit: warden::Exit) {
        let Some((name, live)) = self
            .live
            .iter()
            .find(|(_, live)| live.id == id)
            .map(|(name, _)| name.clone())
            .and_then(|name| self.live.remove_entry(&name))
        else {
            return;
        };
        live.ended.send_replace(true);
        let Some(state) = self.state.containers.get_mut(&name) else {
            return;
        };
        let started_at = match &state.phase {
            Phase::Running { started_at, .. } => Some(*started_at),
            _ => None,
        };
        let container = find_container(&self.pod, &name);
        let log = self
            .host
            .logs(&self.pod)
            .join(&name)
            .join(format!("{}.log", state.attempt));
        let message_file = self.records.termination_message(id);
        let exit = describe_exit(id, exit, started_at, container, &message_file, &log);
        if exit.reason == "OOMKilled" {
            let text = format!("Container {name} was killed by the kernel: it used more memory than its limit");
            self.host
                .events
                .pod(&self.pod, Some(&name), Kind::Warning, "OOMKilling", text);
        }
        state.phase = Phase::Exited(exit);
        let old = state.attempt.checked_sub(2);
        self.record(&name);
        self.tell_back_off(&name);
        self.clean_up(
            id,
            old.map(|attempt| self.host.logs(&self.pod).join(&name).join(format!("{attempt}.log"))),
        );
    }

    /// Frees what an ended container holds; its exit is already recorded.
    pub(super) fn clean_up(&mut self, id: &str, old_log: Option<std::path::PathBuf>) {
        let (host, uid, id) = (Arc::clone(&self.host), self.uid.clone(), id.to_owned());
        self.cleanups.retain(|task| !task.is_finished());
        self.cleanups.push(tokio::spawn(async move {
            if let Err(error) = host.warden.delete(&id).await {
                tracing::warn!(container = id, %error, "an ended container was not deleted");
            }
            let _ = tokio::task::spawn_blocking(move || {
                images::unmount(&host, &id);
                pod_sandbox::clear_container(&host, &uid, &id);
                if let Some(log) = old_log {
                    remove_logs(&log);
                }
            })
            .await;
        }));
    }

    /// The BackOff event, when the next start has to wait.
    pub(super) fn tell_back_off(&self, name: &str) {
        let Some(state) = self.state.containers.get(name) else {
            return;
        };
        let (Some(exit), Some(container)) = (state.exit(), find_container(&self.pod, name)) else {
            return;
        };
        let waits = state.backoff.next_attempt(exit.finished_at) > exit.finished_at;
        if waits && self.state.ending.is_none() {
            let message = status::crash_loop_message(&self.pod, container, state);
            let message = message.replacen("back-off", "Back-off", 1);
            self.host
                .events
                .pod(&self.pod, Some(name), Kind::Warning, "BackOff", message);
        }
    }

    pub(super) fn tell_missing_limits(&mut self, missing: &[&'static str]) {
        if missing.is_empty() || std::mem::replace(&mut self.told_limits, true) {
            return;
        }
        let message = format!(
            "limits of {} are not enforced: this node's cgroup v2 hierarchy has no such controller",
            missing.join(" and ")
        );
        self.host
            .events
            .pod(&self.pod, None, Kind::Warning, "LimitsNotEnforced", message);
    }
}
