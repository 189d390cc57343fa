//! What the warden and its clients say to each other: JSON frames behind a little-endian u32 length, on a Unix stream socket.
//!
//! Descriptors travel as SCM_RIGHTS with the first byte of the frame that announces them (`fds`). One request is answered
//! by one reply, in order; after `Subscribe` a connection carries only events.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use super::error::Refusal;

/// Longest frame either side accepts: an exec request carries an environment, a list carries every container.
pub(crate) const FRAME_MAX: usize = 16 << 20;
/// Most descriptors in one frame: a pidfd, three streams and a console.
pub(crate) const FDS_MAX: usize = 8;

/// Where a container's output is written, in the CRI log format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// The current log file. Rotated ones stand beside it as `<path>.<UTC time>`, which sorts by age.
    pub path: PathBuf,
    /// A file that would grow beyond this is rotated first. 0 means never.
    pub max_bytes: u64,
    /// How many files are kept, the current one included.
    pub max_files: u32,
}

/// A container to create from an OCI bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRequest {
    /// Unique name: letters, digits, `_`, `-`, `.`, not starting with a dot.
    pub id: String,
    /// Directory with config.json.
    pub bundle: PathBuf,
    /// Where its output goes; None discards it.
    pub log: Option<LogConfig>,
    /// Whether stdin is a pipe that stays open (otherwise /dev/null).
    pub stdin: bool,
    /// Whether it gets a terminal; must agree with config.json.
    pub terminal: bool,
    /// Free for the caller; kept on disk and returned by list.
    pub labels: BTreeMap<String, String>,
}

/// A process to run in a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The container.
    pub id: String,
    /// Unique among the container's execs.
    pub exec_id: String,
    /// What to run.
    pub process: Process,
    /// Whether it gets a terminal instead of three pipes.
    pub terminal: bool,
    /// Whether its stdin is a pipe (otherwise /dev/null).
    pub stdin: bool,
}

/// How a process ended. `code` and `signal` both None: it ended while nobody could see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The argument of exit(2), if it exited by itself.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Whether the kernel's out-of-memory killer struck in its cgroup.
    pub oom_killed: bool,
    /// When it was noticed, in nanoseconds since 1970.
    pub at: i64,
}

impl Exit {
    /// The number a shell and Kubernetes show: the code, or 128 + signal; None when unknown.
    pub fn status(&self) -> Option<i32> {
        self.code.or(self.signal.map(|signal| 128 + signal))
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Its init waits for start.
    Created,
    /// Its program runs.
    Running,
    /// It ended.
    Exited(Exit),
}

/// A container as the warden knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// Its name.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its init, in the warden's pid namespace.
    pub pid: i32,
    /// /proc/<pid>/stat field 22: with the pid it names the process for good.
    pub start_time: u64,
    /// What the creator attached.
    pub labels: BTreeMap<String, String>,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Nanoseconds since 1970.
    pub started_at: Option<i64>,
    /// Where its output goes.
    pub log: Option<LogConfig>,
    /// Created, running or exited.
    pub state: ContainerState,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A container's init, or one of its execs, ended. A container's log is complete by then.
    Exited {
        /// The container.
        id: String,
        /// The exec, if it was one.
        exec_id: Option<String>,
        /// How it ended.
        exit: Exit,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Create(CreateRequest),
    Start { id: String },
    Kill { id: String, signal: i32, all: bool },
    Delete { id: String, force: bool },
    Exec(Box<ExecRequest>),
    KillExec { id: String, exec_id: String, signal: i32 },
    ExecExit { id: String, exec_id: String },
    List,
    ReopenLog { id: String },
    Subscribe,
    Hold { id: String },
    Adopt { id: String, held: HeldKinds },
    Shutdown { kill: bool },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Created {
        pid: i32,
        start_time: u64,
        held: HeldKinds,
    },
    ExecStarted {
        pid: i32,
        start_time: u64,
        streams: StreamKinds,
    },
    ExecExit(Option<Exit>),
    Containers(Vec<ContainerInfo>),
    Held(HeldKinds),
    Refused {
        kind: Refusal,
        message: String,
    },
}

/// Which descriptors of `Held` follow, in this order: pidfd, console, logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldKinds {
    pub pidfd: bool,
    pub console: bool,
    pub logs: usize,
}

/// Which descriptors of `ExecStarted` follow, in this order: pidfd (always), stdin, stdout, stderr, console.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamKinds {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub console: bool,
}

/// The envelope of every frame.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Frame<T> {
    pub fds: usize,
    pub body: T,
}
