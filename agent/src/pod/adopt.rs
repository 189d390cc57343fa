//! From the records of an earlier agent and the warden's list to the state of a pod: a pure function.
//!
//! What runs keeps running. An attempt whose start was interrupted is made again under the same number, so restart
//! counts stay right. An end that nobody has told yet is delivered to the worker afterwards, as any other.

use hull_runtime::warden::{ContainerInfo, ContainerState as Alive};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::env::find_container;
use super::record::Remembered;
use super::start::LABEL_POD;
use super::state::{CREATING, ContainerState, Phase, PodState, Sandbox};

/// The state of a pod that this node has records of.
#[must_use]
pub fn adopt(remembered: &Remembered, warden: &[ContainerInfo]) -> PodState {
    let mut state = PodState::new(&remembered.pod, remembered.sandbox.start_time);
    if let Some(ips) = &remembered.sandbox.ips {
        state.sandbox = Sandbox::Ready { ips: ips.clone() };
    }
    for (name, recorded) in &remembered.containers {
        let alive = recorded
            .id
            .as_ref()
            .and_then(|id| warden.iter().find(|container| container.id == *id));
        let mut recorded = recorded.clone();
        recorded.phase = phase(&remembered.pod, name, &recorded, alive);
        state.containers.insert(name.clone(), recorded);
    }
    state
}

fn phase(pod: &Pod, name: &str, recorded: &ContainerState, alive: Option<&ContainerInfo>) -> Phase {
    match (&recorded.phase, alive) {
        (
            Phase::Starting | Phase::Running { .. },
            Some(ContainerInfo {
                state: Alive::Created, ..
            }),
        )
        | (Phase::Starting, None) => Phase::Waiting {
            reason: CREATING.to_owned(),
            message: None,
            not_before: None,
        },
        (Phase::Starting, Some(container)) => {
            let started_at = container
                .started_at
                .and_then(|at| Timestamp::from_nanosecond(at.into()).ok());
            let definition = find_container(pod, name);
            Phase::Running {
                started_at: started_at.unwrap_or_else(Timestamp::now),
                started: definition.is_none_or(|container| container.startup_probe.is_none()),
                ready: definition.is_none_or(|container| container.readiness_probe.is_none()),
                killing: false,
            }
        }
        (recorded, _) => recorded.clone(),
    }
}

/// The state of a pod that this node has no records of: a new one, or one from before a reboot.
#[must_use]
pub fn begin(pod: &Pod, now: Timestamp) -> PodState {
    let mut state = PodState::new(pod, now);
    let Some(status) = &pod.status else { return state };
    if let Some(start) = &status.start_time {
        state.start_time = start.0;
    }
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        state.sandbox = Sandbox::Gone;
        return state;
    }
    let known = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    for ContainerStatus {
        name,
        restart_count,
        container_id,
        ..
    } in known
    {
        if container_id.as_ref().is_some_and(|id| !id.is_empty())
            && let Some(container) = state.containers.get_mut(name)
        {
            container.attempt = u32::try_from(*restart_count).unwrap_or(0) + 1;
        }
    }
    state
}

/// Containers of the pod `uid` that its state does not speak of, or only as something that never ran.
pub fn strays<'a>(uid: &'a str, state: &'a PodState, warden: &'a [ContainerInfo]) -> impl Iterator<Item = &'a str> {
    let lives = |id: &str| {
        state
            .containers
            .values()
            .any(|container| container.id.as_deref() == Some(id) && container.is_running())
    };
    let own = warden
        .iter()
        .filter(move |container| container.labels.get(LABEL_POD).is_some_and(|pod| pod == uid));
    own.map(|container| container.id.as_str()).filter(move |id| !lives(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::record::SandboxRecord;
    use hull_runtime::warden::Exit;
    use serde_json::{from_value, json};

    fn at() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn info(id: &str, state: Alive) -> ContainerInfo {
        ContainerInfo {
            id: id.to_owned(),
            bundle: "/b".into(),
            pid: 7,
            start_time: 1,
            labels: [(LABEL_POD.to_owned(), "u".to_owned())].into(),
            created_at: 0,
            started_at: Some(1_800_000_000_000_000_000),
            log: None,
            state,
        }
    }

    fn remembered(phase: Phase) -> Remembered {
        let pod: Pod = from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "a"}]}})).unwrap();
        let state = ContainerState {
            attempt: 2,
            id: Some("c".into()),
            phase,
            ..ContainerState::default()
        };
        let sandbox = SandboxRecord {
            start_time: at(),
            ips: Some(vec!["10.244.0.4".parse().unwrap()]),
        };
        Remembered {
            pod,
            sandbox,
            containers: [("a".to_owned(), state)].into(),
        }
    }

    fn running() -> Phase {
        Phase::Running {
            started_at: at(),
            started: true,
            ready: true,
            killing: false,
        }
    }

    #[test]
    fn what_runs_keeps_its_id_and_count() {
        let state = adopt(&remembered(running()), &[info("c", Alive::Running)]);
        assert_eq!(
            (state.containers["a"].attempt, state.containers["a"].id.as_deref()),
            (2, Some("c"))
        );
        assert!(state.containers["a"].is_running());
        assert_eq!(state.ips().len(), 1);
    }

    #[test]
    fn an_interrupted_start_is_resolved_by_what_the_warden_has() {
        let phase = |list: &[ContainerInfo]| adopt(&remembered(Phase::Starting), list).containers["a"].phase.clone();
        assert!(matches!(phase(&[]), Phase::Waiting { .. }));
        assert!(matches!(phase(&[info("c", Alive::Created)]), Phase::Waiting { .. }));
        assert!(matches!(phase(&[info("c", Alive::Running)]), Phase::Running { started_at, .. } if started_at == at()));
        let exit = Exit {
            code: Some(1),
            signal: None,
            oom_killed: false,
            at: 0,
        };
        assert!(
            matches!(phase(&[info("c", Alive::Exited(exit))]), Phase::Running { .. }),
            "its exit is delivered later"
        );
    }

    #[test]
    fn strays_are_what_no_state_speaks_of() {
        let list = [info("c", Alive::Created), info("old", Alive::Running)];
        let state = adopt(&remembered(Phase::Starting), &list);
        assert_eq!(strays("u", &state, &list).collect::<Vec<_>>(), ["c", "old"]);
        let state = adopt(&remembered(running()), &list[1..]);
        assert_eq!(strays("u", &state, &list[1..]).collect::<Vec<_>>(), ["old"]);
    }

    #[test]
    fn counts_go_on_after_a_reboot_and_finished_pods_rest() {
        let pod = |phase: &str| -> Pod {
            from_value(
                json!({"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "a"}]}, "status": {"phase": phase,
                "containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 4,
                    "containerID": "hull://x"}]}}),
            )
            .unwrap()
        };
        assert_eq!(begin(&pod("Running"), at()).containers["a"].attempt, 5);
        assert_eq!(begin(&pod("Succeeded"), at()).sandbox, Sandbox::Gone);
    }
}
