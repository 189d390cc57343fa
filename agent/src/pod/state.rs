//! What this node knows about a pod: the observed half of (desired, observed, clock) → actions.
//!
//! The parts that must outlive the agent are serialisable and are written to records (`record`) at each change;
//! everything else is derived anew after a restart.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde::{Deserialize, Serialize};

use super::backoff::Backoff;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The container's id; empty when it never came to life.
    pub id: String,
    /// Exit code, or 128 plus the signal.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// The termination message, or the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When its program started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// Where one container is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not started, or the last attempt to start failed before there was a container.
    Waiting {
        /// `ContainerCreating`, `ErrImagePull`, `CreateContainerConfigError`, …
        reason: String,
        /// For people.
        message: Option<String>,
        /// When to try again.
        not_before: Option<Timestamp>,
    },
    /// An attempt is under way.
    Starting,
    /// Its program runs.
    Running {
        /// Since when.
        started_at: Timestamp,
        /// The startup probe, if any, has succeeded and the postStart hook has run.
        started: bool,
        /// The readiness probe, if any, says so.
        ready: bool,
        /// A kill is under way.
        #[serde(skip)]
        killing: bool,
    },
    /// It ended.
    Exited(Exit),
}

/// One container of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Number of this attempt: 0 for the first, so also the restart count.
    pub attempt: u32,
    /// Id of the current or last container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The image as the pod names it, at the time of the attempt.
    #[serde(default)]
    pub image: String,
    /// Digest of the image that runs.
    #[serde(default)]
    pub image_id: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// How the attempt before this one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Exit>,
    /// Back-off of restarts.
    #[serde(default)]
    pub backoff: Backoff,
    /// Back-off of image pulls and of creation.
    #[serde(default)]
    pub create_backoff: Backoff,
    /// Its definition changed: it starts again whatever the restart policy says.
    #[serde(default)]
    pub replaced: bool,
}

impl Default for ContainerState {
    fn default() -> Self {
        ContainerState {
            attempt: 0,
            id: None,
            image: String::new(),
            image_id: String::new(),
            phase: Phase::Waiting {
                reason: CREATING.to_owned(),
                message: None,
                not_before: None,
            },
            last: None,
            backoff: Backoff::default(),
            create_backoff: Backoff::default(),
            replaced: false,
        }
    }
}

/// The reason of a container that waits for nothing in particular.
pub const CREATING: &str = "ContainerCreating";

impl ContainerState {
    /// Whether its program runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Whether it is alive or coming to life.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Running { .. } | Phase::Starting)
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn exit(&self) -> Option<&Exit> {
        match &self.phase {
            Phase::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

/// The pod's namespaces, network and volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Nothing made yet.
    Absent,
    /// Being made.
    Preparing,
    /// Ready for containers.
    Ready {
        /// The pod's addresses, the first one first.
        ips: Vec<IpAddr>,
    },
    /// Could not be made.
    Failed {
        /// Why.
        message: String,
        /// When to try again.
        retry_at: Timestamp,
    },
    /// Being taken down.
    TearingDown,
    /// Taken down after it was used.
    Gone,
}

/// Why a pod ends before its containers do by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is being deleted.
    Deleted,
    /// It ran past `activeDeadlineSeconds`, or this node refuses it.
    Failed {
        /// `DeadlineExceeded`, `NodeAffinity`, …
        reason: String,
        /// For people.
        message: String,
    },
}

/// The pod as a whole.
#[derive(Clone, Debug)]
pub struct PodState {
    /// Namespaces, network, volumes.
    pub sandbox: Sandbox,
    /// Containers and init containers by name.
    pub containers: BTreeMap<String, ContainerState>,
    /// When this node accepted the pod.
    pub start_time: Timestamp,
    /// Set once the pod must end.
    pub ending: Option<Ending>,
    /// How long its containers get between SIGTERM and SIGKILL while it ends.
    pub grace: Duration,
    /// The Pod object no longer exists.
    pub vanished: bool,
    /// The final delete is under way.
    pub finishing: bool,
}

impl PodState {
    /// The state of a pod never seen before.
    #[must_use]
    pub fn new(pod: &Pod, now: Timestamp) -> Self {
        PodState {
            sandbox: Sandbox::Absent,
            containers: containers(pod)
                .map(|(c, _)| (c.name.clone(), ContainerState::default()))
                .collect(),
            start_time: now,
            ending: None,
            grace: Duration::from_secs(30),
            vanished: false,
            finishing: false,
        }
    }

    /// A container's state; a container not known yet is waiting.
    #[must_use]
    pub fn container(&self, name: &str) -> std::borrow::Cow<'_, ContainerState> {
        match self.containers.get(name) {
            Some(state) => std::borrow::Cow::Borrowed(state),
            None => std::borrow::Cow::Owned(ContainerState::default()),
        }
    }

    /// The pod's address, if it has one.
    #[must_use]
    pub fn ips(&self) -> &[IpAddr] {
        match &self.sandbox {
            Sandbox::Ready { ips } => ips,
            _ => &[],
        }
    }
}

/// What role a container plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to completion before the next.
    Init,
    /// An init container that keeps running (`restartPolicy: Always`).
    Sidecar,
    /// Runs when all init containers are done.
    Main,
}

/// All containers of the pod in start order.
pub fn containers(pod: &Pod) -> impl Iterator<Item = (&Container, Role)> {
    let spec = pod.spec.as_ref();
    let init = spec
        .into_iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .map(|container| {
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            (container, if sidecar { Role::Sidecar } else { Role::Init })
        });
    init.chain(
        spec.into_iter()
            .flat_map(|spec| &spec.containers)
            .map(|container| (container, Role::Main)),
    )
}

/// The pod's restart policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Restart whatever happened.
    Always,
    /// Restart unless the exit code was 0.
    OnFailure,
    /// Never restart.
    Never,
}

impl RestartPolicy {
    /// The policy of the pod, `Always` by default.
    #[must_use]
    pub fn of(spec: Option<&PodSpec>) -> Self {
        match spec.and_then(|spec| spec.restart_policy.as_deref()) {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    /// Whether a container of this `role` that ended with `code` is started again.
    #[must_use]
    pub fn restarts(self, role: Role, code: i32) -> bool {
        match (role, self) {
            (Role::Sidecar, _) | (Role::Main, RestartPolicy::Always) => true,
            (_, RestartPolicy::Never) => false,
            (_, RestartPolicy::OnFailure) | (Role::Init, RestartPolicy::Always) => code != 0,
        }
    }
}
