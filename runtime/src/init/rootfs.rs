//! The root file system inside the new mount namespace: mounts, /dev, masks, pivot_root.
//! Every target is opened in the root with openat2(RESOLVE_IN_ROOT) and mounted on by descriptor with move_mount,
//! so no symbolic link or rename of the image leads out (CVE-2021-30465, -2024-45310, -2025-31133).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::masks::{Covers, protect};
use super::path::{directory, file, is_proc, open, ordinary, relative};
use super::{Init, console, dev};
use crate::fault::{Explain, Fault, InRoot, Shown, Step};
use crate::plan::mounts::{MountPlan, Source};
use crate::syscall;

/// Directories of the image that may not be links: what is made below them must be where the container finds it.
const ORDINARY: [&CStr; 3] = [c"proc", c"sys", c"dev"];

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
    crate::hooks::run("createContainer", &plan.hooks.create_container, &init.created, pid)?;
    set_sysctls(init)?;
    if plan.process.cwd.as_c_str() != c"/" {
        let cwd = relative(&plan.process.cwd);
        // An existing cwd that is no directory, or a read-only root: chdir will say it better.
        let _ = directory(root, cwd);
    }
    restrict(init, ahead)?;
    enter(init)
}

/// What was done early, while the parent still made the network.
#[derive(Default)]
struct Ahead {
    /// /dev is populated.
    dev: bool,
    /// Paths below /proc are masked and read-only.
    proc: bool,
    /// What they are masked with.
    covers: Covers,
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
        let mut ahead = Ahead {
            dev: plan.populate_dev && settled(b"dev"),
            proc: settled(b"proc"),
            covers: Covers::default(),
        };
        if ahead.dev {
            dev::populate(init.rootfs.as_fd(), &plan.devices, &init.devices)?;
        }
        if ahead.proc {
            protect(init, made, &mut ahead.covers, in_proc)?;
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
fn restrict(init: &Init, mut ahead: Ahead) -> Step {
    let plan = &init.plan;
    let proc_done = ahead.proc;
    protect(init, &plan.mounts, &mut ahead.covers, |path| {
        !(proc_done && in_proc(path))
    })?;
    for mount in plan.mounts.iter().filter(|mount| mount.read_only_last) {
        let target = open(init.rootfs.as_fd(), &mount.target, OFlags::PATH)
            .explain(format_args!("open {} in the root file system", InRoot(&mount.target)))?;
        syscall::mount_setattr(target.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0)
            .explain(format_args!("make {} read-only", InRoot(&mount.target)))?;
    }
    if plan.readonly_rootfs {
        syscall::mount_setattr(init.rootfs.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0)
            .explain(format_args!("make the root file system read-only"))?;
    }
    Ok(())
}

fn enter(init: &Init) -> Step {
    let root = init.rootfs.as_fd();
    if init.no_pivot && init.plan.namespaces.makes(libc::CLONE_NEWNS) {
        hide_views(&init.views)?;
    }
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

/// The host's own procfs and sysfs stay in the mount namespace of a container that was not pivoted, out of its sight. But
/// while the kernel sees them there whole, it lets a user namespace of the container mount new ones, without masks.
fn hide_views(views: &[std::ffi::CString]) -> Step {
    for path in views {
        // In a user namespace mounts that were inherited cannot be removed, only covered.
        let hidden = rustix::mount::unmount(path.as_c_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .or_else(|_| rustix::mount::mount(c"tmpfs", path.as_c_str(), c"tmpfs", MountFlags::RDONLY, None));
        match hidden {
            // It went with one that it was mounted on.
            Ok(()) | Err(Errno::NOENT) => (),
            Err(errno) => return Err(Fault::new(errno, format_args!("hide the host's {}", Shown(path)))),
        }
    }
    Ok(())
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
            let mode = mode_of_image(root, mount, kind, parameters);
            let tree = file_system(mount, kind, source, parameters, mode)?;
            attach_checked(root, mount, tree.as_fd(), true)
        }
        (Source::Bind { .. }, None) => Err(Fault::plain(format_args!(
            "bind source of {} is missing",
            InRoot(&mount.target)
        ))),
    }
}

/// A tmpfs for which no mode is given takes that of the image's directory; only that of a new one is tmpfs's own, 1777.
pub(crate) fn mode_of_image(
    root: BorrowedFd,
    mount: &MountPlan,
    kind: &CStr,
    parameters: &[(std::ffi::CString, Option<std::ffi::CString>)],
) -> Option<u32> {
    if kind != c"tmpfs" || parameters.iter().any(|(key, _)| key.as_c_str() == c"mode") {
        return None;
    }
    let directory = open(root, &mount.target, OFlags::PATH | OFlags::DIRECTORY).ok()?;
    let stat = rustix::fs::fstat(&directory).ok()?;
    Some(stat.st_mode & 0o7777)
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
    attach(tree, target.as_fd(), c"").map_err(|errno| not_attached(errno, target.as_fd(), mount, is_directory))?;
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

/// A new file system, mounted nowhere yet.
pub(crate) fn file_system(
    mount: &MountPlan,
    kind: &CStr,
    source: &CStr,
    parameters: &[(std::ffi::CString, Option<std::ffi::CString>)],
    mode: Option<u32>,
) -> Step<OwnedFd> {
    let context = match rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::PERM) if kind == c"sysfs" => return host_sysfs(mount),
        other => other.explain(format_args!(
            "mount {} on {}: open the file system",
            Shown(kind),
            InRoot(&mount.target)
        ))?,
    };
    let result = configure(context.as_fd(), source, parameters, mode).and_then(|()| {
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

pub(super) fn configure(
    context: BorrowedFd,
    source: &CStr,
    parameters: &[(std::ffi::CString, Option<std::ffi::CString>)],
    mode: Option<u32>,
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
    if let Some(mode) = mode {
        let mut text = crate::fault::Text::new();
        let _ = std::fmt::write(&mut text, format_args!("{mode:o}\0"));
        let value = CStr::from_bytes_until_nul(text.as_bytes()).unwrap_or_default();
        rustix::mount::fsconfig_set_string(context, c"mode", value)?;
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
        mount.attributes.clear & !libc::MOUNT_ATTR_RDONLY,
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
