//! `index.json`: which images the store has, replaced by rename(2) after fsync(2) and read anew when another process replaced it.
//!
//! The index is the only thing that makes an image exist: whatever it does not name is garbage.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::{Context, Error};
use super::reference::Reference;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Digest of the configuration.
    pub id: Digest,
    /// Digest of the manifest, if it came with one.
    pub manifest: Option<Digest>,
    /// Names that people use.
    pub names: Vec<Reference>,
    /// Names pinned to the manifest's digest, as registries know them.
    pub digests: Vec<Reference>,
    /// Diff ids, lowest first.
    pub layers: Vec<Digest>,
    /// Bytes of its layers as they were transferred.
    pub size: u64,
}

/// All images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entries {
    pub images: Vec<Entry>,
}

impl Entries {
    /// Adds an image; its names leave the images that had them.
    pub(crate) fn insert(&mut self, new: Entry) {
        for entry in &mut self.images {
            entry.names.retain(|name| !new.names.contains(name));
        }
        match self.images.iter_mut().find(|entry| entry.id == new.id) {
            Some(entry) => {
                entry.names.extend(new.names);
                let unknown = new.digests.into_iter().filter(|digest| !entry.digests.contains(digest));
                let unknown: Vec<Reference> = unknown.collect();
                entry.digests.extend(unknown);
                entry.manifest = entry.manifest.take().or(new.manifest);
            }
            None => self.images.push(new),
        }
    }

    /// Finds by name, by pinned name, by id, or by the first 6 or more digits of an id if only one has them.
    pub(crate) fn find(&self, text: &str) -> Option<&Entry> {
        if let Ok(reference) = text.parse::<Reference>() {
            let named = self.images.iter().find(|entry| entry.is_called(&reference));
            if named.is_some() {
                return named;
            }
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() < 6 {
            return None;
        }
        let mut found = self.images.iter().filter(|entry| entry.id.hex().starts_with(digits));
        found.next().filter(|_| found.next().is_none())
    }
}

impl Entry {
    /// A reference with both tag and digest means the digest.
    fn is_called(&self, reference: &Reference) -> bool {
        match reference.digest() {
            Some(digest) => self.digests.contains(&reference.with_digest(digest.clone())),
            None => self.names.contains(reference),
        }
    }
}

/// The file, with what was read from it last.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    cached: Mutex<(Option<Version>, Arc<Entries>)>,
}

/// Tells one replacement of the file from another.
type Version = (u64, i64, i64);

impl Index {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            cached: Mutex::default(),
        }
    }

    pub(crate) fn read(&self) -> Result<Arc<Entries>, Error> {
        let mut cached = self.cached.lock();
        let what = || format!("reading the image index {}", self.path.display());
        let version = match fs::metadata(&self.path) {
            Ok(metadata) => Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io(what(), error)),
        };
        if cached.0 != version {
            let entries = match version {
                Some(_) => serde_json::from_slice(&fs::read(&self.path).context(what)?)
                    .map_err(|error| Error::malformed(format!("the image index {}", self.path.display()), error))?,
                None => Entries::default(),
            };
            *cached = (version, Arc::new(entries));
        }
        Ok(cached.1.clone())
    }

    /// Changes the index. Other processes wait.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Entries) -> T) -> Result<T, Error> {
        let _lock = super::lock::exclusive(&self.path.with_extension("lock"))?;
        let mut entries = Entries::clone(&*self.read()?);
        let result = change(&mut entries);
        let text = serde_json::to_vec(&entries).map_err(|error| Error::malformed("the image index", error))?;
        replace_file(&self.path, &text)?;
        Ok(result)
    }
}

/// Replaces a file so that a crash leaves the old or the new one, whole.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    let what = || format!("writing {}", path.display());
    let new = path.with_extension("new");
    let mut file = File::create(&new).context(what)?;
    file.write_all(content).and_then(|()| file.sync_all()).context(what)?;
    fs::rename(&new, path).context(what)?;
    sync_parent(path)
}

/// Makes a rename into this directory outlast a power cut.
pub(crate) fn sync_parent(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(path);
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.context(|| format!("syncing {}", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, names: &[&str]) -> Entry {
        let manifest = Digest::of(format!("m{id}").as_bytes());
        let reference: Reference = "team/web".parse().unwrap();
        Entry {
            id: Digest::of(id.as_bytes()),
            digests: vec![reference.with_digest(manifest.clone())],
            manifest: Some(manifest),
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            layers: Vec::new(),
            size: 1,
        }
    }

    #[test]
    fn a_name_moves_to_the_newest_image() {
        let mut entries = Entries::default();
        entries.insert(entry("a", &["web", "web:1"]));
        entries.insert(entry("b", &["web"]));
        assert_eq!(entries.find("web").unwrap().id, Digest::of(b"b"));
        assert_eq!(entries.find("docker.io/library/web:1").unwrap().id, Digest::of(b"a"));
        entries.insert(entry("a", &["web:2"]));
        assert_eq!(entries.images.len(), 2, "the same image is stored once");
        assert_eq!(entries.find("web:2").unwrap().names.len(), 2);
    }

    #[test]
    fn images_are_found_by_id_prefix_and_pinned_name() {
        let mut entries = Entries::default();
        entries.insert(entry("a", &["web"]));
        entries.insert(entry("b", &[]));
        let id = Digest::of(b"b");
        for text in [id.as_str(), id.hex(), &id.hex()[..12]] {
            assert_eq!(entries.find(text).unwrap().id, id, "{text}");
        }
        assert_eq!(entries.find(&id.hex()[..5]), None, "too short");
        let pinned = format!("team/web:ignored@{}", Digest::of(b"mb"));
        assert_eq!(entries.find(&pinned).unwrap().id, id);
        assert_eq!(entries.find("missing"), None);
    }

    #[test]
    fn two_handles_see_each_others_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.json");
        let (one, two) = (Index::new(path.clone()), Index::new(path));
        assert_eq!(one.read().unwrap().images.len(), 0);
        two.update(|entries| entries.insert(entry("a", &["web"]))).unwrap();
        assert!(one.read().unwrap().find("web").is_some());
        one.update(|entries| entries.images.clear()).unwrap();
        assert!(two.read().unwrap().find("web").is_none());
    }
}
