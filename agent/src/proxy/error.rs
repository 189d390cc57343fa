//! What can go wrong with the service proxy, in the operator's words.

use std::io;
use std::path::PathBuf;

use super::{Frontend, ServiceName};

/// A failure of the service proxy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be used.
    #[error("{action} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no BPF file system to pin to, and none could be mounted.
    #[error("mount a BPF file system on {path}: {source}; services need it: mount it with `mount -t bpf bpf {path}`", path = path.display())]
    Bpffs {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused the programs.
    #[error("load the eBPF programs: {0}; they need Linux 5.15 or newer and CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON")]
    Load(String),
    /// A pinned map is not what its name and version promise.
    #[error("the pinned map {path} does not fit: {reason}; remove it with `hull down` and start again", path = path.display())]
    Map {
        /// The pin.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A program could not be attached.
    #[error("attach the eBPF program {program} to the cgroup {cgroup}: {source}", cgroup = cgroup.display())]
    Attach {
        /// The program's name.
        program: &'static str,
        /// The cgroup.
        cgroup: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("{action} the map {map}: {reason}")]
    Access {
        /// What was tried.
        action: &'static str,
        /// Which map.
        map: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// Sockets of vanished backends could not be looked for.
    #[error("{action}: {source}")]
    Sockets {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A frontend that could not be put in force; all others are, and what led there before still does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Whose.
    pub service: ServiceName,
    /// Which one.
    pub frontend: Frontend,
    /// Why, for an event on the node.
    pub reason: String,
}

impl Error {
    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Error {
        Error::File {
            action,
            path: path.into(),
            source,
        }
    }
}
