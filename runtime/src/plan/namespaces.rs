//! Which namespaces are made and which are joined, and the id mappings of a user namespace.
//! config-linux.md, "Namespaces"; namespaces(7), user_namespaces(7), time_namespaces(7).

use std::ffi::CString;
use std::fmt::Write;

use super::process::c_path;
use crate::error::{Error, Result};
use crate::spec::{self, LinuxIdMapping, LinuxNamespaceType};

/// A namespace to enter, and its CLONE_NEW flag.
#[derive(Debug)]
pub(crate) struct Join {
    pub kind: i32,
    pub path: CString,
}

/// What happens to each kind of namespace.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    /// CLONE_NEW flags of all namespaces that are new.
    pub new: i32,
    /// CLONE_NEW flags of namespaces that the runtime itself is in already.
    pub held: i32,
    /// Namespaces entered by path; a user namespace comes first.
    pub join: Vec<Join>,
    /// For a new user namespace: contents of uid_map and gid_map.
    pub id_maps: Option<(String, String)>,
    /// For a new time namespace: contents of timens_offsets.
    pub time_offsets: Option<CString>,
}

impl Namespaces {
    /// Check and sort `linux.namespaces`.
    pub fn new(linux: &spec::Linux) -> Result<Namespaces> {
        let mut namespaces = Namespaces::default();
        for namespace in linux.namespaces().as_deref().unwrap_or_default() {
            let kind = namespace.typ() as i32;
            if namespaces.has(kind) {
                return Err(Error::invalid(format!(
                    "linux.namespaces: {} is given twice",
                    namespace.typ()
                )));
            }
            match namespace.path() {
                Some(path) if !path.as_os_str().is_empty() && !path.is_absolute() => {
                    return Err(Error::invalid(format!(
                        "linux.namespaces: path {:?} of {} is not absolute",
                        path.display(),
                        namespace.typ()
                    )));
                }
                Some(path) if !path.as_os_str().is_empty() => namespaces.join.push(Join {
                    kind,
                    path: c_path("linux.namespaces.path", path)?,
                }),
                _ => namespaces.new |= kind,
            }
        }
        namespaces.join.sort_by_key(|join| join.kind != libc::CLONE_NEWUSER);
        namespaces.id_maps = namespaces.id_maps(linux)?;
        namespaces.time_offsets = namespaces.time_offsets(linux)?;
        Ok(namespaces)
    }

    /// The container has its own (new or joined) namespace of this kind.
    pub fn has(&self, kind: i32) -> bool {
        (self.new | self.held) & kind != 0 || self.join.iter().any(|join| join.kind == kind)
    }

    /// It is new.
    pub fn makes(&self, kind: i32) -> bool {
        self.new & kind != 0
    }

    /// Flags of all namespaces that a later `exec` has to enter.
    pub fn all(&self) -> i32 {
        self.join.iter().fold(self.new | self.held, |all, join| all | join.kind)
    }

    /// A new user namespace without mappings shows one user and one group, under the numbers of its process: the caller's.
    pub fn map_caller(&mut self, uid: u32, gid: u32) {
        if self.makes(libc::CLONE_NEWUSER) && self.id_maps.is_none() {
            let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
            self.id_maps = Some((
                format!("{uid} {} 1\n", user.as_raw()),
                format!("{gid} {} 1\n", group.as_raw()),
            ));
        }
    }

    fn id_maps(&self, linux: &spec::Linux) -> Result<Option<(String, String)>> {
        let uids = linux.uid_mappings().as_deref().unwrap_or_default();
        let gids = linux.gid_mappings().as_deref().unwrap_or_default();
        match (self.makes(libc::CLONE_NEWUSER), uids.is_empty() || gids.is_empty()) {
            (true, true) if uids.is_empty() && gids.is_empty() => Ok(None),
            (true, true) => Err(Error::invalid(
                "a new user namespace needs linux.uidMappings and linux.gidMappings, not one of them",
            )),
            (true, false) => Ok(Some((id_map(uids), id_map(gids)))),
            (false, false) if !self.has(libc::CLONE_NEWUSER) => Err(Error::invalid(
                "linux.uidMappings and gidMappings are given, but no user namespace in linux.namespaces",
            )),
            (false, _) => Ok(None),
        }
    }

    fn time_offsets(&self, linux: &spec::Linux) -> Result<Option<CString>> {
        let Some(offsets) = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty()) else {
            return Ok(None);
        };
        if !self.makes(libc::CLONE_NEWTIME) {
            return Err(Error::invalid(
                "linux.timeOffsets needs a new time namespace in linux.namespaces",
            ));
        }
        let mut text = String::new();
        let mut offsets: Vec<_> = offsets.iter().collect();
        offsets.sort_by_key(|(clock, _)| *clock);
        for (clock, offset) in offsets {
            if clock != "monotonic" && clock != "boottime" {
                return Err(Error::invalid(format!(
                    "linux.timeOffsets: clock {clock:?} is neither monotonic nor boottime"
                )));
            }
            let _ = writeln!(
                text,
                "{clock} {} {}",
                offset.secs().unwrap_or(0),
                offset.nanosecs().unwrap_or(0)
            );
        }
        super::process::c_string("linux.timeOffsets", &text).map(Some)
    }
}

/// Contents of uid_map or gid_map.
pub(crate) fn id_map(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut text, map| {
        let _ = writeln!(text, "{} {} {}", map.container_id(), map.host_id(), map.size());
        text
    })
}

/// The name of a kind, as in /proc/<pid>/ns.
pub(crate) fn kind_name(kind: i32) -> &'static str {
    match kind {
        libc::CLONE_NEWNS => "mnt",
        libc::CLONE_NEWCGROUP => "cgroup",
        libc::CLONE_NEWUTS => "uts",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWPID => "pid",
        libc::CLONE_NEWNET => "net",
        libc::CLONE_NEWTIME => "time",
        _ => "unknown",
    }
}

const _: () = assert!(LinuxNamespaceType::Pid as i32 == libc::CLONE_NEWPID);
const _: () = assert!(LinuxNamespaceType::Time as i32 == libc::CLONE_NEWTIME);

#[cfg(test)]
mod tests {
    use super::*;

    fn namespaces(json: serde_json::Value) -> Result<Namespaces> {
        Namespaces::new(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn new_and_joined_are_told_apart() {
        let plan = namespaces(serde_json::json!({
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}, {"type": "user", "path": "/u"}]
        }))
        .unwrap();
        assert_eq!(plan.new, libc::CLONE_NEWPID);
        assert_eq!(plan.join[0].kind, libc::CLONE_NEWUSER);
        assert_eq!(plan.join[1].path.as_c_str(), c"/run/netns/a");
        assert_eq!(
            plan.all(),
            libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWUSER
        );
    }

    #[test]
    fn mappings_and_user_namespace_go_together() {
        let map = serde_json::json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
        let plan = namespaces(serde_json::json!({
            "namespaces": [{"type": "user"}], "uidMappings": map, "gidMappings": map
        }))
        .unwrap();
        assert_eq!(plan.id_maps.unwrap().0, "0 100000 65536\n");
        assert!(namespaces(serde_json::json!({"namespaces": [{"type": "user"}], "uidMappings": map})).is_err());
        let mut plan = namespaces(serde_json::json!({"namespaces": [{"type": "user"}]})).unwrap();
        plan.map_caller(7, 8);
        let user = rustix::process::geteuid();
        assert_eq!(plan.id_maps.unwrap().0, format!("7 {} 1\n", user.as_raw()));
        assert!(namespaces(serde_json::json!({"namespaces": [], "uidMappings": map, "gidMappings": map})).is_err());
    }

    #[test]
    fn a_path_is_absolute() {
        let relative = serde_json::json!({"namespaces": [{"type": "network", "path": "netns/a"}]});
        assert!(namespaces(relative).unwrap_err().to_string().contains("not absolute"));
    }

    #[test]
    fn a_kind_given_twice_is_refused() {
        let error = namespaces(serde_json::json!({"namespaces": [{"type": "pid"}, {"type": "pid"}]})).unwrap_err();
        assert_eq!(error.to_string(), "linux.namespaces: pid is given twice");
    }

    #[test]
    fn time_offsets_become_lines_of_the_kernel() {
        let plan = namespaces(serde_json::json!({
            "namespaces": [{"type": "time"}], "timeOffsets": {"boottime": {"secs": 100}}
        }))
        .unwrap();
        assert_eq!(plan.time_offsets.unwrap().as_c_str(), c"boottime 100 0\n");
    }
}
