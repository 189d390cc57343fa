//! What to do next for one pod: a pure function of the desired pod, the observed state and the clock.
//!
//! Follows the kubelet's `computePodActions`. Invariant: an action is returned only if carrying it out changes the
//! state so that it is not returned again (`Absent` → `Preparing`, `Waiting` → `Starting`, `Running` → `killing`), so
//! deciding after every event is safe.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::state::{ContainerState, Ending, Phase, PodState, RestartPolicy, Role, Sandbox, containers};
use super::status::image_back_off;

/// Something for the worker to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make namespaces, network and volumes.
    Prepare,
    /// Start the next attempt of a container.
    Start(String),
    /// End a container.
    Kill {
        /// Which.
        container: String,
        /// Time between SIGTERM and SIGKILL, preStop included.
        grace: Duration,
        /// For the event.
        message: String,
    },
    /// Take namespaces, network and volumes down.
    TearDown,
    /// Everything is gone: let the Pod object go too.
    Finish,
}

/// What to do now, and when to look again at the latest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// In order.
    pub actions: Vec<Action>,
    /// The next moment at which time alone changes the decision.
    pub wake: Option<Timestamp>,
}

impl Decision {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |other| other.min(at)));
    }
}

/// How far the pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Init containers still have work to do.
    Initializing,
    /// An init container failed for good.
    InitFailed,
    /// Main containers may run.
    Initialized,
    /// Every main container ended for good.
    Complete,
}

/// How far the pod has come, by its restart policy and the ends of its containers.
#[must_use]
pub fn progress(pod: &Pod, state: &PodState) -> Progress {
    let policy = RestartPolicy::of(pod.spec.as_ref());
    let mut mains = 0;
    let mut ended = 0;
    let mut initialized = true;
    for (container, role) in containers(pod) {
        let observed = state.container(&container.name);
        match (role, &observed.phase) {
            (Role::Init, Phase::Exited(exit)) if exit.code == 0 => {}
            (Role::Init, Phase::Exited(exit)) if !policy.restarts(role, exit.code) => return Progress::InitFailed,
            (Role::Init, _) => initialized = false,
            (Role::Sidecar, Phase::Running { started: true, .. }) => {}
            (Role::Sidecar, _) if observed.attempt > 0 || observed.exit().is_some() => {}
            (Role::Sidecar, _) => initialized = false,
            (Role::Main, phase) => {
                mains += 1;
                if let Phase::Exited(exit) = phase {
                    ended += usize::from(!policy.restarts(role, exit.code) && !observed.replaced);
                }
            }
        }
    }
    match (mains > 0 && ended == mains, initialized) {
        (true, _) => Progress::Complete,
        (false, true) => Progress::Initialized,
        (false, false) => Progress::Initializing,
    }
}

/// Decides.
#[must_use]
pub fn decide(pod: &Pod, state: &PodState, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    if let Some(ending) = &state.ending {
        end(pod, state, ending, &mut decision);
        return decision;
    }
    let progress = progress(pod, state);
    if matches!(progress, Progress::Complete | Progress::InitFailed) {
        wind_down(pod, state, &mut decision);
        return decision;
    }
    if let Some(deadline) = deadline(pod, state) {
        decision.wake_at(deadline);
    }
    match &state.sandbox {
        Sandbox::Absent => decision.actions.push(Action::Prepare),
        Sandbox::Failed { retry_at, .. } if now >= *retry_at => decision.actions.push(Action::Prepare),
        Sandbox::Failed { retry_at, .. } => decision.wake_at(*retry_at),
        Sandbox::Ready { .. } => run(pod, state, now, &mut decision),
        Sandbox::Preparing | Sandbox::TearingDown | Sandbox::Gone => {}
    }
    decision
}

/// When the pod exceeds its `activeDeadlineSeconds`.
#[must_use]
pub fn deadline(pod: &Pod, state: &PodState) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    Some(state.start_time + Duration::from_secs(u64::try_from(seconds).ok()?))
}

fn run(pod: &Pod, state: &PodState, now: Timestamp, decision: &mut Decision) {
    let policy = RestartPolicy::of(pod.spec.as_ref());
    for (container, role) in containers(pod) {
        let observed = state.container(&container.name);
        replace_changed(container, &observed, pod, decision);
        match (role, &observed.phase) {
            (Role::Init, Phase::Exited(exit)) if exit.code == 0 => {}
            (Role::Init, _) => {
                start_when_due(container, role, policy, &observed, now, decision);
                return;
            }
            (Role::Sidecar, Phase::Running { started: true, .. }) => {}
            (Role::Sidecar, _) => {
                start_when_due(container, role, policy, &observed, now, decision);
                if observed.attempt == 0 && observed.exit().is_none() {
                    return;
                }
            }
            (Role::Main, _) => start_when_due(container, role, policy, &observed, now, decision),
        }
    }
}

fn start_when_due(
    container: &Container,
    role: Role,
    policy: RestartPolicy,
    observed: &ContainerState,
    now: Timestamp,
    decision: &mut Decision,
) {
    let due = match &observed.phase {
        Phase::Waiting { not_before, .. } => not_before.unwrap_or(now),
        Phase::Exited(_) if observed.replaced => now,
        Phase::Exited(exit) if policy.restarts(role, exit.code) => observed.backoff.next_attempt(exit.finished_at),
        _ => return,
    };
    if due <= now {
        decision.actions.push(Action::Start(container.name.clone()));
    } else {
        decision.wake_at(due);
        if let Some((shown_from, _)) = image_back_off(container, observed).filter(|(from, _)| *from > now) {
            decision.wake_at(shown_from);
        }
    }
}

/// A running container whose image changed in the pod is ended, to be started again from the new one.
fn replace_changed(container: &Container, observed: &ContainerState, pod: &Pod, decision: &mut Decision) {
    let wanted = container.image.as_deref().unwrap_or_default();
    if let Phase::Running { killing: false, .. } = observed.phase
        && observed.image != wanted
    {
        decision.actions.push(Action::Kill {
            container: container.name.clone(),
            grace: grace(pod),
            message: format!("Container {} definition changed, will be restarted", container.name),
        });
    }
}

/// The pod's own termination grace period.
#[must_use]
pub fn grace(pod: &Pod) -> Duration {
    let seconds = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.termination_grace_period_seconds)
        .unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The main containers are done: sidecars end, then the sandbox goes.
fn wind_down(pod: &Pod, state: &PodState, decision: &mut Decision) {
    if kill_all(pod, state, grace(pod), decision) {
        take_down(state, decision);
    }
}

fn end(pod: &Pod, state: &PodState, ending: &Ending, decision: &mut Decision) {
    if !kill_all(pod, state, state.grace, decision) || state.sandbox == Sandbox::Preparing {
        return;
    }
    take_down(state, decision);
    let down = matches!(state.sandbox, Sandbox::Gone);
    if down && *ending == Ending::Deleted && !state.finishing {
        decision.actions.push(Action::Finish);
    }
}

/// Kills what runs, main containers first, sidecars when those are gone. True when nothing is alive.
fn kill_all(pod: &Pod, state: &PodState, grace: Duration, decision: &mut Decision) -> bool {
    let mut alive = false;
    let all: Vec<_> = containers(pod).collect();
    let (sidecars, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, role)| *role == Role::Sidecar);
    for group in [others, sidecars] {
        if alive {
            return false;
        }
        for (container, _) in group {
            let observed = state.container(&container.name);
            alive |= observed.is_active();
            if let Phase::Running { killing: false, .. } = observed.phase {
                decision.actions.push(Action::Kill {
                    container: container.name.clone(),
                    grace,
                    message: format!("Stopping container {}", container.name),
                });
            }
        }
    }
    !alive
}

fn take_down(state: &PodState, decision: &mut Decision) {
    match state.sandbox {
        Sandbox::Absent | Sandbox::Ready { .. } | Sandbox::Failed { .. } => decision.actions.push(Action::TearDown),
        Sandbox::Preparing | Sandbox::TearingDown | Sandbox::Gone => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::Exit;
    use super::*;
    use serde_json::{Value, from_value, json};

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn pod(spec: Value) -> Pod {
        from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn ready(pod: &Pod) -> PodState {
        PodState {
            sandbox: Sandbox::Ready { ips: vec![] },
            ..PodState::new(pod, now())
        }
    }

    fn set(state: &mut PodState, name: &str, phase: Phase) {
        state.containers.entry(name.to_owned()).or_default().phase = phase;
    }

    fn exited(code: i32) -> Phase {
        Phase::Exited(Exit {
            id: "x".into(),
            code,
            signal: None,
            reason: "Error".into(),
            message: None,
            started_at: None,
            finished_at: now(),
        })
    }

    fn running() -> Phase {
        Phase::Running {
            started_at: now(),
            started: true,
            ready: true,
            killing: false,
        }
    }

    #[test]
    fn sandbox_first_then_init_in_order_then_all_mains() {
        let pod = pod(json!({"initContainers": [{"name": "i1"}, {"name": "i2"}],
            "containers": [{"name": "a"}, {"name": "b"}]}));
        let mut state = PodState::new(&pod, now());
        assert_eq!(decide(&pod, &state, now()).actions, [Action::Prepare]);
        state = ready(&pod);
        assert_eq!(decide(&pod, &state, now()).actions, [Action::Start("i1".into())]);
        set(&mut state, "i1", Phase::Starting);
        assert!(decide(&pod, &state, now()).actions.is_empty());
        set(&mut state, "i1", exited(0));
        assert_eq!(decide(&pod, &state, now()).actions, [Action::Start("i2".into())]);
        set(&mut state, "i2", exited(0));
        let starts = [Action::Start("a".into()), Action::Start("b".into())];
        assert_eq!(decide(&pod, &state, now()).actions, starts);
    }

    #[test]
    fn restart_policies_decide_who_starts_again() {
        for (policy, code, restarts) in [
            ("Always", 0, true),
            ("Always", 1, true),
            ("OnFailure", 0, false),
            ("OnFailure", 1, true),
            ("Never", 0, false),
            ("Never", 1, false),
        ] {
            let pod = pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}));
            let mut state = ready(&pod);
            set(&mut state, "a", exited(code));
            set(&mut state, "b", running());
            let expected = if restarts {
                vec![Action::Start("a".into())]
            } else {
                vec![]
            };
            assert_eq!(decide(&pod, &state, now()).actions, expected, "{policy} {code}");
        }
    }

    #[test]
    fn a_second_crash_waits_for_the_back_off() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let mut state = ready(&pod);
        set(&mut state, "a", exited(1));
        state.containers.get_mut("a").unwrap().backoff.attempt(now());
        let decision = decide(&pod, &state, now());
        assert!(decision.actions.is_empty());
        let due = now() + Duration::from_secs(10);
        assert_eq!(decision.wake, Some(due));
        assert_eq!(decide(&pod, &state, due).actions, [Action::Start("a".into())]);
    }

    #[test]
    fn a_failed_init_container_ends_a_never_pod() {
        let pod =
            pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
        let mut state = ready(&pod);
        set(&mut state, "i", exited(3));
        assert_eq!(progress(&pod, &state), Progress::InitFailed);
        assert_eq!(decide(&pod, &state, now()).actions, [Action::TearDown]);
    }

    #[test]
    fn sidecars_gate_the_mains_and_outlive_them() {
        let pod = pod(
            json!({"restartPolicy": "Never", "initContainers": [{"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}]}),
        );
        let mut state = ready(&pod);
        assert_eq!(decide(&pod, &state, now()).actions, [Action::Start("s".into())]);
        set(&mut state, "s", running());
        assert_eq!(
            decide(&pod, &state, now()).actions,
            [Action::Start("a".into()),],
            "started"
        );
        set(&mut state, "a", exited(0));
        let decision = decide(&pod, &state, now());
        assert!(matches!(&decision.actions[..], [Action::Kill { container, .. }] if container == "s"));
        set(&mut state, "s", exited(0));
        assert_eq!(decide(&pod, &state, now()).actions, [Action::TearDown]);
    }

    #[test]
    fn deletion_kills_then_tears_down_then_finishes() {
        let pod = pod(json!({"containers": [{"name": "a", "image": ""}, {"name": "b"}]}));
        let mut state = ready(&pod);
        set(&mut state, "a", running());
        set(&mut state, "b", Phase::Starting);
        state.ending = Some(Ending::Deleted);
        state.grace = Duration::from_secs(5);
        let decision = decide(&pod, &state, now());
        assert!(matches!(&decision.actions[..],
            [Action::Kill { container, grace, .. }] if container == "a" && *grace == Duration::from_secs(5)));
        set(&mut state, "a", exited(143));
        assert!(
            decide(&pod, &state, now()).actions.is_empty(),
            "b is still coming to life"
        );
        set(&mut state, "b", exited(143));
        assert_eq!(decide(&pod, &state, now()).actions, [Action::TearDown]);
        state.sandbox = Sandbox::Gone;
        assert_eq!(decide(&pod, &state, now()).actions, [Action::Finish]);
        state.finishing = true;
        assert!(decide(&pod, &state, now()).actions.is_empty());
    }

    #[test]
    fn a_new_image_replaces_the_container() {
        let pod = pod(json!({"containers": [{"name": "a", "image": "web:2"}]}));
        let mut state = ready(&pod);
        set(&mut state, "a", running());
        state.containers.get_mut("a").unwrap().image = "web:1".into();
        assert!(matches!(
            &decide(&pod, &state, now()).actions[..],
            [Action::Kill { .. }]
        ));
        state.containers.get_mut("a").unwrap().image = "web:2".into();
        assert!(decide(&pod, &state, now()).actions.is_empty());
    }
}
