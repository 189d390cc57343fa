//! The plan of one process: everything between the finished container and execve, as C strings and numbers.
//! Used by the container's init and by `exec` alike. config.md, "Process" and "POSIX process".

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::c_char;

use super::placement::{Affinity, MemoryPolicy};
use crate::caps;
use crate::error::{Error, Result};
use crate::seccomp::Filter;
use crate::spec::{self, PosixRlimitType};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_UMASK: u32 = 0o022;

/// A NULL-terminated array of C strings, with room for `spare` more.
pub(crate) struct CArray {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CArray {
    pub fn new(strings: Vec<CString>, spare: usize) -> CArray {
        let mut pointers: Vec<*const c_char> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.extend(std::iter::repeat_n(std::ptr::null(), spare + 1));
        CArray { strings, pointers }
    }

    pub fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }

    /// Append a string in a spare place; it must live until execve.
    pub fn push(&mut self, string: *const c_char) {
        let end = self.pointers.len() - 1;
        if let Some(free) = self.pointers[..end].iter_mut().find(|pointer| pointer.is_null()) {
            *free = string;
        }
    }

    pub fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// Everything about the process that can be known beforehand.
pub(crate) struct ProcessPlan {
    pub argv: CArray,
    pub envp: CArray,
    /// The environment has no HOME: the child looks it up in the container's /etc/passwd.
    pub needs_home: bool,
    /// Paths to try for the program, in order.
    pub candidates: Vec<CString>,
    /// The program was named without a slash: PATH was searched.
    pub by_path: bool,
    pub cwd: CString,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// The caller's supplementary groups stay, `groups` is not set.
    pub keep_groups: bool,
    pub umask: u32,
    pub capabilities: Option<caps::Sets>,
    pub no_new_privileges: bool,
    pub seccomp: Option<Filter>,
    pub rlimits: Vec<(u32, libc::rlimit64)>,
    pub oom_score_adj: Option<i32>,
    pub terminal: bool,
    pub console_size: Option<(u16, u16)>,
    pub io_priority: Option<i32>,
    pub scheduler: Option<libc::sched_attr>,
    pub personality: Option<u64>,
    pub memory_policy: Option<MemoryPolicy>,
    /// Of a process that enters a running container.
    pub affinity: Affinity,
    /// What to write to /proc/thread-self/attr/apparmor/exec.
    pub apparmor: Option<CString>,
    /// What to write to /proc/thread-self/attr/exec: the SELinux label.
    pub selinux: Option<CString>,
}

impl ProcessPlan {
    /// Check `process` and lay it out.
    pub fn new(process: &spec::Process, seccomp: Option<Filter>) -> Result<ProcessPlan> {
        let args = process.args().as_deref().unwrap_or_default();
        let program = args
            .first()
            .ok_or_else(|| Error::invalid("process.args is empty: nothing to run"))?;
        if !process.cwd().is_absolute() {
            return Err(Error::invalid(format!(
                "process.cwd must be an absolute path, not {:?}",
                process.cwd().display()
            )));
        }
        let (environment, path, needs_home) = environment(process.env().as_deref().unwrap_or_default())?;
        process.capabilities().iter().for_each(caps::warn_of_ambient);
        let user = process.user();
        Ok(ProcessPlan {
            argv: CArray::new(
                args.iter()
                    .map(|arg| c_string("process.args", arg))
                    .collect::<Result<_>>()?,
                0,
            ),
            envp: CArray::new(environment, 1),
            needs_home,
            candidates: candidates(program, path.as_deref().unwrap_or(DEFAULT_PATH))?,
            by_path: !program.contains('/'),
            cwd: c_path("process.cwd", process.cwd())?,
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            keep_groups: false,
            umask: user.umask().unwrap_or(DEFAULT_UMASK),
            capabilities: process.capabilities().as_ref().map(caps::Sets::new),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            seccomp,
            rlimits: rlimits(process)?,
            oom_score_adj: process.oom_score_adj(),
            terminal: process.terminal().unwrap_or(false),
            console_size: process.console_size().map(|size| {
                (
                    size.height().min(u16::MAX.into()) as u16,
                    size.width().min(u16::MAX.into()) as u16,
                )
            }),
            io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
            scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
            personality: None,
            memory_policy: None,
            affinity: match process.exec_cpu_affinity() {
                Some(affinity) => Affinity::new(affinity)?,
                None => Affinity::default(),
            },
            apparmor: label("process.apparmorProfile", "exec ", process.apparmor_profile())?,
            selinux: label("process.selinuxLabel", "", process.selinux_label())?,
        })
    }
}

/// A C string from text of the configuration.
pub(crate) fn c_string(field: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid(format!("{field} contains a NUL byte: {text:?}")))
}

/// A C string from a path of the configuration.
pub(crate) fn c_path(field: &str, path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::invalid(format!("{field} contains a NUL byte: {path:?}")))
}

/// The environment with the last of equal names kept; the value of PATH; whether HOME is missing.
fn environment(env: &[String]) -> Result<(Vec<CString>, Option<String>, bool)> {
    let mut kept: Vec<&str> = Vec::with_capacity(env.len());
    for entry in env {
        let Some((name, _)) = entry.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Error::invalid(format!(
                "process.env: {entry:?} is not of the form NAME=value"
            )));
        };
        let same = |other: &&str| other.split_once('=').is_some_and(|(other, _)| other == name);
        match kept.iter().position(same) {
            Some(place) => kept[place] = entry,
            None => kept.push(entry),
        }
    }
    let value = |name: &str| {
        kept.iter()
            .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    };
    let path = value("PATH").map(str::to_owned);
    let needs_home = value("HOME").is_none_or(str::is_empty);
    let strings = kept
        .iter()
        .filter(|entry| !(needs_home && entry.starts_with("HOME=")))
        .map(|entry| c_string("process.env", entry))
        .collect::<Result<_>>()?;
    Ok((strings, path, needs_home))
}

fn candidates(program: &str, path: &str) -> Result<Vec<CString>> {
    if program.contains('/') {
        return Ok(vec![c_string("process.args", program)?]);
    }
    path.split(':')
        .filter(|directory| directory.starts_with('/') && !program.is_empty())
        .map(|directory| c_string("PATH", &format!("{}/{program}", directory.trim_end_matches('/'))))
        .collect()
}

fn rlimits(process: &spec::Process) -> Result<Vec<(u32, libc::rlimit64)>> {
    let mut limits: Vec<(u32, libc::rlimit64)> = Vec::new();
    for limit in process.rlimits().as_deref().unwrap_or_default() {
        let resource = rlimit_number(limit.typ());
        if limit.soft() > limit.hard() {
            return Err(Error::invalid(format!(
                "process.rlimits: {} has a soft limit of {} above its hard limit of {}",
                limit.typ(),
                limit.soft(),
                limit.hard()
            )));
        }
        if limits.iter().any(|(other, _)| *other == resource) {
            return Err(Error::invalid(format!(
                "process.rlimits: {} is given twice",
                limit.typ()
            )));
        }
        let value = libc::rlimit64 {
            rlim_cur: limit.soft(),
            rlim_max: limit.hard(),
        };
        limits.push((resource, value));
    }
    Ok(limits)
}

fn rlimit_number(limit: PosixRlimitType) -> u32 {
    match limit {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// ioprio_set(2)'s value: class in the top bits, priority below.
fn io_priority(priority: &spec::LinuxIOPriority) -> Result<i32> {
    const IOPRIO_CLASS_SHIFT: i32 = 13;
    if !(0..=7).contains(&priority.priority()) {
        return Err(Error::invalid(format!(
            "process.ioPriority: priority {} is not between 0 and 7",
            priority.priority()
        )));
    }
    let class = match priority.class() {
        spec::IOPriorityClass::IoprioClassRt => 1,
        spec::IOPriorityClass::IoprioClassBe => 2,
        spec::IOPriorityClass::IoprioClassIdle => 3,
    };
    Ok(class << IOPRIO_CLASS_SHIFT | priority.priority() as i32)
}

/// sched_setattr(2)'s structure.
fn scheduler(scheduler: &spec::Scheduler) -> Result<libc::sched_attr> {
    use spec::LinuxSchedulerFlag as Flag;
    use spec::LinuxSchedulerPolicy as Policy;
    let policy = match scheduler.policy() {
        Policy::SchedOther => 0,
        Policy::SchedFifo => 1,
        Policy::SchedRr => 2,
        Policy::SchedBatch => 3,
        Policy::SchedIso => 4,
        Policy::SchedIdle => 5,
        Policy::SchedDeadline => 6,
    };
    let flag = |flag: &Flag| match flag {
        Flag::SchedResetOnFork => 0x01,
        Flag::SchedFlagReclaim => 0x02,
        Flag::SchedFlagDLOverrun => 0x04,
        Flag::SchedFlagKeepPolicy => 0x08,
        Flag::SchedFlagKeepParams => 0x10,
        Flag::SchedFlagUtilClampMin => 0x20,
        Flag::SchedFlagUtilClampMax => 0x40,
    };
    let priority = u32::try_from(scheduler.priority().unwrap_or(0))
        .map_err(|_| Error::invalid("process.scheduler: priority is negative; nice is the field for that"))?;
    Ok(libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: policy,
        sched_flags: scheduler.flags().iter().flatten().map(flag).sum(),
        sched_nice: scheduler.nice().unwrap_or(0),
        sched_priority: priority,
        sched_runtime: scheduler.runtime().unwrap_or(0),
        sched_deadline: scheduler.deadline().unwrap_or(0),
        sched_period: scheduler.period().unwrap_or(0),
    })
}

/// The text of a security label for the kernel, with what it wants in front.
fn label(field: &str, before: &str, label: &Option<String>) -> Result<Option<CString>> {
    match label.as_deref() {
        None | Some("") => Ok(None),
        Some(label) => c_string(field, &format!("{before}{label}")).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut spec::Process)) -> Result<ProcessPlan> {
        let mut process = spec::Process::default();
        process.set_env(Some(vec!["PATH=/bin:/usr/bin/".into()]));
        change(&mut process);
        ProcessPlan::new(&process, None)
    }

    fn texts(strings: &[CString]) -> Vec<&str> {
        strings.iter().map(|string| string.to_str().unwrap()).collect()
    }

    #[test]
    fn the_program_is_looked_for_along_the_containers_path() {
        let found = plan(|_| ()).unwrap();
        assert!(found.by_path);
        assert_eq!(texts(&found.candidates), ["/bin/sh", "/usr/bin/sh"]);
        let named = plan(|process| {
            process.set_args(Some(vec!["./run".into()]));
        })
        .unwrap();
        assert!(!named.by_path);
        assert_eq!(texts(&named.candidates), ["./run"]);
    }

    #[test]
    fn the_last_of_equal_variables_wins_and_an_empty_home_is_looked_up() {
        let env = vec!["A=1".into(), "HOME=".into(), "A=2".into()];
        let plan = plan(|process| {
            process.set_env(Some(env));
        })
        .unwrap();
        assert_eq!(texts(plan.envp.strings()), ["A=2"]);
        assert!(plan.needs_home);
    }

    #[test]
    fn wrong_configurations_are_named() {
        let message = |change: fn(&mut spec::Process)| plan(change).err().unwrap().to_string();
        assert_eq!(
            message(|process| {
                process.set_args(Some(vec![]));
            }),
            "process.args is empty: nothing to run"
        );
        assert_eq!(
            message(|process| {
                process.set_cwd("tmp".into());
            }),
            "process.cwd must be an absolute path, not \"tmp\""
        );
        assert_eq!(
            message(|process| {
                process.set_env(Some(vec!["novalue".into()]));
            }),
            "process.env: \"novalue\" is not of the form NAME=value"
        );
        assert!(
            message(|process| {
                process.set_args(Some(vec!["a\0b".into()]));
            })
            .contains("NUL")
        );
    }

    #[test]
    fn a_spare_place_takes_one_more_string() {
        let mut array = CArray::new(vec![c"A=1".into()], 1);
        array.push(c"B=2".as_ptr());
        array.push(c"C=3".as_ptr());
        // SAFETY: the array has three elements: two strings and the terminating NULL.
        let seen = unsafe { std::slice::from_raw_parts(array.as_ptr(), 3) };
        assert_eq!(seen[1], c"B=2".as_ptr());
        assert!(seen[2].is_null());
    }
}
