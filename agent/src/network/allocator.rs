//! Which pod holds which address: one small file per pod, named by its uid, so that a restarted agent knows them again.
//!
//! Invariant: a file is complete when it appears (rename), and appears before its address is used.
//! Addresses are handed out in a circle, so that one just freed is the last to be used again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::{Cidr, Error};

/// Network, node and broadcast address are never a pod's.
const RESERVED: u64 = 3;
const PARTIAL: &str = ".partial";

/// The addresses of the node's pods.
#[derive(Debug)]
pub(super) struct Allocator {
    dir: PathBuf,
    range: Cidr,
    held: BTreeMap<String, Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
    next: u64,
}

impl Allocator {
    /// Reads the allocations in `dir`, which is made when missing.
    pub(super) fn open(dir: &Path, range: Cidr) -> Result<Allocator, Error> {
        if range.size() <= RESERVED {
            return Err(Error::RangeTooSmall(range));
        }
        fs::create_dir_all(dir).map_err(|source| Error::file("create directory", dir, source))?;
        let mut allocator = Allocator {
            dir: dir.to_owned(),
            range,
            held: BTreeMap::new(),
            taken: BTreeSet::new(),
            next: 2,
        };
        let entries = fs::read_dir(dir).map_err(|source| Error::file("read directory", dir, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| Error::file("read directory", dir, source))?;
            allocator.relearn(&entry.path(), entry.file_name().to_str())?;
        }
        Ok(allocator)
    }

    fn relearn(&mut self, path: &Path, uid: Option<&str>) -> Result<(), Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
        let address = text.trim().parse::<Ipv4Addr>().ok();
        match (uid, address) {
            (Some(uid), Some(address)) if !uid.starts_with('.') && self.taken.insert(address) => {
                self.held.insert(uid.to_owned(), address);
                let offset = u64::from(address.to_bits().wrapping_sub(self.range.base().to_bits()));
                self.next = self.next.max(offset + 1);
                Ok(())
            }
            _ => {
                tracing::warn!(path = %path.display(), "removed an unreadable pod address allocation");
                fs::remove_file(path).map_err(|source| Error::file("remove", path, source))
            }
        }
    }

    /// The pod's address: the one it holds, else a free one.
    pub(super) fn allocate(&mut self, uid: &str) -> Result<Ipv4Addr, Error> {
        if let Some(address) = self.held.get(uid) {
            return Ok(*address);
        }
        if uid.is_empty() || uid.starts_with('.') || uid.contains(['/', '\0']) || uid.len() > 128 {
            return Err(Error::InvalidUid(uid.to_owned()));
        }
        let (offset, address) = self.find_free()?;
        self.record(uid, address)?;
        self.held.insert(uid.to_owned(), address);
        self.taken.insert(address);
        self.next = offset + 1;
        Ok(address)
    }

    fn find_free(&self) -> Result<(u64, Ipv4Addr), Error> {
        let count = self.range.size() - RESERVED;
        let start = self.next.saturating_sub(2);
        (0..count)
            .map(|step| 2 + (start + step) % count)
            .filter_map(|offset| Some((offset, self.range.nth(offset)?)))
            .find(|(_, address)| !self.taken.contains(address))
            .ok_or(Error::Exhausted {
                range: self.range,
                used: self.taken.len(),
            })
    }

    fn record(&self, uid: &str, address: Ipv4Addr) -> Result<(), Error> {
        let partial = self.dir.join(PARTIAL);
        let path = self.dir.join(uid);
        fs::write(&partial, format!("{address}\n")).map_err(|source| Error::file("write", &partial, source))?;
        fs::rename(&partial, &path).map_err(|source| Error::file("rename to", &path, source))
    }

    /// Gives the pod's address back; a pod without one is fine.
    pub(super) fn free(&mut self, uid: &str) -> Result<(), Error> {
        let Some(address) = self.held.get(uid).copied() else {
            return Ok(());
        };
        let path = self.dir.join(uid);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path, source)),
            _ => {
                self.held.remove(uid);
                self.taken.remove(&address);
                Ok(())
            }
        }
    }

    pub(super) fn get(&self, uid: &str) -> Option<Ipv4Addr> {
        self.held.get(uid).copied()
    }

    pub(super) fn pods(&self) -> Vec<String> {
        self.held.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn keeps_addresses_over_a_restart_and_reuses_freed_ones_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut allocator = Allocator::open(dir.path(), range("10.1.0.0/29")).unwrap();
        let a = allocator.allocate("a").unwrap();
        let b = allocator.allocate("b").unwrap();
        assert_eq!((a, b), (Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 1, 0, 3)));
        assert_eq!(allocator.allocate("a").unwrap(), a);
        allocator.free("a").unwrap();
        allocator.free("a").unwrap();

        let mut allocator = Allocator::open(dir.path(), range("10.1.0.0/29")).unwrap();
        assert_eq!(allocator.pods(), ["b"]);
        assert_eq!(allocator.get("b"), Some(b));
        let rest: Vec<_> = ["c", "d", "e", "f"]
            .iter()
            .map(|uid| allocator.allocate(uid).unwrap())
            .collect();
        assert_eq!(rest.last(), Some(&a), "the freed address comes last: {rest:?}");
        assert!(matches!(allocator.allocate("g"), Err(Error::Exhausted { used: 5, .. })));
        allocator.free("d").unwrap();
        assert_eq!(allocator.allocate("g").unwrap(), rest[1]);
    }

    #[test]
    fn refuses_uids_that_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut allocator = Allocator::open(dir.path(), range("10.1.0.0/24")).unwrap();
        for uid in ["", ".", "..", "../x", "a/b", ".partial"] {
            assert!(matches!(allocator.allocate(uid), Err(Error::InvalidUid(_))), "{uid}");
        }
    }

    #[test]
    fn drops_a_partial_record() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(PARTIAL), "10.1").unwrap();
        fs::write(dir.path().join("x"), "").unwrap();
        let allocator = Allocator::open(dir.path(), range("10.1.0.0/24")).unwrap();
        assert!(allocator.pods().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn refuses_a_range_without_room() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Allocator::open(dir.path(), range("10.1.0.0/31")),
            Err(Error::RangeTooSmall(_))
        ));
    }
}
