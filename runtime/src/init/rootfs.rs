//! The root file system inside the new mount namespace: mounts, /dev, masks, pivot_root.
//! Every target is opened in the root with openat2(RESOLVE_IN_ROOT) and mounted on by descriptor with move_mount,
//! so no symbolic link or rename of the image leads out (CVE-2021-30465, -2024-45310, -2025-31133).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use super::{Init, console, dev};
use crate::fault::{Explain, Fault, InRoot, Shown, Step};
use crate::plan::mounts::{MountPlan, Source};
use crate::syscall::{self, Sys};

pub(super) const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const SYSFS_MAGIC: u64 = 0x6265_6572;
/// Directories of the image that may not be links: what is made below them must be where the container finds it.
const ORDINARY: [&CStr; 3] = [c"proc", c"sys", c"dev"];
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
/// RESOLVE_IN_ROOT gives EAGAIN while somebody renames in the tree; an attacker must not win by keeping at it.
const ATTEMPTS: u32 = 128;

/// Make the root file system and enter it.
pub(super) fn make(init: &Init) -> Step {
    let plan = &init.plan;
    let root = init.rootfs.as_fd();
    if !plan.namespaces.has(libc::CLONE_NEWNS) {
        return enter_without_namespace(init);
    }
    rustix::mount::mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .explain(format_args!("stop mount propagation to the host"))?;
    attach(root, CWD, c"/").explain(format_args!("attach the root file system"))?;
    let mut ahead = Ahead::default();
    for (done, (mount, bind)) in plan.mounts.iter().zip(&init.binds).enumerate() {
        if shows_parents_part(mount) && !init.met.get() {
            ahead = Ahead::work(init, done)?;
            super::meet_parent(init)?;
        }
        one(root, mount, bind.as_ref())?;
    }
    super::meet_parent(init)?;
    if plan.populate_dev && !ahead.dev {
        dev::populate(root, &plan.devices, &init.devices)?;
    }
    console::make(init)?;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    crate::hooks::run("createContainer", &plan.hooks.create_container, &init.creating, pid)?;
    set_sysctls(init)?;
    if plan.process.cwd.as_c_str() != c"/" {
        let cwd = relative(&plan.process.cwd);
        // An existing cwd that is no directory, or a read-only root: chdir will say it better.
        let _ = directory(root, cwd);
    }
    restrict(init, &ahead)?;
    enter(init)
}

/// What was done early, while the parent still made the network.
#[derive(Default)]
struct Ahead {
    /// /dev is populated.
    dev: bool,
    /// Paths below /proc are masked and read-only.
    proc: bool,
}

impl Ahead {
    /// With the first `done` mounts made: what the others cannot change any more, and no hook is to see undone.
    fn work(init: &Init, done: usize) -> Step<Ahead> {
        let plan = &init.plan;
        if !plan.hooks.create_container.is_empty() {
            return Ok(Ahead::default());
        }
        let (made, rest) = plan.mounts.split_at(done);
        let settled = |directory: &[u8]| {
            let target = |mount: &MountPlan| mount.target.as_c_str().to_bytes().strip_prefix(directory).is_some();
            made.iter().any(target) && !rest.iter().any(|mount| target(mount) || mount.target.is_empty())
        };
        let ahead = Ahead {
            dev: plan.populate_dev && settled(b"dev"),
            proc: settled(b"proc"),
        };
        if ahead.dev {
            dev::populate(init.rootfs.as_fd(), &plan.devices, &init.devices)?;
        }
        if ahead.proc {
            protect(init, made, in_proc)?;
        }
        Ok(ahead)
    }
}

fn in_proc(path: &CStr) -> bool {
    path.to_bytes().starts_with(b"proc/")
}

/// sysfs belongs to the network namespace, cgroup file systems to the cgroup namespace of whoever mounts them.
fn shows_parents_part(mount: &MountPlan) -> bool {
    match &mount.source {
        Source::FileSystem { kind, .. } => matches!(kind.to_bytes(), b"sysfs" | b"cgroup" | b"cgroup2"),
        Source::Bind { .. } => false,
    }
}

/// Masks, read-only paths and the read-only root come last: everything before may need to write.
fn restrict(init: &Init, ahead: &Ahead) -> Step {
    let plan = &init.plan;
    protect(init, &plan.mounts, |path| !(ahead.proc && in_proc(path)))?;
    if plan.readonly_rootfs {
        syscall::mount_setattr(init.rootfs.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0)
            .explain(format_args!("make the root file system read-only"))?;
    }
    Ok(())
}

/// Mask, and make read-only, the paths that are `due`, with the `mounts` made.
fn protect(init: &Init, mounts: &[MountPlan], due: impl Fn(&CStr) -> bool) -> Step {
    let plan = &init.plan;
    let kernel = KernelTrees::open(init.rootfs.as_fd(), mounts)?;
    for path in plan.readonly.iter().filter(|path| due(path)) {
        make_readonly(&kernel, path)?;
    }
    let mut covers = Covers::default();
    for path in plan.masked.iter().filter(|path| due(path)) {
        covers.mask(&kernel, path)?;
    }
    Ok(())
}

fn enter(init: &Init) -> Step {
    let root = init.rootfs.as_fd();
    rustix::process::fchdir(root).explain(format_args!("chdir to the root file system"))?;
    if init.no_pivot {
        rustix::process::chroot(c".").explain(format_args!("chroot"))?;
    } else {
        rustix::process::pivot_root(c".", c".").explain(format_args!(
            "pivot_root (on an initramfs, which cannot be pivoted, use --no-pivot)"
        ))?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH).explain(format_args!("unmount the host's root"))?;
    }
    rustix::process::chdir(c"/").explain(format_args!("chdir to /"))?;
    match init.plan.rootfs_propagation {
        Some(propagation) => syscall::mount_setattr(root, propagation.recursive, 0, 0, propagation.flag)
            .explain(format_args!("set linux.rootfsPropagation")),
        None => Ok(()),
    }
}

/// Without a mount namespace of its own a container is merely a chroot.
fn enter_without_namespace(init: &Init) -> Step {
    super::meet_parent(init)?;
    console::make(init)?;
    set_sysctls(init)?;
    rustix::process::fchdir(&init.rootfs).explain(format_args!("chdir to the root file system"))?;
    rustix::process::chroot(c".").explain(format_args!("chroot"))
}

fn set_sysctls(init: &Init) -> Step {
    let plan = &init.plan;
    if plan.sysctls.is_empty() {
        return Ok(());
    }
    let sys = rustix::fs::openat(
        &init.proc,
        c"sys",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .explain(format_args!("open /proc/sys"))?;
    for (path, value) in &plan.sysctls {
        super::write_proc(sys.as_fd(), path, value.to_bytes(), ResolveFlags::NO_SYMLINKS).explain(format_args!(
            "set sysctl {} to {}",
            Shown(path),
            Shown(value)
        ))?;
    }
    Ok(())
}

/// One entry of `mounts`.
fn one(root: BorrowedFd, mount: &MountPlan, bind: Option<&(OwnedFd, bool)>) -> Step {
    match (&mount.source, bind) {
        (_, Some((tree, is_directory))) => attach_checked(root, mount, tree.as_fd(), *is_directory),
        (
            Source::FileSystem {
                kind,
                source,
                parameters,
            },
            None,
        ) => {
            let tree = file_system(mount, kind, source, parameters)?;
            attach_checked(root, mount, tree.as_fd(), true)
        }
        (Source::Bind { .. }, None) => Err(Fault::plain(format_args!(
            "bind source of {} is missing",
            InRoot(&mount.target)
        ))),
    }
}

/// Attach a detached mount at its target, unless that lies on a procfs where it must not.
fn attach_checked(root: BorrowedFd, mount: &MountPlan, tree: BorrowedFd, is_directory: bool) -> Step {
    let target = match is_directory {
        true if ORDINARY.contains(&mount.target.as_c_str()) => ordinary(root, &mount.target),
        true => directory(root, &mount.target),
        false => file(root, &mount.target),
    }?;
    if !mount.on_proc && is_proc(target.as_fd()) {
        return Err(Fault::plain(format_args!(
            "mount on {}: the target is inside a procfs, reached through a link of the image",
            InRoot(&mount.target)
        )));
    }
    attach(tree, target.as_fd(), c"").or_else(|errno| Err(not_attached(errno, target.as_fd(), mount, is_directory)))?;
    match mount.propagation {
        Some(propagation) if matches!(mount.source, Source::FileSystem { .. }) => {
            syscall::mount_setattr(tree, propagation.recursive, 0, 0, propagation.flag)
                .explain(format_args!("set the propagation of {}", InRoot(&mount.target)))
        }
        _ => Ok(()),
    }
}

/// The kernel says no more than EINVAL of a file over a directory, and of the reverse.
fn not_attached(errno: Errno, target: BorrowedFd, mount: &MountPlan, is_directory: bool) -> Fault {
    let kind = rustix::fs::fstat(target).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match (kind == Ok(FileType::Directory), is_directory) {
        (true, false) => Fault::new(
            Errno::NOTDIR,
            format_args!("mount a file on {}, which is a directory", InRoot(&mount.target)),
        ),
        (false, true) => Fault::new(
            Errno::NOTDIR,
            format_args!("mount a directory on {}, which is none", InRoot(&mount.target)),
        ),
        _ => Fault::new(errno, format_args!("mount on {}", InRoot(&mount.target))),
    }
}

pub(super) fn is_proc(fd: BorrowedFd) -> bool {
    is_kind(fd, PROC_SUPER_MAGIC)
}

fn is_kind(fd: BorrowedFd, magic: u64) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type as u64 == magic)
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

/// A new file system, mounted nowhere yet.
pub(crate) fn file_system(
    mount: &MountPlan,
    kind: &CStr,
    source: &CStr,
    parameters: &[(std::ffi::CString, Option<std::ffi::CString>)],
) -> Step<OwnedFd> {
    let context = match rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::PERM) if kind == c"sysfs" => return host_sysfs(mount),
        other => other.explain(format_args!(
            "mount {} on {}: open the file system",
            Shown(kind),
            InRoot(&mount.target)
        ))?,
    };
    let result = configure(context.as_fd(), source, parameters).and_then(|()| {
        let attributes = MountAttrFlags::from_bits_retain(mount.attributes.set as u32);
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    });
    match result {
        Ok(tree) => Ok(tree),
        // A user namespace that does not own the network namespace may not mount sysfs, but may see the host's.
        Err(Errno::PERM) if kind == c"sysfs" => host_sysfs(mount),
        Err(errno) => {
            let mut log = [0; 256];
            let length = rustix::io::read(&context, &mut log).unwrap_or(0);
            Err(Fault::new(
                errno,
                format_args!(
                    "mount {} on {}{}",
                    Shown(kind),
                    InRoot(&mount.target),
                    Log(&log[..length])
                ),
            ))
        }
    }
}

fn configure(
    context: BorrowedFd,
    source: &CStr,
    parameters: &[(std::ffi::CString, Option<std::ffi::CString>)],
) -> Result<(), Errno> {
    if !source.is_empty() {
        rustix::mount::fsconfig_set_string(context, c"source", source)?;
    }
    for (key, value) in parameters {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(context, key.as_c_str(), value.as_c_str())?,
            None => rustix::mount::fsconfig_set_flag(context, key.as_c_str())?,
        }
    }
    rustix::mount::fsconfig_create(context)
}

fn host_sysfs(mount: &MountPlan) -> Step<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, c"/sys", flags).explain(format_args!("bind the host's /sys"))?;
    syscall::mount_setattr(
        tree.as_fd(),
        true,
        mount.attributes.set | libc::MOUNT_ATTR_RDONLY,
        0,
        libc::MS_SLAVE,
    )
    .explain(format_args!("make the host's /sys read-only"))?;
    Ok(tree)
}

/// What the kernel wrote into the file-system context, e.g. "e proc: Unknown parameter".
struct Log<'a>(&'a [u8]);

impl std::fmt::Display for Log<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        let text = self.0.trim_ascii();
        if text.is_empty() {
            return Ok(());
        }
        out.write_str(" (the kernel says: ")?;
        text.utf8_chunks().try_for_each(|chunk| out.write_str(chunk.valid()))?;
        out.write_str(")")
    }
}

/// What masked paths are covered with: the mounts on the first file and on the first directory.
#[derive(Default)]
struct Covers {
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
    configure(context.as_fd(), c"mask", &[])?;
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

/// A detached copy of what `fd` refers to.
pub(super) fn clone_tree(fd: BorrowedFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(fd, c"", flags)
}

/// move_mount(2) of a detached mount, to a descriptor or a path.
pub(super) fn attach(tree: BorrowedFd, to: BorrowedFd, path: &CStr) -> Result<(), Errno> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    rustix::mount::move_mount(tree, c"", to, path, flags)
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

/// A directory of the container, made with its parents if it is missing.
pub(super) fn directory(root: BorrowedFd, path: &CStr) -> Step<OwnedFd> {
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
        make_component(root, &prefix, start, end).explain(format_args!("make directory {}", InRoot(path)))?;
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
            "{} of the image is a symbolic link; it must be an ordinary directory",
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
fn make_component(root: BorrowedFd, prefix: &[u8], start: usize, end: usize) -> Result<(), Errno> {
    let whole = CStr::from_bytes_until_nul(prefix).map_err(|_| Errno::INVAL)?;
    match open(root, whole, OFlags::PATH) {
        Err(Errno::NOENT) => (),
        other => return other.map(drop),
    }
    let name = CStr::from_bytes_with_nul(&prefix[start..=end]).map_err(|_| Errno::INVAL)?;
    let parent = open_parent(root, &prefix[..start])?;
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
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
    match open(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => (),
        other => return other.explain(format_args!("open {} in the root file system", InRoot(path))),
    }
    let (parent, name) = parent_of(root, path)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(FILE_MODE)) {
        Ok(_) | Err(Errno::EXIST) => (),
        Err(errno) => return Err(Fault::new(errno, format_args!("make file {}", InRoot(path)))),
    }
    open(root, path, OFlags::PATH).explain(format_args!("open {} in the root file system", InRoot(path)))
}

/// An absolute C path without its leading slashes.
fn relative(path: &CStr) -> &CStr {
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
        assert!(directory(root.as_fd(), c"out/made").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("/../../real", dir.path().join("in")).unwrap();
        assert!(directory(root.as_fd(), c"in/made").is_ok());
        assert!(dir.path().join("real/made").is_dir());
    }

    #[test]
    fn leading_slashes_are_cut() {
        assert_eq!(relative(c"//srv/web"), c"srv/web");
        assert_eq!(relative(c"/"), c"");
    }
}
