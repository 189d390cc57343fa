//! Volumes of pods: made before the containers, removed after them.
//!
//! Every volume is a directory (or a file or device, for hostPath) on the host that is bind-mounted into containers.
//! What a payload volume (configMap, secret, downwardAPI, projected) contains is computed purely (`payload`) and
//! written so that a reader sees either all of the old or all of the new state (`atomic`).

pub mod atomic;
pub mod directory;
pub mod host_path;
pub mod payload;
pub mod subpath;

use std::path::{Path, PathBuf};

pub use directory::{Place, VolumeDirs};

/// Why a volume could not be made; the text is the `FailedMount` event.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The pod asks for something that does not exist or makes no sense.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {message}")]
    Refused {
        /// The volume's name.
        volume: String,
        /// What is wrong with it.
        message: String,
    },
    /// The kernel said no.
    #[error("MountVolume.SetUp failed for volume {volume:?} : cannot {action} {path}: {source}")]
    System {
        /// The volume's name.
        volume: String,
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What came back.
        source: std::io::Error,
    },
}

impl VolumeError {
    /// A refusal.
    pub fn refused(volume: &str, message: impl Into<String>) -> Self {
        VolumeError::Refused {
            volume: volume.to_owned(),
            message: message.into(),
        }
    }

    /// For `map_err` after a system call on `path`.
    pub fn system<E: Into<std::io::Error>>(
        volume: &str,
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> VolumeError {
        let (volume, path) = (volume.to_owned(), path.to_owned());
        move |source| VolumeError::System {
            volume,
            action,
            path,
            source: source.into(),
        }
    }
}
