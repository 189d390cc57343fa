//! What can go wrong at the edge, in the operator's words.

use std::io;
use std::path::PathBuf;

/// A failure of the packet programs' user-space half.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be used.
    #[error("{action} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused the programs or their maps.
    #[error("load the packet programs: {0}; they need Linux 5.15 or newer and CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON")]
    Load(String),
    /// A program could not be attached.
    #[error("attach the packet program {program} to the interface {interface}: {reason}")]
    Attach {
        /// The program's name.
        program: &'static str,
        /// The interface's name.
        interface: String,
        /// What the kernel said.
        reason: String,
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
    /// The machine's interfaces could not be listed or followed.
    #[error("{action}: {source}")]
    Interfaces {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pod's interface is not there.
    #[error("the interface {0} of a pod does not exist")]
    NoInterface(String),
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
