//! What the parent opens for the child: namespaces, detached copies of the root file system and of bind sources,
//! the host's /proc. Done with the host's credentials and paths, so the child needs no path of the host.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::process::{Gid, Uid};

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::fault::{Fault, Shown};
use crate::init::{path, rootfs};
use crate::mountinfo;
use crate::plan::Plan;
use crate::plan::devices::DevicePlan;
use crate::plan::mounts::{Idmap, MountPlan, Source};
use crate::syscall::{self, Fork, Sys};

const PROC_SUPER_MAGIC: u64 = 0x9fa0;
/// linux/proc_fs.h
const PROC_ROOT_INO: u64 = 1;

/// The root file system: a detached copy of its mount tree, or the directory itself without a mount namespace.
pub(super) fn root(plan: &Plan) -> Result<OwnedFd> {
    let path = &plan.rootfs;
    let what = || format!("root.path {}", path.display());
    if !path.is_dir() {
        return Err(Error::invalid(format!("{}: not a directory", what())));
    }
    if !plan.namespaces.has(libc::CLONE_NEWNS) {
        return rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::os(what(), e));
    }
    let tree = open_tree(path, true).map_err(|e| Error::os(what(), e))?;
    syscall::mount_setattr(tree.as_fd(), true, 0, 0, libc::MS_SLAVE)
        .map_err(|e| Error::os(format!("{}: set propagation", what()), e))?;
    Ok(tree)
}

fn open_tree(path: &Path, recursive: bool) -> std::result::Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, path, flags)
}

/// Detached bind sources in the order of the plan's mounts: the mount, and whether it is a directory.
pub(super) fn binds(plan: &Plan, cgroup: &Cgroup, rootfs: BorrowedFd) -> Result<Vec<Option<(OwnedFd, bool)>>> {
    let one = |mount: &MountPlan| match mount.copy_up {
        true => copied_up(mount, rootfs).map(|tree| Some((tree, true))),
        false => bind(plan, mount, cgroup),
    };
    plan.mounts.iter().map(one).collect()
}

/// `tmpcopyup`: a new file system that begins with what the image has at the mount's target.
fn copied_up(mount: &MountPlan, rootfs: BorrowedFd) -> Result<OwnedFd> {
    let Source::FileSystem {
        kind,
        source,
        parameters,
    } = &mount.source
    else {
        return Err(Error::invalid(
            "mounts.options: tmpcopyup is for tmpfs, not for bind mounts",
        ));
    };
    let mode = rootfs::mode_of_image(rootfs, mount, kind, parameters);
    let tree = rootfs::file_system(mount, kind, source, parameters, mode).map_err(Fault::into_error)?;
    let from = match path::open(rootfs, &mount.target, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(from) => from,
        Err(Errno::NOENT) => return Ok(tree),
        Err(e) => {
            return Err(Error::os(
                format!("open /{} in the root file system", Shown(&mount.target)),
                e,
            ));
        }
    };
    copy_directory(from.as_fd(), tree.as_fd())
        .map_err(|e| Error::os(format!("copy /{} into its tmpfs", Shown(&mount.target)), e))?;
    Ok(tree)
}

/// Directories, files and links with owner and mode, by descriptors: no link is followed, even if one is put in the place
/// of a file while we look.
fn copy_directory(from: BorrowedFd, to: BorrowedFd) -> Sys<()> {
    let own = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Symlink => rustix::fs::symlinkat(&*rustix::fs::readlinkat(from, name, Vec::new())?, to, name)?,
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let below = rustix::fs::openat(from, name, own, Mode::empty())?;
                copy_directory(below.as_fd(), rustix::fs::openat(to, name, own, Mode::empty())?.as_fd())?;
            }
            FileType::RegularFile => copy_file(from, to, name)?,
            _ => continue,
        }
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
        }
    }
    Ok(())
}

fn copy_file(from: BorrowedFd, to: BorrowedFd, name: &CStr) -> Sys<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let target = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    while rustix::fs::sendfile(&target, &source, None, 1 << 30)? > 0 {}
    Ok(())
}

fn bind(plan: &Plan, mount: &MountPlan, cgroup: &Cgroup) -> Result<Option<(OwnedFd, bool)>> {
    let (path, recursive) = match &mount.source {
        Source::Bind { path, recursive } => (path.as_path(), *recursive),
        // Without a cgroup namespace a mount of cgroup2 would show the whole machine: show the container's group.
        Source::FileSystem { kind, .. }
            if kind.as_c_str() == c"cgroup2" && !plan.namespaces.has(libc::CLONE_NEWCGROUP) =>
        {
            (cgroup.dir(), false)
        }
        Source::FileSystem { .. } => return Ok(None),
    };
    let what = || format!("bind mount {} on /{}", path.display(), Shown(&mount.target));
    let tree = open_tree(path, recursive).map_err(|e| Error::os(what(), e))?;
    if mount.must_be_proc && !is_procfs(tree.as_fd()) {
        return Err(Error::invalid(format!(
            "{}: nothing but a procfs can be mounted over /proc or inside /proc",
            what()
        )));
    }
    let kind = rustix::fs::fstat(&tree).map_err(|e| Error::os(what(), e))?.st_mode;
    configure(plan, mount, tree.as_fd()).map_err(|e| e.context(what()))?;
    Ok(Some((tree, FileType::from_raw_mode(kind) == FileType::Directory)))
}

/// The root of a procfs, not of a part of one.
fn is_procfs(tree: BorrowedFd) -> bool {
    rustix::fs::fstatfs(tree).is_ok_and(|stat| stat.f_type as u64 == PROC_SUPER_MAGIC)
        && rustix::fs::fstat(tree).is_ok_and(|stat| stat.st_ino == PROC_ROOT_INO)
}

fn configure(plan: &Plan, mount: &MountPlan, tree: BorrowedFd) -> Result<()> {
    let propagation = match (mount.propagation, plan.rootfs_propagation) {
        (Some(propagation), _) => propagation,
        (None, Some(root)) => root,
        (None, None) => crate::plan::mount_options::Propagation {
            flag: libc::MS_SLAVE,
            recursive: true,
        },
    };
    let attributes = mount.attributes;
    syscall::mount_setattr(tree, propagation.recursive, 0, 0, propagation.flag)
        .map_err(|e| Error::os("set propagation", e))?;
    if attributes.set | attributes.clear != 0 {
        syscall::mount_setattr(tree, false, attributes.set, attributes.clear, 0)
            .map_err(|e| Error::os("set mount flags", e))?;
    }
    if attributes.recursive_set | attributes.recursive_clear != 0 {
        syscall::mount_setattr(tree, true, attributes.recursive_set, attributes.recursive_clear, 0)
            .map_err(|e| Error::os("set recursive mount flags", e))?;
    }
    match &mount.idmap {
        Some(idmap) => map_ids(plan, idmap, tree),
        None => Ok(()),
    }
}

/// Show owners through a mapping: that of a user namespace made only to name it.
fn map_ids(plan: &Plan, idmap: &Idmap, tree: BorrowedFd) -> Result<()> {
    let maps = idmap.maps.as_ref().or(plan.namespaces.id_maps.as_ref());
    let (uids, gids) =
        maps.ok_or_else(|| Error::invalid("an id-mapped mount needs mappings or a new user namespace"))?;
    let what = "make a user namespace for the id mapping";
    let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| Error::os(what, e))?;
    // SAFETY: the child only makes system calls.
    let (pid, pidfd) = match unsafe { syscall::clone3(libc::CLONE_NEWUSER as u64, None) } {
        Err(e) => return Err(Error::os(what, e)),
        Ok(Fork::Child) => {
            drop(ours);
            // It must not outlive us, however we end: then nobody holds the other end of the pipe.
            let _ = rustix::io::read(&theirs, &mut [0; 1]);
            syscall::exit(0)
        }
        Ok(Fork::Parent { pid, pidfd }) => (pid, pidfd),
    };
    let map = || {
        write_maps(pid, uids, gids)?;
        let namespace = rustix::fs::open(
            format!("/proc/{pid}/ns/user"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| Error::os("open the user namespace of the id mapping", e))?;
        syscall::mount_idmap(tree, idmap.recursive, namespace.as_fd()).map_err(|e| Error::os("map owners", e))
    };
    let result = map();
    super::clone::end(pidfd.as_fd());
    result
}

/// Write the id mappings of a process in a new user namespace.
pub(super) fn write_maps(pid: i32, uids: &str, gids: &str) -> Result<()> {
    for (file, map) in [("uid_map", uids), ("gid_map", gids)] {
        std::fs::write(format!("/proc/{pid}/{file}"), map)
            .map_err(|e| Error::os(format!("write linux.{file} {:?}", map.trim_end()), e))?;
    }
    Ok(())
}

/// The host's device nodes as detached mounts, for a container that may not make nodes.
pub(super) fn devices(plan: &Plan) -> Result<Vec<OwnedFd>> {
    let may_make = !plan.namespaces.has(libc::CLONE_NEWUSER) && !crate::cgroup::in_user_namespace();
    if may_make || !plan.populate_dev {
        return Ok(Vec::new());
    }
    plan.devices.iter().map(device).collect()
}

fn device(device: &DevicePlan) -> Result<OwnedFd> {
    let path = format!("/{}", Shown(&device.path));
    let tree =
        open_tree(Path::new(&path), false).map_err(|e| Error::os(format!("bind the host's device {path}"), e))?;
    let stat = rustix::fs::fstat(&tree).map_err(|e| Error::os(format!("stat {path}"), e))?;
    let same =
        FileType::from_raw_mode(stat.st_mode) == FileType::from_raw_mode(device.mode) && stat.st_rdev == device.device;
    match same {
        true => Ok(tree),
        false => Err(Error::invalid(format!(
            "linux.devices: the host's {path} is not the device that was asked for, and a user namespace cannot make it"
        ))),
    }
}

/// Namespaces to join, in the order of the plan.
pub(super) fn namespaces(plan: &Plan) -> Result<Vec<OwnedFd>> {
    let open = |join: &crate::plan::namespaces::Join| {
        rustix::fs::open(join.path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| {
            let kind = crate::plan::namespaces::kind_name(join.kind);
            Error::os(format!("open the {kind} namespace {}", Shown(&join.path)), e)
        })
    };
    plan.namespaces.join.iter().map(open).collect()
}

/// The host's /proc, proven to be a procfs (CVE-2025-52881).
pub(super) fn proc() -> Result<OwnedFd> {
    let proc = rustix::fs::open(
        "/proc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| Error::os("open /proc", e))?;
    let stat = rustix::fs::fstatfs(&proc).map_err(|e| Error::os("statfs /proc", e))?;
    if stat.f_type as u64 != PROC_SUPER_MAGIC {
        return Err(Error::system(format!(
            "/proc is not a procfs (file system type {:#x})",
            stat.f_type
        )));
    }
    let root = rustix::fs::fstat(&proc).map_err(|e| Error::os("stat /proc", e))?;
    match root.st_ino {
        PROC_ROOT_INO => Ok(proc),
        _ => Err(Error::system(
            "/proc is not the root of a procfs but a directory of one",
        )),
    }
}

/// Where this mount namespace has a procfs or sysfs, the last that was mounted first. proc_pid_mountinfo(5).
pub(super) fn views() -> Result<Vec<CString>> {
    let path = "/proc/self/mountinfo";
    let mounts = std::fs::read_to_string(path).map_err(|e| Error::os(format!("read {path}"), e))?;
    Ok(views_in(&mounts))
}

fn views_in(mounts: &str) -> Vec<CString> {
    let points = mountinfo::points(mounts, &["proc", "sysfs"]).rev();
    points.filter_map(|point| CString::new(point).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_the_kernel_are_found_wherever_they_are() {
        let mounts = "22 1 0:20 / /sys rw - sysfs sysfs rw\n\
                      23 1 0:5 / /dev rw - devtmpfs udev rw\n\
                      24 1 0:21 / /proc rw shared:5 - proc proc rw\n\
                      25 1 0:21 / /srv/a\\040chroot/proc rw - proc proc rw\n\
                      26 24 0:35 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n";
        assert_eq!(
            views_in(mounts),
            [c"/srv/a chroot/proc", c"/proc", c"/sys"].map(CString::from)
        );
    }
}
