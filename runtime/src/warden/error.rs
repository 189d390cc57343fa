//! Errors of the warden and its client: each a sentence that says what was tried, on what, and what came back.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Why the warden refused a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No container (or exec) of that name.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The request itself is malformed, for example an id that is not a file name.
    Invalid,
    /// The container is not in a state that allows this, for example start of an exited container.
    Conflict,
    /// The runtime or the kernel said no; the message has the reason.
    Failed,
}

/// An error of the warden or of its client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing answers on the socket.
    #[error("no warden answers on {}: {source}; it is started by the agent or with `hull-runtime warden --dir {}`", socket.display(), socket.parent().unwrap_or(socket).display())]
    NotRunning {
        /// The socket that was tried.
        socket: PathBuf,
        /// What connect(2) said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The other side does not speak the protocol.
    #[error("the warden's protocol was broken: {0}")]
    Protocol(String),
    /// The warden was asked and refused.
    #[error("{message}")]
    Refused {
        /// The kind of refusal.
        kind: Refusal,
        /// The full reason.
        message: String,
    },
    /// The warden process could not be started.
    #[error("the warden could not be started with {}: {reason}", binary.display())]
    Start {
        /// The hull-runtime binary.
        binary: PathBuf,
        /// What it wrote, or how it ended.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    pub(crate) fn refused(kind: Refusal, message: impl Into<String>) -> Self {
        Self::Refused {
            kind,
            message: message.into(),
        }
    }

    /// Whether the container or exec named in the request does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                kind: Refusal::NotFound,
                ..
            }
        )
    }

    /// Whether the name in the request is taken.
    pub fn is_already_exists(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                kind: Refusal::AlreadyExists,
                ..
            }
        )
    }

    /// Whether the warden is gone or does not answer: spawn it and connect again.
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::Io { .. })
    }
}

/// Adds "what was tried" to a system call's error.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::io(what(), source))
    }
}
