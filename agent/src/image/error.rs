//! Errors of the image store: what was tried, on what, and what came back.

use std::io;
use std::path::PathBuf;

/// An error of the image store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text names no image.
    #[error("{text:?} is no image reference: {reason}; expected [registry/]name[:tag][@sha256:digest]")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No such image in the store.
    #[error("image {0} is not on this node; import it with `hull image import` or pull it")]
    NotFound(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Content is not what its digest says.
    #[error("{what} has digest {found}, expected {expected}: it is damaged or forged, nothing was stored")]
    Digest {
        /// The content.
        what: String,
        /// The announced digest.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// Content is longer or shorter than announced.
    #[error("{what} has {found} bytes, expected {expected}: nothing was stored")]
    Size {
        /// The content.
        what: String,
        /// The announced size.
        expected: u64,
        /// The size of what came.
        found: u64,
    },
    /// A document of the image cannot be understood.
    #[error("{what} is not valid: {reason}")]
    Malformed {
        /// The document.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// An archive entry that could harm the host.
    #[error("layer entry {path:?} is refused: {reason}")]
    Unsafe {
        /// The entry's path.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// A layer exceeds a limit.
    #[error("the layer has more than {limit} {what}: refused as a decompression bomb")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The image is for another machine.
    #[error("the image is for {found}, this node runs {wanted}")]
    Platform {
        /// What the image offers.
        found: String,
        /// What is needed.
        wanted: &'static str,
    },
    /// The archive is none that can be imported.
    #[error("{} is neither an OCI layout nor a docker archive: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The registry cannot be reached or said no.
    #[error("registry {registry}: {reason}")]
    Registry {
        /// Host and port.
        registry: String,
        /// What was tried and what came back.
        reason: String,
        /// Whether the same request may succeed later.
        transient: bool,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    pub(crate) fn malformed(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Malformed {
            what: what.into(),
            reason: reason.to_string(),
        }
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
