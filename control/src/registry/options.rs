//! Options of writes, as the query string or `DeleteOptions` carries them, and as controllers pass them.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::schema::Mode;

/// Collects texts for `Warning` response headers while a request is served.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Add one warning; the same one twice (a write that was retried) is one.
    pub fn push(&self, text: impl Into<String>) {
        let (mut warnings, text) = (self.0.lock(), text.into());
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// Take what was collected.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

/// Options of create, update and patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Do everything but the commit.
    pub dry_run: bool,
    /// For unknown fields. Bodies of create and update are checked before they reach the registry; patches in it.
    pub field_validation: Mode,
    /// Who is said to manage the fields.
    pub field_manager: String,
    /// Where warnings go.
    pub warnings: Warnings,
}

/// Options of create.
pub type CreateOptions = WriteOptions;

/// What happens to dependents when their owner is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// The garbage collector deletes them afterwards.
    Background,
    /// They go first; the owner waits with the `foregroundDeletion` finalizer.
    Foreground,
    /// They stay, without an owner (`orphan` finalizer).
    Orphan,
}

/// Options of delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds until it is killed; `None`: the object's own default.
    pub grace_period_seconds: Option<i64>,
    /// Dependents; `None`: background, unless the object's finalizers say otherwise.
    pub propagation: Option<Propagation>,
    /// Only if it has this uid.
    pub uid: Option<String>,
    /// Only if it is at this resourceVersion.
    pub resource_version: Option<String>,
    /// Do everything but the commit.
    pub dry_run: bool,
}
