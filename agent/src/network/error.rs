//! What can go wrong with the pod network, in the operator's words.

use std::io;
use std::path::PathBuf;

use super::Cidr;

/// A failure of the pod network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pod range has no room for the node and a pod.
    #[error("the pod range {0} is too small: it needs at least 4 addresses")]
    RangeTooSmall(Cidr),
    /// IPv6 does not work with such a small MTU (RFC 8200).
    #[error("pods would have an MTU of {0} bytes, and IPv6 needs 1280: raise the MTU of the machine's interface")]
    MtuTooSmall(u32),
    /// Every address is taken.
    #[error("all {used} addresses of the pod range {range} are taken: delete pods or give the node a larger range")]
    Exhausted {
        /// The node's pod range.
        range: Cidr,
        /// How many addresses are allocated.
        used: usize,
    },
    /// A pod uid that cannot name a file.
    #[error("the pod uid {0:?} is not usable as a file name")]
    InvalidUid(String),
    /// A file could not be read or written.
    #[error("{action} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A namespace operation failed.
    #[error("{action}: {source}")]
    Namespace {
        /// What was tried, on what.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A network configuration request was refused.
    #[error("netlink: {action}: {source}")]
    Netlink {
        /// What was tried, on what.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// Whether what should be made exists already.
    pub(super) fn is_exists(&self) -> bool {
        matches!(self, Error::Netlink { source, .. } if source.raw_os_error() == Some(libc::EEXIST))
    }

    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Error {
        Error::File {
            action,
            path: path.into(),
            source,
        }
    }
}
