//! fjall's journal, read only as far as repairing its end asks: where the unbroken run of whole batches ends.
//!
//! fjall 3 recognizes most torn batches and drops them; one of whose middle a sector is missing it takes for damage, and
//! refuses to open. A batch is `1` count:u32 seqno:u64, then items, then `3` xxh3:u64 `FJL\x03`; an item is `2` type:u8
//! compression:u8 keyspace:u64 key-length:u16 value-length:u32 stored-length:u32 key value, or `4` keyspace:u64.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

const TRAILER: &[u8] = b"FJL\x03";

/// A journal longer than this is sealed, and another one begun, when fjall next flushes.
pub(super) const SEALED_BYTES: usize = 64_000_000;

/// The journal that is written to.
pub(super) fn newest(path: &Path) -> io::Result<PathBuf> {
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let number = path
            .file_stem()
            .and_then(OsStr::to_str)
            .and_then(|stem| stem.parse().ok());
        if let (Some("jnl"), Some(number)) = (path.extension().and_then(OsStr::to_str), number) {
            newest = newest.max(Some((number, path)));
        }
    }
    newest
        .map(|(_, path)| path)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no journal"))
}

/// Bytes from the start in which every batch is whole.
pub(super) fn whole_batches(journal: &[u8]) -> usize {
    let mut whole = 0;
    while let Some(length) = batch(&journal[whole..]) {
        whole += length;
    }
    whole
}

/// The length of the batch at the start, if it is whole.
fn batch(bytes: &[u8]) -> Option<usize> {
    let count = u32::from_le_bytes(*bytes.strip_prefix(&[1])?.first_chunk()?);
    let items = 1 + 4 + 8;
    let mut at = items;
    for _ in 0..count {
        let item = bytes.get(at..)?;
        at += match *item.first()? {
            2 => {
                let lengths = item.get(11..21)?;
                let key = u16::from_le_bytes(*lengths.first_chunk()?);
                let stored = u32::from_le_bytes(*lengths.get(6..)?.first_chunk()?);
                21 + usize::from(key) + stored as usize
            }
            4 => 9,
            _ => return None,
        };
    }
    let (content, end) = (bytes.get(items..at)?, bytes.get(at..at + 13)?);
    let checksum = u64::from_le_bytes(*end.get(1..)?.first_chunk()?);
    (end[0] == 3 && checksum == xxh3_64(content) && &end[9..] == TRAILER).then_some(at + 13)
}
