//! What the runtime remembers of a container: `<root>/<id>/state.json`, written once, and the compiled filter.
//! The kernel is the truth about processes; the record only names them (pid and start time). These two are not known
//! yet when the record is written, so it begins with blanks that they are written into later.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use super::listener::Agent;
use super::process_stat::process_stat;
use super::{State, Status};
use crate::cgroup::Cgroup;
use crate::cgroup::systemd::Scope;
use crate::error::{Error, Kind, Result};
use crate::seccomp::Filter;
use crate::seccomp::cache::Entry;
use crate::spec;

const RECORD: &str = "state.json";
const FILTER: &str = "seccomp.bpf";
const RESCTRL: &str = "resctrl";
/// The init listens here for `start`.
pub(super) const START_SOCKET: &str = "start.sock";
const ID_LENGTH: usize = 255;
/// How often a record is read that is just being written.
const ATTEMPTS: usize = 100;

/// Directory of one container below the state root.
pub(super) struct Directory {
    path: PathBuf,
}

/// The record of one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub oci_version: String,
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// The caller's session keyring was kept.
    #[serde(default)]
    pub no_new_keyring: bool,
    /// RFC 3339.
    pub created: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The init; 0 while `create` is under way.
    #[serde(skip_serializing)]
    pub pid: i32,
    /// Clock ticks since boot, so that a reused pid is not mistaken for the init.
    #[serde(skip_serializing)]
    pub start_time: u64,
    pub cgroup: PathBuf,
    /// CLONE_NEW flags of the namespaces that are the container's own.
    pub namespaces: i32,
    /// The container's process: the base of `exec`.
    pub process: spec::Process,
    /// What `exec` takes over from the configuration besides the process.
    #[serde(default, skip_serializing_if = "Inherited::is_empty")]
    pub inherited: Inherited,
    /// The unit of systemd whose cgroup it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// The container is in a class of resctrl; a link in its directory says what was made for it there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resctrl: bool,
    #[serde(default)]
    pub poststart: Option<Vec<spec::Hook>>,
    #[serde(default)]
    pub poststop: Option<Vec<spec::Hook>>,
}

/// Properties of the container that each of its processes gets, and that its process does not name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Inherited {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personality: Option<spec::LinuxPersonality>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<spec::LinuxMemoryPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
}

impl Inherited {
    pub fn new(linux: &spec::Linux) -> Inherited {
        Inherited {
            personality: linux.personality().clone(),
            memory_policy: linux.memory_policy().clone(),
            agent: linux.seccomp().as_ref().and_then(Agent::new),
        }
    }

    fn is_empty(&self) -> bool {
        *self == Inherited::default()
    }
}

/// Ids name directories: only letters, digits and `_+-.`, and not hidden ones, of which `.` and `..` are two.
pub(super) fn check_id(id: &str) -> Result<()> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "_+-.".contains(letter);
    let wrong = match id.chars().find(|&letter| !allowed(letter)) {
        Some(letter) => format!("invalid character {letter:?}"),
        None if id.is_empty() || id.len() > ID_LENGTH => format!("{} characters", id.len()),
        None if id.starts_with('.') => "it begins with a dot".to_owned(),
        None => return Ok(()),
    };
    Err(Error::invalid(format!(
        "invalid container ID {id:?}: {wrong}; use 1 to {ID_LENGTH} of a-z A-Z 0-9 _ + - and, but for the first, dots"
    )))
}

impl Directory {
    pub fn new(root: &Path, id: &str) -> Result<Directory> {
        check_id(id)?;
        Ok(Directory { path: root.join(id) })
    }

    /// Make it for a new container; the lock held by the returned descriptor says that `create` is alive.
    pub fn make(root: &Path, id: &str) -> Result<(Directory, OwnedFd)> {
        let directory = Directory::new(root, id)?;
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        let mut made = builder.create(&directory.path);
        if made.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            builder
                .recursive(true)
                .create(root)
                .map_err(|e| Error::os(format!("make state root {}", root.display()), e))?;
            made = builder.recursive(false).create(&directory.path);
        }
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::new(
                    Kind::AlreadyExists,
                    format!("container with given ID already exists: {id}"),
                ));
            }
            other => other.map_err(|e| Error::os(format!("make {}", directory.path.display()), e))?,
        }
        let lock = directory.open()?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| Error::os(format!("lock {}", directory.path.display()), e))?;
        Ok((directory, lock))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn open(&self) -> Result<OwnedFd> {
        rustix::fs::open(
            &self.path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| Error::os(format!("open {}", self.path.display()), e))
    }

    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    pub fn load(&self) -> Result<Record> {
        let path = self.path.join(RECORD);
        let mut attempt = 1;
        loop {
            let bytes = match fs::read(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let id = self.path.file_name().unwrap_or_default().to_string_lossy();
                    return Err(Error::not_found(&id));
                }
                other => other.map_err(|e| Error::os(format!("read {}", path.display()), e))?,
            };
            match serde_json::from_slice(&bytes) {
                // `create` died between making the file and writing it: nothing else was made.
                Err(_) if bytes.is_empty() && !self.is_being_created() => {
                    let id = self.path.file_name().unwrap_or_default().to_string_lossy();
                    return Err(Error::not_found(&id));
                }
                // `create` may just be writing the pid, or not be done with the whole.
                Err(_) if attempt < ATTEMPTS && self.is_being_created() => attempt += 1,
                other => return other.map_err(|e| Error::system(format!("{} is damaged: {e}", path.display()))),
            }
        }
    }

    /// Write the record of a new container.
    pub fn save(&self, record: &Record) -> Result<RecordFile> {
        let path = self.path.join(RECORD);
        let fail = |e: io::Error| Error::os(format!("write {}", path.display()), e);
        let rest = serde_json::to_vec(record).map_err(|e| fail(e.into()))?;
        let mut bytes = init_fields(record.pid, record.start_time).into_bytes();
        bytes.extend_from_slice(rest.get(1..).unwrap_or_default());
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        rustix::io::pwrite(&file, &bytes, 0)
            .and_then(|length| {
                if length == bytes.len() {
                    Ok(())
                } else {
                    Err(Errno::NOSPC)
                }
            })
            .map_err(|e| fail(e.into()))?;
        Ok(RecordFile { file, path })
    }

    /// Keep the compiled filter, so that `exec` need not compile the profile again.
    /// A second name of the file in the cache costs less than a copy, and outlives it.
    pub fn save_filter(&self, filter: &Filter, cached: Option<&Entry>) -> Result<()> {
        let path = self.path.join(FILTER);
        if cached.is_some_and(|entry| fs::hard_link(entry.path(), &path).is_ok()) {
            return Ok(());
        }
        fs::write(&path, filter.to_bytes()).map_err(|e| Error::os(format!("write {}", path.display()), e))
    }

    pub fn load_filter(&self) -> Result<Option<Filter>> {
        let path = self.path.join(FILTER);
        match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::os(format!("read {}", path.display()), e)),
            Ok(bytes) => Filter::from_bytes(&bytes)
                .map(Some)
                .ok_or_else(|| Error::system(format!("{} is damaged", path.display()))),
        }
    }

    /// Remember a directory of resctrl that was made for the container.
    pub fn save_resctrl(&self, made: &Path) -> Result<()> {
        let path = self.path.join(RESCTRL);
        std::os::unix::fs::symlink(made, &path).map_err(|e| Error::os(format!("make link {}", path.display()), e))
    }

    pub fn load_resctrl(&self) -> Option<PathBuf> {
        fs::read_link(self.path.join(RESCTRL)).ok()
    }

    /// Forget the container.
    pub fn remove(&self) -> Result<()> {
        // The record first; most containers have nothing else.
        let _ = fs::remove_file(self.path.join(RECORD));
        if fs::remove_dir(&self.path).is_ok() {
            return Ok(());
        }
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::os(format!("remove {}", self.path.display()), e))
            }
            _ => Ok(()),
        }
    }

    /// `create` holds the lock while it runs.
    fn is_being_created(&self) -> bool {
        self.open()
            .is_ok_and(|fd| rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared).is_err())
    }

    pub fn status(&self, record: &Record) -> Status {
        match () {
            () if self.is_being_created() => Status::Creating,
            () if record.pid == 0 || !record.is_alive() => Status::Stopped,
            () if self.path.join(START_SOCKET).exists() => Status::Created,
            () if Cgroup::at(&record.cgroup).is_frozen() => Status::Paused,
            () => Status::Running,
        }
    }

    pub fn state(&self, record: &Record) -> State {
        let status = match self.status(record) {
            // `start`, which asks too, is spared this look.
            Status::Created if Cgroup::at(&record.cgroup).is_frozen() => Status::Paused,
            status => status,
        };
        self.state_as(record, status)
    }

    /// The state of a container that is about to execute its program.
    pub fn created_state(&self, record: &Record) -> State {
        self.state_as(record, Status::Created)
    }

    /// The state of a container that has just executed its program, even if that has ended by now.
    pub fn started_state(&self, record: &Record) -> State {
        self.state_as(record, Status::Running)
    }

    fn state_as(&self, record: &Record, status: Status) -> State {
        State {
            oci_version: record.oci_version.clone(),
            id: record.id.clone(),
            pid: if status == Status::Stopped { 0 } else { record.pid },
            status,
            bundle: record.bundle.clone(),
            rootfs: record.rootfs.clone(),
            created: record.created.clone(),
            owner: String::new(),
            annotations: record.annotations.clone(),
        }
    }
}

impl Record {
    /// The init runs: same pid, same start time, no zombie.
    pub fn is_alive(&self) -> bool {
        process_stat(self.pid).is_some_and(|stat| stat.start_time == self.start_time && !stat.dead)
    }

    /// Its pidfd, proven to be the init's.
    pub fn pidfd(&self) -> Option<OwnedFd> {
        let pidfd = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(pidfd)
    }
}

/// A record that was written without the init, which did not exist yet.
pub(super) struct RecordFile {
    file: fs::File,
    path: PathBuf,
}

impl RecordFile {
    /// Name the init.
    pub fn set_init(&self, pid: i32, start_time: u64) -> Result<()> {
        rustix::io::pwrite(&self.file, init_fields(pid, start_time).as_bytes(), 0)
            .map(drop)
            .map_err(|e| Error::os(format!("write the pid into {}", self.path.display()), e))
    }
}

/// The beginning of a record: as long for any two numbers.
fn init_fields(pid: i32, start_time: u64) -> String {
    format!("{{\"pid\":{pid:>10},\"startTime\":{start_time:>20},")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_the_state_root() {
        for id in ["", ".", "..", "a/b", "../a", "a b", "ü", &"x".repeat(256)] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        assert!(check_id("pod-1_a.b+c").is_ok());
    }

    #[test]
    fn a_half_made_container_is_stopped_once_its_maker_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let (directory, lock) = Directory::make(root.path(), "c1").unwrap();
        let record = Record {
            oci_version: "1.2.0".into(),
            id: "c1".into(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            no_new_keyring: false,
            inherited: Inherited::default(),
            scope: None,
            resctrl: false,
            created: crate::timestamp::rfc3339(0),
            annotations: BTreeMap::new(),
            pid: 0,
            start_time: 0,
            cgroup: "/nowhere".into(),
            namespaces: 0,
            process: spec::Process::default(),
            poststart: None,
            poststop: None,
        };
        directory.save(&record).unwrap();
        assert_eq!(directory.status(&directory.load().unwrap()), Status::Creating);
        drop(lock);
        assert_eq!(directory.status(&record), Status::Stopped);
        assert_eq!(
            Directory::make(root.path(), "c1").err().unwrap().kind(),
            Kind::AlreadyExists
        );
    }
}
