//! Which pod holds which addresses: one small file per pod, named by its uid, so that a restarted agent knows them again.
//!
//! Invariant: a file is complete when it appears (rename), and appears before its addresses are used.
//! Addresses are handed out in a circle, so that one just freed is the last to be used again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Cidr, Error};

/// The network itself (of IPv6: the subnet-router anycast address, RFC 4291) and the node's own address are never a pod's.
const FIRST: u128 = 2;
const PARTIAL: &str = ".partial";

/// The addresses of the node's pods.
#[derive(Debug)]
pub(super) struct Allocator {
    dir: PathBuf,
    /// In the order in which pods get addresses of them.
    ranges: Vec<Range>,
    held: BTreeMap<String, Vec<IpAddr>>,
}

/// One of the node's pod ranges.
#[derive(Debug)]
struct Range {
    cidr: Cidr,
    taken: BTreeSet<IpAddr>,
    /// Offset of the address to try first.
    next: u128,
}

impl Range {
    /// How many addresses pods can have: the last one of an IPv4 network is the broadcast address.
    fn room(cidr: Cidr) -> u128 {
        cidr.size().saturating_sub(FIRST + u128::from(cidr.is_ipv4()))
    }

    fn take(&mut self) -> Result<IpAddr, Error> {
        let room = Range::room(self.cidr);
        let start = self.next.saturating_sub(FIRST);
        // One more than are taken: a free one is among them if there is one.
        let tries = room.min(self.taken.len() as u128 + 1);
        let (offset, address) = (0..tries)
            .map(|step| FIRST + (start + step) % room)
            .filter_map(|offset| Some((offset, self.cidr.nth(offset)?)))
            .find(|(_, address)| !self.taken.contains(address))
            .ok_or(Error::Exhausted {
                range: self.cidr,
                used: self.taken.len(),
            })?;
        self.taken.insert(address);
        self.next = offset + 1;
        Ok(address)
    }
}

impl Allocator {
    /// Reads the allocations in `dir`, which is made when missing.
    pub(super) fn open(dir: &Path, ranges: &[Cidr]) -> Result<Allocator, Error> {
        if let Some(small) = ranges.iter().find(|cidr| Range::room(**cidr) == 0) {
            return Err(Error::RangeTooSmall(*small));
        }
        fs::create_dir_all(dir).map_err(|source| Error::file("create directory", dir, source))?;
        let range = |cidr: &Cidr| Range {
            cidr: *cidr,
            taken: BTreeSet::new(),
            next: FIRST,
        };
        let mut allocator = Allocator {
            dir: dir.to_owned(),
            ranges: ranges.iter().map(range).collect(),
            held: BTreeMap::new(),
        };
        for (uid, path) in records(dir)? {
            allocator.relearn(&uid, &path)?;
        }
        Ok(allocator)
    }

    /// A pod keeps what it has, also when the node's ranges are others by now: its interface has it.
    fn relearn(&mut self, uid: &str, path: &Path) -> Result<(), Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
        let addresses: Result<Vec<IpAddr>, _> = text.lines().map(|line| line.trim().parse()).collect();
        let addresses = addresses.unwrap_or_default();
        let double = addresses.iter().any(|address| self.is_taken(*address));
        if addresses.is_empty() || double || uid.starts_with('.') {
            tracing::warn!(path = %path.display(), "removed an unreadable pod address allocation");
            return fs::remove_file(path).map_err(|source| Error::file("remove", path, source));
        }
        for range in &mut self.ranges {
            for address in &addresses {
                if let Some(offset) = range.cidr.offset(*address) {
                    range.taken.insert(*address);
                    range.next = range.next.max(offset + 1);
                }
            }
        }
        self.held.insert(uid.to_owned(), addresses);
        Ok(())
    }

    fn is_taken(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.taken.contains(&address))
    }

    /// The pod's addresses, one of each range: those it holds, else free ones.
    pub(super) fn allocate(&mut self, uid: &str) -> Result<Vec<IpAddr>, Error> {
        if let Some(addresses) = self.held.get(uid) {
            return Ok(addresses.clone());
        }
        if uid.is_empty() || uid.starts_with('.') || uid.contains(['/', '\0']) || uid.len() > 128 {
            return Err(Error::InvalidUid(uid.to_owned()));
        }
        let mut addresses = Vec::with_capacity(self.ranges.len());
        let taken = self.ranges.iter_mut().try_for_each(|range| {
            addresses.push(range.take()?);
            Ok(())
        });
        if let Err(error) = taken.and_then(|()| self.record(uid, &addresses)) {
            self.give_back(&addresses);
            return Err(error);
        }
        self.held.insert(uid.to_owned(), addresses.clone());
        Ok(addresses)
    }

    fn record(&self, uid: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        let partial = self.dir.join(PARTIAL);
        let path = self.dir.join(uid);
        let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
        fs::write(&partial, text).map_err(|source| Error::file("write", &partial, source))?;
        fs::rename(&partial, &path).map_err(|source| Error::file("rename to", &path, source))
    }

    fn give_back(&mut self, addresses: &[IpAddr]) {
        for range in &mut self.ranges {
            for address in addresses {
                range.taken.remove(address);
            }
        }
    }

    /// Gives the pod's addresses back; a pod without any is fine.
    pub(super) fn free(&mut self, uid: &str) -> Result<(), Error> {
        let Some(addresses) = self.held.get(uid).cloned() else {
            return Ok(());
        };
        let path = self.dir.join(uid);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path, source)),
            _ => {
                self.held.remove(uid);
                self.give_back(&addresses);
                Ok(())
            }
        }
    }

    pub(super) fn get(&self, uid: &str) -> Option<&[IpAddr]> {
        self.held.get(uid).map(Vec::as_slice)
    }

    pub(super) fn pods(&self) -> Vec<String> {
        self.held.keys().cloned().collect()
    }
}

/// The files in `dir` and what they are named; a directory that is missing has none.
pub(super) fn records(dir: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let failed = |source| Error::file("read directory", dir, source);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, ranges: &[&str]) -> Result<Allocator, Error> {
        let ranges: Vec<Cidr> = ranges.iter().map(|text| text.parse().unwrap()).collect();
        Allocator::open(dir, &ranges)
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn keeps_addresses_over_a_restart_and_reuses_freed_ones_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut allocator = open(dir.path(), &["10.1.0.0/29"]).unwrap();
        let a = allocator.allocate("a").unwrap();
        let b = allocator.allocate("b").unwrap();
        assert_eq!((&a, &b), (&ips(&["10.1.0.2"]), &ips(&["10.1.0.3"])));
        assert_eq!(allocator.allocate("a").unwrap(), a);
        allocator.free("a").unwrap();
        allocator.free("a").unwrap();

        let mut allocator = open(dir.path(), &["10.1.0.0/29"]).unwrap();
        assert_eq!(allocator.pods(), ["b"]);
        assert_eq!(allocator.get("b"), Some(b.as_slice()));
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
    fn gives_one_address_of_each_range() {
        let dir = tempfile::tempdir().unwrap();
        let both = ["10.1.0.0/30", "fd00:1::/64"];
        let mut allocator = open(dir.path(), &both).unwrap();
        assert_eq!(allocator.allocate("a").unwrap(), ips(&["10.1.0.2", "fd00:1::2"]));
        assert!(matches!(allocator.allocate("b"), Err(Error::Exhausted { used: 1, .. })));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "a pod gets all or nothing"
        );

        let mut allocator = open(dir.path(), &["fd00:1::/64", "10.2.0.0/24"]).unwrap();
        assert_eq!(
            allocator.allocate("a").unwrap(),
            ips(&["10.1.0.2", "fd00:1::2"]),
            "a running pod keeps what it has"
        );
        assert_eq!(allocator.allocate("b").unwrap(), ips(&["fd00:1::3", "10.2.0.2"]));
        allocator.free("a").unwrap();
        assert_eq!(allocator.allocate("c").unwrap(), ips(&["fd00:1::4", "10.2.0.3"]));
    }

    #[test]
    fn refuses_uids_that_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut allocator = open(dir.path(), &["10.1.0.0/24"]).unwrap();
        for uid in ["", ".", "..", "../x", "a/b", ".partial"] {
            assert!(matches!(allocator.allocate(uid), Err(Error::InvalidUid(_))), "{uid}");
        }
    }

    #[test]
    fn drops_a_partial_record() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(PARTIAL), "10.1").unwrap();
        fs::write(dir.path().join("x"), "").unwrap();
        let allocator = open(dir.path(), &["10.1.0.0/24"]).unwrap();
        assert!(allocator.pods().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn refuses_a_range_without_room() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            open(dir.path(), &["10.1.0.0/31"]),
            Err(Error::RangeTooSmall(_))
        ));
    }
}
