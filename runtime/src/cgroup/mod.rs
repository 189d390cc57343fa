//! cgroup v2: where it is mounted, which controllers it has, and one group's directory in it.
//! Plain file reads and writes, as Documentation/admin-guide/cgroup-v2.rst describes them.
//! Invariant: only the directories that hull made are ever removed; the machine's mounts are left as they are.

mod device_program;
pub(crate) mod devices;
mod hierarchy;
pub(crate) mod limits;
pub(crate) mod systemd;
mod update;
mod version1;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
pub use hierarchy::{Hierarchy, in_user_namespace};
pub use limits::{Limits, Setting};
pub(crate) use update::update;

/// How long the kernel may take to freeze a group or to empty a killed one.
const SETTLE: Duration = Duration::from_secs(10);
/// How often a group is made whose parents others keep removing.
const ATTEMPTS: usize = 64;

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    dir: PathBuf,
}

/// What a group has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time in microseconds (`cpu.stat` is there without the cpu controller too).
    pub cpu_usage_usec: u64,
    /// User part of it.
    pub cpu_user_usec: u64,
    /// System part of it.
    pub cpu_system_usec: u64,
    /// Memory now, in bytes; `None` without the memory controller.
    pub memory_current: Option<u64>,
    /// Of it, file pages that can be dropped at once.
    pub memory_inactive_file: Option<u64>,
    /// Processes and threads now; `None` without the pids controller.
    pub pids_current: Option<u64>,
}

impl Cgroup {
    /// The group whose directory is `dir`.
    pub fn at(dir: impl Into<PathBuf>) -> Cgroup {
        Cgroup { dir: dir.into() }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Make it, with its parents, and hand the parents' controllers down to it. Fails if processes live in it.
    /// A parent that somebody removes in between, because it is empty, is made again.
    pub fn create(&self, hierarchy: &Hierarchy) -> Result<()> {
        for _ in 1..ATTEMPTS {
            match self.try_create(hierarchy) {
                Err(error) if error.errno() == Some(libc::ENOENT) => (),
                other => return other,
            }
        }
        self.try_create(hierarchy)
    }

    fn try_create(&self, hierarchy: &Hierarchy) -> Result<()> {
        // True if it is new, and so has nobody in it.
        let make = |dir: &Path| match fs::create_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(Error::os(format!("make cgroup {}", dir.display()), e)),
            Ok(()) => Ok(true),
        };
        let parent = self.dir.parent().unwrap_or(hierarchy.mount());
        if !hands_down(parent) {
            let below = parent.strip_prefix(hierarchy.mount()).unwrap_or(Path::new(""));
            let mut level = hierarchy.mount().to_path_buf();
            hand_down(&level);
            for part in below.components() {
                level.push(part);
                make(&level)?;
                hand_down(&level);
            }
        }
        if make(&self.dir)? {
            return Ok(());
        }
        let why = match self.processes()?.len() {
            0 if self.is_frozen() => "unexpectedly frozen: nothing could run in it".into(),
            0 => return Ok(()),
            count => format!("is not empty: {count} process(es) live in it"),
        };
        let message = format!("container's cgroup {why}: {}", self.dir.display());
        Err(Error::new(crate::error::Kind::AlreadyExists, message))
    }

    /// Its directory as a descriptor, for CLONE_INTO_CGROUP.
    pub fn open(&self) -> Result<OwnedFd> {
        rustix::fs::open(
            &self.dir,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| Error::os(format!("open cgroup {}", self.dir.display()), e))
    }

    /// It exists.
    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// Move a process into it.
    pub fn add(&self, pid: i32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// The processes in it and below it.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        self.walk(&mut |group| {
            pids.extend(
                words(&group.dir.join("cgroup.procs"))?
                    .iter()
                    .filter_map(|pid| pid.parse::<i32>().ok()),
            );
            Ok(())
        })?;
        Ok(pids)
    }

    /// Set limits. A limit whose controller is absent is an error that says so.
    pub fn apply(&self, limits: &Limits) -> Result<()> {
        for setting in limits.settings() {
            self.set(setting)?;
        }
        Ok(())
    }

    fn set(&self, setting: &Setting) -> Result<()> {
        let path = self.dir.join(&setting.file);
        let other = || {
            setting
                .otherwise
                .as_ref()
                .is_some_and(|(file, value)| fs::write(self.dir.join(file), value).is_ok())
        };
        match fs::write(&path, &setting.value) {
            Ok(()) => Ok(()),
            Err(_) if other() => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::EACCES) => {
                if setting.dispensable || path.exists() && setting.value == "max" {
                    return Ok(());
                }
                let available = words(&self.dir.join("cgroup.controllers"))
                    .unwrap_or_default()
                    .join(" ");
                Err(Error::system(format!(
                    "set {} to {:?}: the requested cgroup controller `{}` is not available in {} (available: {}); \
                     drop the limit, or boot the machine with this controller in cgroup v2",
                    setting.file,
                    setting.value,
                    setting.controller(),
                    self.dir.display(),
                    if available.is_empty() { "none" } else { &available },
                )))
            }
            Err(e) => Err(Error::os(format!("write {:?} to {}", setting.value, path.display()), e)),
        }
    }

    /// Allow and deny devices by the container's rules: attach a BPF program for the life of the group.
    pub(crate) fn attach_devices(&self, limits: &Limits) -> Result<()> {
        match limits.device_program() {
            Some(program) => device_program::attach(self.open()?.as_fd(), program),
            None => Ok(()),
        }
    }

    /// Let a user divide it: the directory and the files the kernel names for that become his.
    /// config-linux.md, "Cgroup ownership"; cgroups(7).
    pub(crate) fn give_to(&self, uid: u32) -> Result<()> {
        const DELEGATED: &str = "cgroup.procs cgroup.subtree_control cgroup.threads";
        let files = fs::read_to_string("/sys/kernel/cgroup/delegate");
        let files = files.as_deref().unwrap_or(DELEGATED);
        for path in std::iter::once(self.dir.clone()).chain(files.split_whitespace().map(|file| self.dir.join(file))) {
            match std::os::unix::fs::chown(&path, Some(uid), None) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::os(format!("give {} to user {uid}", path.display()), e));
                }
                _ => (),
            }
        }
        Ok(())
    }

    /// Kill every process in it with SIGKILL.
    pub fn kill(&self) -> Result<()> {
        match fs::write(self.dir.join("cgroup.kill"), "1") {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.exists() => Ok(()),
            Err(e) => Err(Error::os(format!("kill cgroup {}", self.dir.display()), e)),
            Ok(()) => Ok(()),
        }
    }

    /// Freeze or thaw it and wait until the kernel says so.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        self.wait_event("frozen", frozen)
    }

    /// It is frozen.
    pub fn is_frozen(&self) -> bool {
        self.event("frozen") == Some(true)
    }

    /// Processes live in it or below it.
    pub fn is_populated(&self) -> bool {
        self.event("populated") == Some(true)
    }

    /// Times the kernel killed something in it for lack of memory; `None` without the memory controller.
    pub fn oom_kills(&self) -> Option<u64> {
        let events = fs::read_to_string(self.dir.join("memory.events")).ok()?;
        field(&events, "oom_kill")
    }

    /// What it has used.
    pub fn stats(&self) -> Result<Stats> {
        let path = self.dir.join("cpu.stat");
        let cpu = fs::read_to_string(&path).map_err(|e| Error::os(format!("read {}", path.display()), e))?;
        let number = |file: &str| fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok();
        let memory = fs::read_to_string(self.dir.join("memory.stat")).unwrap_or_default();
        Ok(Stats {
            cpu_usage_usec: field(&cpu, "usage_usec").unwrap_or(0),
            cpu_user_usec: field(&cpu, "user_usec").unwrap_or(0),
            cpu_system_usec: field(&cpu, "system_usec").unwrap_or(0),
            memory_current: number("memory.current"),
            memory_inactive_file: field(&memory, "inactive_file"),
            pids_current: number("pids.current"),
        })
    }

    /// Remove it if nothing lives in it and no group is below it; true if it is gone.
    pub fn remove_empty(&self) -> bool {
        match fs::remove_dir(&self.dir) {
            Err(e) => e.kind() == io::ErrorKind::NotFound,
            Ok(()) => true,
        }
    }

    /// Remove it and the groups below it, once their processes are gone. A missing group is no error.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir(&self.dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => (),
        }
        self.wait_event("populated", false)?;
        self.remove_tree()
    }

    fn remove_tree(&self) -> Result<()> {
        for child in self.children()? {
            child.remove_tree()?;
        }
        match fs::remove_dir(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::os(format!("remove cgroup {}", self.dir.display()), e))
            }
            _ => Ok(()),
        }
    }

    fn children(&self) -> Result<Vec<Cgroup>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| Error::os(format!("read cgroup {}", self.dir.display()), e))?,
        };
        Ok(entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| Cgroup { dir: entry.path() })
            .collect())
    }

    fn walk(&self, visit: &mut dyn FnMut(&Cgroup) -> Result<()>) -> Result<()> {
        visit(self)?;
        self.children()?.iter().try_for_each(|child| child.walk(visit))
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, value).map_err(|e| Error::os(format!("write {value:?} to {}", path.display()), e))
    }

    fn event(&self, name: &str) -> Option<bool> {
        let events = fs::read_to_string(self.dir.join("cgroup.events")).ok()?;
        field(&events, name).map(|value| value == 1)
    }

    /// Wait until cgroup.events says `name` is `wanted`: the kernel wakes a poll for POLLPRI on each change.
    fn wait_event(&self, name: &str, wanted: bool) -> Result<()> {
        let path = self.dir.join("cgroup.events");
        let file = match fs::File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| Error::os(format!("open {}", path.display()), e))?,
        };
        let deadline = Instant::now() + SETTLE;
        let mut buffer = [0; 128];
        loop {
            let length = match rustix::io::pread(&file, &mut buffer, 0) {
                Err(rustix::io::Errno::NODEV) => return Ok(()),
                other => other.map_err(|e| Error::os(format!("read {}", path.display()), e))?,
            };
            let events = String::from_utf8_lossy(&buffer[..length]);
            if field(&events, name) == Some(wanted.into()) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::system(format!(
                    "cgroup {}: still {} after {} s; a process may hang in the kernel (state D)",
                    self.dir.display(),
                    if wanted { format!("not {name}") } else { name.to_owned() },
                    SETTLE.as_secs()
                )));
            }
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            let _ = rustix::event::poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout));
        }
    }
}

/// The group hands down everything it has: nothing to do for its children.
fn hands_down(dir: &Path) -> bool {
    // One read gives all: there are a dozen controllers, with short names.
    let read = |file: &str, bytes: &mut [u8; 512]| {
        let file = rustix::fs::open(dir.join(file), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::read(&file, bytes.as_mut_slice())
    };
    let (mut controllers, mut handed) = ([0; 512], [0; 512]);
    read("cgroup.controllers", &mut controllers).is_ok()
        && read("cgroup.subtree_control", &mut handed).is_ok()
        && controllers == handed
}

/// Enable in `dir` every controller it has for its children. Best effort: a limit that needs one complains later.
fn hand_down(dir: &Path) {
    let (Ok(controllers), Ok(handed)) = (
        words(&dir.join("cgroup.controllers")),
        words(&dir.join("cgroup.subtree_control")),
    ) else {
        return;
    };
    let missing: Vec<String> = controllers
        .iter()
        .filter(|name| !handed.contains(name))
        .map(|name| format!("+{name}"))
        .collect();
    let control = dir.join("cgroup.subtree_control");
    if missing.is_empty() || fs::write(&control, missing.join(" ")).is_ok() {
        return;
    }
    for one in missing {
        let _ = fs::write(&control, one);
    }
}

fn words(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).map_err(|e| Error::os(format!("read {}", path.display()), e))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// The number behind `name` in a "name value" file.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_whole_words() {
        assert_eq!(field("oom 3\noom_kill 2\noom_kill_group 1\n", "oom_kill"), Some(2));
        assert_eq!(field("populated 0\nfrozen 1\n", "frozen"), Some(1));
        assert_eq!(field("", "frozen"), None);
    }
}
