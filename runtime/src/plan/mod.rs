//! config.json → a validated plan: every path, C string, flag and limit ready, so that executing it decides nothing.
//! Pure: nothing here asks the kernel. Invariant: a configuration that cannot be honoured is an error here, never ignored.

pub(crate) mod devices;
pub(crate) mod mount_options;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod net_devices;
pub(crate) mod placement;
pub(crate) mod process;
pub(crate) mod rdt;
mod sysctl;
pub(crate) mod version;

use std::ffi::CString;
use std::path::{Path, PathBuf};

use crate::cgroup::limits::Limits;
use crate::error::{Error, Result};
use crate::hooks::Hooks;
use crate::seccomp;
use crate::spec;
use devices::DevicePlan;
use mount_options::Propagation;
use mounts::{MountPlan, Source};
use namespaces::Namespaces;
use net_devices::NetDevice;
use placement::MemoryPolicy;
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
    pub net_devices: Vec<NetDevice>,
    pub rdt: Option<rdt::Rdt>,
    /// SELinux context of the file systems that are mounted; they have it among their parameters.
    pub mount_label: bool,
    /// The user on the host who may divide the container's cgroup; `None` leaves it to root.
    pub cgroup_owner: Option<u32>,
}

impl Plan {
    /// Check `spec`, found in `bundle` (an absolute path).
    pub fn new(spec: &spec::Spec, bundle: &Path) -> Result<Plan> {
        version::check(spec.version())?;
        refuse_other_platforms(spec)?;
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| Error::invalid("config.json has no linux section"))?;
        let root = spec
            .root()
            .as_ref()
            .ok_or_else(|| Error::invalid("config.json has no root"))?;
        let mut namespaces = Namespaces::new(linux)?;
        if let Some(process) = spec.process() {
            namespaces.map_caller(process.user().uid(), process.user().gid());
        }
        let mount_label = linux.mount_label().as_deref().filter(|label| !label.is_empty());
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        let mounts = mounts
            .iter()
            .map(|mount| MountPlan::new(mount, bundle, mount_label))
            .collect::<Result<Vec<_>>>()?;
        check_namespaces(&namespaces, spec, linux, &mounts)?;
        let populate_dev = !mounts.iter().any(binds_dev);
        let net_devices = net_devices::plan(linux, &namespaces)?;
        Ok(Plan {
            rootfs: bundle.join(root.path()),
            readonly_rootfs: root.readonly().unwrap_or(false),
            rootfs_propagation: rootfs_propagation(linux)?,
            mounts,
            devices: devices::plan(linux.devices().as_deref().unwrap_or_default())?,
            populate_dev,
            masked: paths("linux.maskedPaths", linux.masked_paths())?,
            readonly: paths("linux.readonlyPaths", linux.readonly_paths())?,
            sysctls: sysctl::plan(linux, &namespaces)?,
            hostname: uts_name("hostname", spec.hostname())?,
            domainname: uts_name("domainname", spec.domainname())?,
            process: process(spec, linux)?,
            hooks: hooks(spec)?,
            limits: Limits::new(linux.resources().as_ref())?,
            net_devices,
            rdt: linux.intel_rdt().as_ref().map(rdt::Rdt::new).transpose()?,
            mount_label: mount_label.is_some(),
            cgroup_owner: cgroup_owner(spec, linux, &namespaces),
            namespaces,
        })
    }
}

impl Plan {
    /// The parent has something to do between the making of the namespaces and that of the mounts.
    pub fn meets(&self) -> bool {
        self.hooks.between() || !self.net_devices.is_empty()
    }
}

fn hooks(spec: &spec::Spec) -> Result<Hooks> {
    let env = spec.process().as_ref().and_then(|process| process.env().as_deref());
    Hooks::new(spec.hooks().as_ref(), env.unwrap_or_default())
}

fn process(spec: &spec::Spec, linux: &spec::Linux) -> Result<ProcessPlan> {
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::invalid("config.json has no process"))?;
    let filter = linux.seccomp().as_ref().map(seccomp::compile).transpose()?.flatten();
    let mut plan = ProcessPlan::new(process, filter)?;
    plan.personality = linux.personality().as_ref().map(personality).transpose()?;
    plan.keep_groups = keeps_groups(
        spec.annotations()
            .as_ref()
            .and_then(|annotations| annotations.get(KEEP_GROUPS)),
    );
    plan.memory_policy = linux.memory_policy().as_ref().map(MemoryPolicy::new).transpose()?;
    Ok(plan)
}

/// An annotation of crun's, which podman sets for `--group-add keep-groups`.
pub(crate) const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

/// The annotation's value says so.
pub(crate) fn keeps_groups(value: Option<&String>) -> bool {
    value.is_some_and(|value| value == "1")
}

/// personality(2)'s argument.
pub(crate) fn personality(personality: &spec::LinuxPersonality) -> Result<u64> {
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

/// Sections for other platforms: a configuration that has them was not made for this one.
fn refuse_other_platforms(spec: &spec::Spec) -> Result<()> {
    let present = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    match present.iter().find(|(_, present)| *present) {
        Some((section, _)) => Err(Error::invalid(format!(
            "config.json has a section {section:?}: this runtime runs Linux containers only"
        ))),
        None => Ok(()),
    }
}

/// The host's id of the process's user, where the container may write to a cgroup file system of its own.
/// config-linux.md, "Cgroup ownership".
fn cgroup_owner(spec: &spec::Spec, linux: &spec::Linux, namespaces: &Namespaces) -> Option<u32> {
    if !namespaces.makes(libc::CLONE_NEWCGROUP) {
        return None;
    }
    let writable = |mount: &spec::Mount| {
        let kind = mount.typ().as_deref();
        let read_only = mount.options().iter().flatten().any(|option| option == "ro");
        mount.destination() == Path::new("/sys/fs/cgroup") && matches!(kind, Some("cgroup" | "cgroup2")) && !read_only
    };
    if !spec.mounts().iter().flatten().any(writable) {
        return None;
    }
    let uid = spec.process().as_ref()?.user().uid();
    let mappings = linux.uid_mappings().as_deref().unwrap_or_default();
    let host = |map: &spec::LinuxIdMapping| {
        let offset = uid
            .checked_sub(map.container_id())
            .filter(|&offset| offset < map.size())?;
        map.host_id().checked_add(offset)
    };
    match mappings.is_empty() {
        true => Some(uid),
        false => mappings.iter().find_map(host),
    }
    .filter(|&uid| uid != 0)
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
    let domain = spec.domainname().as_ref().filter(|name| !name.is_empty());
    let sysctl = linux.sysctl().as_ref().and_then(|all| all.get("kernel.domainname"));
    if let (Some(name), Some(other)) = (domain, sysctl.filter(|&other| Some(other) != domain)) {
        return Err(Error::invalid(format!(
            "domainname is {name:?}, but linux.sysctl sets kernel.domainname to {other:?}: leave one of them out"
        )));
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
        Some(option) => mount_options::propagation(option).map(Some).ok_or_else(|| {
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
        let twice = refusal(|config| {
            config["domainname"] = json!("one");
            config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "uts"}]);
            config["linux"]["sysctl"] = json!({"kernel.domainname": "other"});
        });
        assert!(twice.contains("leave one of them out"), "{twice}");
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
    fn what_is_not_supported_is_refused_not_ignored() {
        assert!(refusal(|config| config["windows"] = json!({"layerFolders": []})).contains("windows"));
        assert!(
            refusal(|config| config["linux"]["personality"] = json!({"domain": "LINUX", "flags": ["x"]}))
                .contains("flag")
        );
        assert!(refusal(|config| config["ociVersion"] = json!("2.0.0")).contains("2.0.0"));
        assert!(refusal(|config| config["linux"]["rootfsPropagation"] = json!("upwards")).contains("upwards"));
    }

    #[test]
    fn only_a_writable_cgroup_mount_makes_an_owner() {
        let owner = |options: Value, uid: u32| {
            plan(|config| {
                config["mounts"] = json!([{"destination": "/sys/fs/cgroup", "type": "cgroup", "options": options}]);
                config["process"]["user"]["uid"] = json!(uid);
                config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "cgroup"}, {"type": "user"}]);
                let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
                config["linux"]["uidMappings"] = map.clone();
                config["linux"]["gidMappings"] = map;
            })
            .unwrap()
            .cgroup_owner
        };
        assert_eq!(owner(json!(["rw"]), 7), Some(100_007));
        assert_eq!(owner(json!(["ro"]), 7), None);
        assert_eq!(owner(json!(["rw"]), 5000), None);
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
