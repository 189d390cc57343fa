//! Masked and read-only paths: hidden behind the null device or an empty directory, or bound to themselves for reading.
//! They are resolved from the container's own procfs and sysfs, proven by type (CVE-2025-31133, -52881).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::path::{PROC_SUPER_MAGIC, is_kind, open, ordinary};
use super::rootfs::{attach, clone_tree, configure};
use super::{Init, dev};
use crate::fault::{Explain, Fault, InRoot, Shown, Step};
use crate::plan::mounts::{MountPlan, Source};
use crate::syscall::{self, Sys};

const SYSFS_MAGIC: u64 = 0x6265_6572;

/// Mask with `covers`, and make read-only, the paths that are `due`, with the `mounts` made.
pub(super) fn protect(init: &Init, mounts: &[MountPlan], covers: &mut Covers, due: impl Fn(&CStr) -> bool) -> Step {
    let plan = &init.plan;
    let kernel = KernelTrees::open(init.rootfs.as_fd(), mounts)?;
    for path in plan.readonly.iter().filter(|path| due(path)) {
        make_readonly(&kernel, path)?;
    }
    for path in plan.masked.iter().filter(|path| due(path)) {
        covers.mask(&kernel, path)?;
    }
    Ok(())
}

/// The container's own procfs and sysfs, opened anew without following a link and proven by their type: what protects
/// them is resolved from here, so whoever moves /proc away (its rootfs may be shared) gets no container, not an unmasked one.
struct KernelTrees<'a> {
    root: BorrowedFd<'a>,
    proc: Option<OwnedFd>,
    sys: Option<OwnedFd>,
}

impl<'a> KernelTrees<'a> {
    fn open(root: BorrowedFd<'a>, mounts: &[MountPlan]) -> Step<KernelTrees<'a>> {
        let tree = |path: &CStr, kind: &CStr, magic| {
            let planned = |mount: &MountPlan| {
                let is = matches!(&mount.source, Source::FileSystem { kind: other, .. } if other.as_c_str() == kind);
                mount.target.as_c_str() == path && is
            };
            if !mounts.iter().any(planned) {
                return Ok(None);
            }
            let tree = ordinary(root, path)?;
            match is_kind(tree.as_fd(), magic) {
                true => Ok(Some(tree)),
                false => Err(Fault::plain(format_args!(
                    "{} is no longer the {} that was mounted there: somebody changes the root file system",
                    InRoot(path),
                    Shown(kind)
                ))),
            }
        };
        Ok(KernelTrees {
            root,
            proc: tree(c"proc", c"proc", PROC_SUPER_MAGIC)?,
            sys: tree(c"sys", c"sysfs", SYSFS_MAGIC)?,
        })
    }

    /// Open a path of the container to protect it; `None` if it does not exist.
    fn open_path(&self, path: &CStr) -> Result<Option<OwnedFd>, Errno> {
        let below = |tree: &'_ Option<OwnedFd>, prefix: &[u8]| {
            let rest = path.to_bytes_with_nul().strip_prefix(prefix)?;
            let rest = CStr::from_bytes_with_nul(rest).ok()?;
            tree.as_ref().map(|tree| open(tree.as_fd(), rest, OFlags::PATH))
        };
        let opened = below(&self.proc, b"proc/")
            .or_else(|| below(&self.sys, b"sys/"))
            .unwrap_or_else(|| open(self.root, path, OFlags::PATH));
        match opened {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            other => other.map(Some),
        }
    }
}

/// What masked paths are covered with: the mounts on the first file and on the first directory.
#[derive(Default)]
pub(super) struct Covers {
    null: Option<OwnedFd>,
    directory: Option<OwnedFd>,
}

impl Covers {
    /// Hide a path: a file behind the null device, a directory behind an empty read-only tmpfs.
    fn mask(&mut self, trees: &KernelTrees, path: &CStr) -> Step {
        let opened = trees.open_path(path);
        let Some(target) = opened.explain(format_args!("open {} to mask it", InRoot(path)))? else {
            return Ok(());
        };
        let stat = rustix::fs::fstat(&target).explain(format_args!("stat {}", InRoot(path)))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => cover(&mut self.directory, empty_directory, target.as_fd()),
            _ => cover(&mut self.null, dev::null, target.as_fd()),
        }
        .explain(format_args!("mask {}", InRoot(path)))
    }
}

/// The first time with what `make` makes, later with copies of it: a mount can only be copied once it is attached.
fn cover(first: &mut Option<OwnedFd>, make: fn() -> Sys<OwnedFd>, target: BorrowedFd) -> Sys<()> {
    match first {
        Some(first) => attach(clone_tree(first.as_fd(), false)?.as_fd(), target, c""),
        None => attach(first.insert(make()?).as_fd(), target, c""),
    }
}

fn empty_directory() -> Sys<OwnedFd> {
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    configure(context.as_fd(), c"mask", &[], None)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn make_readonly(trees: &KernelTrees, path: &CStr) -> Step {
    let opened = trees.open_path(path);
    let Some(target) = opened.explain(format_args!("open {} to make it read-only", InRoot(path)))? else {
        return Ok(());
    };
    let tree = clone_tree(target.as_fd(), true).explain(format_args!("bind {} to itself", InRoot(path)))?;
    syscall::mount_setattr(tree.as_fd(), true, libc::MOUNT_ATTR_RDONLY, 0, 0)
        .explain(format_args!("make {} read-only", InRoot(path)))?;
    attach(tree.as_fd(), target.as_fd(), c"").explain(format_args!("mount the read-only {}", InRoot(path)))
}
