//! The warden: one small single-threaded process per node, parent of all containers and keeper of their output.
//!
//! It forks containers and execs (nothing forks from the agent's many threads), keeps their exit codes, and writes their
//! output as CRI log files. Agent and warden may each be killed at any time: containers run on, and the next warden finds them
//! through the records under `<dir>/c/`. Nothing is taken from a container's output pipe before it is in the log file.

mod adoption;
mod client;
mod connection;
mod container;
mod cri;
mod daemon;
mod error;
mod exit;
mod log_file;
mod oom;
mod output;
mod poller;
mod protocol;
mod record;
mod requests;
mod server;
mod wire;

use std::path::{Path, PathBuf};

pub use client::{Client, Created, EventStream, ExecStarted, Held, Stop};
pub use daemon::{main, spawn};
pub use error::{Error, Refusal};
pub use exit::exit_of;
pub use log_file::rotated_files;
pub use protocol::{ContainerInfo, ContainerState, CreateRequest, Event, ExecRequest, Exit, LogConfig};

/// Where the warden listens.
pub fn socket_path(dir: &Path) -> PathBuf {
    dir.join("warden.sock")
}

/// The state root that the warden gives to the runtime, for `hull-runtime --root`.
pub fn runtime_root(dir: &Path) -> PathBuf {
    dir.join("runtime")
}

fn containers_dir(dir: &Path) -> PathBuf {
    dir.join("c")
}
