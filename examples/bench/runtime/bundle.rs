//! The bundles that are measured: the runtime's own default, and what engines and kubelets ask for on top of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What a container asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spec {
    /// `spec`'s default: five namespaces, seven mounts, masked paths.
    Default,
    /// And the seccomp profile that engines give every container.
    Seccomp,
    /// And a user namespace, engine capabilities, masked and read-only paths, two bind mounts, an OOM score.
    Kubelet,
}

impl Spec {
    /// All, in the order of the table.
    pub const ALL: [Spec; 3] = [Spec::Default, Spec::Seccomp, Spec::Kubelet];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Spec::Default => "default",
            Spec::Seccomp => "seccomp",
            Spec::Kubelet => "kubelet",
        }
    }
}

const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The root file system all bundles share: busybox, which is `true` or a shell by its name.
pub fn rootfs(directory: &Path) -> Result<PathBuf> {
    let root = directory.join("rootfs");
    for name in ["bin", "dev", "etc", "proc", "sys"] {
        fs::create_dir_all(root.join(name)).context("make the root file system")?;
    }
    for name in ["etc/hosts", "etc/resolv.conf"] {
        fs::write(root.join(name), "").with_context(|| format!("write {name}"))?;
    }
    for name in ["true", "sleep"] {
        fs::copy("/bin/busybox", root.join("bin").join(name)).context("copy /bin/busybox")?;
    }
    // A container's root is nobody here when it has a user namespace.
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).context("open the bundle to other users")?;
    Ok(root)
}

/// Write `<bundle>/config.json`; `default` is what `spec` printed.
pub fn write(default: &Value, spec: Spec, bundle: &Path, rootfs: &Path, program: &[&str], cgroup: &str) -> Result<()> {
    let mut config = default.clone();
    // Old peers know no newer version; nothing in this needs one.
    config["ociVersion"] = "1.0.2".into();
    config["root"]["path"] = json!(rootfs);
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = json!(program);
    if let Some(process) = config["process"].as_object_mut() {
        process.remove("rlimits");
    }
    config["linux"]["cgroupsPath"] = cgroup.into();
    if let Some(linux) = config["linux"].as_object_mut() {
        // Without CAP_SYS_RESOURCE old crun cannot load a device program.
        linux.remove("resources");
        linux.remove("seccomp");
    }
    if spec != Spec::Default {
        config["linux"]["seccomp"] =
            serde_json::to_value(hull_runtime::seccomp::default_profile()).context("write the seccomp profile")?;
    }
    if spec == Spec::Kubelet {
        kubelet(&mut config);
    }
    fs::create_dir_all(bundle).with_context(|| format!("make {}", bundle.display()))?;
    fs::write(bundle.join("config.json"), config.to_string()).context("write config.json")
}

fn kubelet(config: &mut Value) {
    config["process"]["capabilities"] =
        json!({"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES});
    config["process"]["oomScoreAdj"] = 500.into();
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup", "user"];
    let linux = &mut config["linux"];
    linux["namespaces"] = kinds.map(|kind| json!({"type": kind})).to_vec().into();
    linux["uidMappings"] = ids.clone();
    linux["gidMappings"] = ids;
    linux["maskedPaths"] = json!(MASKED);
    linux["readonlyPaths"] = json!(READ_ONLY);
    if let Some(mounts) = config["mounts"].as_array_mut() {
        for file in ["/etc/hosts", "/etc/resolv.conf"] {
            mounts.push(
                json!({"destination": file, "type": "bind", "source": file, "options": ["rbind", "rprivate", "ro"]}),
            );
        }
    }
}
