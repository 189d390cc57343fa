//! The writer thread: the only one that changes the store. Drain, validate, write, fsync, publish, acknowledge.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, oneshot};

use super::engine::{Contents, Engine, WriteFailure};
use super::watermark::Watermark;
use super::{KeyValue, Revision, Shared, StoreError, Write, broken};
use crate::store::Change;
use crate::store::heads::{Head, Heads};

/// Transactions in one batch, at most.
const BATCH: usize = 1024;
/// Bytes of values in one batch, beyond which no further transaction joins it.
const BATCH_BYTES: usize = 4 << 20;
/// Free space below which writes are refused: fjall needs room to flush and compact what is already acknowledged.
pub(super) const RESERVE_BYTES: u64 = 16 << 20;

/// What the writer thread is asked.
pub(super) enum Request {
    Commit {
        writes: Vec<Write>,
        answer: Answer,
    },
    Load {
        answer: oneshot::Sender<Result<(Vec<KeyValue>, Revision), StoreError>>,
    },
}

/// Who waits for a transaction.
type Answer = oneshot::Sender<Result<Revision, StoreError>>;

pub(super) struct Writer {
    dir: PathBuf,
    /// `None` after the engine stopped because the disk is full, until it can be opened again.
    engine: Option<Engine>,
    heads: Heads,
    watermark: Watermark,
    shared: Arc<Shared>,
    /// What opening found, until the first load takes it.
    found: Option<Vec<KeyValue>>,
    /// [`RESERVE_BYTES`], except in tests.
    reserve: u64,
}

impl Writer {
    pub(super) fn new(
        dir: PathBuf,
        engine: Engine,
        contents: Contents,
        mut watermark: Watermark,
        shared: Arc<Shared>,
        reserve: u64,
    ) -> Self {
        let mut heads = Heads::at(contents.revision);
        for KeyValue {
            key, revision, created, ..
        } in &contents.values
        {
            heads.insert(
                key.clone(),
                Head {
                    revision: *revision,
                    created: *created,
                },
            );
        }
        // What was found is durable, and is about to be shown.
        watermark.advance(contents.revision);
        Self {
            dir,
            engine: Some(engine),
            heads,
            watermark,
            shared,
            found: Some(contents.values),
            reserve,
        }
    }

    /// Serve until every sender is gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(request) = next {
                match request {
                    Request::Load { answer } => _ = answer.send(self.load()),
                    Request::Commit { writes, answer } => {
                        bytes += writes
                            .iter()
                            .map(|w| w.value.as_ref().map_or(0, |v| v.len()))
                            .sum::<usize>();
                        batch.push((writes, answer));
                    }
                }
                next = (batch.len() < BATCH && bytes < BATCH_BYTES)
                    .then(|| queue.try_recv().ok())
                    .flatten();
            }
            if !batch.is_empty() {
                self.commit(batch, bytes as u64);
            }
        }
    }

    fn commit(&mut self, batch: Vec<(Vec<Write>, Answer)>, bytes: u64) {
        let mut pending = self.heads.pending();
        let mut accepted: Vec<(Answer, Revision)> = Vec::with_capacity(batch.len());
        let mut refused = Vec::new();
        for (writes, answer) in batch {
            match pending.add(writes) {
                Ok(revision) => accepted.push((answer, revision)),
                Err(e) => refused.push((answer, e)),
            }
        }
        let changes = pending.into_changes();
        if !changes.is_empty()
            && let Err(full) = self.write(&changes, bytes)
        {
            for (answer, _) in accepted {
                let _ = answer.send(Err(StoreError::Full(full.clone())));
            }
            // A refusal that rests on a transaction which was not taken may be wrong: better none than a wrong one.
            for (answer, _) in refused {
                let _ = answer.send(Err(StoreError::Full(full.clone())));
            }
            return;
        }
        self.publish(&changes);
        for (answer, revision) in accepted {
            let _ = answer.send(Ok(revision));
        }
        for (answer, e) in refused {
            let _ = answer.send(Err(e));
        }
    }

    fn publish(&mut self, changes: &[Change]) {
        let Some(last) = changes.last() else { return };
        self.heads.accept(changes);
        self.watermark.advance(last.revision);
        self.shared.revision.store(last.revision, Ordering::Release);
        self.found = None;
        if let Some(publish) = &*self.shared.publish.lock() {
            publish(changes);
        }
    }

    /// Make a batch durable; the error says why the disk is full. Anything worse ends the process.
    fn write(&mut self, changes: &[Change], bytes: u64) -> Result<(), String> {
        self.check_space(self.reserve, bytes)?;
        let revision = changes.last().map_or(self.heads.revision, |change| change.revision);
        let dir = self.dir.display().to_string();
        let mut written = self.engine()?.write(changes, revision);
        if matches!(written, Err(WriteFailure::Stopped)) {
            // Flushing in the background met a full disk, perhaps long ago. Opening again checks that all that was acknowledged is there.
            tracing::warn!("store at {dir}: the engine had stopped; opening it again");
            self.engine = None;
            written = self.engine()?.write(changes, revision);
        }
        match written {
            Ok(()) => Ok(()),
            Err(WriteFailure::Sync(e)) => fatal(&format!(
                "store at {dir}: fsync of the journal failed: {e}. What is on disk is unknown; stopping rather than \
                 acknowledge writes that may be lost. Check the disk (dmesg), then start again"
            )),
            Err(failure) => {
                let e = failure.to_string();
                self.engine = None;
                // The engine also stops when its work in the background met a full disk, and leaves some room behind as it gives up.
                match self.check_space(RESERVE_BYTES, bytes) {
                    Err(full) => Err(format!("{full} ({e})")),
                    Ok(()) => fatal(&format!(
                        "store at {dir}: writing failed: {e}. Check the disk, then start again"
                    )),
                }
            }
        }
    }

    /// The engine, opened again if it had to stop.
    fn engine(&mut self) -> Result<&Engine, String> {
        let engine = match self.engine.take() {
            Some(engine) => engine,
            None => {
                let path = self.dir.join("db");
                match Engine::open_checked(&path, self.heads.revision) {
                    Ok((engine, contents)) if contents.revision == self.heads.revision => engine,
                    Ok((_, contents)) => fatal(&format!(
                        "store at {}: the batch that was refused as the disk was full is on disk as revision {} after \
                         all. Start again",
                        path.display(),
                        contents.revision
                    )),
                    Err(e) => return Err(format!("opening it again: {e}")),
                }
            }
        };
        Ok(self.engine.insert(engine))
    }

    fn check_space(&self, reserve: u64, bytes: u64) -> Result<(), String> {
        let dir = self.dir.display();
        let status = rustix::fs::statvfs(&self.dir).map_err(|e| format!("statvfs of {dir}: {e}"))?;
        let free = status.f_bavail.saturating_mul(status.f_frsize);
        let needed = reserve + 2 * bytes;
        if free < needed {
            return Err(format!(
                "{dir} has {} KiB left, {} KiB are needed",
                free >> 10,
                needed >> 10
            ));
        }
        Ok(())
    }

    fn load(&mut self) -> Result<(Vec<KeyValue>, Revision), StoreError> {
        if let Some(found) = self.found.take() {
            return Ok((found, self.heads.revision));
        }
        let engine = self
            .engine
            .as_ref()
            .ok_or_else(|| broken(&self.dir, "reading", &"the disk is full"))?;
        Ok((engine.load()?.values, self.heads.revision))
    }
}

/// End the process: going on would break a promise already made.
fn fatal(message: &str) -> ! {
    tracing::error!("{message}");
    eprintln!("hull: {message}");
    std::process::abort()
}
