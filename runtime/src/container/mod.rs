//! Containers: create, start, state, kill, delete, exec. The library both the command line and the warden use.
//! State lives in `<root>/<id>/`; the container's init is a child of the calling process.
//! Invariant: the caller is single-threaded; between clone3 and execve the child only makes system calls.

mod birth;
mod clone;
mod conversation;
mod create;
mod engine;
mod exec;
mod lifecycle;
mod listener;
mod lsm;
mod net_devices;
mod network;
mod notify;
mod prepare;
mod process_stat;
mod rdt;
mod record;
mod rootless;

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::spec;

pub use crate::error::{Error, Kind, Result};
pub use create::{Running, create, run};
pub(crate) use engine::PIDFD_RECEIVER;
pub(crate) use exec::Entry;
pub use exec::{base_process, exec};
pub use lifecycle::{cgroup, delete, kill, list, pause, processes, resume, start, state, update};
pub use notify::listen_for;

/// The three standard streams of a container's process.
#[derive(Debug)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// What `create` needs; start from [`CreateOptions::new`].
#[derive(Debug)]
pub struct CreateOptions<'a> {
    /// State root, e.g. /run/hull/runtime. Made with mode 0700 if it is missing.
    pub root: &'a Path,
    /// Container id: letters, digits, `_ + - .`
    pub id: &'a str,
    /// The bundle: directory of config.json.
    pub bundle: &'a Path,
    /// `terminal: true` only: Unix socket to which the pty's master is sent (the engines' way).
    pub console_socket: Option<&'a Path>,
    /// The configuration, if it is not the bundle's config.json; a relative path begins at the bundle.
    pub config: Option<&'a Path>,
    /// `terminal: true` only: a slave already open, used as it is. Without this and without a socket the
    /// master comes back in [`Created::console`].
    pub console: Option<OwnedFd>,
    /// File to write the pid into, for engines.
    pub pid_file: Option<&'a Path>,
    /// The streams; `None` inherits the caller's. Ignored with a terminal.
    pub stdio: Option<Stdio>,
    /// This many descriptors from 3 on are passed to the container.
    pub preserve_fds: u32,
    /// Leave the session keyring alone.
    pub no_new_keyring: bool,
    /// chroot instead of pivot_root: only for a root file system that is an initramfs.
    pub no_pivot: bool,
    /// `NAME=value` for the process's environment, besides the configuration's.
    pub environment: Vec<String>,
    /// Give the container a socket to say on that it is ready, see [`listen_for`].
    pub notify: bool,
    /// The cgroup is a scope of systemd, which `linux.cgroupsPath` names as `slice:prefix:name`.
    pub systemd_cgroup: bool,
}

impl<'a> CreateOptions<'a> {
    /// Options with everything optional left out.
    pub fn new(root: &'a Path, id: &'a str, bundle: &'a Path) -> CreateOptions<'a> {
        CreateOptions {
            root,
            id,
            bundle,
            console_socket: None,
            config: None,
            console: None,
            pid_file: None,
            stdio: None,
            preserve_fds: 0,
            no_new_keyring: false,
            no_pivot: false,
            environment: Vec::new(),
            notify: false,
            systemd_cgroup: false,
        }
    }
}

/// A process that was made in a container. It is a child of the caller, who must reap it.
#[derive(Debug)]
pub struct Created {
    /// Its pid as the caller sees it.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Start time in clock ticks since boot: field 22 of /proc/<pid>/stat. With the pid it names a process for ever.
    pub start_time: u64,
    /// Master of the terminal, where the process has one and no socket took it.
    pub console: Option<OwnedFd>,
    /// Where a container that was run with `notify` will say that it is ready.
    pub notify: Option<UnixDatagram>,
}

/// Send a pidfd to whoever listens at `path`, with the text runc sends.
pub fn send_pidfd(path: &Path, pidfd: BorrowedFd) -> Result<()> {
    engine::send_pidfd(path, pidfd)
}

/// What `exec` needs; start from [`ExecOptions::new`].
#[derive(Debug)]
pub struct ExecOptions<'a> {
    /// The process to run. Without capabilities it gets those of the container's own process; everything else left
    /// out is left out: [`base_process`] is a template with all of it.
    pub process: spec::Process,
    /// As in [`CreateOptions`].
    pub console_socket: Option<&'a Path>,
    /// As in [`CreateOptions`].
    pub console: Option<OwnedFd>,
    /// As in [`CreateOptions`].
    pub pid_file: Option<&'a Path>,
    /// As in [`CreateOptions`].
    pub stdio: Option<Stdio>,
    /// As in [`CreateOptions`].
    pub preserve_fds: u32,
    /// cgroup below the container's to put the process into.
    pub cgroup: Option<&'a Path>,
    /// Enter a paused container anyway: the process will run once it is resumed.
    pub ignore_paused: bool,
}

impl ExecOptions<'_> {
    /// Options with everything optional left out.
    pub fn new(process: spec::Process) -> ExecOptions<'static> {
        ExecOptions {
            process,
            console_socket: None,
            console: None,
            pid_file: None,
            stdio: None,
            preserve_fds: 0,
            cgroup: None,
            ignore_paused: false,
        }
    }
}

/// `status` of the OCI state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is under way, or died half way.
    Creating,
    /// Waiting for `start`.
    Created,
    /// The user's program runs.
    Running,
    /// Frozen by `pause`.
    Paused,
    /// The init process is gone.
    Stopped,
}

/// The OCI state of a container (runtime.md, "State"), plus what runc prints beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// Container id.
    pub id: String,
    /// Pid of its init; 0 when stopped.
    pub pid: i32,
    /// Where it is in its life.
    pub status: Status,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system on the host.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// Owner, for engines that show it.
    pub owner: String,
    /// The configuration's annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}
