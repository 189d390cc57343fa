//! What container engines put into every container: masked and read-only paths, mounts, device rules.
//! The lists are those of containerd and podman; nothing here is applied unless a configuration asks for it.

use crate::spec::{LinuxDeviceCgroup, Mount};

const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Destination, type, options.
const MOUNTS: [(&str, &str, &[&str]); 7] = [
    ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    (
        "/dev/shm",
        "tmpfs",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
    ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    (
        "/sys/fs/cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    ),
];

/// Paths hidden from containers.
pub fn masked_paths() -> Vec<String> {
    MASKED.map(str::to_owned).to_vec()
}

/// Paths that containers may only read.
pub fn readonly_paths() -> Vec<String> {
    READONLY.map(str::to_owned).to_vec()
}

/// /proc, /dev, /sys and what is mounted inside them.
pub fn mounts() -> Vec<Mount> {
    MOUNTS
        .iter()
        .map(|&(destination, kind, options)| {
            let mut mount = Mount::default();
            mount
                .set_destination(destination.into())
                .set_typ(Some(kind.into()))
                .set_source(Some(kind.into()))
                .set_options(Some(options.iter().map(|&option| option.into()).collect()));
            mount
        })
        .collect()
}

/// No device but the default ones, which the runtime always adds: null, zero, full, random, urandom, tty, ptys.
pub fn device_rules() -> Vec<LinuxDeviceCgroup> {
    vec![rule(false)]
}

/// Every device: for privileged containers.
pub fn all_devices() -> Vec<LinuxDeviceCgroup> {
    vec![rule(true)]
}

fn rule(allow: bool) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow).set_access(Some("rwm".into()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Limits;
    use crate::plan::mounts::MountPlan;
    use crate::spec::LinuxResources;

    #[test]
    fn every_default_mount_can_be_planned() {
        for mount in mounts() {
            assert!(MountPlan::new(&mount, "/bundle".as_ref(), None).is_ok(), "{mount:?}");
        }
    }

    #[test]
    fn only_privileged_containers_go_without_a_device_program() {
        let program = |rules| {
            let mut resources = LinuxResources::default();
            resources.set_devices(Some(rules));
            Limits::new(Some(&resources)).unwrap().device_program().is_some()
        };
        assert!(program(device_rules()));
        assert!(!program(all_devices()));
    }
}
