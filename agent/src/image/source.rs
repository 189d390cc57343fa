//! Where an image is imported from: a directory or a tar archive, read by the names of the files in it.
//!
//! An archive is indexed once and then read at offsets. A compressed one, or a stream, is first written to a temporary file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use tar::{Archive, EntryType};

use super::error::{Context, Error};
use super::layer::decompress;
use super::manifest::DOCUMENT_MAX;

/// Most files in an archive of images: a few for each layer.
const FILES_MAX: usize = 100_000;
/// Most bytes of an archive that has to be written to a temporary file.
const SPOOL_MAX: u64 = 64 << 30;

#[derive(Debug)]
pub(crate) enum Source {
    Directory {
        path: PathBuf,
        fd: OwnedFd,
    },
    Archive {
        path: PathBuf,
        file: File,
        files: HashMap<String, Position>,
    },
}

/// A file's content and its length.
pub(crate) type Content<'a> = (Box<dyn Read + 'a>, u64);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    offset: u64,
    size: u64,
}

impl Source {
    /// Opens a directory or an archive. `spool` names a temporary file to use for what cannot be read at offsets.
    pub(crate) fn open(path: &Path, spool: &Path) -> Result<Self, Error> {
        let what = || format!("opening {}", path.display());
        let file = File::open(path).context(what)?;
        if file.metadata().context(what)?.is_dir() {
            let fd = open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
            return Ok(Self::Directory {
                path: path.to_owned(),
                fd,
            });
        }
        let mut start = [0; 4];
        let read = (&file).read(&mut start).context(what)?;
        (&file).rewind().context(what)?;
        match &start[..read] {
            [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] => Self::spool(file, path, spool),
            _ => Self::index(file, path),
        }
    }

    /// Reads an archive from a stream. `path` is for messages.
    pub(crate) fn spool(reader: impl Read, path: &Path, spool: &Path) -> Result<Self, Error> {
        let what = || format!("reading {}", path.display());
        let plain = decompress(BufReader::new(reader)).context(what)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(spool)
            .context(what)?;
        // Without a name it cannot be left behind.
        std::fs::remove_file(spool).context(what)?;
        let copied = io::copy(&mut plain.take(SPOOL_MAX + 1), &mut file).context(what)?;
        if copied > SPOOL_MAX {
            return Err(Error::Limit {
                what: "bytes",
                limit: SPOOL_MAX,
            });
        }
        file.rewind().context(what)?;
        Self::index(file, path)
    }

    fn index(file: File, path: &Path) -> Result<Self, Error> {
        let unreadable = |error: io::Error| Error::Archive {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let mut files = HashMap::new();
        let mut links = Vec::new();
        let mut archive = Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let Some(name) = normal(&entry.path_bytes()) else {
                continue;
            };
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    files.insert(
                        name,
                        Position {
                            offset: entry.raw_file_position(),
                            size: entry.size(),
                        },
                    );
                }
                // Old docker archives have a link in place of a layer that occurs twice.
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                    links.push((name, target, entry.header().entry_type()));
                }
                _ => {}
            }
            if files.len() + links.len() > FILES_MAX {
                return Err(Error::Limit {
                    what: "files in the archive",
                    limit: FILES_MAX as u64,
                });
            }
        }
        for (name, target, kind) in links {
            let base = if kind == EntryType::Symlink {
                name.rfind('/').map_or("", |slash| &name[..slash])
            } else {
                ""
            };
            let target = [base.as_bytes(), b"/", &target].concat();
            if let Some(&position) = normal(&target).and_then(|target| files.get(&target)) {
                files.insert(name, position);
            }
        }
        Ok(Self::Archive {
            path: path.to_owned(),
            file,
            files,
        })
    }

    /// For messages.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Directory { path, .. } | Self::Archive { path, .. } => path,
        }
    }

    /// A file's content and length; None if there is none of that name.
    pub(crate) fn file(&self, name: &str) -> Result<Option<Content<'_>>, Error> {
        let what = || format!("reading {} in {}", name, self.path().display());
        match self {
            Self::Directory { fd, .. } => {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file = match openat2(fd, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), resolve) {
                    Ok(file) => File::from(file),
                    Err(rustix::io::Errno::NOENT) => return Ok(None),
                    Err(errno) => return Err(Error::io(what(), errno)),
                };
                let size = file.metadata().context(what)?.len();
                Ok(Some((Box::new(file), size)))
            }
            Self::Archive { file, files, .. } => {
                let Some(position) = files.get(name) else {
                    return Ok(None);
                };
                let mut file = file;
                file.seek(SeekFrom::Start(position.offset)).context(what)?;
                Ok(Some((Box::new(file.take(position.size)), position.size)))
            }
        }
    }

    /// A whole document.
    pub(crate) fn document(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some((reader, size)) = self.file(name)? else {
            return Ok(None);
        };
        if size > DOCUMENT_MAX {
            return Err(Error::Size {
                what: name.to_owned(),
                expected: DOCUMENT_MAX,
                found: size,
            });
        }
        let mut bytes = Vec::new();
        reader
            .take(DOCUMENT_MAX)
            .read_to_end(&mut bytes)
            .context(|| format!("reading {name}"))?;
        Ok(Some(bytes))
    }
}

/// A name without `.` and `..`; None if it leads outside or is not UTF-8.
fn normal(name: &[u8]) -> Option<String> {
    let mut components = Vec::new();
    for component in std::str::from_utf8(name).ok()?.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()?),
            component => components.push(component),
        }
    }
    Some(components.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_and_cannot_lead_outside() {
        assert_eq!(normal(b"./a/../b//c").unwrap(), "b/c");
        assert_eq!(normal(b"x/../../etc"), None);
        assert_eq!(normal(b"\xff"), None);
    }

    #[test]
    fn a_directory_is_not_left_through_a_symlink() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("index.json")).unwrap();
        let source = Source::open(dir.path(), &dir.path().join("spool")).unwrap();
        assert!(source.file("index.json").is_err());
        assert!(source.file("none").unwrap().is_none());
    }

    #[test]
    fn links_in_an_archive_are_followed_inside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        builder.append_data(&mut header, "one/layer.tar", &b"abc"[..]).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        builder
            .append_link(&mut header, "two/layer.tar", "../one/layer.tar")
            .unwrap();
        builder.finish().unwrap();
        let source = Source::open(&path, &dir.path().join("spool")).unwrap();
        assert_eq!(source.document("two/layer.tar").unwrap().unwrap(), b"abc");
    }
}
