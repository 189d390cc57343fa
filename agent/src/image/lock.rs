//! Locks between the processes that share a store: the agent, and `hull image` beside it (flock(2)).

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use super::error::{Context, Error};

/// Waits until nobody else has the lock.
pub(crate) fn exclusive(path: &Path) -> Result<File, Error> {
    let file = open(path)?;
    file.lock().context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// Waits until nobody has the lock exclusively.
pub(crate) fn shared(path: &Path) -> Result<File, Error> {
    let file = open(path)?;
    file.lock_shared().context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// The lock, if nobody has it in any way.
pub(crate) fn try_exclusive(path: &Path) -> Result<Option<File>, Error> {
    let file = open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(Error::io(format!("locking {}", path.display()), error)),
    }
}

fn open(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    file.context(|| format!("opening the lock {}", path.display()))
}
