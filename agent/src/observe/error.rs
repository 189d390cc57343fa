//! What can go wrong with observing, in the operator's words.

use std::io;
use std::path::PathBuf;

/// A failure to observe; services work without.
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
    /// The kernel refused the program.
    #[error(
        "load the eBPF program that observes sockets: {0}; it needs Linux 5.15 or newer and CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"
    )]
    Load(String),
    /// The program could not be attached.
    #[error("attach the eBPF program that observes sockets to the cgroup {cgroup}: {source}", cgroup = cgroup.display())]
    Attach {
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
}

impl Error {
    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Error {
        Error::File {
            action,
            path: path.into(),
            source,
        }
    }

    pub(super) fn access(action: &'static str, map: &'static str, error: &impl std::fmt::Display) -> Error {
        Error::Access {
            action,
            map,
            reason: error.to_string(),
        }
    }
}
