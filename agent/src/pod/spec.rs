//! The OCI configuration (config.json) of one container of a pod.
//!
//! Pure: everything that needs the disk, the image or the API was resolved before. The shape of the defaults (mounts,
//! masked paths, devices) is that of the common engines, so that images find what they are used to.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::security::{Seccomp, Security};
use super::user::User;

/// A bind mount into the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: String,
    /// Absolute path on the host.
    pub source: String,
    /// Whether the container may not write to it.
    pub read_only: bool,
    /// `rprivate`, `rslave` or `rshared`.
    pub propagation: &'static str,
}

/// The namespaces that a container joins; those absent from a pod's sandbox are the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Pinned network namespace; the host's when absent.
    pub network: Option<String>,
    /// Pinned ipc namespace; the host's when absent.
    pub ipc: Option<String>,
    /// Pinned uts namespace; the host's when absent.
    pub uts: Option<String>,
    /// The host's processes are visible.
    pub host_pid: bool,
}

/// Everything a configuration is made from.
pub struct Inputs<'a> {
    /// The mounted root file system.
    pub root: &'a Path,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute working directory.
    pub cwd: String,
    /// Whether the container has a terminal.
    pub terminal: bool,
    /// Who it runs as.
    pub user: &'a User,
    /// Its fences.
    pub security: &'a Security,
    /// What it shares.
    pub namespaces: &'a Namespaces,
    /// Volumes and the node's own files.
    pub mounts: Vec<Mount>,
    /// Host devices, for privileged containers.
    pub devices: Vec<Value>,
    /// Path below the cgroup2 mount.
    pub cgroup: &'a str,
    /// `linux.resources`.
    pub resources: Map<String, Value>,
    /// For the out-of-memory killer.
    pub oom_score_adj: i32,
    /// The filter, when one applies.
    pub seccomp: Option<Value>,
}

/// Paths that are hidden from containers.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that containers cannot write to.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Builds the configuration.
#[must_use]
pub fn build(inputs: Inputs<'_>) -> Value {
    let security = inputs.security;
    let process = process(&inputs);
    let mut linux = json!({
        "namespaces": namespaces(inputs.namespaces),
        "cgroupsPath": inputs.cgroup,
        "resources": with_devices(inputs.resources, security.privileged),
        "rootfsPropagation": if inputs.mounts.iter().any(|m| m.propagation == "rshared") { "rshared" } else { "rslave" },
    });
    if security.masked {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    if !inputs.devices.is_empty() {
        linux["devices"] = Value::Array(inputs.devices);
    }
    if !security.sysctls.is_empty() {
        linux["sysctl"] = security
            .sysctls
            .iter()
            .cloned()
            .map(|(k, v)| (k, Value::String(v)))
            .collect::<Map<_, _>>()
            .into();
    }
    if let Some(filter) = inputs.seccomp {
        linux["seccomp"] = filter;
    }
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": inputs.root, "readonly": security.read_only_root},
        "process": process,
        "mounts": mounts(inputs.mounts, security.privileged),
        "linux": linux,
    })
}

fn process(inputs: &Inputs<'_>) -> Value {
    let security = inputs.security;
    let capabilities: Vec<&String> = security.capabilities.iter().collect();
    let usable: &[&String] = if inputs.user.uid == 0 { &capabilities } else { &[] };
    json!({
        "terminal": inputs.terminal,
        "user": {"uid": inputs.user.uid, "gid": inputs.user.gid, "additionalGids": inputs.user.groups},
        "args": inputs.args,
        "env": inputs.env,
        "cwd": inputs.cwd,
        "capabilities": {
            "bounding": capabilities, "effective": usable, "permitted": usable,
        },
        "noNewPrivileges": security.no_new_privileges,
        "oomScoreAdj": inputs.oom_score_adj,
    })
}

fn namespaces(shared: &Namespaces) -> Value {
    let mut list = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    if !shared.host_pid {
        list.push(json!({"type": "pid"}));
    }
    for (kind, path) in [("network", &shared.network), ("ipc", &shared.ipc), ("uts", &shared.uts)] {
        if let Some(path) = path {
            list.push(json!({"type": kind, "path": path}));
        }
    }
    Value::Array(list)
}

fn with_devices(mut resources: Map<String, Value>, privileged: bool) -> Value {
    resources.insert("devices".into(), json!([{"allow": privileged, "access": "rwm"}]));
    Value::Object(resources)
}

/// The engines' mounts, then the pod's, parents before children; a pod's mount replaces a default at its place.
fn mounts(pod: Vec<Mount>, privileged: bool) -> Value {
    let access = if privileged { "rw" } else { "ro" };
    let mut all: Vec<(String, Value)> = Vec::new();
    let defaults = [
        ("/proc", "proc", "proc", vec!["nosuid", "noexec", "nodev"]),
        (
            "/dev",
            "tmpfs",
            "tmpfs",
            vec!["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/mqueue", "mqueue", "mqueue", vec!["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", vec!["nosuid", "noexec", "nodev", access]),
        (
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            vec!["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ];
    for (destination, kind, source, options) in defaults {
        if !pod.iter().any(|mount| mount.destination == destination) {
            let value = json!({"destination": destination, "type": kind, "source": source, "options": options});
            all.push((destination.to_owned(), value));
        }
    }
    for mount in pod {
        let options = ["rbind", mount.propagation, if mount.read_only { "ro" } else { "rw" }];
        let value =
            json!({"destination": mount.destination, "type": "bind", "source": mount.source, "options": options});
        all.push((mount.destination, value));
    }
    all.sort_by_key(|(destination, _)| depth(destination));
    all.into_iter().map(|(_, value)| value).collect()
}

fn depth(path: &str) -> usize {
    path.split('/').filter(|part| !part.is_empty()).count()
}

/// The filter that `seccomp` stands for; a local profile is given as its parsed content.
#[must_use]
pub fn seccomp_filter(seccomp: &Seccomp, local: Option<Value>) -> Option<Value> {
    match seccomp {
        Seccomp::Unconfined => None,
        Seccomp::Default => serde_json::to_value(hull_runtime::seccomp::default_profile()).ok(),
        Seccomp::Localhost(_) => local,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::from_value;

    fn built(security: Value, mounts: Vec<Mount>) -> Value {
        let pod: Pod =
            from_value(json!({"spec": {"containers": [{"name": "a", "securityContext": security}]}})).unwrap();
        let security = Security::of(&pod, &pod.spec.as_ref().unwrap().containers[0]);
        build(Inputs {
            root: Path::new("/root"),
            args: vec!["/bin/true".into()],
            env: vec![],
            cwd: "/".into(),
            terminal: false,
            user: &User::default(),
            security: &security,
            namespaces: &Namespaces {
                network: Some("/run/net".into()),
                ..Namespaces::default()
            },
            mounts,
            devices: vec![],
            cgroup: "/hull/podu/c",
            resources: Map::new(),
            oom_score_adj: 0,
            seccomp: seccomp_filter(&security.seccomp, None),
        })
    }

    fn mount(destination: &str) -> Mount {
        Mount {
            destination: destination.into(),
            source: "/s".into(),
            read_only: true,
            propagation: "rprivate",
        }
    }

    #[test]
    fn the_runtime_accepts_the_configuration() {
        let value = built(json!({}), vec![mount("/data")]);
        let spec: hull_runtime::spec::Spec = from_value(value).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["/bin/true"]);
        assert!(spec.linux().as_ref().unwrap().seccomp().is_some());
    }

    #[test]
    fn volumes_come_after_what_they_lie_on_and_replace_defaults() {
        let value = built(
            json!({}),
            vec![mount("/data/deep"), mount("/data"), mount("/dev/mqueue")],
        );
        let places: Vec<&str> = value["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["destination"].as_str().unwrap())
            .collect();
        let at = |place: &str| places.iter().position(|other| *other == place).unwrap();
        assert!(at("/data") < at("/data/deep"));
        assert!(at("/dev") < at("/dev/mqueue"));
        assert_eq!(places.iter().filter(|place| **place == "/dev/mqueue").count(), 1);
    }

    #[test]
    fn privileged_containers_see_everything() {
        let value = built(json!({"privileged": true}), vec![]);
        assert!(value["linux"].get("maskedPaths").is_none());
        assert!(value["linux"].get("seccomp").is_none());
        assert_eq!(value["linux"]["resources"]["devices"][0]["allow"], true);
    }

    #[test]
    fn namespaces_are_joined_or_the_hosts() {
        let value = built(json!({}), vec![]);
        let kinds: Vec<&str> = value["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["type"].as_str().unwrap())
            .collect();
        assert_eq!(
            kinds,
            ["mount", "cgroup", "pid", "network"],
            "ipc and uts stay the host's"
        );
    }
}
