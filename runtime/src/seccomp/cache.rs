//! Compiled filters by the content of their profile: engines give every container the same one, and compiling it costs
//! more than all namespaces. Kept below the state root, so they go with the next boot.
//! Invariant: a file is complete or not there, and its name is the SHA-256 of what it was compiled from.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Filter;

/// No container can have this name.
const DIRECTORY: &str = "@seccomp";
/// Part of every key: changes when the compiler's output for the same profile does.
const COMPILER: &str = concat!("hull-runtime ", env!("CARGO_PKG_VERSION"), " filter 1\n");
/// More profiles than this are not kept.
const ENTRIES: usize = 64;

/// Where the filter of one profile is kept.
pub(crate) struct Entry {
    path: PathBuf,
}

impl Entry {
    /// For the profile whose JSON text is `profile`.
    pub fn new(root: &Path, profile: &str) -> Entry {
        let digest = Sha256::new().chain_update(COMPILER).chain_update(profile).finalize();
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Entry {
            path: root.join(DIRECTORY).join(name),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The filter, if it was compiled before.
    pub fn load(&self) -> Option<Filter> {
        Filter::from_bytes(&fs::read(&self.path).ok()?)
    }

    /// Keep a filter. Only saves time: the caller may ignore that it failed.
    pub fn store(&self, filter: &Filter) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => forget_oldest(directory)?,
        }
        let temporary = self.path.with_extension(std::process::id().to_string());
        let result = fs::write(&temporary, filter.to_bytes()).and_then(|()| fs::rename(&temporary, &self.path));
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result
    }
}

/// Make room for one more.
fn forget_oldest(directory: &Path) -> io::Result<()> {
    let mut entries = fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect::<Vec<_>>();
    entries.sort();
    let surplus = (entries.len() + 1).saturating_sub(ENTRIES);
    entries[..surplus]
        .iter()
        .try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(k: u32) -> Filter {
        Filter {
            program: vec![libc::sock_filter {
                code: 6,
                jt: 0,
                jf: 0,
                k,
            }],
            flags: 0,
        }
    }

    #[test]
    fn a_filter_is_found_by_its_profile_only() {
        let root = tempfile::tempdir().unwrap();
        let entry = Entry::new(root.path(), "{\"defaultAction\":\"SCMP_ACT_ALLOW\"}");
        assert!(entry.load().is_none());
        entry.store(&filter(7)).unwrap();
        assert_eq!(entry.load().unwrap().program[0].k, 7);
        assert!(Entry::new(root.path(), "{}").load().is_none());
    }

    #[test]
    fn the_number_of_entries_is_bounded_and_the_newest_stays() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..ENTRIES as u32 + 9 {
            Entry::new(root.path(), &number.to_string())
                .store(&filter(number))
                .unwrap();
        }
        let kept = fs::read_dir(root.path().join(DIRECTORY)).unwrap().count();
        assert_eq!(kept, ENTRIES);
        let newest = Entry::new(root.path(), &(ENTRIES + 8).to_string());
        assert!(newest.load().is_some());
    }

    #[test]
    fn a_torn_file_is_not_believed() {
        let root = tempfile::tempdir().unwrap();
        let entry = Entry::new(root.path(), "x");
        entry.store(&filter(1)).unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        fs::write(entry.path(), &bytes[..bytes.len() - 1]).unwrap();
        assert!(entry.load().is_none());
    }
}
