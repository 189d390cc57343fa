//! Pods: READY, STATUS and RESTARTS are computed from the container statuses as Kubernetes' `printPod` does.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Printer, age, created, int, list, name, or_none, text};

pub(super) const PRINTER: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Ready"),
        Column::text("Status"),
        Column::text("Restarts"),
        AGE,
        Column::text("IP").wide(),
        Column::text("Node").wide(),
        Column::text("Nominated Node").wide(),
        Column::text("Readiness Gates").wide(),
    ],
    cells,
};

fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let shown = summarize(pod);
    let restarts = match shown.last_restart {
        Some(at) if shown.restarts > 0 => {
            format!(
                "{} ({} ago)",
                shown.restarts,
                age::human(now.as_second() - at.as_second())
            )
        }
        _ => shown.restarts.to_string(),
    };
    vec![
        name(pod),
        json!(format!("{}/{}", shown.ready, shown.total)),
        json!(shown.status),
        json!(restarts),
        created(pod, now),
        or_none(text(pod, "/status/podIP")),
        or_none(text(pod, "/spec/nodeName")),
        or_none(text(pod, "/status/nominatedNodeName")),
        readiness_gates(pod),
    ]
}

fn readiness_gates(pod: &Value) -> Value {
    let gates = list(pod, "/spec/readinessGates");
    let met = gates.iter().filter(|gate| {
        let conditions = list(pod, "/status/conditions");
        conditions
            .iter()
            .any(|condition| condition["type"] == gate["conditionType"] && condition["status"] == "True")
    });
    or_none(if gates.is_empty() {
        String::new()
    } else {
        format!("{}/{}", met.count(), gates.len())
    })
}

struct Summary {
    ready: usize,
    total: usize,
    status: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn count_restarts(&mut self, status: &Value) {
        self.restarts += int(status, "/restartCount");
        let ended = text(status, "/lastState/terminated/finishedAt").parse().ok();
        self.last_restart = self.last_restart.max(ended);
    }
}

fn is_restartable_init(pod: &Value, name: &Value) -> bool {
    let inits = list(pod, "/spec/initContainers");
    inits
        .iter()
        .any(|container| container["name"] == *name && container["restartPolicy"] == "Always")
}

fn summarize(pod: &Value) -> Summary {
    let phase = text(pod, "/status/phase");
    let reason = text(pod, "/status/reason");
    let sidecars = list(pod, "/spec/initContainers")
        .iter()
        .filter(|one| one["restartPolicy"] == "Always")
        .count();
    let mut shown = Summary {
        ready: 0,
        total: list(pod, "/spec/containers").len() + sidecars,
        status: if reason.is_empty() {
            phase.to_owned()
        } else {
            reason.to_owned()
        },
        restarts: 0,
        last_restart: None,
    };
    if list(pod, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated")
    {
        shown.status = "SchedulingGated".into();
    }
    let initializing = init_containers(pod, &mut shown);
    if !initializing || is_initialized(pod) {
        containers(pod, &mut shown);
    }
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        if reason == "NodeLost" {
            shown.status = "Unknown".into();
        } else if !matches!(phase, "Failed" | "Succeeded") {
            shown.status = "Terminating".into();
        }
    }
    shown
}

/// Whether an init container is still to be waited for; its state is the status.
fn init_containers(pod: &Value, shown: &mut Summary) -> bool {
    let total = list(pod, "/spec/initContainers").len();
    for (number, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
        shown.count_restarts(status);
        let sidecar = is_restartable_init(pod, &status["name"]);
        if sidecar && status["ready"] == true {
            shown.ready += 1;
        }
        let terminated = &status["state"]["terminated"];
        let waiting = text(status, "/state/waiting/reason");
        if terminated.is_object() && int(terminated, "/exitCode") == 0 || sidecar && status["started"] == true {
            continue;
        }
        shown.status = if terminated.is_object() {
            format!("Init:{}", terminated_reason(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{number}/{total}")
        };
        return true;
    }
    false
}

fn is_initialized(pod: &Value) -> bool {
    let conditions = list(pod, "/status/conditions");
    conditions
        .iter()
        .any(|condition| condition["type"] == "Initialized" && condition["status"] == "True")
}

fn terminated_reason(terminated: &Value) -> String {
    match (text(terminated, "/reason"), int(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", int(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn containers(pod: &Value, shown: &mut Summary) {
    (shown.restarts, shown.last_restart) = sidecar_restarts(pod);
    let mut running = false;
    for status in list(pod, "/status/containerStatuses").iter().rev() {
        shown.count_restarts(status);
        let waiting = text(status, "/state/waiting/reason");
        let terminated = &status["state"]["terminated"];
        if !waiting.is_empty() {
            shown.status = waiting.to_owned();
        } else if terminated.is_object() {
            shown.status = terminated_reason(terminated);
        } else if status["ready"] == true && status["state"]["running"].is_object() {
            running = true;
            shown.ready += 1;
        }
    }
    if shown.status == "Completed" && running {
        let conditions = list(pod, "/status/conditions");
        let ready = conditions
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        shown.status = if ready { "Running" } else { "NotReady" }.into();
    }
}

/// Once the containers run, only those init containers that keep running count.
fn sidecar_restarts(pod: &Value) -> (i64, Option<Timestamp>) {
    let mut sum = Summary {
        ready: 0,
        total: 0,
        status: String::new(),
        restarts: 0,
        last_restart: None,
    };
    for status in list(pod, "/status/initContainerStatuses") {
        if is_restartable_init(pod, &status["name"]) {
            sum.count_restarts(status);
        }
    }
    (sum.restarts, sum.last_restart)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pod: &Value) -> Vec<String> {
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        cells(pod, now)
            .iter()
            .map(|cell| cell.as_str().unwrap_or_default().to_owned())
            .collect()
    }

    fn pod(status: Value) -> Value {
        json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:55:00Z"},
            "spec": {"nodeName": "n1", "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
            "status": status,
        })
    }

    #[test]
    fn a_running_pod_with_a_restart() {
        let status = json!({"phase": "Running", "podIP": "10.244.0.5", "containerStatuses": [
            {"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}},
            {"name": "b", "ready": true, "restartCount": 2, "state": {"running": {}},
             "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:30Z"}}}]});
        assert_eq!(
            shown(&pod(status)),
            [
                "web",
                "2/2",
                "Running",
                "2 (30s ago)",
                "5m",
                "10.244.0.5",
                "n1",
                "<none>",
                "<none>"
            ]
        );
    }

    #[test]
    fn what_a_container_waits_for_is_the_status() {
        let status = json!({"phase": "Pending", "containerStatuses": [
            {"name": "a", "state": {"waiting": {"reason": "ImagePullBackOff"}}}, {"name": "b", "ready": true, "state": {"running": {}}}]});
        assert_eq!(shown(&pod(status))[1..3], ["1/2", "ImagePullBackOff"]);
        let crashed = json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]});
        assert_eq!(shown(&pod(crashed))[2], "OOMKilled");
        let signalled =
            json!({"phase": "Running", "containerStatuses": [{"state": {"terminated": {"exitCode": 9, "signal": 9}}}]});
        assert_eq!(shown(&pod(signalled))[2], "Signal:9");
    }

    #[test]
    fn init_containers_come_first() {
        let waiting = json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        assert_eq!(shown(&pod(waiting))[2..4], ["Init:CrashLoopBackOff", "3"]);
        let running = json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]});
        assert_eq!(shown(&pod(running))[2], "Init:0/1");
    }

    #[test]
    fn a_pod_being_deleted_terminates_unless_it_has_ended() {
        let mut going = pod(json!({"phase": "Running"}));
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:59Z");
        assert_eq!(shown(&going)[2], "Terminating");
        going["status"]["phase"] = json!("Succeeded");
        assert_eq!(shown(&going)[2], "Succeeded");
    }
}
