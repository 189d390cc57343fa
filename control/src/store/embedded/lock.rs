//! One process per store: an flock(2) on `lock`, which names its holder. The kernel drops it when the process dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::{StoreError, broken};

/// Held while the store is open.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn acquire(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("lock");
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut file = open.map_err(|e| broken(dir, "opening its `lock` file", &e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(e)) => return Err(broken(dir, "locking its `lock` file", &e)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let what = format!("it is in use by {}; stop that first", describe(holder.trim()));
                return Err(StoreError::Broken {
                    path: dir.display().to_string(),
                    what,
                });
            }
        }
        let named = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(e) = named {
            tracing::warn!("{}: cannot name this process in it: {e}", path.display());
        }
        Ok(Self { _file: file })
    }
}

fn describe(pid: &str) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) if pid.parse::<u32>().is_ok() => format!("process {pid} ({})", name.trim_end()),
        _ => "another process".into(),
    }
}
