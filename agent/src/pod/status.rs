//! The PodStatus that the API shows, computed from the pod, what this node observes and the clock.
//!
//! Pure, and stable: the same state yields the same status, so a status is sent only when something changed.
//! Follows the kubelet's `generateAPIPodStatus` and the Pod life cycle page of the documentation.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decide::{Progress, progress};
use super::qos::QosClass;
use super::state::{ContainerState, Ending, Exit, Phase, PodState, RestartPolicy, Role, Sandbox, containers};

/// The scheme of container ids in the API.
pub const ID_SCHEME: &str = "hull://";

/// How long `ErrImagePull` is shown before it becomes `ImagePullBackOff`.
const ERROR_SHOWN: Duration = Duration::from_secs(2);

/// Computes the status. `previous` is what was last sent, or what the API has: transition times, the pod's last
/// address and other writers' conditions are taken from it.
#[must_use]
pub fn compute(pod: &Pod, state: &PodState, previous: &PodStatus, host_ips: &[IpAddr], now: Timestamp) -> PodStatus {
    let progress = progress(pod, state);
    let (mut init, mut main) = (Vec::new(), Vec::new());
    for (container, role) in containers(pod) {
        let status = container_status(pod, container, role, state, progress, now);
        if role == Role::Main {
            main.push(status)
        } else {
            init.push(status)
        }
    }
    let phase = phase(pod, state, progress, &main);
    let mut status = PodStatus {
        conditions: Some(conditions(pod, state, previous, progress, phase, &init, &main, now)),
        container_statuses: Some(main),
        init_container_statuses: Some(init).filter(|all| !all.is_empty()),
        host_ip: host_ips.first().map(ToString::to_string),
        host_ips: Some(host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        phase: Some(phase.to_owned()),
        qos_class: Some(QosClass::of(pod).as_str().to_owned()),
        start_time: Some(time(state.start_time)),
        pod_ip: previous.pod_ip.clone(),
        pod_ips: previous.pod_ips.clone(),
        ..PodStatus::default()
    };
    if let Some(first) = state.ips().first() {
        status.pod_ip = Some(first.to_string());
        status.pod_ips = Some(
            state
                .ips()
                .iter()
                .map(|ip: &IpAddr| PodIP { ip: ip.to_string() })
                .collect(),
        );
    }
    if let Some(Ending::Failed { reason, message }) = &state.ending {
        status.reason = Some(reason.clone());
        status.message = Some(message.clone());
    }
    status
}

/// The phase, as the kubelet's `getPhase` and `GetPodPhase` have it.
fn phase(pod: &Pod, state: &PodState, progress: Progress, main: &[ContainerStatus]) -> &'static str {
    if matches!(state.ending, Some(Ending::Failed { .. })) || progress == Progress::InitFailed {
        return "Failed";
    }
    if progress == Progress::Initializing && main.iter().all(|status| status.container_id.is_none()) {
        return "Pending";
    }
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in main {
        let Some(current) = &status.state else { continue };
        let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        if current.running.is_some() {
            running += 1;
        } else if let Some(terminated) = &current.terminated {
            stopped += 1;
            succeeded += usize::from(terminated.exit_code == 0);
        } else if last.is_some() {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    let policy = RestartPolicy::of(pod.spec.as_ref());
    let final_end = state.ending.is_some() || policy != RestartPolicy::Always;
    match (waiting > 0, running > 0, stopped > 0) {
        (true, ..) => "Pending",
        (_, true, _) => "Running",
        (_, _, true) if final_end && stopped == succeeded => "Succeeded",
        (_, _, true) if state.ending.is_some() || policy == RestartPolicy::Never => "Failed",
        (_, _, true) => "Running",
        _ => "Pending",
    }
}

fn container_status(
    pod: &Pod,
    container: &Container,
    role: Role,
    state: &PodState,
    progress: Progress,
    now: Timestamp,
) -> ContainerStatus {
    let observed = state.container(&container.name);
    let (current, last) = states(pod, container, role, state, progress, &observed, now);
    let (started, ready) = match &observed.phase {
        Phase::Running { started, ready, .. } => {
            (*started, if role == Role::Init { false } else { *ready && *started })
        }
        Phase::Exited(exit) => (false, role == Role::Init && exit.code == 0),
        _ => (false, false),
    };
    let named = container.image.clone().unwrap_or_default();
    ContainerStatus {
        name: container.name.clone(),
        image: if observed.image.is_empty() {
            named
        } else {
            observed.image.clone()
        },
        image_id: observed.image_id.clone(),
        container_id: observed.id.as_ref().map(|id| format!("{ID_SCHEME}{id}")),
        ready,
        started: Some(started),
        restart_count: i32::try_from(observed.attempt).unwrap_or(i32::MAX),
        state: Some(current),
        last_state: Some(last),
        ..ContainerStatus::default()
    }
}

/// The current and the last state as the API tells them.
fn states(
    pod: &Pod,
    container: &Container,
    role: Role,
    state: &PodState,
    progress: Progress,
    observed: &ContainerState,
    now: Timestamp,
) -> (ApiState, ApiState) {
    let last = observed.last.as_ref().map(terminated).unwrap_or_default();
    match &observed.phase {
        Phase::Running { started_at, .. } => {
            let running = Some(ContainerStateRunning {
                started_at: Some(time(*started_at)),
            });
            (
                ApiState {
                    running,
                    ..ApiState::default()
                },
                last,
            )
        }
        Phase::Exited(exit) => {
            let restarts = RestartPolicy::of(pod.spec.as_ref()).restarts(role, exit.code) || observed.replaced;
            let due = observed.backoff.next_attempt(exit.finished_at);
            if restarts && state.ending.is_none() && now < due && progress != Progress::InitFailed {
                (
                    waiting("CrashLoopBackOff", Some(crash_loop_message(pod, container, observed))),
                    terminated(exit),
                )
            } else {
                (terminated(exit), last)
            }
        }
        Phase::Starting => (waiting(creating_reason(pod, role, progress), None), last),
        Phase::Waiting { reason, message, .. } if reason == super::state::CREATING => {
            (waiting(creating_reason(pod, role, progress), message.clone()), last)
        }
        Phase::Waiting { reason, message, .. } => match image_back_off(container, observed) {
            Some((shown_from, back_off)) if now >= shown_from => (waiting("ImagePullBackOff", Some(back_off)), last),
            _ => (waiting(reason, message.clone()), last),
        },
    }
}

/// From when on a failed pull is shown as a back-off, and its message. The error itself is shown first, for long
/// enough to be seen.
#[must_use]
pub fn image_back_off(container: &Container, observed: &ContainerState) -> Option<(Timestamp, String)> {
    let Phase::Waiting {
        reason,
        message,
        not_before: Some(due),
    } = &observed.phase
    else {
        return None;
    };
    if reason != "ErrImagePull" {
        return None;
    }
    let failed = *due - observed.create_backoff.delay();
    let image = container.image.as_deref().unwrap_or_default();
    let message = format!(
        "Back-off pulling image {image:?}: ErrImagePull: {}",
        message.as_deref().unwrap_or_default()
    );
    Some((failed + ERROR_SHOWN, message))
}

/// The message of `CrashLoopBackOff`, which is also that of the BackOff event.
#[must_use]
pub fn crash_loop_message(pod: &Pod, container: &Container, observed: &ContainerState) -> String {
    format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        short_duration(observed.backoff.delay().as_secs()),
        container.name,
        pod.metadata.name.as_deref().unwrap_or_default(),
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.uid.as_deref().unwrap_or_default(),
    )
}

/// `10s`, `1m20s`, `5m0s`: as Go prints durations.
fn short_duration(seconds: u64) -> String {
    if seconds < 60 {
        format!("{seconds}s")
    } else {
        format!("{}m{}s", seconds / 60, seconds % 60)
    }
}

fn creating_reason(pod: &Pod, role: Role, progress: Progress) -> &'static str {
    let has_init = pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.init_containers.iter().flatten().next().is_some());
    let held_back = has_init && matches!(progress, Progress::Initializing | Progress::InitFailed);
    if held_back || (role != Role::Main && has_init) {
        "PodInitializing"
    } else {
        super::state::CREATING
    }
}

fn waiting(reason: &str, message: Option<String>) -> ApiState {
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..ApiState::default()
    }
}

fn terminated(exit: &Exit) -> ApiState {
    ApiState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(exit.id.clone())
                .filter(|id| !id.is_empty())
                .map(|id| format!("{ID_SCHEME}{id}")),
            exit_code: exit.code,
            // The kubelet leaves `signal` out: the exit code carries it.
            signal: None,
            reason: Some(exit.reason.clone()),
            message: exit.message.clone(),
            started_at: exit.started_at.or(Some(exit.finished_at)).map(time),
            finished_at: Some(time(exit.finished_at)),
        }),
        ..ApiState::default()
    }
}

/// The API's times have whole seconds.
fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// A condition before its times are known.
struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

#[allow(
    clippy::too_many_arguments,
    reason = "one caller; the parts of a status in the making"
)]
fn conditions(
    pod: &Pod,
    state: &PodState,
    previous: &PodStatus,
    progress: Progress,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    now: Timestamp,
) -> Vec<PodCondition> {
    let sandbox = matches!(state.sandbox, Sandbox::Ready { .. });
    let containers_ready = containers_ready(pod, phase, init, main);
    let ready = ready(pod, previous, &containers_ready);
    let verdicts = [
        Verdict {
            kind: "PodReadyToStartContainers",
            holds: sandbox,
            reason: None,
            message: None,
        },
        initialized(phase, progress, init),
        ready,
        containers_ready,
    ];
    let mut conditions: Vec<PodCondition> = verdicts
        .into_iter()
        .map(|verdict| dated(verdict, pod, previous, now))
        .collect();
    if let Some(scheduled) = find(previous, "PodScheduled") {
        conditions.push(scheduled.clone());
    } else {
        let verdict = Verdict {
            kind: "PodScheduled",
            holds: true,
            reason: None,
            message: None,
        };
        conditions.push(dated(verdict, pod, previous, now));
    }
    conditions
}

fn dated(verdict: Verdict, pod: &Pod, previous: &PodStatus, now: Timestamp) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let unchanged = find(previous, verdict.kind).filter(|old| old.status == status);
    PodCondition {
        type_: verdict.kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: unchanged
            .and_then(|old| old.last_transition_time.clone())
            .or(Some(time(now))),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    }
}

fn find<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind)
}

fn initialized(phase: &str, progress: Progress, init: &[ContainerStatus]) -> Verdict {
    let kind = "Initialized";
    if phase == "Succeeded" {
        return Verdict {
            kind,
            holds: true,
            reason: Some("PodCompleted"),
            message: None,
        };
    }
    if matches!(progress, Progress::Initialized | Progress::Complete) {
        return Verdict {
            kind,
            holds: true,
            reason: None,
            message: None,
        };
    }
    let incomplete = names(init, |status| !status.ready);
    let message = Some(format!("containers with incomplete status: [{incomplete}]"));
    Verdict {
        kind,
        holds: false,
        reason: Some("ContainersNotInitialized"),
        message,
    }
}

fn containers_ready(pod: &Pod, phase: &str, init: &[ContainerStatus], main: &[ContainerStatus]) -> Verdict {
    let kind = "ContainersReady";
    match phase {
        "Succeeded" => {
            return Verdict {
                kind,
                holds: false,
                reason: Some("PodCompleted"),
                message: None,
            };
        }
        "Failed" => {
            return Verdict {
                kind,
                holds: false,
                reason: Some("PodFailed"),
                message: None,
            };
        }
        _ => {}
    }
    let sidecar = |name: &str| containers(pod).any(|(c, role)| role == Role::Sidecar && c.name == name);
    let mut unready = names(main, |status| !status.ready);
    let unready_sidecars = names(init, |status| !status.ready && sidecar(&status.name));
    if !unready_sidecars.is_empty() {
        unready = [unready, unready_sidecars].join(" ").trim().to_owned();
    }
    if unready.is_empty() {
        return Verdict {
            kind,
            holds: true,
            reason: None,
            message: None,
        };
    }
    let message = Some(format!("containers with unready status: [{unready}]"));
    Verdict {
        kind,
        holds: false,
        reason: Some("ContainersNotReady"),
        message,
    }
}

/// `Ready` is `ContainersReady` and every readiness gate, whose conditions others write.
fn ready(pod: &Pod, previous: &PodStatus, containers_ready: &Verdict) -> Verdict {
    let kind = "Ready";
    if !containers_ready.holds {
        let message = containers_ready.message.clone();
        return Verdict {
            kind,
            holds: false,
            reason: containers_ready.reason,
            message,
        };
    }
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let external = pod.status.as_ref().unwrap_or(previous);
    let holds = |gate: &str| find(external, gate).is_some_and(|condition| condition.status == "True");
    match gates.map(|gate| &gate.condition_type).find(|gate| !holds(gate)) {
        None => Verdict {
            kind,
            holds: true,
            reason: None,
            message: None,
        },
        Some(gate) => {
            let message = Some(format!(
                "corresponding condition of pod readiness gate {gate:?} does not exist or is not true."
            ));
            Verdict {
                kind,
                holds: false,
                reason: Some("ReadinessGatesNotReady"),
                message,
            }
        }
    }
}

fn names(statuses: &[ContainerStatus], chosen: impl Fn(&ContainerStatus) -> bool) -> String {
    let names: Vec<&str> = statuses.iter().filter(|s| chosen(s)).map(|s| s.name.as_str()).collect();
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn pod(spec: Value) -> Pod {
        from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn exit(code: i32) -> Exit {
        Exit {
            id: "c1".into(),
            code,
            signal: None,
            reason: "Error".into(),
            message: None,
            started_at: Some(now()),
            finished_at: now(),
        }
    }

    fn with(pod: &Pod, phase: Phase) -> PodState {
        let mut state = PodState::new(pod, now());
        state.sandbox = Sandbox::Ready {
            ips: vec!["10.244.0.7".parse().unwrap()],
        };
        for container in state.containers.values_mut() {
            container.phase = phase.clone();
        }
        state
    }

    fn of(pod: &Pod, state: &PodState) -> PodStatus {
        compute(pod, state, &PodStatus::default(), &[[192, 0, 2, 1].into()], now())
    }

    fn condition(status: &PodStatus, kind: &str) -> (String, Option<String>) {
        let found = find(status, kind).unwrap();
        (found.status.clone(), found.reason.clone())
    }

    #[test]
    fn a_new_pod_is_pending_and_its_container_creating() {
        let pod = pod(json!({"containers": [{"name": "a", "image": "web"}]}));
        let status = of(&pod, &PodState::new(&pod, now()));
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        let container = &status.container_statuses.as_ref().unwrap()[0];
        let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
        assert_eq!(
            condition(&status, "Ready"),
            ("False".into(), Some("ContainersNotReady".into()))
        );
    }

    #[test]
    fn a_running_pod_has_its_address_and_is_ready() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let running = Phase::Running {
            started_at: now(),
            started: true,
            ready: true,
            killing: false,
        };
        let status = of(&pod, &with(&pod, running));
        assert_eq!(status.phase.as_deref(), Some("Running"));
        assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.7"));
        assert_eq!(condition(&status, "Ready").0, "True");
        let unready = Phase::Running {
            started_at: now(),
            started: true,
            ready: false,
            killing: false,
        };
        let status = of(&pod, &with(&pod, unready));
        assert_eq!(condition(&status, "ContainersReady").0, "False");
        assert_eq!(status.phase.as_deref(), Some("Running"));
    }

    #[test]
    fn ends_give_the_phase_by_policy() {
        for (policy, code, phase) in [
            ("Never", 0, "Succeeded"),
            ("Never", 1, "Failed"),
            ("OnFailure", 0, "Succeeded"),
            ("OnFailure", 1, "Running"),
            ("Always", 0, "Running"),
        ] {
            let pod = pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
            let status = of(&pod, &with(&pod, Phase::Exited(exit(code))));
            assert_eq!(status.phase.as_deref(), Some(phase), "{policy} {code}");
        }
    }

    #[test]
    fn a_container_in_back_off_waits_and_remembers_its_end() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let mut state = with(&pod, Phase::Exited(exit(7)));
        state.containers.get_mut("a").unwrap().backoff.attempt(now());
        state.containers.get_mut("a").unwrap().attempt = 1;
        let status = of(&pod, &state);
        let container = &status.container_statuses.as_ref().unwrap()[0];
        let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(
            waiting.message.as_deref(),
            Some("back-off 10s restarting failed container=a pod=p_ns(u)")
        );
        let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((last.exit_code, container.restart_count), (7, 1));
        assert_eq!(status.phase.as_deref(), Some("Running"));
    }

    #[test]
    fn a_failed_pull_is_shown_as_error_then_as_back_off() {
        let pod = pod(json!({"containers": [{"name": "a", "image": "web"}]}));
        let mut state = PodState::new(&pod, now());
        let container = state.containers.get_mut("a").unwrap();
        container.create_backoff.attempt(now());
        let not_before = Some(now() + Duration::from_secs(10));
        container.phase = Phase::Waiting {
            reason: "ErrImagePull".into(),
            message: Some("no".into()),
            not_before,
        };
        let reason = |at| {
            let status = compute(&pod, &state, &PodStatus::default(), &[[192, 0, 2, 1].into()], at);
            let state = status.container_statuses.unwrap().remove(0).state.unwrap();
            state.waiting.unwrap().reason.unwrap()
        };
        assert_eq!(reason(now()), "ErrImagePull");
        assert_eq!(reason(now() + Duration::from_secs(3)), "ImagePullBackOff");
    }

    #[test]
    fn init_containers_hold_the_mains_back() {
        let pod = pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
        let mut state = with(&pod, Phase::Starting);
        state.containers.get_mut("a").unwrap().phase = ContainerState::default().phase;
        let status = of(&pod, &state);
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        let main = &status.container_statuses.as_ref().unwrap()[0];
        let reason = main.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref();
        assert_eq!(reason, Some("PodInitializing"));
        assert_eq!(
            condition(&status, "Initialized"),
            ("False".into(), Some("ContainersNotInitialized".into()))
        );
        state.containers.get_mut("i").unwrap().phase = Phase::Exited(exit(0));
        assert_eq!(condition(&of(&pod, &state), "Initialized").0, "True");
    }

    #[test]
    fn transition_times_move_only_with_the_status() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let running = Phase::Running {
            started_at: now(),
            started: true,
            ready: true,
            killing: false,
        };
        let state = with(&pod, running);
        let first = of(&pod, &state);
        let later = compute(
            &pod,
            &state,
            &first,
            &[[192, 0, 2, 1].into()],
            now() + Duration::from_secs(60),
        );
        assert_eq!(first, later);
    }

    #[test]
    fn a_deleted_pod_whose_containers_were_killed_has_failed() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let mut state = with(&pod, Phase::Exited(exit(143)));
        state.ending = Some(Ending::Deleted);
        assert_eq!(of(&pod, &state).phase.as_deref(), Some("Failed"));
    }
}
