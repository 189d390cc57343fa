//! Keeps the runtime's binary out of the reach of containers (CVE-2019-5736): what runs inside must not be able to
//! open /proc/<pid>/exe for writing. The process executes itself again from a detached read-only mount of its own file:
//! no copy, no memory, about 0.5 ms, nothing when the binary is on a read-only file system already. The mount belongs to
//! no namespace, so nobody can make it writable again. Where mounts are refused, a sealed memfd copy takes its place.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::error::{Error, Result};
use crate::plan::process::CArray;
use crate::syscall::{self, Sys};

const SELF: &str = "/proc/self/exe";

/// Return if the running binary cannot be written through /proc/self/exe; else execute it again so that it cannot.
pub fn protect() -> Result<()> {
    if is_protected().map_err(|e| Error::os("look at /proc/self/exe", e))? {
        return Ok(());
    }
    let binary = match read_only_mount() {
        Ok(mount) => mount,
        Err(_) => sealed_copy().map_err(|e| Error::os("copy the runtime's binary into memory", e))?,
    };
    let strings = |items: Vec<Vec<u8>>| items.into_iter().filter_map(|item| CString::new(item).ok()).collect();
    let argv = CArray::new(strings(std::env::args_os().map(OsStringExt::into_vec).collect()), 0);
    let pair =
        |(name, value): (std::ffi::OsString, std::ffi::OsString)| [name.into_vec(), value.into_vec()].join(&b'=');
    let envp = CArray::new(strings(std::env::vars_os().map(pair).collect()), 0);
    // SAFETY: CArray keeps NULL-terminated arrays; the descriptor is open.
    let errno = unsafe { syscall::fexecve(binary.as_fd(), argv.as_ptr(), envp.as_ptr()) };
    Err(Error::os("execute the runtime's protected binary", errno))
}

fn is_protected() -> Sys<bool> {
    if rustix::fs::statvfs(SELF)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    let file = rustix::fs::open(SELF, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::WRITE)))
}

fn read_only_mount() -> Sys<OwnedFd> {
    let tree = rustix::mount::open_tree(
        CWD,
        SELF,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    syscall::mount_setattr(tree.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0)?;
    Ok(tree)
}

fn sealed_copy() -> Sys<OwnedFd> {
    let source = rustix::fs::open(SELF, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match rustix::fs::memfd_create("hull-runtime", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("hull-runtime", flags)?,
        other => other?,
    };
    while rustix::fs::sendfile(&copy, &source, None, 1 << 30)? > 0 {}
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_mount_cannot_be_written_through_and_the_copy_is_sealed() {
        let mount = read_only_mount().unwrap();
        let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
        let error = std::fs::OpenOptions::new().write(true).open(path).unwrap_err();
        assert!(
            matches!(error.raw_os_error(), Some(libc::EROFS | libc::ETXTBSY)),
            "{error}"
        );
        assert!(
            rustix::fs::fstatvfs(&mount)
                .unwrap()
                .f_flag
                .contains(StatVfsMountFlags::RDONLY)
        );
        let copy = sealed_copy().unwrap();
        assert_eq!(rustix::io::write(&copy, b"x"), Err(Errno::PERM));
    }
}
