//! cgroups as scopes of systemd: the container's init is put into a transient unit, whose cgroup is delegated to us.
//! `linux.cgroupsPath` is then `slice:prefix:name`, as runc and the kubelet have it. org.freedesktop.systemd1(5).
//! Invariant: systemd is told every limit that it knows too, or it would write its own over ours.

mod dbus;
mod property;
mod wire;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Hierarchy, Limits};
use crate::error::{Error, Result};
use dbus::{Address, Connection, Failure};
use property::Property;
use wire::Body;

/// Annotations with this in front become properties of the scope.
pub(crate) const ANNOTATION: &str = "org.systemd.property.";
/// Longest name of a unit.
const NAME_LENGTH: usize = 255;

/// A transient unit of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    slice: String,
    unit: String,
    /// It belongs to the service manager of a user.
    user: bool,
}

impl Scope {
    /// From `linux.cgroupsPath`; without one it is named by the container's id.
    pub fn new(cgroups_path: Option<&Path>, id: &str) -> Result<Scope> {
        let user = is_users();
        let default = if user { "user.slice" } else { "system.slice" };
        let path = cgroups_path.map(|path| path.to_string_lossy()).unwrap_or_default();
        let own = format!(":hull:{id}");
        let path = if path.is_empty() { &*own } else { &*path };
        let wrong = |what: &str| {
            Error::invalid(format!(
                "linux.cgroupsPath {path:?} {what}; with systemd it is slice:prefix:name, e.g. system.slice:podman:c1"
            ))
        };
        let [slice, prefix, name] = path.split(':').collect::<Vec<_>>()[..] else {
            return Err(wrong("has not three parts"));
        };
        let slice = if slice.is_empty() { default } else { slice };
        let unit = match prefix.is_empty() {
            true => format!("{name}.scope"),
            false => format!("{prefix}-{name}.scope"),
        };
        let allowed = |text: &str| {
            text.len() <= NAME_LENGTH
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte))
        };
        if name.is_empty() || !allowed(&unit) || !allowed(slice) {
            return Err(wrong("names no unit"));
        }
        if expand(slice).is_none() {
            return Err(wrong("has a slice that is none"));
        }
        Ok(Scope {
            slice: slice.to_owned(),
            unit,
            user,
        })
    }

    /// Where its cgroup will be.
    pub fn dir(&self, hierarchy: &Hierarchy) -> Result<PathBuf> {
        // The root, unless systemd is a user's or runs in a container itself.
        let mut connection = self.connect()?;
        let group = connection
            .manager_text("ControlGroup")
            .map_err(|e| self.failed("ask for its cgroup", &e))?;
        let mut dir = hierarchy.mount().join(group.trim_start_matches('/'));
        dir.extend(expand(&self.slice).unwrap_or_default());
        dir.push(&self.unit);
        Ok(dir)
    }

    /// Start it with the process `pid` in it.
    pub fn start<'a>(
        &self,
        id: &str,
        pid: i32,
        limits: &Limits,
        annotations: impl Iterator<Item = (&'a String, &'a String)>,
    ) -> Result<()> {
        let mut properties = vec![
            Property::text("Description", &format!("hull container {id}")),
            Property::text("Slice", &self.slice),
            Property::flag("Delegate", true),
            Property::flag("DefaultDependencies", false),
            Property::pids(pid as u32),
        ];
        for accounting in ["CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"] {
            properties.push(Property::flag(accounting, true));
        }
        properties.extend(property::of_limits(limits.settings()));
        for (name, value) in annotations {
            if let Some(name) = name.strip_prefix(ANNOTATION) {
                properties.push(Property::parse(name, value)?);
            }
        }
        let mut body = Body::default();
        body.string(&self.unit).string("replace");
        property::write(&properties, &mut body);
        body.array(8, |_| ());
        let start = || {
            let mut connection = self.open()?;
            connection.manager("Subscribe", "", Body::default())?;
            connection.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", body)?;
            connection.job_result(&self.unit)
        };
        match start() {
            Ok(result) if result == "done" => Ok(()),
            Ok(result) => Err(Error::system(format!(
                "systemd could not start {}: {result}",
                self.unit
            ))),
            Err(failure) => Err(self.failed("start it", &failure)),
        }
    }

    /// Tell it new limits.
    pub fn set(&self, limits: &Limits) -> Result<()> {
        let properties = property::of_limits(limits.settings());
        if properties.is_empty() {
            return Ok(());
        }
        let mut body = Body::default();
        body.string(&self.unit).bool(true);
        property::write(&properties, &mut body);
        let mut connection = self.connect()?;
        connection
            .manager("SetUnitProperties", "sba(sv)", body)
            .map(drop)
            .map_err(|e| self.failed("change its limits", &e))
    }

    /// Make systemd forget it. A scope without processes ends by itself, so there is nothing to fail.
    pub fn stop(&self) {
        let Ok(mut connection) = self.open() else { return };
        let mut stop = Body::default();
        stop.string(&self.unit).string("replace");
        let _ = connection.manager("StopUnit", "ss", stop);
        let mut reset = Body::default();
        reset.string(&self.unit);
        let _ = connection.manager("ResetFailedUnit", "s", reset);
    }

    fn connect(&self) -> Result<Connection> {
        self.open().map_err(|e| self.failed("reach it", &e))
    }

    fn open(&self) -> std::result::Result<Connection, Failure> {
        let mut last = None;
        for address in addresses(self.user) {
            match Connection::open(&address) {
                Ok(connection) => return Ok(connection),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last
            .unwrap_or_else(|| Failure::Refused("nothing says where it listens (XDG_RUNTIME_DIR is not set)".into())))
    }

    fn failed(&self, what: &str, failure: &Failure) -> Error {
        Error::system(format!(
            "cgroup by systemd ({}): {what}: {failure}; is systemd running here? Without it use the cgroup manager cgroupfs \
             (podman: --cgroup-manager cgroupfs; containerd: SystemdCgroup = false)",
            self.unit
        ))
    }
}

/// The service manager that may be asked is a user's: not root, or root of a user namespace.
fn is_users() -> bool {
    !rustix::process::geteuid().is_root() || super::in_user_namespace()
}

fn addresses(user: bool) -> Vec<Address> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut addresses = Vec::new();
    if user {
        let directory = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
        addresses.extend(
            directory
                .iter()
                .map(|dir| Address::Private(dir.join("systemd/private"))),
        );
        addresses.extend(variable("DBUS_SESSION_BUS_ADDRESS").and_then(|list| Address::parse(&list)));
        addresses.extend(directory.map(|dir| Address::Bus(dir.join("bus"))));
    } else {
        addresses.push(Address::Private("/run/systemd/private".into()));
        addresses.extend(variable("DBUS_SYSTEM_BUS_ADDRESS").and_then(|list| Address::parse(&list)));
        addresses.push(Address::Bus("/run/dbus/system_bus_socket".into()));
    }
    addresses
}

/// `a-b.slice` is `a.slice/a-b.slice`. systemd.slice(5).
fn expand(slice: &str) -> Option<Vec<String>> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(Vec::new());
    }
    let mut path = Vec::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains('/') {
            return None;
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_nested_by_their_dashes() {
        assert_eq!(expand("-.slice").unwrap(), Vec::<String>::new());
        assert_eq!(
            expand("kubepods-burstable-pod1.slice").unwrap(),
            [
                "kubepods.slice",
                "kubepods-burstable.slice",
                "kubepods-burstable-pod1.slice"
            ]
        );
        assert!(expand("system").is_none() && expand("a--b.slice").is_none() && expand("-a.slice").is_none());
    }

    #[test]
    fn a_path_names_slice_and_unit() {
        let scope = Scope::new(Some(Path::new("machine.slice:libpod:c1")), "x").unwrap();
        assert_eq!(
            (scope.slice.as_str(), scope.unit.as_str()),
            ("machine.slice", "libpod-c1.scope")
        );
        assert_eq!(Scope::new(None, "c1").unwrap().unit, "hull-c1.scope");
        assert_eq!(Scope::new(Some(Path::new("::c1")), "x").unwrap().unit, "c1.scope");
        for path in ["/a/b", "a:b", "x.slice:p:", "x:p:n", "x.slice:p:a/b", "x.slice:p:n:m"] {
            assert!(Scope::new(Some(Path::new(path)), "x").is_err(), "{path}");
        }
    }
}
