//! One task per pod: keeps the observed state, asks `decide`, carries actions out, publishes the status.
//!
//! Long work (pulls, hooks, kills, tear-down) runs in tasks that report back through the mailbox, so the worker is
//! always ready for news. Invariant: state changes only here, and what must outlive the agent is recorded before the
//! act it announces.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use hull_runtime::warden;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::check::{Handler, Target};
use super::decide::{self, Action, decide};
use super::ending::{describe_exit, start_error};
use super::env::find_container;
use super::host::Host;
use super::images;
use super::probe::{ProbeKind, Verdict};
use super::probing::Prober;
use super::publish::Publisher;
use super::record::{Records, SandboxRecord};
use super::sandbox::{self, Fed, Prepared};
use super::start::{Attempt, NotStarted, Started};
use super::state::{Ending, Phase, PodState, Sandbox};
use super::status;
use super::stop::Stop;
use super::view::View;
use super::warden::ExitSender;
use crate::client::ClientError;
use crate::events::Kind;

/// Pause before a sandbox or a final delete that failed is tried again; doubles up to the maximum.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(120);
/// Pause before the environment of a container is tried again, e.g. because a ConfigMap was missing.
const CONFIG_RETRY: Duration = Duration::from_secs(2);
/// How long a postStart hook may take.
const HOOK_MAX: Duration = Duration::from_secs(24 * 3600);
/// What a pod found terminating at adoption gets at least.
const GRACE_MIN: Duration = Duration::from_secs(1);

/// News for a worker.
pub enum Message {
    /// The Pod object as it is now.
    Desired(Box<Pod>),
    /// The Pod object is gone.
    Vanished,
    /// The sandbox is ready, or is not.
    Prepared(Result<Prepared, sandbox::Failure>),
    /// A container runs, or does not.
    Started {
        /// Which.
        container: String,
        /// Its id.
        id: String,
        /// What came of it.
        result: Result<Started, NotStarted>,
    },
    /// A postStart hook is through.
    Hooked {
        /// Which container.
        container: String,
        /// Its id.
        id: String,
        /// What came of it.
        result: Result<(), String>,
    },
    /// A probe's thresholds confirm a change.
    Probed {
        /// Which container.
        container: String,
        /// Its id.
        id: String,
        /// Which probe.
        kind: ProbeKind,
        /// What it says.
        verdict: Verdict,
    },
    /// Something that a volume shows has changed.
    Stale,
    /// Volumes were written again.
    Fed(Result<Fed, String>),
    /// The sandbox is gone, or is not.
    TornDown(Result<(), String>),
    /// A status was sent.
    Sent(Result<(), ClientError>),
    /// The Pod object was finally deleted.
    Finished,
}

/// What belongs to a container while it lives.
struct Live {
    id: String,
    ended: watch::Sender<bool>,
    deadline: Option<watch::Sender<Instant>>,
    tasks: Vec<AbortHandle>,
}

impl Live {
    fn new(id: &str) -> Self {
        Live {
            id: id.to_owned(),
            ended: watch::channel(false).0,
            deadline: None,
            tasks: Vec::new(),
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The worker of one pod.
pub struct Worker {
    host: Arc<Host>,
    pod: Arc<Pod>,
    uid: String,
    records: Records,
    state: PodState,
    live: HashMap<String, Live>,
    cleanups: Vec<JoinHandle<()>>,
    publisher: Publisher,
    fed: Option<Fed>,
    feeding: bool,
    followers: Vec<AbortHandle>,
    retries: u32,
    told_limits: bool,
    wake: Option<Timestamp>,
    mailbox: mpsc::UnboundedReceiver<Message>,
    sender: mpsc::UnboundedSender<Message>,
    exits: mpsc::UnboundedReceiver<(String, warden::Exit)>,
    exit_sender: ExitSender,
}

impl Worker {
    /// A worker for `pod` that starts from `state`.
    #[must_use]
    pub fn new(
        host: Arc<Host>,
        pod: Pod,
        state: PodState,
        sender: mpsc::UnboundedSender<Message>,
        mailbox: mpsc::UnboundedReceiver<Message>,
    ) -> Self {
        let (exit_sender, exits) = mpsc::unbounded_channel();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut publisher = Publisher::new(&pod, &host.ip.to_string());
        if state.sandbox == Sandbox::Gone {
            publisher.stop();
        }
        Worker {
            records: host.records(&uid),
            host,
            pod: Arc::new(pod),
            uid,
            state,
            live: HashMap::new(),
            cleanups: Vec::new(),
            publisher,
            fed: None,
            feeding: false,
            followers: Vec::new(),
            retries: 0,
            told_limits: false,
            wake: None,
            mailbox,
            sender,
            exits,
            exit_sender,
        }
    }

    /// Runs until the pod is gone from this node.
    pub async fn run(mut self) {
        self.note("pod", self.records.write_pod(&self.pod));
        self.record_sandbox(self.ready_ips());
        self.resume();
        self.notice_deletion(true);
        loop {
            self.step();
            if self.is_done() {
                break;
            }
            let wake = self.wake;
            let timer = async {
                match wake {
                    Some(at) => {
                        let left = at.duration_since(Timestamp::now());
                        tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(message) = self.mailbox.recv() => self.receive(message),
                Some((id, exit)) = self.exits.recv() => self.exited(&id, exit),
                () = timer => {}
            }
            while let Ok((id, exit)) = self.exits.try_recv() {
                self.exited(&id, exit);
            }
            while let Ok(message) = self.mailbox.try_recv() {
                self.receive(message);
            }
        }
        self.clear().await;
    }

    fn is_done(&self) -> bool {
        self.state.vanished && self.state.sandbox == Sandbox::Gone
    }

    /// Removes the last traces: records and logs.
    async fn clear(self) {
        for follower in &self.followers {
            follower.abort();
        }
        self.host.views.remove(&self.uid);
        let logs = self.host.logs(&self.pod);
        let records = self.records.clone();
        let _ = tokio::task::spawn_blocking(move || {
            for result in [records.remove(), crate::volume::directory::remove_tree(&logs)] {
                if let Err(error) = result {
                    tracing::warn!(%error, "the traces of a pod were not removed");
                }
            }
        })
        .await;
    }

    /// Decides and acts until nothing is left to do now, then publishes.
    fn step(&mut self) {
        let now = Timestamp::now();
        self.check_deadline(now);
        let decision = decide(&self.pod, &self.state, now);
        for action in decision.actions {
            self.act(action, now);
        }
        let mut wake = decision.wake;
        let earlier = |wake: Option<Timestamp>, at: Timestamp| Some(wake.map_or(at, |other: Timestamp| other.min(at)));
        if let Some(renew_at) = self.fed.as_ref().and_then(|fed| fed.renew_at) {
            if now >= renew_at {
                self.refresh();
            } else {
                wake = earlier(wake, renew_at);
            }
        }
        self.host.views.set(&self.uid, View::of(&self.pod, &self.state));
        if let Some(due) = self
            .publisher
            .publish(&self.host, &self.pod, &self.state, &self.sender, now)
        {
            wake = earlier(wake, due);
        }
        self.wake = wake;
    }

    fn check_deadline(&mut self, now: Timestamp) {
        if self.state.ending.is_none()
            && decide::deadline(&self.pod, &self.state).is_some_and(|deadline| now >= deadline)
        {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.host
                .events
                .pod(&self.pod, None, Kind::Normal, "DeadlineExceeded", message.clone());
            self.state.grace = decide::grace(&self.pod);
            self.state.ending = Some(Ending::Failed {
                reason: "DeadlineExceeded".to_owned(),
                message,
            });
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Desired(pod) => self.desire(*pod),
            Message::Vanished => self.vanish(),
            Message::Prepared(result) => self.prepared(result),
            Message::Started { container, id, result } => self.started(&container, &id, result),
            Message::Hooked { container, id, result } => self.hooked(&container, &id, result),
            Message::Probed {
                container,
                id,
                kind,
                verdict,
            } => self.probed(&container, &id, kind, verdict),
            Message::Stale => self.refresh(),
            Message::Fed(result) => self.is_fed(result),
            Message::TornDown(result) => self.torn_down(result),
            Message::Sent(result) => self.publisher.sent(result, Timestamp::now()),
            Message::Finished => self.state.vanished = true,
        }
    }

    fn desire(&mut self, pod: Pod) {
        self.publisher.observe(&pod);
        let changed = pod.spec != self.pod.spec
            || pod.metadata.labels != self.pod.metadata.labels
            || pod.metadata.annotations != self.pod.metadata.annotations;
        let deleted = pod.metadata.deletion_timestamp != self.pod.metadata.deletion_timestamp;
        self.pod = Arc::new(pod);
        if changed || deleted {
            self.note("pod", self.records.write_pod(&self.pod));
        }
        if changed {
            for state in self.state.containers.values_mut() {
                if let Phase::Waiting { not_before, .. } = &mut state.phase {
                    *not_before = None;
                }
            }
            self.refresh();
        }
        self.notice_deletion(false);
    }

    /// The object is gone although this node did not delete it: end the pod without asking the API.
    fn vanish(&mut self) {
        self.state.vanished = true;
        if self.state.ending.is_none() {
            self.state.grace = self.state.grace.min(decide::grace(&self.pod));
        }
        self.state.ending = Some(Ending::Deleted);
        self.publisher.stop();
    }

    fn notice_deletion(&mut self, adopting: bool) {
        let Some(due) = self.pod.metadata.deletion_timestamp.clone() else {
            return;
        };
        let whole = self
            .pod
            .metadata
            .deletion_grace_period_seconds
            .and_then(|s| u64::try_from(s).ok());
        let whole = whole.map_or(decide::grace(&self.pod), Duration::from_secs);
        let left = Duration::try_from(due.0.duration_since(Timestamp::now())).unwrap_or_default();
        let grace = if adopting {
            left.min(whole).max(GRACE_MIN.min(whole))
        } else {
            whole
        };
        if self.state.ending == Some(Ending::Deleted) && grace >= self.state.grace {
            return;
        }
        self.state.ending = Some(Ending::Deleted);
        self.state.grace = grace;
        let deadline = Instant::now() + grace;
        for live in self.live.values() {
            if let Some(sender) = &live.deadline {
                sender.send_if_modified(|current| {
                    let sooner = deadline < *current;
                    if sooner {
                        *current = deadline;
                    }
                    sooner
                });
            }
        }
    }

    fn act(&mut self, action: Action, now: Timestamp) {
        match action {
            Action::Prepare => self.prepare(),
            Action::Start(container) => self.start(&container, now),
            Action::Kill {
                container,
                grace,
                message,
            } => self.kill(&container, grace, &message),
            Action::TearDown => self.tear_down(),
            Action::Finish => self.finish(),
        }
    }

    fn prepare(&mut self) {
        self.state.sandbox = Sandbox::Preparing;
        let (host, pod, sender) = (Arc::clone(&self.host), Arc::clone(&self.pod), self.sender.clone());
        tokio::spawn(async move {
            let _ = sender.send(Message::Prepared(sandbox::prepare(&host, &pod).await));
        });
    }

    fn prepared(&mut self, result: Result<Prepared, sandbox::Failure>) {
        match result {
            Ok(prepared) => {
                self.retries = 0;
                self.record_sandbox(Some(prepared.ips.clone()));
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

    fn next_retry(&mut self) -> Duration {
        let delay = (RETRY_FIRST * 2u32.saturating_pow(self.retries.min(16))).min(RETRY_MAX);
        self.retries += 1;
        delay
    }

    fn start(&mut self, name: &str, now: Timestamp) {
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

    fn started(&mut self, name: &str, id: &str, result: Result<Started, NotStarted>) {
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
    fn runs(&mut self, name: &str, id: &str, started_at: Timestamp) {
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

    fn post_start(&mut self, container: &Container, id: &str, handler: Handler) {
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

    fn refused(&mut self, name: &str, reason: &'static str, message: String) {
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

    fn hooked(&mut self, name: &str, id: &str, result: Result<(), String>) {
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

    /// Starts the startup probe, or when there is none or it is through, the others.
    fn probe(&mut self, container: &Container, id: &str, since: Timestamp) {
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

    fn probed(&mut self, name: &str, id: &str, kind: ProbeKind, verdict: Verdict) {
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

    fn is_running(&self, name: &str, id: &str) -> bool {
        self.state
            .containers
            .get(name)
            .is_some_and(|state| state.is_running() && state.id.as_deref() == Some(id))
    }

    fn target(&self, container: &Container, id: &str) -> Target {
        Target {
            warden: self.host.warden.clone(),
            id: id.to_owned(),
            config: self.records.bundle(id).join("config.json"),
            container: Arc::new(container.clone()),
            ip: self.state.ips().first().copied().unwrap_or(self.host.ip),
        }
    }

    fn attend(&mut self, name: &str, task: AbortHandle) {
        match self.live.get_mut(name) {
            Some(live) => live.tasks.push(task),
            None => task.abort(),
        }
    }

    fn kill(&mut self, name: &str, grace: Duration, message: &str) {
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

    fn exited(&mut self, id: &str, exit: warden::Exit) {
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
    fn clean_up(&mut self, id: &str, old_log: Option<std::path::PathBuf>) {
        let (host, uid, id) = (Arc::clone(&self.host), self.uid.clone(), id.to_owned());
        self.cleanups.retain(|task| !task.is_finished());
        self.cleanups.push(tokio::spawn(async move {
            if let Err(error) = host.warden.delete(&id).await {
                tracing::warn!(container = id, %error, "an ended container was not deleted");
            }
            let _ = tokio::task::spawn_blocking(move || {
                images::unmount(&host, &id);
                sandbox::clear_container(&host, &uid, &id);
                if let Some(log) = old_log {
                    remove_logs(&log);
                }
            })
            .await;
        }));
    }

    /// The BackOff event, when the next start has to wait.
    fn tell_back_off(&self, name: &str) {
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

    fn tell_missing_limits(&mut self, missing: &[&'static str]) {
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

    fn tear_down(&mut self) {
        self.state.sandbox = Sandbox::TearingDown;
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
            let done = tokio::task::spawn_blocking(move || sandbox::tear_down(&host, &uid)).await;
            let result = done.unwrap_or_else(|error| Err(error.to_string()));
            let _ = sender.send(Message::TornDown(result));
        });
    }

    fn torn_down(&mut self, result: Result<(), String>) {
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
                    let done = tokio::task::spawn_blocking(move || sandbox::tear_down(&host, &uid)).await;
                    let _ = sender.send(Message::TornDown(done.unwrap_or_else(|error| Err(error.to_string()))));
                });
            }
        }
    }

    /// Sends the last status, then lets the Pod object go.
    fn finish(&mut self) {
        self.state.finishing = true;
        if self.state.vanished {
            return;
        }
        let status = self.publisher.last_patch(&self.pod, &self.state, Timestamp::now());
        let (host, pod, sender) = (Arc::clone(&self.host), Arc::clone(&self.pod), self.sender.clone());
        tokio::spawn(async move {
            super::publish::finish(&host, &pod, status).await;
            let _ = sender.send(Message::Finished);
        });
    }

    fn refresh(&mut self) {
        if self.feeding || !matches!(self.state.sandbox, Sandbox::Ready { .. }) || self.state.ending.is_some() {
            return;
        }
        self.feeding = true;
        let (host, pod, sender) = (Arc::clone(&self.host), Arc::clone(&self.pod), self.sender.clone());
        tokio::spawn(async move {
            let _ = sender.send(Message::Fed(sandbox::feed(&host, &pod, false).await));
        });
    }

    fn is_fed(&mut self, result: Result<Fed, String>) {
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
                        entries: Vec::new(),
                        renew_at: Some(again),
                    });
                }
            }
        }
    }

    /// Follows what the volumes show.
    fn feed_from(&mut self, fed: Fed) {
        self.retries = 0;
        for follower in self.followers.drain(..) {
            follower.abort();
        }
        for entry in &fed.entries {
            let (changes, sender) = (entry.changes(), self.sender.clone());
            let task = tokio::spawn(async move {
                changes.await;
                let _ = sender.send(Message::Stale);
            });
            self.followers.push(task.abort_handle());
        }
        self.fed = Some(fed);
    }

    /// After adoption: listen to running containers, probe them, renew the volumes' sources.
    fn resume(&mut self) {
        let running: Vec<(String, String, Timestamp)> = self
            .state
            .containers
            .iter()
            .filter_map(|(name, state)| match &state.phase {
                Phase::Running { started_at, .. } => Some((name.clone(), state.id.clone()?, *started_at)),
                _ => None,
            })
            .collect();
        for (name, id, started_at) in running {
            self.live.insert(name.clone(), Live::new(&id));
            self.host.warden.listen(&id, self.exit_sender.clone());
            if let Some(container) = find_container(&self.pod, &name).cloned() {
                self.assume_hooked(&container);
                self.probe(&container, &id, started_at);
            }
        }
        if matches!(self.state.sandbox, Sandbox::Ready { .. }) {
            self.refresh();
            self.recheck_exits();
        }
    }

    /// A postStart hook that the last agent did not see the end of is not run twice.
    fn assume_hooked(&mut self, container: &Container) {
        if let Some(Phase::Running { started, .. }) = self
            .state
            .containers
            .get_mut(&container.name)
            .map(|state| &mut state.phase)
        {
            *started |= container.startup_probe.is_none();
        }
    }

    /// A container may have ended between the warden's list and the subscription.
    fn recheck_exits(&self) {
        let (warden, exits) = (self.host.warden.clone(), self.exit_sender.clone());
        let ids: Vec<String> = self.live.values().map(|live| live.id.clone()).collect();
        tokio::spawn(async move {
            let Ok(list) = warden.list().await else { return };
            for id in ids {
                match list
                    .iter()
                    .find(|container| container.id == id)
                    .map(|container| container.state)
                {
                    Some(warden::ContainerState::Exited(exit)) => drop(exits.send((id, exit))),
                    Some(_) => {}
                    None => drop(exits.send((id, super::warden::unknown_exit()))),
                }
            }
        });
    }

    fn ready_ips(&self) -> Option<Vec<std::net::IpAddr>> {
        matches!(self.state.sandbox, Sandbox::Ready { .. }).then(|| self.state.ips().to_vec())
    }

    fn record(&self, name: &str) {
        if let Some(state) = self.state.containers.get(name) {
            self.note("container", self.records.write_container(name, state));
        }
    }

    fn record_sandbox(&self, ips: Option<Vec<std::net::IpAddr>>) {
        let record = SandboxRecord {
            start_time: self.state.start_time,
            ips,
        };
        self.note("sandbox", self.records.write_sandbox(&record));
    }

    fn note(&self, what: &str, result: std::io::Result<()>) {
        if let Err(error) = result {
            tracing::error!(pod = self.uid, what, %error, "a record was not written: a restarted agent will not know of this");
        }
    }
}

/// A container id: random, so that it never names another attempt.
fn new_id() -> String {
    let mut bytes = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    if read.is_err() {
        bytes = Timestamp::now().as_nanosecond().to_le_bytes();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes a log file and its rotated ones.
fn remove_logs(log: &std::path::Path) {
    for rotated in warden::rotated_files(log) {
        let _ = std::fs::remove_file(rotated);
    }
    let _ = std::fs::remove_file(log);
}
