//! The store of images on a node: documents, unpacked layers, and the index over them.
//!
//! `blobs/sha256/<hex>` manifests and configurations; `layers/<diff id>/fs` unpacked layers, shared by all images;
//! `tmp/` what is not finished; `containers/<id>/` root file systems in use. Content enters by rename(2) after its digest was
//! checked, and then only the index makes an image of it: a crash at any moment leaves at most garbage.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use oci_spec::image::ImageConfiguration;
use parking_lot::Mutex;

use super::digest::{Digest, Hasher};
use super::error::{Context, Error};
use super::index::{Entries, Entry, Index, sync_parent};
use super::layer::{self, Limits};
use super::lock;
use super::manifest::parse_config;
use super::reference::Reference;
use super::registry::Registries;

/// How long an interrupted download can be resumed.
const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// An image on this node.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration: names the content.
    pub id: Digest,
    /// Its names, normalised; [`Reference::short`] is for people.
    pub names: Vec<Reference>,
    /// Its names with the manifest's digest, as registries know it.
    pub digests: Vec<Reference>,
    /// Bytes of its layers as they were transferred.
    pub size: u64,
    /// When it was built, RFC 3339, if it says so.
    pub created: Option<String>,
    /// Entry point, environment, user and the rest.
    pub config: ImageConfiguration,
    /// Diff ids of its layers, lowest first.
    pub layers: Vec<Digest>,
}

/// What garbage collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// Unpacked layers.
    pub layers: usize,
    /// Documents.
    pub blobs: usize,
}

/// The store. Cheap to open; several processes may have one open at a time. All methods block but [`ImageStore::pull`].
#[derive(Debug)]
pub struct ImageStore {
    pub(super) dir: PathBuf,
    pub(super) index: Index,
    pub(super) registries: Registries,
    limits: Limits,
    counter: AtomicU64,
    /// One download or unpacking of a digest at a time.
    busy: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl ImageStore {
    /// Opens the store below `dir`, makes it if it is missing, and removes what a crash left unfinished.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_with(dir, Registries::default())
    }

    /// The same, with settings for registries.
    pub fn open_with(dir: &Path, registries: Registries) -> Result<Self, Error> {
        let store = Self {
            dir: dir.to_owned(),
            index: Index::new(dir.join("index.json")),
            registries,
            limits: Limits::default(),
            counter: AtomicU64::new(0),
            busy: Mutex::default(),
        };
        for part in [
            store.blobs_dir(),
            store.layers_dir(),
            store.tmp_dir(),
            store.containers_dir(),
            store.partial_dir(),
        ] {
            fs::create_dir_all(&part).context(|| format!("making {}", part.display()))?;
        }
        store.index.read()?;
        if let Some(_alone) = lock::try_exclusive(&store.use_lock())? {
            store.remove_unfinished()?;
        }
        Ok(store)
    }

    /// All images.
    pub fn list(&self) -> Result<Vec<Image>, Error> {
        self.index.read()?.images.iter().map(|entry| self.load(entry)).collect()
    }

    /// Finds an image by name, by name and digest, by id, or by the start of its id.
    pub fn resolve(&self, reference: &str) -> Result<Option<Image>, Error> {
        self.index
            .read()?
            .find(reference)
            .map(|entry| self.load(entry))
            .transpose()
    }

    /// Takes a name from an image, or with an id all names; content that is then unused is removed.
    pub fn remove(&self, reference: &str) -> Result<(), Error> {
        let found = self.index.update(|entries| remove_from(entries, reference))?;
        if !found {
            return Err(Error::NotFound(reference.to_owned()));
        }
        self.gc().map(drop)
    }

    /// Removes documents and layers that no image and no container uses. Does nothing while an import or pull is under way.
    pub fn gc(&self) -> Result<Freed, Error> {
        let Some(_alone) = lock::try_exclusive(&self.use_lock())? else {
            return Ok(Freed::default());
        };
        let entries = self.index.read()?;
        let mut used: BTreeSet<String> = self.layers_in_use()?;
        used.extend(
            entries
                .images
                .iter()
                .flat_map(|entry| &entry.layers)
                .map(|layer| layer.hex().to_owned()),
        );
        let documents = entries
            .images
            .iter()
            .flat_map(|entry| [Some(&entry.id), entry.manifest.as_ref()]);
        let documents: BTreeSet<String> = documents.flatten().map(|digest| digest.hex().to_owned()).collect();
        self.remove_old_partials()?;
        Ok(Freed {
            layers: self.remove_unused(&self.layers_dir(), &used)?,
            blobs: self.remove_unused(&self.blobs_dir(), &documents)?,
        })
    }

    fn remove_unused(&self, dir: &Path, used: &BTreeSet<String>) -> Result<usize, Error> {
        let mut removed = 0;
        for name in names_in(dir)? {
            if !used.contains(&name) {
                // Moved away first: a layer is whole or not there.
                let doomed = self.new_tmp();
                let path = dir.join(&name);
                fs::rename(&path, &doomed).context(|| format!("removing {}", path.display()))?;
                remove_any(&doomed)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn remove_old_partials(&self) -> Result<(), Error> {
        let partial = self.partial_dir();
        for path in names_in(&partial)?.into_iter().map(|name| partial.join(name)) {
            let age = fs::metadata(&path)
                .and_then(|metadata| metadata.modified())
                .map(|modified| modified.elapsed());
            if age.is_ok_and(|age| age.is_ok_and(|age| age > PARTIAL_KEPT)) {
                remove_any(&path)?;
            }
        }
        Ok(())
    }

    fn remove_unfinished(&self) -> Result<(), Error> {
        let tmp = self.tmp_dir();
        names_in(&tmp)?
            .into_iter()
            .try_for_each(|name| remove_any(&tmp.join(name)))
    }

    fn load(&self, entry: &Entry) -> Result<Image, Error> {
        let bytes = self.read_blob(&entry.id)?;
        let (config, layers) = parse_config(&bytes, entry.layers.len())?;
        Ok(Image {
            id: entry.id.clone(),
            names: entry.names.clone(),
            digests: entry.digests.clone(),
            size: entry.size,
            created: config.created().clone(),
            config,
            layers,
        })
    }

    /// Makes an image of content that is stored already.
    pub(super) fn commit(&self, entry: Entry) -> Result<Image, Error> {
        let id = entry.id.clone();
        self.index.update(|entries| entries.insert(entry))?;
        self.resolve(id.as_str())?
            .ok_or_else(|| Error::NotFound(id.to_string()))
    }

    /// Stores a document, if it is what its digest says.
    pub(super) fn write_blob(&self, what: &str, bytes: &[u8], expected: &Digest) -> Result<(), Error> {
        check_digest(what, expected, &Digest::of(bytes))?;
        let (path, tmp) = (self.blobs_dir().join(expected.hex()), self.new_tmp());
        if path.exists() {
            return Ok(());
        }
        let written = File::create_new(&tmp).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&tmp, &path)
        });
        written.context(|| format!("storing {what}"))?;
        sync_parent(&path)
    }

    pub(super) fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.blobs_dir().join(digest.hex());
        let bytes = fs::read(&path).context(|| format!("reading {}", path.display()))?;
        check_digest(&path.display().to_string(), digest, &Digest::of(&bytes))?;
        Ok(bytes)
    }

    pub(super) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_dir(diff_id).exists()
    }

    /// Unpacks a layer unless the store has it, and keeps it only if its digest is right.
    pub(super) fn add_layer(&self, diff_id: &Digest, archive: impl Read) -> Result<(), Error> {
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let tmp = self.new_tmp();
        let done = self
            .unpack_checked(diff_id, archive, &tmp)
            .and_then(|()| self.move_layer(diff_id, &tmp));
        if done.is_err() {
            remove_any(&tmp)?;
        }
        done
    }

    fn unpack_checked(&self, diff_id: &Digest, archive: impl Read, tmp: &Path) -> Result<(), Error> {
        let fs_dir = tmp.join("fs");
        fs::create_dir_all(&fs_dir).context(|| format!("making {}", fs_dir.display()))?;
        let unpacked = layer::unpack(archive, &fs_dir, self.limits)?;
        check_digest("a layer, uncompressed,", diff_id, &unpacked.diff_id)?;
        // The files must be on disk before the name that vouches for them.
        let what = || format!("syncing {}", tmp.display());
        rustix::fs::syncfs(File::open(tmp).context(what)?).context(what)
    }

    fn move_layer(&self, diff_id: &Digest, tmp: &Path) -> Result<(), Error> {
        let path = self.layers_dir().join(diff_id.hex());
        match fs::rename(tmp, &path) {
            Ok(()) => sync_parent(&path),
            // Another process was faster with the same content.
            Err(_) if self.has_layer(diff_id) => remove_any(tmp),
            Err(error) => Err(Error::io(format!("storing layer {diff_id}"), error)),
        }
    }

    /// Held while content is added that no index entry vouches for yet: keeps garbage collection away.
    pub(super) fn begin_use(&self) -> Result<File, Error> {
        lock::shared(&self.use_lock())
    }

    /// Lets one task at a time work on a digest.
    pub(super) fn busy_with(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock();
        busy.retain(|_, lock| Arc::strong_count(lock) > 1);
        busy.entry(digest.clone()).or_default().clone()
    }

    pub(super) fn new_tmp(&self) -> PathBuf {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        // The process is part of the name, and so is this store: two may be open in one process.
        self.tmp_dir()
            .join(format!("{}-{:p}-{number}", std::process::id(), self))
    }

    pub(super) fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.layers_dir().join(diff_id.hex()).join("fs")
    }

    fn blobs_dir(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    pub(super) fn layers_dir(&self) -> PathBuf {
        self.dir.join("layers")
    }

    fn tmp_dir(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// Downloads to be resumed; they survive a crash.
    pub(super) fn partial_dir(&self) -> PathBuf {
        self.dir.join("partial")
    }

    pub(super) fn containers_dir(&self) -> PathBuf {
        self.dir.join("containers")
    }

    pub(super) fn use_lock(&self) -> PathBuf {
        self.dir.join("use.lock")
    }
}

fn remove_from(entries: &mut Entries, text: &str) -> bool {
    let Some(id) = entries.find(text).map(|entry| entry.id.clone()) else {
        return false;
    };
    let name = text.parse::<Reference>().ok();
    for entry in entries.images.iter_mut().filter(|entry| entry.id == id) {
        match &name {
            Some(name) if entry.names.contains(name) => entry.names.retain(|other| other != name),
            _ => entry.names.clear(),
        }
    }
    entries.images.retain(|entry| entry.id != id || !entry.names.is_empty());
    true
}

pub(super) fn check_digest(what: &str, expected: &Digest, found: &Digest) -> Result<(), Error> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Digest {
        what: what.to_owned(),
        expected: expected.to_string(),
        found: found.to_string(),
    })
}

pub(super) fn check_size(what: &str, expected: u64, found: u64) -> Result<(), Error> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Size {
        what: what.to_owned(),
        expected,
        found,
    })
}

/// Digest of a file's content.
pub(super) fn digest_of_file(path: &Path) -> Result<Digest, Error> {
    let mut hasher = Hasher::new();
    let read = File::open(path).and_then(|file| hasher.update_from(file));
    read.context(|| format!("reading {}", path.display()))?;
    Ok(hasher.digest())
}

pub(super) fn names_in(dir: &Path) -> Result<Vec<String>, Error> {
    let what = || format!("reading {}", dir.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).context(what)? {
        names.extend(entry.context(what)?.file_name().into_string());
    }
    Ok(names)
}

/// Removes a file or a tree, without following symlinks; what is gone is no error.
pub(super) fn remove_any(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
