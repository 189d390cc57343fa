//! /dev inside the container: nodes, links, and the host's null device for masks.
//! Nodes are made, or in a user namespace bound, by descriptor of their directory; whatever stands in their place already
//! must be that very device.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::path::{ordinary, ordinary_file, parent_of};
use super::rootfs::{attach, clone_tree};
use crate::fault::{Explain, Fault, InRoot, Shown, Step};
use crate::plan::devices::{DevicePlan, LINKS};
use crate::syscall::Sys;

/// Make nodes and links. `bound` holds detached mounts of the host's nodes where mknod is not allowed.
pub(super) fn populate(root: BorrowedFd, devices: &[DevicePlan], bound: &[OwnedFd]) -> Step {
    // Nearly all are in /dev itself: opened once.
    let dev = ordinary(root, c"dev")?;
    for (index, device) in devices.iter().enumerate() {
        match bound.get(index) {
            Some(tree) => {
                let target = ordinary_file(root, &device.path)?;
                attach(tree.as_fd(), target.as_fd(), c"")
                    .explain(format_args!("bind device {}", InRoot(&device.path)))?;
            }
            None => match in_dev(&device.path) {
                Some(name) => node(dev.as_fd(), name, device)?,
                None => {
                    let (parent, name) = parent_of(root, &device.path)?;
                    node(parent.as_fd(), name, device)?;
                }
            },
        }
    }
    for (name, to) in LINKS {
        link(dev.as_fd(), name, to)?;
    }
    Ok(())
}

/// The name of a node directly in /dev.
fn in_dev(path: &CStr) -> Option<&CStr> {
    let name = path.to_bytes_with_nul().strip_prefix(b"dev/")?;
    (!name.contains(&b'/'))
        .then(|| CStr::from_bytes_with_nul(name).ok())
        .flatten()
}

fn node(parent: BorrowedFd, name: &CStr, device: &DevicePlan) -> Step {
    let kind = FileType::from_raw_mode(device.mode);
    let mode = Mode::from_raw_mode(device.mode);
    match rustix::fs::mknodat(parent, name, kind, mode, device.device) {
        Ok(()) => (),
        Err(Errno::EXIST) => return same(parent, name, device),
        Err(errno) => return Err(Fault::new(errno, format_args!("make device {}", InRoot(&device.path)))),
    }
    if device.uid != 0 || device.gid != 0 {
        own(parent, name, device)?;
    }
    Ok(())
}

/// Give the node to its owner, after a look at what has this name now: the directory may be shared.
fn own(parent: BorrowedFd, name: &CStr, device: &DevicePlan) -> Step {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(parent, name, flags, Mode::empty())
        .explain(format_args!("open device {}", InRoot(&device.path)))?;
    same(node.as_fd(), c"", device)?;
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    rustix::fs::chownat(&node, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
        .explain(format_args!("chown device {}", InRoot(&device.path)))
}

/// What exists already is the device that was asked for.
fn same(parent: BorrowedFd, name: &CStr, device: &DevicePlan) -> Step {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH)
        .explain(format_args!("stat {}", InRoot(&device.path)))?;
    let kind = FileType::from_raw_mode(device.mode);
    let number = matches!(kind, FileType::Fifo) || stat.st_rdev == device.device;
    if FileType::from_raw_mode(stat.st_mode) == kind && number {
        return Ok(());
    }
    Err(Fault::plain(format_args!(
        "make device {}: something else is there already",
        InRoot(&device.path)
    )))
}

fn link(dev: BorrowedFd, name: &CStr, to: &CStr) -> Step {
    match rustix::fs::symlinkat(to, dev, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Fault::new(
            errno,
            format_args!("link /dev/{} to {}", Shown(name), Shown(to)),
        )),
    }
}

/// A detached mount of the host's /dev/null, proven to be the null device (ENODEV if it is another). Only before pivot_root.
pub(super) fn null() -> Sys<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open(c"/dev/null", flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&null)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != libc::makedev(1, 3) {
        return Err(Errno::NODEV);
    }
    clone_tree(null.as_fd(), false)
}
