//! Bounds on what a layer may make of the node: bytes, entries, ratio and time, checked while it is read, not afterwards.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::image::error::Error;

/// What one layer may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Uncompressed bytes, holes counted.
    pub bytes: u64,
    /// Files, directories and all else.
    pub entries: u64,
    /// Uncompressed bytes for each compressed one, beyond `ratio_from` bytes.
    pub ratio: u64,
    /// The ratio is not looked at before this many uncompressed bytes.
    pub ratio_from: u64,
    /// Bytes of names and extended headers of one entry.
    pub header: u64,
    /// Time to unpack it.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 2_000_000,
            ratio: 200,
            ratio_from: 256 << 20,
            header: 2 << 20,
            time: Duration::from_secs(30 * 60),
        }
    }
}

/// Counts compressed bytes as they are read.
pub(super) struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R> Counted<R> {
    pub(super) fn new(inner: R) -> (Self, Rc<Cell<u64>>) {
        let count = Rc::new(Cell::new(0));
        (
            Self {
                inner,
                count: count.clone(),
            },
            count,
        )
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// The limits as they are used up. Shared by the reader below the archive and the code above it.
pub(super) struct Budget {
    limits: Limits,
    compressed: Rc<Cell<u64>>,
    read: Cell<u64>,
    /// Bytes the archive may be read for the present purpose.
    allowed: Cell<u64>,
    entries: Cell<u64>,
    written: Cell<u64>,
    began: Instant,
    broken: Cell<Option<(&'static str, u64)>>,
}

impl Budget {
    pub(super) fn new(limits: Limits, compressed: Rc<Cell<u64>>) -> Rc<Self> {
        Rc::new(Self {
            limits,
            compressed,
            read: Cell::new(0),
            allowed: Cell::new(limits.header),
            entries: Cell::new(0),
            written: Cell::new(0),
            began: Instant::now(),
            broken: Cell::new(None),
        })
    }

    /// Before the next entry's headers are read.
    pub(super) fn expect_headers(&self) {
        self.allowed.set(self.limits.header);
    }

    /// Before an entry's content of `size` bytes is read and written.
    pub(super) fn expect_content(&self, size: u64) -> Result<(), Error> {
        self.entries.set(self.entries.get() + 1);
        self.written.set(self.written.get().saturating_add(size));
        self.check("entries", self.entries.get(), self.limits.entries)?;
        self.check("bytes", self.written.get(), self.limits.bytes)?;
        self.allowed.set(size.saturating_add(self.limits.header));
        Ok(())
    }

    /// Once the archive has ended: what pads it is read for its digest only.
    pub(super) fn expect_rest(&self) {
        self.allowed.set(u64::MAX);
    }

    /// The limit that made a read fail, if one did.
    pub(super) fn broken(&self) -> Option<Error> {
        self.broken.get().map(|(what, limit)| Error::Limit { what, limit })
    }

    fn check(&self, what: &'static str, value: u64, limit: u64) -> Result<(), Error> {
        if value <= limit {
            return Ok(());
        }
        self.broken.set(Some((what, limit)));
        Err(Error::Limit { what, limit })
    }

    fn count(&self, count: u64) -> Result<(), Error> {
        let read = self.read.get() + count;
        self.read.set(read);
        self.check("uncompressed bytes", read, self.limits.bytes)?;
        if read > self.limits.ratio_from {
            let most = self.compressed.get().saturating_mul(self.limits.ratio);
            if read > most {
                return self.check("bytes for each compressed byte", u64::MAX, self.limits.ratio);
            }
        }
        let left = self.allowed.get().checked_sub(count);
        self.allowed.set(left.unwrap_or(0));
        if left.is_none() {
            return self.check("bytes in one entry's headers", u64::MAX, self.limits.header);
        }
        self.check(
            "seconds to unpack",
            self.began.elapsed().as_secs(),
            self.limits.time.as_secs(),
        )
    }
}

/// A reader that stops when the budget is spent.
pub(super) struct Bounded<R> {
    pub inner: R,
    pub budget: Rc<Budget>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.budget
            .count(count as u64)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(count)
    }
}
