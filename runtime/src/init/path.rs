//! Paths of the container, opened in its root: symbolic links stay inside, magic links are refused, and what is missing is
//! made by descriptor of its parent, so that no rename leads out in between (CVE-2021-30465, -2024-45310). openat2(2).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::fault::{Explain, Fault, InRoot, Step};

pub(super) const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
/// RESOLVE_IN_ROOT gives EAGAIN while somebody renames in the tree; an attacker must not win by keeping at it.
const ATTEMPTS: u32 = 128;
/// How many links that lead to nothing are followed for one path.
const LINKS: u32 = 8;

pub(super) fn is_proc(fd: BorrowedFd) -> bool {
    is_kind(fd, PROC_SUPER_MAGIC)
}

pub(super) fn is_kind(fd: BorrowedFd, magic: u64) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type as u64 == magic)
}

/// Open a path of the container; symbolic links stay inside its root.
pub(crate) fn open(root: BorrowedFd, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => (),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// A directory of the container, made with its parents if it is missing. Links of the image that lead to nothing yet are
/// followed, in the root, to where they lead.
pub(super) fn directory(root: BorrowedFd, path: &CStr) -> Step<OwnedFd> {
    directory_through(root, path, LINKS)
}

fn directory_through(root: BorrowedFd, path: &CStr, links: u32) -> Step<OwnedFd> {
    match open(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOENT) => (),
        other => return other.explain(format_args!("open {} in the root file system", InRoot(path))),
    }
    // Mostly only the last component is missing.
    if make_last(root, path) {
        return open(root, path, OFlags::PATH | OFlags::DIRECTORY)
            .explain(format_args!("open {} in the root file system", InRoot(path)));
    }
    let mut prefix = [0; libc::PATH_MAX as usize];
    let bytes = path.to_bytes();
    if bytes.len() >= prefix.len() {
        return Err(Fault::new(Errno::NAMETOOLONG, format_args!("open {}", InRoot(path))));
    }
    let mut start = 0;
    for end in (0..=bytes.len()).filter(|&end| end == bytes.len() || bytes[end] == b'/') {
        prefix[..end].copy_from_slice(&bytes[..end]);
        prefix[end] = 0;
        make_component(root, &prefix, start, end, links).explain(format_args!("make directory {}", InRoot(path)))?;
        start = end + 1;
    }
    open(root, path, OFlags::PATH | OFlags::DIRECTORY)
        .explain(format_args!("open {} in the root file system", InRoot(path)))
}

/// A directory directly below the root that is no symbolic link of the image, made if it is missing.
pub(super) fn ordinary(root: BorrowedFd, name: &CStr) -> Step<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || rustix::fs::openat2(root, name, flags, Mode::empty(), resolve);
    let opened = match open() {
        Err(Errno::NOENT) => match rustix::fs::mkdirat(root, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) | Err(Errno::EXIST) => open(),
            Err(errno) => Err(errno),
        },
        other => other,
    };
    match opened {
        Err(Errno::LOOP) => Err(Fault::plain(format_args!(
            "{} of the image is a symbolic link; it must be mounted on ordinary directory",
            InRoot(name)
        ))),
        other => other.explain(format_args!("open {} in the root file system", InRoot(name))),
    }
}

/// A file of the container to mount on that is no symbolic link itself, made empty if it is missing.
pub(super) fn ordinary_file(root: BorrowedFd, path: &CStr) -> Step<OwnedFd> {
    let (parent, name) = parent_of(root, path)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(FILE_MODE)) {
        Ok(_) | Err(Errno::EXIST) => (),
        Err(errno) => return Err(Fault::new(errno, format_args!("make file {}", InRoot(path)))),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(&parent, name, flags, Mode::empty())
        .explain(format_args!("open {} in the root file system", InRoot(path)))?;
    let link = rustix::fs::fstat(&target).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
    match link || is_proc(target.as_fd()) {
        false => Ok(target),
        true => Err(Fault::plain(format_args!(
            "{} of the image is a symbolic link or inside a procfs; nothing is mounted there",
            InRoot(path)
        ))),
    }
}

/// Make the last component of `path` in its parent, if that exists.
fn make_last(root: BorrowedFd, path: &CStr) -> bool {
    let bytes = path.to_bytes_with_nul();
    let start = bytes.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
    let Ok(name) = CStr::from_bytes_with_nul(&bytes[start..]) else {
        return false;
    };
    let made = |parent: OwnedFd| rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(DIRECTORY_MODE));
    open_parent(root, &bytes[..start.saturating_sub(1)])
        .and_then(made)
        .is_ok()
}

/// Make the component `prefix[start..end]` inside `prefix[..start]`, which exists.
fn make_component(root: BorrowedFd, prefix: &[u8], start: usize, end: usize, links: u32) -> Result<(), Errno> {
    let whole = CStr::from_bytes_until_nul(prefix).map_err(|_| Errno::INVAL)?;
    match open(root, whole, OFlags::PATH) {
        Err(Errno::NOENT) => (),
        other => return other.map(drop),
    }
    let name = CStr::from_bytes_with_nul(&prefix[start..=end]).map_err(|_| Errno::INVAL)?;
    let parent = open_parent(root, &prefix[..start])?;
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
        Ok(()) => Ok(()),
        // Somebody else's directory by now, or a link to what is missing.
        Err(Errno::EXIST) => match link_target(parent.as_fd(), &prefix[..start], name)? {
            None => Ok(()),
            Some(_) if links == 0 => Err(Errno::LOOP),
            Some(target) => {
                let target = CStr::from_bytes_until_nul(&target).map_err(|_| Errno::INVAL)?;
                directory_through(root, relative(target), links - 1)
                    .map(drop)
                    .map_err(|fault| fault.errno())
            }
        },
        Err(errno) => Err(errno),
    }
}

/// Where the link `name` in `parent`, which is `prefix` of the root, leads: a path of the root. `None` if it is no link.
/// Only a text: whoever opens it does that in the root.
fn link_target(parent: BorrowedFd, prefix: &[u8], name: &CStr) -> Result<Option<[u8; libc::PATH_MAX as usize]>, Errno> {
    let mut path = [0; libc::PATH_MAX as usize];
    let mut text = [0; libc::PATH_MAX as usize];
    let length = match rustix::fs::readlinkat_raw(parent, name, &mut text[..]) {
        Ok(length) => length,
        Err(Errno::INVAL) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let prefix = if text[0] == b'/' { &[][..] } else { prefix };
    // The last byte stays NUL.
    if prefix.len() + length >= path.len() {
        return Err(Errno::NAMETOOLONG);
    }
    path[..prefix.len()].copy_from_slice(prefix);
    path[prefix.len()..prefix.len() + length].copy_from_slice(&text[..length]);
    Ok(Some(path))
}

fn open_parent(root: BorrowedFd, prefix: &[u8]) -> Result<OwnedFd, Errno> {
    if prefix.is_empty() {
        return open(root, c".", OFlags::PATH | OFlags::DIRECTORY);
    }
    let mut path = [0; libc::PATH_MAX as usize];
    path.get_mut(..prefix.len())
        .ok_or(Errno::NAMETOOLONG)?
        .copy_from_slice(prefix);
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| Errno::NAMETOOLONG)?;
    open(root, path, OFlags::PATH | OFlags::DIRECTORY)
}

/// The parent directory of a path of the container, made if it is missing, and the last component.
pub(super) fn parent_of<'a>(root: BorrowedFd, path: &'a CStr) -> Step<(OwnedFd, &'a CStr)> {
    let bytes = path.to_bytes_with_nul();
    let start = bytes
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |slash| slash + 1);
    let name = CStr::from_bytes_with_nul(&bytes[start..]).unwrap_or_default();
    let mut buffer = [0; libc::PATH_MAX as usize];
    let parent = match start {
        0 => c".",
        _ if start > buffer.len() => return Err(Fault::new(Errno::NAMETOOLONG, format_args!("open {}", InRoot(path)))),
        _ => {
            buffer[..start - 1].copy_from_slice(&bytes[..start - 1]);
            CStr::from_bytes_until_nul(&buffer).unwrap_or_default()
        }
    };
    Ok((directory(root, parent)?, name))
}

/// A file of the container to mount on, made empty if it is missing.
pub(super) fn file(root: BorrowedFd, path: &CStr) -> Step<OwnedFd> {
    file_through(root, path, LINKS)
}

fn file_through(root: BorrowedFd, path: &CStr, links: u32) -> Step<OwnedFd> {
    match open(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => (),
        other => return other.explain(format_args!("open {} in the root file system", InRoot(path))),
    }
    let (parent, name) = parent_of(root, path)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(FILE_MODE)) {
        Ok(_) => (),
        Err(Errno::EXIST) => {
            let before = path.to_bytes().len() - name.to_bytes().len();
            let target = link_target(parent.as_fd(), &path.to_bytes()[..before], name);
            if let Some(target) = target.explain(format_args!("make file {}", InRoot(path)))? {
                let target = CStr::from_bytes_until_nul(&target).unwrap_or_default();
                return match links {
                    0 => Err(Fault::new(Errno::LOOP, format_args!("make file {}", InRoot(path)))),
                    _ => file_through(root, relative(target), links - 1),
                };
            }
        }
        Err(errno) => return Err(Fault::new(errno, format_args!("make file {}", InRoot(path)))),
    }
    open(root, path, OFlags::PATH).explain(format_args!("open {} in the root file system", InRoot(path)))
}

/// An absolute C path without its leading slashes.
pub(super) fn relative(path: &CStr) -> &CStr {
    let bytes = path.to_bytes_with_nul();
    let start = bytes.iter().position(|&byte| byte != b'/').unwrap_or(bytes.len() - 1);
    CStr::from_bytes_with_nul(&bytes[start..]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn missing_directories_and_files_are_made_inside() {
        let (dir, root) = root();
        assert!(directory(root.as_fd(), c"a/b/c").is_ok());
        assert!(dir.path().join("a/b/c").is_dir());
        assert!(file(root.as_fd(), c"etc/deep/hosts").is_ok());
        assert!(dir.path().join("etc/deep/hosts").is_file());
    }

    #[test]
    fn absolute_links_stay_in_the_root() {
        let (dir, root) = root();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("out")).unwrap();
        // It leads to nothing in this root: what it names is made there.
        assert!(directory(root.as_fd(), c"out/made").is_ok());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        let inside = outside.path().strip_prefix("/").unwrap();
        assert!(dir.path().join(inside).join("made").is_dir());
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("/../../real", dir.path().join("in")).unwrap();
        assert!(directory(root.as_fd(), c"in/made").is_ok());
        assert!(dir.path().join("real/made").is_dir());
    }

    #[test]
    fn links_to_nothing_are_followed_but_not_for_ever() {
        let (dir, root) = root();
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, dir.path().join(name)).unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        link("../foo/bar/file", "etc/file");
        assert!(file(root.as_fd(), c"etc/file").is_ok());
        assert!(dir.path().join("foo/bar/file").is_file());
        link("../../../up", "etc/up");
        link("/etc/up/more", "two");
        assert!(directory(root.as_fd(), c"two/made").is_ok());
        assert!(dir.path().join("up/more/made").is_dir());
        link("b", "a");
        link("a", "b");
        assert!(directory(root.as_fd(), c"a/made").is_err() && file(root.as_fd(), c"b").is_err());
        let chain = (0..20).map(|at| (format!("c{}", at + 1), format!("c{at}")));
        chain.for_each(|(to, name)| link(&to, &name));
        assert!(directory(root.as_fd(), c"c0").is_err());
    }

    #[test]
    fn leading_slashes_are_cut() {
        assert_eq!(relative(c"//srv/web"), c"srv/web");
        assert_eq!(relative(c"/"), c"");
    }
}
