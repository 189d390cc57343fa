//! The plan of one mount: options parsed into mount attributes, propagation and file-system parameters.
//! config.md, "Mounts"; mount_setattr(2) and fsconfig(2) for what the kernel takes.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::mount_options::{Attributes, Options, Propagation};
use super::process::{c_path, c_string};
use crate::error::{Error, Result};
use crate::spec;

/// What is mounted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file or directory of the host, opened by the parent.
    Bind { path: PathBuf, recursive: bool },
    /// A new file system, made by the child inside its namespaces.
    FileSystem {
        kind: CString,
        source: CString,
        parameters: Vec<(CString, Option<CString>)>,
    },
}

/// One mount, ready to be made.
#[derive(Debug)]
pub(crate) struct MountPlan {
    /// Relative to the root file system; "." is the root itself.
    pub target: CString,
    pub source: Source,
    pub attributes: Attributes,
    pub propagation: Option<Propagation>,
    /// It may lie on a procfs: the procfs itself and the few files that engines replace in it.
    pub on_proc: bool,
    /// Its source must be a procfs: it takes the place of /proc.
    pub must_be_proc: bool,
    /// Copy what the image has at the target into the new tmpfs.
    pub copy_up: bool,
    /// A tmpfs that is made read-only when all else is there: devices and mount points are still to be made in it.
    pub read_only_last: bool,
    /// Owner mapping of the container's user namespace, or its own: (uid_map, gid_map).
    pub idmap: Option<Idmap>,
}

/// Which user namespace's mapping an id-mapped mount shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Idmap {
    /// The mappings; `None` takes the container's.
    pub maps: Option<(String, String)>,
    pub recursive: bool,
}

/// File systems that take no SELinux context.
const UNLABELLED: [&str; 5] = ["proc", "sysfs", "mqueue", "cgroup", "cgroup2"];

/// Files below /proc that may be replaced by a bind mount, as runc allows them (lxcfs, CRIU, FIPS).
const REPLACEABLE_IN_PROC: [&str; 11] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/meminfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "proc/loadavg",
    "proc/slabinfo",
    "proc/net/dev",
    "proc/sys/kernel/ns_last_pid",
    "proc/sys/crypto/fips_enabled",
];

impl MountPlan {
    /// Check one entry of `mounts` and lay it out. `bundle` is where relative bind sources start; `label` is the SELinux
    /// context of new file systems.
    pub fn new(mount: &spec::Mount, bundle: &Path, label: Option<&str>) -> Result<MountPlan> {
        let destination = mount.destination();
        let target = in_root(destination);
        let kind = mount.typ().as_deref().unwrap_or("bind");
        let mut options = Options::parse(mount.options().as_deref().unwrap_or_default());
        let bind = options.bind || options.recursive_bind || kind == "bind" || kind == "rbind";
        let recursive = options.recursive_bind || kind == "rbind";
        if let Some(label) = label.filter(|_| !bind && !UNLABELLED.contains(&kind)) {
            options.parameters.push(("context".into(), Some(label.into())));
        }
        match bind {
            true => options.warn_of_parameters(destination),
            // Nothing is below a new file system: what is for all of it is for itself.
            false => options.attributes.flatten(),
        }
        let read_only_last = !bind && kind == "tmpfs" && options.attributes.set & libc::MOUNT_ATTR_RDONLY != 0;
        if read_only_last {
            options.attributes.set &= !libc::MOUNT_ATTR_RDONLY;
        }
        if target == Path::new(".") {
            return Err(Error::invalid(format!(
                "mounts: destination {:?} is the root file system itself; set root.path instead",
                destination.display()
            )));
        }
        let source = match bind {
            true => Source::Bind {
                path: bind_source(mount, bundle)?,
                recursive,
            },
            false => file_system(mount, kind, &options)?,
        };
        let shown = target.to_string_lossy();
        // Who may not mount a procfs (a user namespace without a pid namespace) binds the host's.
        let must_be_proc = bind && target == Path::new("proc");
        let on_proc =
            must_be_proc || (kind == "proc" && target == Path::new("proc")) || REPLACEABLE_IN_PROC.contains(&&*shown);
        if target.starts_with("proc") && !on_proc {
            return Err(Error::invalid(format!(
                "mounts: {:?} cannot be mounted over: it is inside /proc",
                destination.display()
            )));
        }
        Ok(MountPlan {
            target: c_path("mounts.destination", &target)?,
            source,
            attributes: options.attributes,
            propagation: options.propagation,
            on_proc,
            must_be_proc,
            copy_up: options.copy_up,
            read_only_last,
            idmap: idmap(mount, &options)?,
        })
    }
}

/// A path of the container, relative to its root, without `.` and `..`.
pub(crate) fn in_root(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => (),
        }
    }
    if clean.as_os_str().is_empty() {
        clean.push(".");
    }
    clean
}

fn bind_source(mount: &spec::Mount, bundle: &Path) -> Result<PathBuf> {
    match mount.source() {
        Some(source) if !source.as_os_str().is_empty() => Ok(bundle.join(source)),
        _ => Err(Error::invalid(format!(
            "mounts: the bind mount on {:?} has no source",
            mount.destination().display()
        ))),
    }
}

fn file_system(mount: &spec::Mount, kind: &str, options: &Options) -> Result<Source> {
    let (kind, mut parameters) = match kind {
        // The container sees version 2 only; options of the old hierarchy mean nothing there.
        "cgroup" | "cgroup2" => ("cgroup2", Vec::new()),
        _ => (kind, options.parameters.clone()),
    };
    parameters.retain(|(key, _)| !key.is_empty());
    let parameters = parameters
        .into_iter()
        .map(|(key, value)| {
            let value = value.map(|value| c_string("mounts.options", &value)).transpose()?;
            Ok((c_string("mounts.options", &key)?, value))
        })
        .collect::<Result<_>>()?;
    let source = mount.source().as_deref().unwrap_or(Path::new(kind));
    Ok(Source::FileSystem {
        kind: c_string("mounts.type", kind)?,
        source: CString::new(source.as_os_str().as_bytes())
            .map_err(|_| Error::invalid("mounts.source contains a NUL byte"))?,
        parameters,
    })
}

fn idmap(mount: &spec::Mount, options: &Options) -> Result<Option<Idmap>> {
    let uids = mount.uid_mappings().as_deref().unwrap_or_default();
    let gids = mount.gid_mappings().as_deref().unwrap_or_default();
    if uids.is_empty() != gids.is_empty() {
        return Err(Error::invalid(format!(
            "mounts: {:?} needs uidMappings and gidMappings together",
            mount.destination().display()
        )));
    }
    let recursive = options.idmap == Some(true);
    Ok(match (uids.is_empty(), options.idmap) {
        (true, None) => None,
        (true, Some(_)) => Some(Idmap { maps: None, recursive }),
        (false, _) => Some(Idmap {
            maps: Some((super::namespaces::id_map(uids), super::namespaces::id_map(gids))),
            recursive,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(json: serde_json::Value) -> Result<MountPlan> {
        MountPlan::new(&serde_json::from_value(json).unwrap(), Path::new("/bundle"), None)
    }

    #[test]
    fn a_bind_mount_keeps_its_flags_apart_from_its_propagation() {
        let plan = mount(serde_json::json!({
            "destination": "/etc/../data/./x", "type": "bind", "source": "vol",
            "options": ["rbind", "ro", "rslave", "rnosuid", "noatime"]
        }))
        .unwrap();
        assert_eq!(plan.target.as_c_str(), c"data/x");
        assert_eq!(
            plan.source,
            Source::Bind {
                path: "/bundle/vol".into(),
                recursive: true
            }
        );
        assert_eq!(
            plan.propagation,
            Some(Propagation {
                flag: libc::MS_SLAVE,
                recursive: true
            })
        );
        assert_eq!(plan.attributes.set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME);
        assert_eq!(plan.attributes.clear, libc::MOUNT_ATTR__ATIME);
        assert_eq!(plan.attributes.recursive_set, libc::MOUNT_ATTR_NOSUID);
    }

    #[test]
    fn a_file_system_keeps_its_parameters() {
        let plan = mount(serde_json::json!({
            "destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "gid=5"]
        }))
        .unwrap();
        let Source::FileSystem { kind, parameters, .. } = plan.source else {
            panic!("not a file system")
        };
        assert_eq!(kind.as_c_str(), c"devpts");
        assert_eq!(parameters[0], (c"newinstance".into(), None));
        assert_eq!(parameters[2], (c"gid".into(), Some(c"5".into())));
    }

    #[test]
    fn recursive_options_of_a_new_file_system_are_its_own() {
        let plan = mount(serde_json::json!({
            "destination": "/a", "type": "tmpfs", "options": ["rro", "nosuid", "rsuid"]
        }))
        .unwrap();
        assert_eq!(plan.attributes.set, 0);
        assert!(plan.read_only_last, "what is mounted in a tmpfs is made in it first");
        assert_eq!(plan.attributes.recursive_set, 0);
    }

    #[test]
    fn the_last_of_contradicting_options_wins() {
        let plan = mount(serde_json::json!({
            "destination": "/a", "type": "tmpfs", "options": ["ro", "rw", "exec", "noexec"]
        }))
        .unwrap();
        assert_eq!(plan.attributes.set, libc::MOUNT_ATTR_NOEXEC);
        assert_eq!(plan.attributes.clear, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn nothing_is_mounted_over_proc_or_the_root() {
        let proc = |destination: &str, kind: &str| {
            mount(serde_json::json!({"destination": destination, "type": kind, "source": "/x"}))
        };
        assert!(proc("/proc", "proc").unwrap().on_proc);
        assert!(proc("/proc/meminfo", "bind").unwrap().on_proc);
        assert!(proc("/proc", "bind").unwrap().must_be_proc);
        assert!(
            proc("/proc/sys", "bind")
                .unwrap_err()
                .to_string()
                .contains("inside /proc")
        );
        assert!(proc("/x/../proc/self", "tmpfs").is_err());
        assert!(proc("/", "tmpfs").unwrap_err().to_string().contains("root.path"));
    }

    #[test]
    fn destinations_never_leave_the_root() {
        assert_eq!(in_root(Path::new("/../../etc")), Path::new("etc"));
        assert_eq!(in_root(Path::new("..")), Path::new("."));
    }
}
