//! The durable key space: one dense, monotone revision counter; compare-and-swap transactions; history until compaction.
//!
//! Invariant: a commit is acknowledged, and becomes visible to any reader or watcher, only after it is on disk.
//! An fsync error ends the process; it is never retried (a second fsync may lie). Keys are
//! `/registry/<group or core>/<plural>/<namespace>/<name>` (cluster-scoped: without the namespace).

mod embedded;
mod heads;
mod memory;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

pub use self::embedded::Embedded;
pub use self::memory::Memory;

/// A store-wide revision; becomes `metadata.resourceVersion`. The first write is revision 1.
pub type Revision = u64;

/// A boxed future, so that `dyn Store` works.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What must hold of a key for a write to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist (create).
    Absent,
    /// The key's last modification is exactly this revision (update, delete with precondition).
    At(Revision),
    /// Anything, also absence.
    Any,
}

/// One write of a transaction.
#[derive(Clone, Debug)]
pub struct Write {
    /// The full key.
    pub key: Arc<str>,
    /// The new value; `None` deletes. Deleting a key that does not exist is refused whatever `expect` says
    /// ([`StoreError::Conflict`] with `current: None`).
    pub value: Option<Bytes>,
    /// The condition; if it does not hold the whole transaction is refused.
    pub expect: Expect,
}

/// A key with its value, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The full key.
    pub key: Arc<str>,
    /// The value's bytes.
    pub value: Bytes,
    /// Revision of the last write.
    pub revision: Revision,
    /// Revision of the write that created the key.
    pub created: Revision,
}

/// One committed change. All changes of one transaction share a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Revision of the transaction.
    pub revision: Revision,
    /// The full key.
    pub key: Arc<str>,
    /// The new value, `None` for a deletion.
    pub value: Option<Bytes>,
    /// Revision of the key's creation.
    pub created: Revision,
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A write's [`Expect`] did not hold; `current` is the key's revision, `None` if it does not exist.
    #[error("{key}: expected {expected:?}, the store has {current:?}")]
    Conflict {
        /// The key.
        key: Arc<str>,
        /// What the writer expected.
        expected: Expect,
        /// What is there.
        current: Option<Revision>,
    },
    /// The revision asked for is no longer kept.
    #[error("revision {requested} is compacted; the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision still available.
        oldest: Revision,
    },
    /// The disk is full: the write is refused, reads go on.
    #[error("the store's disk is full: {0}; free space on its file system, writes resume by themselves")]
    Full(String),
    /// Damage or an I/O error.
    #[error("store at {path}: {what}")]
    Broken {
        /// The store's directory.
        path: String,
        /// What was tried and what the system said.
        what: String,
    },
    /// The store is shut down.
    #[error("the store is closed")]
    Closed,
}

/// Called by the store, in revision order, after a batch of changes is durable and before it is acknowledged.
pub type Publish = Box<dyn Fn(&[Change]) + Send + Sync>;

/// A durable revisioned key space.
pub trait Store: Send + Sync + 'static {
    /// Commit all writes atomically at one new revision, durably. Returns that revision.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] names the first write whose expectation failed; nothing was written.
    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// Every live key at the current revision in key order, and that revision.
    ///
    /// # Errors
    /// [`StoreError::Broken`] if stored data is damaged (checksum), never silently.
    fn load(&self) -> BoxFuture<'_, Result<(Vec<KeyValue>, Revision), StoreError>>;

    /// Set the one subscriber for durable changes; the changes after `load`'s revision arrive in order.
    fn subscribe(&self, publish: Publish);

    /// The last durable revision.
    fn revision(&self) -> Revision;

    /// Forget history up to and including `through`.
    fn compact(&self, through: Revision) -> BoxFuture<'_, Result<(), StoreError>>;
}
