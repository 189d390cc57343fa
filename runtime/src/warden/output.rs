//! From a container's output pipe into its log file, without ever holding a byte that is in neither.
//!
//! The pipe's contents are duplicated with tee(2), logged, and only then consumed. A warden killed in between leaves the last
//! batch in both places; a mark of what was consumed, and the batch itself, tell the next warden to skip it. An unfinished
//! line stays in the pipe until it is finished, reaches 16 KiB, fills the pipe, or nobody can finish it any more.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, pipe_with, splice, tee};

use super::cri::{self, Stream};
use super::error::{Context, Error};
use super::log_file::LogFile;
use crate::timestamp;

const CHUNK: usize = 64 << 10;

/// What is left to do after one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing can be logged until more is written.
    Idle,
    /// There may be more already.
    More,
    /// Nobody can write any more, and all is logged.
    Ended,
}

/// Buffers shared by all pipes of the warden.
#[derive(Debug)]
pub(crate) struct Scratch {
    copy_in: OwnedFd,
    copy_out: OwnedFd,
    null: OwnedFd,
    raw: Vec<u8>,
    records: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self, Error> {
        let (copy_out, copy_in) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).context(|| "making the warden's own pipe".into())?;
        let null = open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .context(|| "opening /dev/null".into())?;
        Ok(Self {
            copy_in,
            copy_out,
            null,
            raw: Vec::new(),
            records: Vec::new(),
        })
    }

    /// Copies what is in a pipe without consuming it. None: empty now; Some(0): empty for good.
    fn peek(&mut self, pipe: BorrowedFd<'_>) -> Result<Option<Peeked>, Errno> {
        let count = match tee(pipe, &self.copy_in, CHUNK, SpliceFlags::NONBLOCK) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let full = count >= fcntl_getpipe_size(pipe).unwrap_or(CHUNK) / 2
            || !is_ready(self.copy_in.as_fd(), PollFlags::OUT, PollFlags::OUT);
        self.raw.resize(CHUNK, 0);
        let mut read = 0;
        while read < count {
            match rustix::io::read(&self.copy_out, &mut self.raw[read..count]) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(Some(Peeked { count: read, full }))
    }

    fn consume(&self, pipe: BorrowedFd<'_>, mut count: usize) -> Result<(), Errno> {
        while count > 0 {
            match splice(pipe, None, &self.null, None, count, SpliceFlags::NONBLOCK) {
                Ok(0) => break,
                Ok(n) => count -= n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

struct Peeked {
    count: usize,
    full: bool,
}

/// The read end of a container's stdout or stderr.
#[derive(Debug)]
pub(crate) struct OutputPipe {
    fifo: OwnedFd,
    stream: Stream,
}

impl OutputPipe {
    /// Opens the FIFO without waiting for a writer.
    pub(crate) fn open(path: &Path, stream: Stream) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fifo =
            open(path, flags, Mode::empty()).context(|| format!("opening the output pipe {}", path.display()))?;
        Ok(Self { fifo, stream })
    }

    /// Logs at most one chunk. `orphaned`: the container ended, so an unfinished line will not be finished.
    pub(crate) fn pump(
        &self,
        scratch: &mut Scratch,
        log: &mut LogFile,
        marks: &Marks,
        orphaned: bool,
    ) -> Result<Progress, Error> {
        let failed = |log: &LogFile| format!("logging to {}", log.path().display());
        let peeked = match scratch.peek(self.fifo.as_fd()).context(|| failed(log))? {
            None => return Ok(Progress::Idle),
            Some(Peeked { count: 0, .. }) => return Ok(Progress::Ended),
            Some(peeked) => peeked,
        };
        let stamp = log.next_stamp();
        let text = timestamp::rfc3339(stamp);
        let limit = log.batch_limit();
        let Scratch { raw, records, .. } = scratch;
        let raw = &raw[..peeked.count];
        records.clear();
        let mut taken = cri::format(raw, false, &text, self.stream, limit, records);
        if taken == 0 && (peeked.full || orphaned || self.has_no_writer()) {
            taken = cri::format(raw, true, &text, self.stream, limit, records);
        }
        if taken == 0 {
            return Ok(Progress::Idle);
        }
        log.append(records).context(|| failed(log))?;
        scratch.consume(self.fifo.as_fd(), taken).context(|| failed(log))?;
        marks.set(self.stream, stamp);
        let certainly_more = taken < peeked.count || peeked.count == CHUNK || orphaned || self.has_no_writer();
        Ok(if certainly_more { Progress::More } else { Progress::Idle })
    }

    /// Skips what a killed warden had logged but not consumed.
    pub(crate) fn skip_logged(&self, scratch: &mut Scratch, log: &LogFile, marks: &Marks) -> Result<(), Error> {
        let Some(batch) = log.last_batch().filter(|batch| batch.stream == self.stream) else {
            return Ok(());
        };
        let consumed = marks
            .get(self.stream)
            .is_some_and(|stamp| timestamp::rfc3339(stamp) == batch.stamp);
        if consumed {
            return Ok(());
        }
        let what = || format!("continuing {}", log.path().display());
        let Some(peeked) = scratch.peek(self.fifo.as_fd()).context(what)? else {
            return Ok(());
        };
        if scratch.raw[..peeked.count].starts_with(&batch.raw) {
            scratch.consume(self.fifo.as_fd(), batch.raw.len()).context(what)?;
        }
        Ok(())
    }

    fn has_no_writer(&self) -> bool {
        is_ready(self.fifo.as_fd(), PollFlags::IN, PollFlags::HUP)
    }
}

impl AsFd for OutputPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }
}

/// The time of the last batch consumed from each stream, on disk: two 8-byte words.
#[derive(Debug)]
pub(crate) struct Marks {
    file: File,
}

impl Marks {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        Ok(Self {
            file: file.context(|| format!("opening {}", path.display()))?,
        })
    }

    fn get(&self, stream: Stream) -> Option<i64> {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, offset(stream)).ok()?;
        Some(i64::from_le_bytes(word))
    }

    /// A mark that cannot be written costs at most one repeated batch after a crash.
    fn set(&self, stream: Stream, stamp: i64) {
        let _ = self.file.write_all_at(&stamp.to_le_bytes(), offset(stream));
    }
}

fn offset(stream: Stream) -> u64 {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 8,
    }
}

fn is_ready(fd: BorrowedFd<'_>, ask: PollFlags, want: PollFlags) -> bool {
    let mut fds = [PollFd::new(&fd, ask)];
    let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok() && fds[0].revents().intersects(want)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warden::protocol::LogConfig;
    use std::io::Write;
    use std::path::PathBuf;

    struct Fixture {
        _dir: tempfile::TempDir,
        scratch: Scratch,
        log: LogFile,
        marks: Marks,
        pipe: OutputPipe,
        writer: File,
        config: LogConfig,
        fifo: PathBuf,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("stdout");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let config = LogConfig {
            path: dir.path().join("0.log"),
            max_bytes: 0,
            max_files: 1,
        };
        let pipe = OutputPipe::open(&fifo, Stream::Stdout).unwrap();
        let writer = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        Fixture {
            scratch: Scratch::new().unwrap(),
            log: LogFile::open(config.clone()).unwrap(),
            marks: Marks::open(&dir.path().join("marks")).unwrap(),
            pipe,
            writer,
            config,
            fifo,
            _dir: dir,
        }
    }

    impl Fixture {
        fn pump(&mut self) -> Progress {
            self.pipe
                .pump(&mut self.scratch, &mut self.log, &self.marks, false)
                .unwrap()
        }

        fn texts(&self) -> Vec<String> {
            let log = std::fs::read_to_string(&self.config.path).unwrap();
            log.lines()
                .map(|line| line.split_once(" stdout ").unwrap().1.to_owned())
                .collect()
        }

        /// What a new warden does.
        fn restart(&mut self) {
            self.log = LogFile::open(self.config.clone()).unwrap();
            self.pipe = OutputPipe::open(&self.fifo, Stream::Stdout).unwrap();
            self.pipe
                .skip_logged(&mut self.scratch, &self.log, &self.marks)
                .unwrap();
        }
    }

    #[test]
    fn an_unfinished_line_stays_in_the_pipe_and_outlives_the_warden() {
        let mut f = fixture();
        f.writer.write_all(b"one\ntw").unwrap();
        f.pump();
        assert_eq!(f.texts(), ["F one"]);
        f.restart();
        assert_eq!(f.pump(), Progress::Idle);
        f.writer.write_all(b"o\n").unwrap();
        f.pump();
        assert_eq!(f.texts(), ["F one", "F two"]);
    }

    #[test]
    fn the_rest_is_logged_when_nobody_can_finish_it() {
        let mut f = fixture();
        f.writer.write_all(b"bye").unwrap();
        assert_eq!(f.pump(), Progress::Idle);
        f.writer = File::open("/dev/null").unwrap();
        assert_eq!(f.pump(), Progress::More);
        assert_eq!(f.pump(), Progress::Ended);
        assert_eq!(f.texts(), ["P bye"]);
    }

    #[test]
    fn a_batch_logged_but_not_consumed_is_not_repeated() {
        let mut f = fixture();
        f.writer.write_all(b"same\nsame\n").unwrap();
        // A warden that dies right after the write: logged, neither consumed nor marked.
        f.log
            .append(format!("{} stdout F same\n", timestamp::rfc3339(5)).as_bytes())
            .unwrap();
        f.restart();
        while f.pump() == Progress::More {}
        assert_eq!(f.texts(), ["F same", "F same"]);
    }

    #[test]
    fn a_batch_logged_and_consumed_is_not_mistaken_for_the_next_equal_one() {
        let mut f = fixture();
        f.writer.write_all(b"same\n").unwrap();
        f.pump();
        f.writer.write_all(b"same\n").unwrap();
        f.restart();
        f.pump();
        assert_eq!(f.texts(), ["F same", "F same"]);
    }

    #[test]
    fn a_torn_batch_is_completed() {
        let mut f = fixture();
        f.writer.write_all(b"one\ntwo\n").unwrap();
        let stamp = timestamp::rfc3339(5);
        f.log
            .append(format!("{stamp} stdout F one\n{stamp} stdout F t").as_bytes())
            .unwrap();
        f.restart();
        while f.pump() == Progress::More {}
        assert_eq!(f.texts(), ["F one", "F two"]);
    }

    #[test]
    fn a_refused_write_leaves_the_output_in_the_pipe() {
        let mut f = fixture();
        f.writer.write_all(b"precious\n").unwrap();
        let full = LogConfig {
            path: "/dev/full".into(),
            ..f.config.clone()
        };
        let mut log = LogFile::open(full).unwrap();
        assert!(f.pipe.pump(&mut f.scratch, &mut log, &f.marks, false).is_err());
        f.pump();
        assert_eq!(f.texts(), ["F precious"]);
    }

    #[test]
    fn a_full_pipe_without_a_newline_never_blocks_its_writer_for_good() {
        let mut f = fixture();
        rustix::fs::fcntl_setfl(&f.writer, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
        let mut written = 0;
        for _ in 0..40 {
            match f.writer.write(&[b'x'; 4096]) {
                Ok(n) => written += n,
                Err(_) => while f.pump() == Progress::More {},
            }
        }
        assert!(written > 100_000, "{written}");
        f.writer.write_all(b"\n").unwrap();
        while f.pump() == Progress::More {}
        let texts = f.texts();
        assert!(texts[..texts.len() - 1].iter().all(|text| text.starts_with("P ")));
        let joined: usize = texts.iter().map(|text| text.len() - 2).sum();
        assert_eq!(joined, written);
    }
}
