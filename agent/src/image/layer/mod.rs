//! Layers: a tar archive, plain or compressed with gzip or zstd, becomes a directory for overlayfs (OCI image-spec, layer.md).
//!
//! The archive is hostile until proven otherwise: names cannot leave the directory (root.rs), sizes are bounded while reading
//! (limits.rs). Device nodes are left out, because a container's /dev is its own; of extended attributes only file
//! capabilities and `user.*` are kept. The caller moves the directory into place only if the digest is right.

mod limits;
mod path;
mod root;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown, fsetxattr,
    futimens, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use self::limits::{Bounded, Budget, Counted};
use self::path::{Inside, Meaning, refused};
use self::root::{Place, Root};
use super::digest::{Digest, Hasher};
use super::error::{Context, Error};

pub use self::limits::Limits;

const BUFFER: usize = 128 << 10;
/// Pax records that carry extended attributes.
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed archive: the layer's diff id.
    pub diff_id: Digest,
    /// Its length.
    pub size: u64,
}

/// Unpacks an archive into an existing, empty directory.
pub(crate) fn unpack(archive: impl Read, directory: &Path, limits: Limits) -> Result<Unpacked, Error> {
    let (counted, compressed) = Counted::new(archive);
    let budget = Budget::new(limits, compressed);
    let plain = decompress(BufReader::with_capacity(BUFFER, counted)).context(|| "reading the layer".into())?;
    let bounded = Bounded {
        inner: plain,
        budget: budget.clone(),
    };
    let mut hashed = Hashed {
        inner: BufReader::with_capacity(BUFFER, bounded),
        hasher: Hasher::new(),
    };
    let root = Root::open(directory).context(|| format!("opening {}", directory.display()))?;
    let mut unpacker = Unpacker {
        root,
        budget: budget.clone(),
        directories: Vec::new(),
        buffer: vec![0; BUFFER],
    };
    let result = unpacker.unpack_all(&mut hashed).and_then(|()| {
        budget.expect_rest();
        io::copy(&mut hashed, &mut io::sink())
            .map(drop)
            .context(|| "reading the end of the layer".into())
    });
    // A limit shows as a failed read deep below; say which.
    result.map_err(|error| budget.broken().unwrap_or(error))?;
    Ok(Unpacked {
        diff_id: hashed.hasher.digest(),
        size: hashed.hasher.length,
    })
}

/// Tells the compression from the first bytes: media types are often wrong.
pub(crate) fn decompress<'a>(mut archive: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let start = archive.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(archive)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(archive)?),
        _ => Box::new(archive),
    })
}

struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

struct Unpacker {
    root: Root,
    budget: Rc<Budget>,
    /// Directories with their times, which making entries in them changes.
    directories: Vec<(Inside, i64)>,
    buffer: Vec<u8>,
}

/// Owner, permissions and time of an entry.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: Mode,
    modified: i64,
    xattrs: Vec<(CString, Vec<u8>)>,
}

impl Unpacker {
    fn unpack_all(&mut self, archive: &mut impl Read) -> Result<(), Error> {
        let mut archive = Archive::new(archive);
        let entries = archive.entries().context(|| "reading the layer".into())?;
        self.budget.expect_headers();
        for entry in entries {
            let mut entry = entry.context(|| "reading the layer".into())?;
            self.budget.expect_content(entry.size())?;
            self.unpack_entry(&mut entry)?;
            io::copy(&mut entry, &mut io::sink()).context(|| "reading the layer".into())?;
            self.budget.expect_headers();
        }
        self.set_directory_times()
    }

    fn unpack_entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Error> {
        let name = entry.path_bytes().into_owned();
        let what = || format!("unpacking {}", String::from_utf8_lossy(&name));
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            return Ok(());
        }
        match path::meaning(&name)? {
            Meaning::Ignore => Ok(()),
            Meaning::Whiteout(hidden) => self.white_out(&hidden).context(what),
            Meaning::Opaque(directory) => self.make_opaque(&directory).context(what),
            Meaning::Make(path) => self.make(entry, &name, &path),
        }
    }

    fn white_out(&mut self, hidden: &Inside) -> io::Result<()> {
        let Some((parent, name)) = hidden.split() else {
            return Ok(());
        };
        let place = self.root.place(parent, name)?;
        match place.stat()? {
            None => place.make_whiteout(),
            // Both hidden below and made in this layer: a directory must not show what is below.
            Some(stat) if root::is_directory(&stat) => root::make_opaque(place.open_directory()?),
            Some(_) => Ok(()),
        }
    }

    fn make_opaque(&mut self, directory: &Inside) -> io::Result<()> {
        let Some((parent, name)) = directory.split() else {
            return root::make_opaque(self.root.fd());
        };
        let place = self.root.place(parent, name)?;
        if place.stat()?.is_none() {
            mkdirat(place.parent, &place.name, Mode::from_raw_mode(0o755))?;
        }
        root::make_opaque(place.open_directory()?)
    }

    fn make<R: Read>(&mut self, entry: &mut Entry<'_, R>, name: &[u8], path: &Inside) -> Result<(), Error> {
        let what = || format!("unpacking {}", String::from_utf8_lossy(name));
        let attributes = Attributes::read(entry).context(what)?;
        let kind = entry.header().entry_type();
        let Some((parent, last)) = path.split() else {
            return match kind {
                EntryType::Directory => attributes.apply(self.root.fd()).context(what),
                _ => Err(refused(name, "it would replace the root directory")),
            };
        };
        match kind {
            EntryType::Directory => {
                self.make_directory(parent, last, &attributes).context(what)?;
                self.directories.push((path.clone(), attributes.modified));
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.make_file(entry, parent, last, &attributes).context(what)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                self.make_symlink(&target, parent, last, &attributes).context(what)
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                self.make_hard_link(name, &target, parent, last)
            }
            EntryType::Fifo => self.make_fifo(parent, last, &attributes).context(what),
            // The container's /dev is made by the runtime; a device in the image could only do harm.
            EntryType::Char | EntryType::Block => Ok(()),
            _ => Err(refused(name, "its type is unknown")),
        }
    }

    fn make_directory(&mut self, parent: &[Vec<u8>], name: &[u8], attributes: &Attributes) -> io::Result<()> {
        let place = self.root.place(parent, name)?;
        let there = place.stat()?;
        let was_hidden = there.as_ref().is_some_and(root::is_whiteout);
        if !there.as_ref().is_some_and(root::is_directory) {
            place.clear()?;
            mkdirat(place.parent, &place.name, Mode::from_raw_mode(0o700))?;
        }
        let directory = place.open_directory()?;
        attributes.apply(&directory)?;
        if was_hidden {
            root::make_opaque(&directory)?;
        }
        self.root.forget_parent();
        Ok(())
    }

    fn make_file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: &[Vec<u8>],
        name: &[u8],
        attributes: &Attributes,
    ) -> io::Result<()> {
        if make_room(&self.root.place(parent, name)?)? {
            self.root.forget_parent();
        }
        let place = self.root.place(parent, name)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: OwnedFd = openat(place.parent, &place.name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(file);
        loop {
            match entry.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => file.write_all(&self.buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        attributes.apply(&file)
    }

    fn make_symlink(
        &mut self,
        target: &[u8],
        parent: &[Vec<u8>],
        name: &[u8],
        attributes: &Attributes,
    ) -> io::Result<()> {
        let place = self.root.place(parent, name)?;
        make_room(&place)?;
        symlinkat(target, place.parent, &place.name)?;
        attributes.apply_unopened(&place)?;
        self.root.forget_parent();
        Ok(())
    }

    fn make_hard_link(&mut self, shown: &[u8], target: &[u8], parent: &[Vec<u8>], name: &[u8]) -> Result<(), Error> {
        let what = || format!("unpacking the hard link {}", String::from_utf8_lossy(shown));
        let target = Inside::parse(target)?;
        if target
            .components()
            .split_last()
            .is_some_and(|(last, above)| above == parent && last == name)
        {
            return Err(refused(shown, "it is a hard link to itself"));
        }
        make_room(&self.root.place(parent, name).context(what)?).context(what)?;
        self.root.forget_parent();
        match self.root.hard_link(&target, parent, name) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Err(refused(shown, "it is a hard link to nothing in this layer")),
            Err(Errno::XDEV) => Err(refused(shown, "it is a hard link to another file system")),
            Err(Errno::ISDIR) => Err(refused(shown, "it is a hard link to a directory")),
            Err(errno) => Err(Error::io(what(), errno)),
        }
    }

    fn make_fifo(&mut self, parent: &[Vec<u8>], name: &[u8], attributes: &Attributes) -> io::Result<()> {
        let place = self.root.place(parent, name)?;
        make_room(&place)?;
        mknodat(place.parent, &place.name, FileType::Fifo, attributes.mode, 0)?;
        attributes.apply_unopened(&place)?;
        self.root.forget_parent();
        Ok(())
    }

    fn set_directory_times(&mut self) -> Result<(), Error> {
        for (path, modified) in std::mem::take(&mut self.directories) {
            let Some((parent, name)) = path.split() else { continue };
            let set = self.root.place(parent, name).and_then(|place| {
                // A later entry may have replaced it by something else.
                if place.stat()?.as_ref().is_some_and(root::is_directory) {
                    utimensat(place.parent, &place.name, &times(modified), AtFlags::SYMLINK_NOFOLLOW)?;
                }
                Ok(())
            });
            set.context(|| "setting the times of the layer's directories".into())?;
        }
        Ok(())
    }
}

/// Removes what an entry replaces. True: something was there.
fn make_room(place: &Place<'_>) -> io::Result<bool> {
    let there = place.stat()?.is_some();
    if there {
        place.clear()?;
    }
    Ok(there)
}

impl Attributes {
    fn read<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Self> {
        let too_large = |what: &str| io::Error::other(format!("its {what} is not a 32-bit number"));
        let mut xattrs = Vec::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                let name = extension.key().ok().and_then(|key| key.strip_prefix(XATTR_PREFIX));
                if let Some(name) = name.filter(|name| is_kept(name)) {
                    xattrs.push((CString::new(name)?, extension.value_bytes().to_vec()));
                }
            }
        }
        let header = entry.header();
        Ok(Self {
            uid: header.uid()?.try_into().map_err(|_| too_large("owner"))?,
            gid: header.gid()?.try_into().map_err(|_| too_large("group"))?,
            mode: Mode::from_raw_mode(header.mode()? & 0o7777),
            modified: header.mtime()?.try_into().unwrap_or(0),
            xattrs,
        })
    }

    /// The owner first: changing it clears setuid bits and file capabilities.
    fn apply(&self, file: impl AsFd) -> io::Result<()> {
        let file = file.as_fd();
        fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fchmod(file, self.mode)?;
        for (name, value) in &self.xattrs {
            match fsetxattr(file, name, value, XattrFlags::empty()) {
                // The file system has no such attributes: user.* are advice.
                Err(Errno::NOTSUP) if name.as_bytes().starts_with(b"user.") => {}
                result => result?,
            }
        }
        Ok(futimens(file, &times(self.modified))?)
    }

    /// For what cannot be opened without following or waiting.
    fn apply_unopened(&self, place: &Place<'_>) -> io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        chownat(place.parent, &place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(utimensat(
            place.parent,
            &place.name,
            &times(self.modified),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }
}

/// Attributes that an image may bring. Others belong to the host: overlayfs's own, security labels, access lists.
fn is_kept(name: &str) -> bool {
    name == "security.capability" || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

fn times(modified: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: modified,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests;
