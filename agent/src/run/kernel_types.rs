//! Keeping a thread from reading the running kernel's type information (BTF).
//!
//! aya's loader parses all of it whenever a loader is made, 30 ms and tens of megabytes each time, though no program of hull is
//! relocated by it; version 0.14 has no way around that but a file that cannot be read. So the threads that load programs put
//! themselves under a Landlock rule set (landlock(7)) that lets them read everything else. It ends with the thread, and costs
//! 0.1 ms. A kernel without Landlock loads as it did before, only later.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Where the kernel's types are.
const DIRECTORY: &str = "/sys/kernel/btf";
/// LANDLOCK_ACCESS_FS_READ_FILE: nothing else is ruled, so all else is free. But nothing can be mounted under any rules.
const READ_FILE: u64 = 1 << 2;
const RULE_PATH_BENEATH: libc::c_int = 1;

/// struct landlock_ruleset_attr, as it was first.
#[repr(C)]
struct RuleSet {
    handled_access_fs: u64,
}

/// struct landlock_path_beneath_attr.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: RawFd,
}

/// From here on this thread, and threads that it starts, cannot read the kernel's types, nor mount anything.
///
/// # Errors
/// The kernel has no Landlock, or refuses; then nothing has changed.
pub(super) fn hide() -> io::Result<()> {
    let rules = RuleSet {
        handled_access_fs: READ_FILE,
    };
    // SAFETY: the kernel reads the structure during the call, and no more of it than the size that is given.
    let made = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const rules,
            size_of::<RuleSet>(),
            0,
        )
    };
    let made = RawFd::try_from(checked(made)?).map_err(io::Error::other)?;
    // SAFETY: the descriptor was made by the call above and belongs to nobody else.
    let rules = unsafe { OwnedFd::from_raw_fd(made) };
    allow_all_but(&rules, Path::new(DIRECTORY))?;
    // SAFETY: takes a descriptor and flags, no pointers.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) })?;
    Ok(())
}

/// Rules only allow: so everything beside each part of the path is allowed.
fn allow_all_but(rules: &OwnedFd, path: &Path) -> io::Result<()> {
    for hidden in path.ancestors().take_while(|hidden| hidden.parent().is_some()) {
        let Some(parent) = hidden.parent() else { break };
        for entry in std::fs::read_dir(parent)? {
            let entry = entry?.path();
            if entry != hidden {
                allow(rules, &entry)?;
            }
        }
    }
    Ok(())
}

fn allow(rules: &OwnedFd, path: &Path) -> io::Result<()> {
    let opened = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        // A link that leads nowhere, or what has gone meanwhile.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let rule = PathBeneath {
        allowed_access: READ_FILE,
        parent_fd: opened.as_raw_fd(),
    };
    // SAFETY: the kernel reads the structure during the call; the descriptor in it is open until after.
    let added = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            rules.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0,
        )
    };
    checked(added).map(|_| ())
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TYPES: &str = "/sys/kernel/btf/vmlinux";
    const PROCESSORS: &str = "/sys/devices/system/cpu/possible";

    #[test]
    fn only_the_types_and_only_this_thread() {
        let hidden = std::thread::spawn(|| {
            hide().unwrap();
            let inherits = std::thread::spawn(|| fs::read(TYPES).is_err());
            let others = [PROCESSORS, "/proc/self/stat", "/etc/passwd", "/proc/sys/kernel/ostype"];
            let readable = others.map(|path| fs::read(path).is_ok());
            let written = tempfile::NamedTempFile::new().and_then(|file| fs::write(file.path(), "x"));
            let error = fs::read(TYPES).map_err(|error| error.kind());
            (error, readable, written.is_ok(), inherits.join().unwrap())
        });
        let (error, readable, written, inherits) = hidden.join().unwrap();
        assert_eq!(error, Err(io::ErrorKind::PermissionDenied));
        assert_eq!(readable, [true; 4]);
        assert!(written && inherits);
        assert!(fs::read(TYPES).is_ok(), "other threads are as they were");
    }
}
