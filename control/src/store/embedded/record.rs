//! A value as it is on disk: a header, the value, and a checksum over the key and all of it.
//!
//! Layout, little-endian: version (1 byte), checksum (8), revision (8), created (8), value. fjall has checksums of its own
//! for its blocks and batches; this one ends where the value is used, so whatever happens in between is noticed.

use xxhash_rust::xxh3::Xxh3;

use super::Revision;
use crate::store::heads::Head;

const VERSION: u8 = 1;
const HEADER: usize = 1 + 8 + 16;

/// The key under which the newest revision is kept: it may be that of a deletion. Keys of objects begin with `/`.
pub(super) const REVISION_KEY: &str = "revision";

pub(super) fn encode(key: &str, head: Head, value: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER + value.len());
    record.push(VERSION);
    record.extend_from_slice(&[0; 8]);
    record.extend_from_slice(&head.revision.to_le_bytes());
    record.extend_from_slice(&head.created.to_le_bytes());
    record.extend_from_slice(value);
    let checksum = checksum(key, &record);
    record[1..9].copy_from_slice(&checksum.to_le_bytes());
    record
}

/// The revisions and the value; the error says what is wrong.
pub(super) fn decode<'a>(key: &str, record: &'a [u8]) -> Result<(Head, &'a [u8]), String> {
    let Some((header, value)) = record.split_first_chunk::<HEADER>() else {
        return Err(format!("the record of {key} has only {} bytes", record.len()));
    };
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    if header[0] != VERSION {
        return Err(format!("the record of {key} has version {}, not {VERSION}", header[0]));
    }
    if number(1) != checksum(key, record) {
        return Err(format!("the checksum of {key} does not match: its value is damaged"));
    }
    let (revision, created): (Revision, Revision) = (number(9), number(17));
    Ok((Head { revision, created }, value))
}

fn checksum(key: &str, record: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(key.as_bytes());
    hash.update(&record[..1]);
    hash.update(&record[9..]);
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let head = Head {
            revision: 77,
            created: 3,
        };
        let record = encode("/registry/core/pods/d/n", head, b"value");
        assert_eq!(decode("/registry/core/pods/d/n", &record), Ok((head, &b"value"[..])));
        assert!(
            decode("/registry/core/pods/d/m", &record)
                .unwrap_err()
                .contains("/registry/core/pods/d/m")
        );
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode("/registry/core/pods/d/n", &damaged).is_err(), "bit {bit}");
        }
        assert!(decode("k", &record[..HEADER - 1]).is_err());
    }
}
