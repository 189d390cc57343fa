//! The highest acknowledged revision, beside the database: so that acknowledged writes which vanished are noticed.
//!
//! fjall drops a damaged tail of its journal, rightly: it was never acknowledged. But damage in the middle looks the
//! same to it. `acknowledged` is written (not synced: that would cost a second fsync) after each batch is durable; so
//! at any crash, also of the machine, it holds a revision that is on disk. A store that recovers less has lost data.
//! Two slots, written in turn, each with a checksum.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::{Revision, StoreError, broken};

/// Slots lie in different disk sectors.
const SLOT: u64 = 512;
const NAME: &str = "acknowledged";

pub(super) struct Watermark {
    file: File,
    revision: Revision,
    failed: bool,
}

impl Watermark {
    /// Write the file of an empty store.
    pub(super) fn create(dir: &Path) -> Result<(), StoreError> {
        if dir.join(NAME).exists() && Self::open(dir)?.revision > 0 {
            let what = "`db` is missing, but the store had data: restore both from a backup, or remove `acknowledged` \
                        to start with an empty store";
            return Err(StoreError::Broken {
                path: dir.display().to_string(),
                what: what.into(),
            });
        }
        let mut contents = vec![0; 2 * SLOT as usize];
        contents[..16].copy_from_slice(&slot(0));
        let written = std::fs::write(dir.join(NAME), contents).and_then(|()| File::open(dir.join(NAME))?.sync_all());
        written.map_err(|e| broken(dir, "creating `acknowledged`", &e))
    }

    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let failed = |e: std::io::Error| broken(dir, "reading `acknowledged`", &e);
        let missing = !dir.join(NAME).exists();
        if missing {
            tracing::warn!(
                "{}: `acknowledged` is missing: lost writes, if any, go unnoticed",
                dir.display()
            );
            Self::create(dir)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.join(NAME))
            .map_err(failed)?;
        let mut revision = None;
        for at in [0, SLOT] {
            let mut bytes = [0; 16];
            file.read_exact_at(&mut bytes, at).map_err(failed)?;
            let (number, _) = bytes.split_first_chunk::<8>().ok_or(StoreError::Closed)?;
            let number = u64::from_le_bytes(*number);
            if bytes == slot(number) {
                revision = revision.max(Some(number));
            }
        }
        let Some(revision) = revision else {
            let what = "`acknowledged` is damaged; remove it to open the store without that check";
            return Err(StoreError::Broken {
                path: dir.display().to_string(),
                what: what.into(),
            });
        };
        Ok(Self {
            file,
            revision,
            failed: false,
        })
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// Note a durable revision.
    pub(super) fn advance(&mut self, revision: Revision) {
        let at = if revision.is_multiple_of(2) { 0 } else { SLOT };
        self.revision = revision;
        if let Err(e) = self.file.write_all_at(&slot(revision), at)
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!("writing the store's `acknowledged`: {e}; lost writes would go unnoticed");
        }
    }
}

fn slot(revision: Revision) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&revision.to_le_bytes());
    let checksum = xxh3_64(&bytes[..8]);
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}
