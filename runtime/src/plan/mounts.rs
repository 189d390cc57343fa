//! The plan of one mount: options parsed into mount attributes, propagation and file-system parameters.
//! config.md, "Mounts"; mount_setattr(2) and fsconfig(2) for what the kernel takes.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::process::{c_path, c_string};
use crate::error::{Error, Result};
use crate::spec;

/// Attributes to set and to clear, on the mount itself and on everything below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub set: u64,
    pub clear: u64,
    pub recursive_set: u64,
    pub recursive_clear: u64,
}

/// Propagation as mount(2) flags (MS_SHARED, MS_SLAVE, …) and whether it goes to submounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Propagation {
    pub flag: u64,
    pub recursive: bool,
}

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
const UNLABELLED: [&str; 6] = ["proc", "sysfs", "mqueue", "cgroup", "cgroup2", "bind"];

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
        if let Some(label) = label.filter(|_| !UNLABELLED.contains(&kind)) {
            options.parameters.push(("context".into(), Some(label.into())));
        }
        let bind = options.bind || options.recursive_bind || kind == "bind" || kind == "rbind";
        let recursive = options.recursive_bind || kind == "rbind";
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

/// `options` of one mount, sorted by what they are.
#[derive(Debug, Default)]
struct Options {
    bind: bool,
    recursive_bind: bool,
    attributes: Attributes,
    propagation: Option<Propagation>,
    copy_up: bool,
    /// `idmap` (Some(false)) or `ridmap` (Some(true)).
    idmap: Option<bool>,
    parameters: Vec<(String, Option<String>)>,
}

impl Options {
    fn parse(options: &[String]) -> Options {
        let mut parsed = Options::default();
        for option in options {
            parsed.add(option);
        }
        parsed
    }

    fn add(&mut self, option: &str) {
        if let Some((set, clear)) = attribute(option) {
            self.attributes.set = self.attributes.set & !clear | set;
            self.attributes.clear = self.attributes.clear & !set | clear;
            return;
        }
        if let Some((set, clear)) = option.strip_prefix('r').and_then(attribute) {
            self.attributes.recursive_set = self.attributes.recursive_set & !clear | set;
            self.attributes.recursive_clear = self.attributes.recursive_clear & !set | clear;
            return;
        }
        if let Some(propagation) = propagation(option) {
            self.propagation = Some(propagation);
            return;
        }
        match option {
            "bind" => self.bind = true,
            "rbind" => self.recursive_bind = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            // What the kernel does anyway, or no longer knows.
            "" | "defaults" | "remount" | "async" | "loud" | "noiversion" | "nomand" | "nolazytime" | "private-ns" => {}
            _ => match option.split_once('=') {
                Some((key, value)) => self.parameters.push((key.into(), Some(value.into()))),
                None => self.parameters.push((option.into(), None)),
            },
        }
    }
}

/// Bits to set and to clear for a per-mount option.
fn attribute(option: &str) -> Option<(u64, u64)> {
    use libc::{
        MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID,
        MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME,
    };
    // Access times are one value of several bits: it is replaced as a whole.
    let all_atime = libc::MOUNT_ATTR__ATIME;
    Some(match option {
        "ro" => (MOUNT_ATTR_RDONLY, 0),
        "rw" => (0, MOUNT_ATTR_RDONLY),
        "nosuid" => (MOUNT_ATTR_NOSUID, 0),
        "suid" => (0, MOUNT_ATTR_NOSUID),
        "nodev" => (MOUNT_ATTR_NODEV, 0),
        "dev" => (0, MOUNT_ATTR_NODEV),
        "noexec" => (MOUNT_ATTR_NOEXEC, 0),
        "exec" => (0, MOUNT_ATTR_NOEXEC),
        "nodiratime" => (MOUNT_ATTR_NODIRATIME, 0),
        "diratime" => (0, MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => (MOUNT_ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => (MOUNT_ATTR_NOATIME, all_atime & !MOUNT_ATTR_NOATIME),
        "strictatime" => (MOUNT_ATTR_STRICTATIME, all_atime & !MOUNT_ATTR_STRICTATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, all_atime),
        _ => return None,
    })
}

/// mount(2)'s flag for a propagation option or a value of rootfsPropagation.
pub(crate) fn propagation(option: &str) -> Option<Propagation> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(name) => (name, true),
        None => (option, false),
    };
    let flag = match name {
        "private" => libc::MS_PRIVATE,
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some(Propagation { flag, recursive })
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
        assert_eq!(
            plan.attributes.clear,
            libc::MOUNT_ATTR__ATIME & !libc::MOUNT_ATTR_NOATIME
        );
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
