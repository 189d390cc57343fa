//! The directory a layer is unpacked into, reached only through descriptors.
//!
//! Parents are resolved by openat2(2) with RESOLVE_IN_ROOT and RESOLVE_NO_XDEV: symlinks of the layer, chained or absolute,
//! stay inside it, and no mount is crossed. Last components are never followed.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags, fsetxattr, linkat, mkdirat, mknodat,
    open, openat, openat2, statat, unlinkat,
};
use rustix::io::Errno;

use super::path::Inside;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::RDONLY);
const OPAQUE_XATTR: &CStr = c"trusted.overlay.opaque";
/// Deepest tree that is removed; unpacking makes none deeper.
const REMOVE_DEPTH_MAX: usize = 300;

pub(super) struct Root {
    fd: OwnedFd,
    /// The parent of the entry before: archives list a directory's files one after the other.
    last_parent: Option<(Vec<Vec<u8>>, OwnedFd)>,
}

/// A directory of the layer and a name in it.
pub(super) struct Place<'a> {
    pub parent: &'a OwnedFd,
    pub name: CString,
}

impl Root {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            fd: open(path, DIRECTORY, Mode::empty())?,
            last_parent: None,
        })
    }

    /// The root directory itself.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// To be called when anything but a regular file was made or removed: paths may lead elsewhere now.
    pub(super) fn forget_parent(&mut self) {
        self.last_parent = None;
    }

    /// Finds the parent of a path, making directories that are missing.
    pub(super) fn place(&mut self, parent: &[Vec<u8>], name: &[u8]) -> io::Result<Place<'_>> {
        if self.last_parent.as_ref().is_none_or(|(path, _)| path != parent) {
            let opened = self.make_directories(parent)?;
            self.last_parent = Some((parent.to_vec(), opened));
        }
        match &self.last_parent {
            Some((_, fd)) => Ok(Place {
                parent: fd,
                name: CString::new(name)?,
            }),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    fn make_directories(&self, path: &[Vec<u8>]) -> io::Result<OwnedFd> {
        match self.resolve(path, DIRECTORY) {
            Err(Errno::NOENT) => {}
            done => return Ok(done?),
        }
        let mut parent = self.fd.try_clone()?;
        for depth in 1..=path.len() {
            parent = match self.resolve(&path[..depth], DIRECTORY) {
                Err(Errno::NOENT) => {
                    mkdirat(&parent, path[depth - 1].as_slice(), Mode::from_raw_mode(0o755))?;
                    openat(
                        &parent,
                        path[depth - 1].as_slice(),
                        DIRECTORY | OFlags::NOFOLLOW,
                        Mode::empty(),
                    )?
                }
                opened => opened?,
            };
        }
        Ok(parent)
    }

    fn resolve(&self, path: &[Vec<u8>], flags: OFlags) -> Result<OwnedFd, Errno> {
        let joined = if path.is_empty() {
            b".".to_vec()
        } else {
            path.join(&b'/')
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        openat2(
            &self.fd,
            joined.as_slice(),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    }

    /// Links to a regular file or symlink that the layer already has. `Err(NOENT)`: it has none.
    pub(super) fn hard_link(&mut self, target: &Inside, parent: &[Vec<u8>], name: &[u8]) -> Result<(), Errno> {
        let file = self.resolve(target.components(), OFlags::PATH | OFlags::NOFOLLOW)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_dir() {
            return Err(Errno::ISDIR);
        }
        let place = self
            .place(parent, name)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
        let through = format!("/proc/self/fd/{}", file.as_raw_fd());
        let result = linkat(CWD, through, place.parent, &place.name, AtFlags::SYMLINK_FOLLOW);
        self.forget_parent();
        result
    }
}

impl Place<'_> {
    /// What is there, not followed; None if nothing is.
    pub(super) fn stat(&self) -> io::Result<Option<Stat>> {
        match statat(self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what is there, with all it holds.
    pub(super) fn clear(&self) -> io::Result<()> {
        remove_tree(self.parent, &self.name, REMOVE_DEPTH_MAX)
    }

    /// Opens a directory that is there.
    pub(super) fn open_directory(&self) -> io::Result<OwnedFd> {
        Ok(openat(
            self.parent,
            &self.name,
            DIRECTORY | OFlags::NOFOLLOW,
            Mode::empty(),
        )?)
    }

    /// Makes overlayfs's whiteout: a character device 0:0.
    pub(super) fn make_whiteout(&self) -> io::Result<()> {
        Ok(mknodat(
            self.parent,
            &self.name,
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )?)
    }
}

/// Whether this is a whiteout as overlayfs knows it.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0
}

pub(super) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_dir()
}

/// Marks a directory as hiding those of the layers below.
pub(super) fn make_opaque(directory: impl AsFd) -> io::Result<()> {
    Ok(fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty())?)
}

fn remove_tree(parent: &OwnedFd, name: &CStr, depth: usize) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    if depth == 0 {
        return Err(io::Error::other("the tree to remove is too deep"));
    }
    let directory = openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let child = entry.file_name();
        if child != c"." && child != c".." {
            remove_tree(&directory, child, depth - 1)?;
        }
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}
