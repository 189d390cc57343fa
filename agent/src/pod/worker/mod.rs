//! One task per pod: keeps the observed state, asks `decide`, carries actions out, publishes the status.
//!
//! Long work (pulls, hooks, kills, tear-down) runs in tasks that report back through the mailbox, so the worker is
//! always ready for news. Invariant: state changes only here, and what must outlive the agent is recorded before the
//! act it announces.

mod containers;
mod probes;
mod resume;
mod sandbox;

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
use super::sandbox as pod_sandbox;
use super::sandbox::{Fed, Prepared};
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
    Prepared(Result<Prepared, pod_sandbox::Failure>),
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
        let mut publisher = Publisher::new(&pod, &host.ips);
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
