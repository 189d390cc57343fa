//! fjall, used as a durable sorted map: opened, verified, written in batches, closed.
//!
//! Everything lives in memory above (the cache), so its own caches are kept tiny. A torn tail of the journal is dropped
//! by fjall; where it refuses because a torn batch looks damaged, [`Engine::open_checked`] drops that batch, provided
//! nothing acknowledged is in it.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::journal;
use super::record::{self, REVISION_KEY};
use super::{KeyValue, Revision, StoreError, broken};
use crate::store::Change;
use crate::store::heads::Head;

const CACHE_BYTES: u64 = 1 << 20;
const MEMTABLE_BYTES: u64 = 2 << 20;

pub(super) struct Engine {
    db: Database,
    keyspace: Keyspace,
    path: PathBuf,
}

/// What was found on disk.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) revision: Revision,
    pub(super) values: Vec<KeyValue>,
}

/// Why a batch did not reach the disk.
pub(super) enum WriteFailure {
    /// The engine had stopped before the batch came, because its work in the background failed: nothing of the batch was written.
    Stopped,
    /// Nothing was synced; fjall has to be opened again. Most likely the file system is full.
    Refused(String),
    /// fsync failed: what is on disk is unknown, and asking again may be answered with a lie.
    Sync(String),
}

impl std::fmt::Display for WriteFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stopped => f.write_str("the engine stopped"),
            Self::Refused(e) | Self::Sync(e) => f.write_str(e),
        }
    }
}

impl Engine {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        Self::try_open(path).map_err(|e| broken(path, "opening the database", &e))
    }

    fn try_open(path: &Path) -> Result<Self, OpenError> {
        let opened = catch_unwind(|| {
            let db = Database::builder(path)
                .cache_size(CACHE_BYTES)
                .max_cached_files(Some(16))
                .worker_threads(1)
                .manual_journal_persist(true)
                .open()?;
            let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
            let keyspace = db.keyspace("objects", options)?;
            Ok((db, keyspace))
        });
        let (db, keyspace) = opened.map_err(|_| OpenError::Panic)?.map_err(OpenError::Engine)?;
        Ok(Self {
            db,
            keyspace,
            path: path.to_owned(),
        })
    }

    /// Open, read and verify everything; refuse if less is there than was acknowledged.
    pub(super) fn open_checked(path: &Path, acknowledged: Revision) -> Result<(Self, Contents), StoreError> {
        match Self::try_open(path) {
            Ok(engine) => engine.checked(acknowledged),
            // It recognizes a torn batch by an error, or by a failed assertion.
            Err(OpenError::Engine(fjall::Error::JournalRecovery(_)) | OpenError::Panic) => {
                Self::open_without_torn_batch(path, acknowledged)
            }
            Err(e) => Err(broken(path, "opening the database", &e)),
        }
    }

    fn checked(self, acknowledged: Revision) -> Result<(Self, Contents), StoreError> {
        let contents = self.contents()?;
        if contents.revision < acknowledged {
            let what = format!(
                "writes are lost: revision {acknowledged} was acknowledged, the newest on disk is {}. The disk is \
                 damaged or was rolled back. Restore a backup, or remove `acknowledged` to go on without those writes",
                contents.revision
            );
            return Err(StoreError::Broken {
                path: self.path.display().to_string(),
                what,
            });
        }
        Ok((self, contents))
    }

    /// Open after cutting off what follows the journal's last whole batch. If that does not help, or drops something
    /// acknowledged, the journal is put back as it was.
    fn open_without_torn_batch(path: &Path, acknowledged: Revision) -> Result<(Self, Contents), StoreError> {
        let failed = |e: io::Error| broken(path, "repairing the end of the journal", &e);
        let journal = journal::newest(path).map_err(failed)?;
        let whole = journal::whole_batches(&fs::read(&journal).map_err(failed)?);
        let saved = journal.with_extension("damaged");
        fs::copy(&journal, &saved).map_err(failed)?;
        let file = fs::OpenOptions::new().write(true).open(&journal).map_err(failed)?;
        file.set_len(whole as u64)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        let opened = Self::try_open(path)
            .map_err(|e| broken(path, "opening the database", &e))
            .and_then(|engine| engine.checked(acknowledged));
        match &opened {
            Ok(_) => {
                tracing::warn!("{}: dropped a torn, never acknowledged batch", journal.display());
                fs::remove_file(&saved).map_err(failed)?;
            }
            Err(_) => fs::rename(&saved, &journal).map_err(failed)?,
        }
        opened
    }

    fn contents(&self) -> Result<Contents, StoreError> {
        let damaged = |what: String| StoreError::Broken {
            path: self.path.display().to_string(),
            what,
        };
        let mut contents = Contents::default();
        let mut highest = 0;
        let scanned = catch_unwind(AssertUnwindSafe(|| {
            for entry in self.keyspace.iter() {
                let (key, value) = entry
                    .into_inner()
                    .map_err(|e| damaged(format!("reading the database: {e}")))?;
                let key = std::str::from_utf8(&key).map_err(|_| damaged(format!("the key {key:?} is damaged")))?;
                let (head, value) = record::decode(key, &value).map_err(damaged)?;
                if key == REVISION_KEY {
                    contents.revision = head.revision;
                    continue;
                }
                highest = highest.max(head.revision);
                contents.values.push(KeyValue {
                    key: key.into(),
                    value: Bytes::copy_from_slice(value),
                    revision: head.revision,
                    created: head.created,
                });
            }
            Ok(())
        }));
        scanned.map_err(|_| damaged("reading the database: its files are damaged".into()))??;
        if highest > contents.revision {
            let newest = contents.revision;
            return Err(damaged(format!(
                "a key is at revision {highest}, but the newest revision is {newest}"
            )));
        }
        Ok(contents)
    }

    /// Every live key.
    pub(super) fn load(&self) -> Result<Contents, StoreError> {
        self.contents()
    }

    /// Write one batch and make it durable.
    pub(super) fn write(&self, changes: &[Change], revision: Revision) -> Result<(), WriteFailure> {
        self.append(changes, revision)?;
        self.sync()
    }

    /// Hand one batch to the kernel.
    pub(super) fn append(&self, changes: &[Change], revision: Revision) -> Result<(), WriteFailure> {
        // `Buffer`: handed to the kernel, so that an error here is one of writing, and the next step is fsync alone.
        let mut batch = self.db.batch().durability(Some(PersistMode::Buffer));
        for Change {
            revision,
            key,
            value,
            created,
        } in changes
        {
            match value {
                Some(value) => {
                    let head = Head {
                        revision: *revision,
                        created: *created,
                    };
                    batch.insert(&self.keyspace, key.as_bytes(), record::encode(key, head, value));
                }
                None => batch.remove(&self.keyspace, key.as_bytes()),
            }
        }
        let newest = record::encode(REVISION_KEY, Head { revision, created: 0 }, &[]);
        batch.insert(&self.keyspace, REVISION_KEY, newest);
        batch.commit().map_err(|e| match e {
            fjall::Error::Poisoned => WriteFailure::Stopped,
            e => WriteFailure::Refused(e.to_string()),
        })
    }

    /// Make what was appended durable.
    pub(super) fn sync(&self) -> Result<(), WriteFailure> {
        match self.db.persist(PersistMode::SyncData) {
            Ok(()) => Ok(()),
            // Its work in the background failed since the batch was appended: it does not call fsync any more.
            Err(fjall::Error::Poisoned) => self.sync_journal().map_err(|e| WriteFailure::Sync(e.to_string())),
            Err(e) => Err(WriteFailure::Sync(e.to_string())),
        }
    }

    /// Sync the journal of an engine that has stopped.
    ///
    /// An error of fsync is told once to each open file, and to one opened later only while nobody has heard of it (fsync(2)).
    /// Nobody else has synced this journal since the batch, unless the engine was about to seal it.
    fn sync_journal(&self) -> io::Result<()> {
        let path = journal::newest(&self.path)?;
        if journal::whole_batches(&fs::read(&path)?) >= journal::SEALED_BYTES {
            return Err(io::Error::other("the engine stopped while it sealed the journal"));
        }
        fs::File::open(path)?.sync_data()
    }
}

enum OpenError {
    Engine(fjall::Error),
    Panic,
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Engine(e) => write!(f, "{e}"),
            Self::Panic => write!(f, "its files are damaged"),
        }
    }
}
