//! A container's log file: appended in whole batches, rotated by size, a bounded number kept.
//!
//! Rotation is one rename(2), from `<path>` to `<path>.<UTC time>`: whatever moment the warden dies at, every record is in
//! exactly one of the files. A batch that the disk has no room for is taken back, so a file ends in whole records.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::cri::{self, Batch};
use super::error::{Context, Error};
use super::protocol::LogConfig;
use crate::timestamp::now;

/// Bytes formatted before they are written: bounds memory, and the size of the last batch.
pub(crate) const BATCH_MAX: usize = 64 << 10;
/// A tail of this length holds any last batch: one record may start just below BATCH_MAX.
const TAIL_MAX: u64 = (BATCH_MAX + 2 * cri::LINE_MAX) as u64;

#[derive(Debug)]
pub(crate) struct LogFile {
    config: LogConfig,
    /// None after a rotation whose new file could not be opened yet.
    file: Option<File>,
    size: u64,
    last_stamp: i64,
}

impl LogFile {
    /// Opens or creates the file, and cuts off a record that a killed warden left torn.
    pub(crate) fn open(config: LogConfig) -> Result<Self, Error> {
        let mut log = Self {
            config,
            file: None,
            size: 0,
            last_stamp: 0,
        };
        log.reopen()?;
        log.cut_torn_record()
            .context(|| format!("repairing the log file {}", log.config.path.display()))?;
        log.remove_surplus();
        Ok(log)
    }

    /// Opens the path anew, after somebody moved the file away.
    pub(crate) fn reopen(&mut self) -> Result<(), Error> {
        let path = &self.config.path;
        let opened = open_append(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = opened.context(|| format!("opening the log file {}", path.display()))?;
        (self.size, self.file) = (size, Some(file));
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.config.path
    }

    /// A time that no batch of this file has yet.
    pub(crate) fn next_stamp(&mut self) -> i64 {
        self.last_stamp = now().max(self.last_stamp + 1);
        self.last_stamp
    }

    /// How many bytes to format at a time.
    pub(crate) fn batch_limit(&self) -> usize {
        match usize::try_from(self.config.max_bytes) {
            Ok(0) | Err(_) => BATCH_MAX,
            Ok(max) => max.min(BATCH_MAX),
        }
    }

    /// Appends a batch: all of it or, with an error, nothing.
    pub(crate) fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        let max = self.config.max_bytes;
        if max > 0 && self.size > 0 && self.size + batch.len() as u64 > max {
            self.rotate()?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                self.size = 0;
                self.file.insert(open_append(&self.config.path)?)
            }
        };
        if let Err(error) = file.write_all(batch) {
            file.set_len(self.size)?;
            return Err(error);
        }
        self.size += batch.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut rotated = self.config.path.clone().into_os_string();
        rotated.push(".");
        rotated.push(cri::file_stamp(self.next_stamp()));
        match fs::rename(&self.config.path, rotated) {
            // Moved away by somebody else: what we have open is no longer ours.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        (self.file, self.size) = (None, 0);
        self.remove_surplus();
        Ok(())
    }

    /// Removes the oldest rotated files. A failure is no reason to stop logging: the next rotation tries again.
    fn remove_surplus(&self) {
        let keep = (self.config.max_files as usize).saturating_sub(1);
        if self.config.max_bytes == 0 {
            return;
        }
        let rotated = rotated_files(&self.config.path);
        for path in rotated.iter().rev().skip(keep) {
            let _ = fs::remove_file(path);
        }
    }

    fn cut_torn_record(&mut self) -> io::Result<()> {
        let tail = self.tail()?;
        let whole = tail
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |newline| newline + 1);
        let torn = (tail.len() - whole) as u64;
        let Some(size) = self.size.checked_sub(torn) else {
            return Ok(());
        };
        if let (Some(file), 1..) = (&self.file, torn) {
            file.set_len(size)?;
            self.size = size;
        }
        Ok(())
    }

    /// The batch that was written last, if it is in the current file. Only that one can be in the log and still in the pipe.
    pub(crate) fn last_batch(&self) -> Option<Batch> {
        cri::last_batch(&self.tail().ok()?)
    }

    fn tail(&self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.config.path)?;
        file.seek(SeekFrom::Start(self.size.saturating_sub(TAIL_MAX)))?;
        let mut tail = Vec::new();
        file.take(TAIL_MAX).read_to_end(&mut tail)?;
        Ok(tail)
    }
}

/// The rotated files beside a log file, oldest first.
pub fn rotated_files(path: &Path) -> Vec<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let is_rotated = |entry: &str| {
        let suffix = entry.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
        suffix.is_some_and(|stamp| {
            stamp.len() == 25 && stamp.bytes().all(|b| b.is_ascii_digit() || b == b'-' || b == b'.')
        })
    };
    let mut rotated: Vec<PathBuf> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_name().to_str().is_some_and(is_rotated))
        .map(|entry| entry.path())
        .collect();
    rotated.sort();
    rotated
}

fn open_append(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    match (open(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(parent)?;
            open()
        }
        (result, _) => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, max_bytes: u64, max_files: u32) -> LogConfig {
        LogConfig {
            path: dir.join("pod/0.log"),
            max_bytes,
            max_files,
        }
    }

    fn everything(path: &Path) -> String {
        let mut files = rotated_files(path);
        files.push(path.to_owned());
        files
            .iter()
            .map(|file| fs::read_to_string(file).unwrap_or_default())
            .collect()
    }

    #[test]
    fn rotation_loses_nothing_and_keeps_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 10, 3);
        let mut log = LogFile::open(config.clone()).unwrap();
        for batch in ["aaaa\n", "bbbb\n", "cccc\n", "dddd\n", "eeee\n"] {
            log.append(batch.as_bytes()).unwrap();
        }
        assert_eq!(everything(&config.path), "aaaa\nbbbb\ncccc\ndddd\neeee\n");
        for batch in ["ffff\n", "gggg\n", "hhhh\n"] {
            log.append(batch.as_bytes()).unwrap();
        }
        assert_eq!(
            everything(&config.path),
            "cccc\ndddd\neeee\nffff\ngggg\nhhhh\n",
            "three files are kept"
        );
    }

    #[test]
    fn a_kill_between_rename_and_create_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 100, 3);
        let mut log = LogFile::open(config.clone()).unwrap();
        log.append(b"before\n").unwrap();
        log.rotate().unwrap();
        drop(log);
        assert!(!config.path.exists());
        let mut log = LogFile::open(config.clone()).unwrap();
        log.append(b"after\n").unwrap();
        assert_eq!(everything(&config.path), "before\nafter\n");
    }

    #[test]
    fn a_torn_record_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 0, 1);
        LogFile::open(config.clone())
            .unwrap()
            .append(b"T stdout F whole\nT stdout F to")
            .unwrap();
        let log = LogFile::open(config.clone()).unwrap();
        assert_eq!(everything(&config.path), "T stdout F whole\n");
        assert_eq!(log.last_batch().unwrap().raw, b"whole\n");
        fs::write(&config.path, "torn from the start").unwrap();
        LogFile::open(config.clone()).unwrap();
        assert_eq!(everything(&config.path), "");
    }

    #[test]
    fn a_batch_the_disk_refuses_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 0, 1);
        let mut log = LogFile::open(config.clone()).unwrap();
        log.append(b"kept\n").unwrap();
        // Open for reading only: the write fails as a full disk's would, and so does taking it back.
        log.file = Some(File::open(&config.path).unwrap());
        assert!(log.append(b"refused\n").is_err());
        log.reopen().unwrap();
        log.append(b"next\n").unwrap();
        assert_eq!(everything(&config.path), "kept\nnext\n");
    }

    #[test]
    fn other_files_beside_the_log_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 5, 1);
        let mut log = LogFile::open(config.clone()).unwrap();
        let other = config.path.with_file_name("0.log.keep");
        fs::write(&other, "x").unwrap();
        for _ in 0..4 {
            log.append(b"line\n").unwrap();
        }
        assert_eq!(everything(&config.path), "line\n");
        assert!(other.exists());
    }
}
