//! The lock that makes a second `hull up` or `hull agent` on the same run directory say so, and that tells `hull down` whom
//! to stop.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context as _, Result, bail};

use crate::cluster::Cluster;

/// Held for as long as it lives.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock and writes this process' id into it.
    ///
    /// # Errors
    /// Another process has it, or the file cannot be written.
    pub fn take(cluster: &Cluster) -> Result<Self> {
        let path = cluster.lock_path();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                bail!(
                    "hull is already running here (pid {}, {}). See it: hull status. Stop it: hull down. kubectl: export KUBECONFIG={}",
                    pid.trim(),
                    cluster.run_dir.display(),
                    cluster.kubeconfig().display()
                );
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Self { _file: file })
    }
}
