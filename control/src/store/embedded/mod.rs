//! The store on this machine's disk: fjall, with group commit in front of it.
//!
//! One writer thread takes whatever transactions have queued up, validates them against the state they would lead to,
//! writes them as one batch, calls fdatasync once, and only then publishes, in revision order, and acknowledges.
//! While it waits for the disk the next batch gathers: many writers share one fsync without a timer.
//!
//! On disk: `lock` (one process), `format`, `acknowledged` (see [`watermark`]) and `db/` (fjall). `db/` appears by a
//! rename when it is complete, so a crash while the store is created leaves nothing half-made. The embedded store keeps
//! live keys only: what history watches and exact lists need is in the cache.

mod engine;
mod journal;
mod lock;
mod record;
#[cfg(test)]
mod tests;
mod watermark;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use self::engine::Engine;
use self::lock::Lock;
use self::watermark::Watermark;
use self::writer::{Request, Writer};
use super::{BoxFuture, KeyValue, Publish, Revision, Store, StoreError, Write};

/// What `format` holds. A store with another one was made by another version of hull.
const FORMAT: &str = "hull store 1\n";

/// How many transactions may wait for the writer thread before committing waits, too.
const QUEUE: usize = 4096;

/// A durable store in a directory of its own.
pub struct Embedded {
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// What the writer thread shows.
struct Shared {
    revision: AtomicU64,
    publish: Mutex<Option<Publish>>,
}

impl Embedded {
    /// Open the store in `dir`, creating it if there is none. Blocks: every value is read and its checksum verified.
    ///
    /// # Errors
    /// [`StoreError::Broken`] if another process holds it, or if anything in it is damaged.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_reserving(dir, writer::RESERVE_BYTES)
    }

    /// Open, and refuse writes when less than `reserve` bytes are free.
    fn open_reserving(dir: &Path, reserve: u64) -> Result<Self, StoreError> {
        create_directory(dir)?;
        let lock = Lock::acquire(dir)?;
        check_format(dir)?;
        if !dir.join("db").exists() {
            create(dir)?;
        }
        let watermark = Watermark::open(dir)?;
        let (engine, contents) = Engine::open_checked(&dir.join("db"), watermark.revision())?;
        let shared = Arc::new(Shared {
            revision: AtomicU64::new(contents.revision),
            publish: Mutex::new(None),
        });
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = Writer::new(dir.to_owned(), engine, contents, watermark, shared.clone(), reserve);
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(move || {
            // The lock is given up after the engine is closed.
            let _lock = lock;
            writer.run(queue);
        });
        let thread = thread.map_err(|e| broken(dir, "starting the writer thread", &e))?;
        Ok(Self {
            requests: Some(requests),
            thread: Some(thread),
            shared,
        })
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.send(request(answer)).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)
    }
}

impl Store for Embedded {
    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move { self.ask(|answer| Request::Commit { writes, answer }).await? })
    }

    fn load(&self) -> BoxFuture<'_, Result<(Vec<KeyValue>, Revision), StoreError>> {
        Box::pin(async move { self.ask(|answer| Request::Load { answer }).await? })
    }

    fn subscribe(&self, publish: Publish) {
        *self.shared.publish.lock() = Some(publish);
    }

    fn revision(&self) -> Revision {
        self.shared.revision.load(Ordering::Acquire)
    }

    fn compact(&self, _through: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        // Only live keys are kept; fjall drops what they replaced on its own.
        Box::pin(async { Ok(()) })
    }
}

impl Drop for Embedded {
    /// Waits until what was queued is durable and the directory is free for another process.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self
            .thread
            .take()
            .filter(|thread| thread.thread().id() != std::thread::current().id())
        {
            let _ = thread.join();
        }
    }
}

fn create_directory(dir: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    let mut missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    while let Some(next) = missing.pop() {
        // Secrets are in it.
        match fs::DirBuilder::new().mode(0o700).create(next) {
            Ok(()) => sync_parent(next)?,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(broken(dir, &format!("creating {}", next.display()), &e)),
        }
    }
    Ok(())
}

/// Make an empty database in a directory that becomes `db` only when all of it is durable.
fn create(dir: &Path) -> Result<(), StoreError> {
    let unfinished = dir.join("db.new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(|e| broken(dir, "removing an unfinished db.new", &e))?;
    }
    Watermark::create(dir)?;
    drop(Engine::open(&unfinished)?);
    sync(&unfinished)?;
    fs::rename(&unfinished, dir.join("db")).map_err(|e| broken(dir, "renaming db.new to db", &e))?;
    sync(dir)
}

fn check_format(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("format");
    match fs::read_to_string(&path) {
        Ok(format) if format == FORMAT => Ok(()),
        Ok(format) => Err(StoreError::Broken {
            path: dir.display().to_string(),
            what: format!(
                "its format is {:?}, this hull knows only {:?}: use the version of hull that wrote it",
                format.trim_end(),
                FORMAT.trim_end()
            ),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let unfinished = dir.join("format.new");
            let written = fs::write(&unfinished, FORMAT).and_then(|()| fs::File::open(&unfinished)?.sync_all());
            written
                .and_then(|()| fs::rename(&unfinished, &path))
                .map_err(|e| broken(dir, "writing `format`", &e))?;
            sync(dir)
        }
        Err(e) => Err(broken(dir, "reading `format`", &e)),
    }
}

/// Make a directory's entries durable.
fn sync(dir: &Path) -> Result<(), StoreError> {
    fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| broken(dir, "fsync of the directory", &e))
}

fn sync_parent(path: &Path) -> Result<(), StoreError> {
    match path.parent() {
        Some(parent) if parent != Path::new("") => sync(parent),
        _ => sync(&PathBuf::from(".")),
    }
}

fn broken(path: &Path, tried: &str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Broken {
        path: path.display().to_string(),
        what: format!("{tried}: {error}"),
    }
}
