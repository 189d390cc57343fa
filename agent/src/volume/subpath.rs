//! `subPath`: mounting a part of a volume without letting the volume's content choose what is mounted.
//!
//! The path is resolved with openat2(RESOLVE_BENEATH): symlinks may be followed but never out of the volume, and what
//! was resolved is what is mounted, by descriptor (open_tree, move_mount), so exchanging a component in between gains
//! nothing (CVE-2017-1002101, CVE-2021-25741).

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use super::VolumeError;

/// Resolves `sub` in the volume at `root`, makes it as a directory if it is absent, and mounts it at `target`.
pub fn mount(volume: &str, root: &Path, sub: &str, target: &Path) -> Result<(), VolumeError> {
    let valid = Path::new(sub)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if sub.is_empty() || !valid {
        return Err(VolumeError::refused(
            volume,
            format!("subPath {sub:?} must be relative and without .."),
        ));
    }
    let resolved = resolve(volume, root, sub)?;
    let kind = fstat(&resolved)
        .map_err(VolumeError::system(volume, "examine", root))?
        .st_mode;
    make_target(target, FileType::from_raw_mode(kind)).map_err(VolumeError::system(volume, "make", target))?;
    attach(&resolved, target).map_err(VolumeError::system(volume, "mount the subPath at", target))
}

/// Takes the mount at `target` away, if there is one, and the mount point with it.
pub fn remove(target: &Path) {
    let _ = unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    let _ = fs::remove_file(target);
    let _ = fs::remove_dir(target);
}

fn resolve(volume: &str, root: &Path, sub: &str) -> Result<OwnedFd, VolumeError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let directory = openat(CWD, root, flags | OFlags::DIRECTORY, Mode::empty()).map_err(VolumeError::system(
        volume,
        "open the volume",
        root,
    ))?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match openat2(&directory, sub, flags, Mode::empty(), beneath) {
        Ok(found) => return Ok(found),
        Err(Errno::NOENT) => {}
        Err(Errno::XDEV) => {
            return Err(VolumeError::refused(
                volume,
                format!("subPath {sub:?} leads out of the volume"),
            ));
        }
        Err(error) => return Err(VolumeError::system(volume, "resolve the subPath in", root)(error)),
    }
    let mut at = directory;
    for part in Path::new(sub).components() {
        let Component::Normal(name) = part else { continue };
        match mkdirat(&at, name, Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(VolumeError::system(volume, "make the subPath in", root)(error)),
        }
        at = openat2(
            &at,
            name,
            flags | OFlags::DIRECTORY,
            Mode::empty(),
            beneath | ResolveFlags::NO_SYMLINKS,
        )
        .map_err(VolumeError::system(volume, "resolve the subPath in", root))?;
    }
    Ok(at)
}

fn make_target(target: &Path, kind: FileType) -> std::io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if kind == FileType::Directory {
        fs::create_dir_all(target)
    } else {
        OpenOptions::new().create(true).append(true).open(target).map(drop)
    }
}

fn attach(what: &OwnedFd, target: &Path) -> Result<(), Errno> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(what.as_fd(), "", clone)?;
    move_mount(tree.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            remove(&self.0);
        }
    }

    #[test]
    fn a_part_of_the_volume_is_mounted_by_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let (root, target) = (dir.path().join("v"), Mounted(dir.path().join("t")));
        fs::create_dir_all(root.join("real")).unwrap();
        fs::write(root.join("real/file"), "here").unwrap();
        symlink("real", root.join("link")).unwrap();
        mount("v", &root, "link/file", &target.0).expect("needs root");
        assert_eq!(fs::read_to_string(&target.0).unwrap(), "here");
    }

    #[test]
    fn an_absent_path_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let (root, target) = (dir.path().join("v"), Mounted(dir.path().join("t")));
        fs::create_dir(&root).unwrap();
        mount("v", &root, "a/b", &target.0).expect("needs root");
        assert!(root.join("a/b").is_dir() && target.0.is_dir());
    }

    #[test]
    fn nothing_outside_the_volume_can_be_reached() {
        let dir = tempfile::tempdir().unwrap();
        let (root, target) = (dir.path().join("v"), dir.path().join("t"));
        fs::create_dir(&root).unwrap();
        symlink("/etc", root.join("absolute")).unwrap();
        symlink("../..", root.join("up")).unwrap();
        for sub in ["absolute/passwd", "up", "up/etc", "../x", "/etc", ""] {
            assert!(
                matches!(mount("v", &root, sub, &target), Err(VolumeError::Refused { .. })),
                "{sub}"
            );
            assert!(!target.exists(), "{sub}");
        }
    }
}
