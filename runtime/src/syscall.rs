//! System calls that rustix lacks, as thin wrappers: clone3, mount_setattr, seccomp, bpf, prctl and relatives.
//! Invariant: none of them allocates, so the child of clone3 may use them all.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Result of a bare system call.
pub(crate) type Sys<T> = std::result::Result<T, Errno>;

/// linux/sched.h; libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The two sides of a clone.
pub(crate) enum Fork {
    /// This is the new process.
    Child,
    /// This is the caller; the new process and its pidfd.
    Parent { pid: i32, pidfd: OwnedFd },
}

fn check(result: libc::c_long) -> Sys<libc::c_long> {
    if result < 0 {
        // SAFETY: __errno_location always gives the calling thread's errno.
        return Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }));
    }
    Ok(result)
}

/// clone3(2) as fork: new namespaces by `flags`, born in `cgroup`, with a pidfd.
///
/// # Safety
/// The caller must be single-threaded, or the child must restrict itself to system calls.
pub(crate) unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd>) -> Sys<Fork> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    // A child for our own parent signals as we do.
    if flags & libc::CLONE_PARENT as u64 == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: args lives through the call, no CLONE_VM, so parent and child have their own memory.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Fork::Child);
    }
    // SAFETY: CLONE_PIDFD stored a descriptor that we now own.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Fork::Parent { pid: pid as i32, pidfd })
}

/// mount_setattr(2) on the mount that `mount` refers to.
pub(crate) fn mount_setattr(mount: BorrowedFd, recursive: bool, set: u64, clear: u64, propagation: u64) -> Sys<()> {
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: 0,
    };
    mount_setattr_raw(mount, recursive, &attr)
}

/// mount_setattr(2) with MOUNT_ATTR_IDMAP: show owners through the mapping of a user namespace.
pub(crate) fn mount_idmap(mount: BorrowedFd, recursive: bool, user_namespace: BorrowedFd) -> Sys<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    mount_setattr_raw(mount, recursive, &attr)
}

fn mount_setattr_raw(mount: BorrowedFd, recursive: bool, attr: &libc::mount_attr) -> Sys<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant, attr lives through the call and its size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const *attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// setns(2) with a namespace descriptor, or with a pidfd and several types.
pub(crate) fn setns(fd: BorrowedFd, types: i32) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), types) }).map(drop)
}

/// unshare(2).
pub(crate) fn unshare(flags: i32) -> Sys<()> {
    // SAFETY: plain integers; none of our flags touches shared memory.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) }).map(drop)
}

/// prctl(2) with integer arguments.
pub(crate) fn prctl(option: i32, argument: u64, argument2: u64) -> Sys<i32> {
    // SAFETY: only options with integer arguments are passed by this crate.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, argument, argument2, 0u64, 0u64) }).map(|value| value as i32)
}

/// close_range(2): close every descriptor from `first` to `last`. Only in a process that goes on without them: no
/// destructor of an owner of one of them may run any more.
pub(crate) fn close_between(first: u32, last: u32) -> Sys<()> {
    // SAFETY: plain integers; by the above, nobody closes one of the numbers again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// close_range(2): mark every descriptor from `first` on close-on-exec.
pub(crate) fn cloexec_from(first: u32) -> Sys<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// seccomp(2) SECCOMP_SET_MODE_FILTER; with SECCOMP_FILTER_FLAG_NEW_LISTENER the result is a descriptor, which is the
/// caller's to close, else 0.
pub(crate) fn seccomp_load(filter: &[libc::sock_filter], flags: u64) -> Sys<RawFd> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program and its instructions live through the call; the kernel copies them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })
    .map(|fd| fd as RawFd)
}

/// bpf(2).
///
/// # Safety
/// `attr` must be what `command` expects, and every address in it valid.
pub(crate) unsafe fn bpf(command: i32, attr: &mut [u8]) -> Sys<i32> {
    // SAFETY: by the contract of this function; the size is that of the slice.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), attr.len()) }).map(|value| value as i32)
}

/// capget(2) of the calling process: (effective, permitted, inheritable).
pub(crate) fn capget() -> Sys<(u64, u64, u64)> {
    let header = CapHeader::default();
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 of the header goes with two data elements.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok((
        join(data[0].effective, data[1].effective),
        join(data[0].permitted, data[1].permitted),
        join(data[0].inheritable, data[1].inheritable),
    ))
}

/// capset(2) of the calling process.
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> Sys<()> {
    let header = CapHeader::default();
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 of the header goes with two data elements.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

impl Default for CapHeader {
    fn default() -> CapHeader {
        const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
        CapHeader {
            version: LINUX_CAPABILITY_VERSION_3,
            pid: 0,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// keyctl(2) KEYCTL_JOIN_SESSION_KEYRING: a keyring of its own for the container.
pub(crate) fn join_session_keyring(name: &CStr) -> Sys<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: the name is NUL-terminated and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) }).map(drop)
}

/// rt_sigaction(2): the default action. The C library's signal(3) would refuse the signals it keeps for itself (32, 33).
pub(crate) fn default_action(signal: i32) -> Sys<()> {
    /// The kernel's own structure: handler, flags, restorer, mask. All-zero is SIG_DFL.
    const DEFAULT: [u64; 4] = [0; 4];
    let none = std::ptr::null_mut::<u64>();
    // SAFETY: the structure lives through the call, the old one is not asked for; the default runs no code of ours.
    check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), none, size_of::<u64>()) }).map(drop)
}

/// prlimit(2): set a limit of `pid` (0: the caller).
pub(crate) fn prlimit(pid: i32, resource: u32, limit: &libc::rlimit64) -> Sys<()> {
    let none = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: limit lives through the call, the old value is not asked for.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const *limit, none) }).map(drop)
}

/// ioprio_set(2) of the calling process.
pub(crate) fn ioprio_set(value: i32) -> Sys<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) }).map(drop)
}

/// sched_setattr(2) of the calling process.
pub(crate) fn sched_setattr(attr: &libc::sched_attr) -> Sys<()> {
    // SAFETY: attr lives through the call and carries its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attr, 0) }).map(drop)
}

/// set_mempolicy(2) of the calling process.
pub(crate) fn set_mempolicy(mode: i32, nodes: &[u64]) -> Sys<()> {
    // The kernel looks at one bit less than it is told.
    let bits = if nodes.is_empty() {
        0
    } else {
        nodes.len() as u64 * 64 + 1
    };
    let mask = if nodes.is_empty() {
        std::ptr::null()
    } else {
        nodes.as_ptr()
    };
    // SAFETY: the mask has at least as many bits as the kernel reads, and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) }).map(drop)
}

/// sched_setaffinity(2) of the calling process.
pub(crate) fn sched_setaffinity(cpus: &[u64]) -> Sys<()> {
    // SAFETY: the mask and its size in bytes belong together.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(cpus), cpus.as_ptr()) }).map(drop)
}

/// sched_getaffinity(2) of the calling process into `cpus`; the number of words written.
pub(crate) fn sched_getaffinity(cpus: &mut [u64]) -> Sys<usize> {
    // SAFETY: the mask and its size in bytes belong together.
    check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(cpus), cpus.as_mut_ptr()) })
        .map(|bytes| bytes as usize / size_of::<u64>())
}

/// personality(2).
pub(crate) fn personality(persona: u64) -> Sys<()> {
    // SAFETY: a plain integer.
    check(unsafe { libc::syscall(libc::SYS_personality, persona) }).map(drop)
}

/// sethostname(2) or setdomainname(2).
pub(crate) fn set_uts_name(call: libc::c_long, name: &CStr) -> Sys<()> {
    // SAFETY: the name and its length belong together.
    check(unsafe { libc::syscall(call, name.as_ptr(), name.count_bytes()) }).map(drop)
}

/// getcwd(2) into `buffer`; the length without the NUL.
pub(crate) fn getcwd(buffer: &mut [u8]) -> Sys<usize> {
    // SAFETY: the buffer and its length belong together.
    check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })
        .map(|length| (length as usize).saturating_sub(1))
}

/// execve(2); comes back only with an error.
///
/// # Safety
/// `argv` and `envp` must be NULL-terminated arrays of C strings.
pub(crate) unsafe fn execve(path: &CStr, argv: *const *const libc::c_char, envp: *const *const libc::c_char) -> Errno {
    // SAFETY: by the contract of this function.
    match check(unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv, envp) }) {
        Err(errno) => errno,
        Ok(_) => Errno::INVAL,
    }
}

/// exit_group(2).
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: does not come back.
    unsafe {
        libc::syscall(libc::SYS_exit_group, code);
        libc::abort()
    }
}

/// execveat(2) of a descriptor; comes back only with an error.
///
/// # Safety
/// `argv` and `envp` must be NULL-terminated arrays of C strings.
pub(crate) unsafe fn fexecve(
    file: BorrowedFd,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
) -> Errno {
    let path = c"".as_ptr();
    // SAFETY: by the contract of this function.
    match check(unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            path,
            argv,
            envp,
            libc::AT_EMPTY_PATH,
        )
    }) {
        Err(errno) => errno,
        Ok(_) => Errno::INVAL,
    }
}
