//! config.json → a validated plan: every path, C string, flag and limit ready, so that executing it decides nothing.
//! Pure: nothing here asks the kernel. Invariant: a configuration that cannot be honoured is an error here, never ignored.

pub(crate) mod devices;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod process;

use std::ffi::CString;
use std::path::{Path, PathBuf};

use crate::cgroup::limits::Limits;
use crate::error::{Error, Result};
use crate::hooks::Hooks;
use crate::seccomp;
use crate::spec;
use devices::DevicePlan;
use mounts::{MountPlan, Propagation, Source};
use namespaces::Namespaces;
use process::{ProcessPlan, c_path, c_string};

/// Everything that making the container needs.
pub(crate) struct Plan {
    pub namespaces: Namespaces,
    /// Absolute path of the root file system on the host.
    pub rootfs: PathBuf,
    pub readonly_rootfs: bool,
    pub rootfs_propagation: Option<Propagation>,
    pub mounts: Vec<MountPlan>,
    pub devices: Vec<DevicePlan>,
    /// Make nodes and links in /dev; not when the host's /dev is bind mounted.
    pub populate_dev: bool,
    pub masked: Vec<CString>,
    pub readonly: Vec<CString>,
    /// Path below /proc/sys and value.
    pub sysctls: Vec<(CString, CString)>,
    pub hostname: Option<CString>,
    pub domainname: Option<CString>,
    pub process: ProcessPlan,
    pub hooks: Hooks,
    pub limits: Limits,
}

impl Plan {
    /// Check `spec`, found in `bundle` (an absolute path).
    pub fn new(spec: &spec::Spec, bundle: &Path) -> Result<Plan> {
        check_version(spec.version())?;
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| Error::invalid("config.json has no linux section"))?;
        let root = spec
            .root()
            .as_ref()
            .ok_or_else(|| Error::invalid("config.json has no root"))?;
        let namespaces = Namespaces::new(linux)?;
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        let mounts = mounts
            .iter()
            .map(|mount| MountPlan::new(mount, bundle))
            .collect::<Result<Vec<_>>>()?;
        refuse_unsupported(linux)?;
        check_namespaces(&namespaces, spec, linux, &mounts)?;
        let populate_dev = !mounts.iter().any(binds_dev);
        Ok(Plan {
            rootfs: bundle.join(root.path()),
            readonly_rootfs: root.readonly().unwrap_or(false),
            rootfs_propagation: rootfs_propagation(linux)?,
            mounts,
            devices: devices::plan(linux.devices().as_deref().unwrap_or_default())?,
            populate_dev,
            masked: paths("linux.maskedPaths", linux.masked_paths())?,
            readonly: paths("linux.readonlyPaths", linux.readonly_paths())?,
            sysctls: sysctls(linux, &namespaces)?,
            hostname: uts_name("hostname", spec.hostname())?,
            domainname: uts_name("domainname", spec.domainname())?,
            process: process(spec, linux)?,
            hooks: Hooks::new(spec.hooks().as_ref())?,
            limits: Limits::new(linux.resources().as_ref())?,
            namespaces,
        })
    }
}

fn check_version(version: &str) -> Result<()> {
    if version.starts_with("1.") {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "ociVersion is {version:?}; this runtime understands version 1"
    )))
}

fn process(spec: &spec::Spec, linux: &spec::Linux) -> Result<ProcessPlan> {
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::invalid("config.json has no process"))?;
    let filter = linux.seccomp().as_ref().map(seccomp::compile).transpose()?.flatten();
    let mut plan = ProcessPlan::new(process, filter)?;
    plan.personality = linux.personality().as_ref().map(personality).transpose()?;
    Ok(plan)
}

fn personality(personality: &spec::LinuxPersonality) -> Result<u64> {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(Error::invalid(
            "linux.personality.flags is not empty; no flag is defined",
        ));
    }
    // linux/personality.h
    Ok(match personality.domain() {
        spec::LinuxPersonalityDomain::PerLinux => 0x0000,
        spec::LinuxPersonalityDomain::PerLinux32 => 0x0008,
    })
}

/// What the specification has and this runtime has not: refused, so that nobody believes it was applied.
fn refuse_unsupported(linux: &spec::Linux) -> Result<()> {
    let refuse = |what: &str| Err(Error::invalid(format!("{what} is not supported by this runtime")));
    if linux.intel_rdt().is_some() {
        return refuse("linux.intelRdt");
    }
    if linux.memory_policy().is_some() {
        return refuse("linux.memoryPolicy");
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return refuse("linux.netDevices");
    }
    if linux.mount_label().as_deref().is_some_and(|label| !label.is_empty()) {
        return refuse("linux.mountLabel (SELinux)");
    }
    Ok(())
}

/// Everything that acts on a namespace needs that namespace to be the container's own.
fn check_namespaces(
    namespaces: &Namespaces,
    spec: &spec::Spec,
    linux: &spec::Linux,
    mounts: &[MountPlan],
) -> Result<()> {
    let needs = |what: &str, kind: &str| {
        Err(Error::invalid(format!(
            "{what} needs a {kind} namespace of the container's own in linux.namespaces"
        )))
    };
    let set = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    let any = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    if (set(spec.hostname()) || set(spec.domainname())) && !namespaces.has(libc::CLONE_NEWUTS) {
        return needs("hostname", "uts");
    }
    if !namespaces.has(libc::CLONE_NEWNS) {
        if !mounts.is_empty() {
            return needs("mounts", "mount");
        }
        if any(linux.masked_paths()) || any(linux.readonly_paths()) {
            return needs("linux.maskedPaths and readonlyPaths", "mount");
        }
    }
    Ok(())
}

fn binds_dev(mount: &MountPlan) -> bool {
    mount.target.as_c_str() == c"dev" && matches!(mount.source, Source::Bind { .. })
}

fn rootfs_propagation(linux: &spec::Linux) -> Result<Option<Propagation>> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(None),
        Some(option) => mounts::propagation(option).map(Some).ok_or_else(|| {
            Error::invalid(format!(
                "linux.rootfsPropagation is {option:?}; it must be shared, slave, private or unbindable, or one of them with r in front"
            ))
        }),
    }
}

fn paths(field: &str, paths: &Option<Vec<String>>) -> Result<Vec<CString>> {
    let one = |path: &String| match path.starts_with('/') {
        true => c_path(field, &mounts::in_root(Path::new(path))),
        false => Err(Error::invalid(format!("{field}: {path:?} is not an absolute path"))),
    };
    paths.iter().flatten().map(one).collect()
}

fn uts_name(field: &str, name: &Option<String>) -> Result<Option<CString>> {
    match name.as_deref() {
        None | Some("") => Ok(None),
        Some(name) => c_string(field, name).map(Some),
    }
}

/// sysctls that belong to a namespace the container owns; any other would change the host.
fn sysctls(linux: &spec::Linux, namespaces: &Namespaces) -> Result<Vec<(CString, CString)>> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg_next_id",
    ];
    let one = |(name, value): (&String, &String)| {
        // "net/ipv4/conf/eth0.100/x" keeps its dots, "net.ipv4.x" has them for slashes.
        let dotted = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
            Some(b'/') => name.replace('/', "."),
            _ => name.clone(),
        };
        let path = match dotted == *name {
            true => name.replace(['.', '/'], "\0").replace('\0', "/"),
            false => name.clone(),
        };
        let (owner, kind) = match &*dotted {
            name if name.starts_with("net.") => (libc::CLONE_NEWNET, "network"),
            name if IPC.contains(&name) || name.starts_with("fs.mqueue.") => (libc::CLONE_NEWIPC, "ipc"),
            "kernel.domainname" => (libc::CLONE_NEWUTS, "uts"),
            "kernel.hostname" => {
                return Err(Error::invalid(
                    "linux.sysctl: kernel.hostname conflicts with the field hostname",
                ));
            }
            _ => {
                return Err(Error::invalid(format!(
                    "linux.sysctl: {name:?} belongs to no namespace, setting it would change the host"
                )));
            }
        };
        if !namespaces.has(owner) {
            return Err(Error::invalid(format!(
                "linux.sysctl: {name:?} needs a {kind} namespace of the container's own in linux.namespaces"
            )));
        }
        Ok((c_string("linux.sysctl", &path)?, c_string("linux.sysctl", value)?))
    };
    let mut sysctls = linux.sysctl().iter().flatten().map(one).collect::<Result<Vec<_>>>()?;
    sysctls.sort();
    Ok(sysctls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn plan(change: impl FnOnce(&mut Value)) -> Result<Plan> {
        let mut config = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"]},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}]}
        });
        change(&mut config);
        Plan::new(&serde_json::from_value(config).unwrap(), Path::new("/bundle"))
    }

    fn refusal(change: impl FnOnce(&mut Value)) -> String {
        plan(change).err().expect("the plan must be refused").to_string()
    }

    #[test]
    fn a_minimal_configuration_is_enough() {
        let plan = plan(|_| ()).unwrap();
        assert_eq!(plan.rootfs, Path::new("/bundle/rootfs"));
        assert_eq!(
            plan.namespaces.new,
            libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC
        );
        assert!(plan.populate_dev);
        assert!(plan.process.seccomp.is_none());
    }

    #[test]
    fn what_acts_on_a_namespace_needs_it() {
        assert!(refusal(|config| config["hostname"] = json!("h")).starts_with("hostname needs a uts namespace"));
        assert!(refusal(|config| config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"})).contains("network"));
        assert!(
            refusal(|config| {
                config["linux"]["namespaces"] = json!([{"type": "pid"}]);
                config["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
            })
            .contains("mount namespace")
        );
    }

    #[test]
    fn sysctls_of_the_host_are_refused() {
        assert!(
            refusal(|config| config["linux"]["sysctl"] = json!({"vm.swappiness": "1"})).contains("change the host")
        );
        let plan = plan(|config| config["linux"]["sysctl"] = json!({"kernel.shmmax": "4096"})).unwrap();
        assert_eq!(plan.sysctls, [(c"kernel/shmmax".into(), c"4096".into())]);
    }

    #[test]
    fn what_is_not_supported_is_refused_not_ignored() {
        assert!(refusal(|config| config["linux"]["intelRdt"] = json!({})).contains("intelRdt"));
        assert!(refusal(|config| config["linux"]["mountLabel"] = json!("x")).contains("SELinux"));
        assert!(refusal(|config| config["ociVersion"] = json!("2.0.0")).contains("2.0.0"));
        assert!(refusal(|config| config["linux"]["rootfsPropagation"] = json!("upwards")).contains("upwards"));
    }

    #[test]
    fn the_hosts_dev_is_left_alone() {
        let plan = plan(|config| {
            config["mounts"] = json!([{"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}]);
        })
        .unwrap();
        assert!(!plan.populate_dev);
    }
}
