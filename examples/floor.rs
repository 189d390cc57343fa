//! The floor under any OCI runtime, for `cargo xtask bench runtime`: one clone3 with the namespaces of the default
//! configuration, into a cgroup, its mounts in the simplest way, pivot_root, execve. It reads no configuration, keeps no
//! state, protects nothing, and stops at the first error.
//! Usage: floor ROOTFS PROGRAM CGROUP-DIRECTORY
#![no_main]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const FAILED: c_int = 99;

/// Exit, saying where, unless the call worked.
fn check(result: i64, what: &CStr) -> i64 {
    if result < 0 {
        // SAFETY: the text is NUL-terminated; _exit does not come back.
        unsafe {
            libc::perror(what.as_ptr());
            libc::_exit(FAILED)
        }
    }
    result
}

fn mount(source: Option<&CStr>, target: &CStr, kind: Option<&CStr>, flags: u64, data: Option<&CStr>) {
    let pointer = |text: Option<&CStr>| text.map_or(null(), CStr::as_ptr);
    // SAFETY: all strings are NUL-terminated and live through the call.
    let result = unsafe {
        libc::mount(
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(data).cast::<c_void>(),
        )
    };
    check(result.into(), target);
}

#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    if argc != 4 {
        return FAILED;
    }
    // SAFETY: argv has four NUL-terminated strings.
    let [root, program, cgroup] = [1, 2, 3].map(|index| unsafe { CStr::from_ptr(*argv.add(index)) });
    // SAFETY: plain system calls with NUL-terminated strings; the structures live through the calls, and the child of
    // clone3, a copy of this single-threaded process, only makes system calls.
    unsafe {
        libc::mkdir(cgroup.as_ptr(), 0o755);
        let group = check(
            libc::open(cgroup.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC).into(),
            cgroup,
        );
        let mut args: libc::clone_args = std::mem::zeroed();
        let namespaces =
            libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNS;
        args.flags = namespaces as u64 | CLONE_INTO_CGROUP;
        args.exit_signal = libc::SIGCHLD as u64;
        args.cgroup = group as u64;
        let pid = libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>());
        if check(pid, c"clone3") == 0 {
            child(root, program);
        }
        let mut status = 0;
        libc::waitpid(pid as libc::pid_t, &raw mut status, 0);
        libc::rmdir(cgroup.as_ptr());
        libc::WEXITSTATUS(status)
    }
}

fn child(root: &CStr, program: &CStr) -> ! {
    const STRICT: u64 = libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV;
    mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None);
    mount(Some(root), root, None, libc::MS_BIND | libc::MS_REC, None);
    // SAFETY: as in main.
    unsafe {
        check(libc::chdir(root.as_ptr()).into(), c"chdir");
        mount(Some(c"proc"), c"proc", Some(c"proc"), STRICT, None);
        let dev = libc::MS_NOSUID | libc::MS_STRICTATIME;
        mount(
            Some(c"tmpfs"),
            c"dev",
            Some(c"tmpfs"),
            dev,
            Some(c"mode=755,size=65536k"),
        );
        for directory in [c"dev/pts", c"dev/shm", c"dev/mqueue"] {
            libc::mkdir(directory.as_ptr(), 0o755);
        }
        let pts = Some(c"newinstance,ptmxmode=0666,mode=0620");
        mount(
            Some(c"devpts"),
            c"dev/pts",
            Some(c"devpts"),
            libc::MS_NOSUID | libc::MS_NOEXEC,
            pts,
        );
        mount(
            Some(c"shm"),
            c"dev/shm",
            Some(c"tmpfs"),
            STRICT,
            Some(c"mode=1777,size=65536k"),
        );
        mount(Some(c"mqueue"), c"dev/mqueue", Some(c"mqueue"), STRICT, None);
        mount(Some(c"sysfs"), c"sys", Some(c"sysfs"), STRICT | libc::MS_RDONLY, None);
        let here = c".".as_ptr();
        check(libc::syscall(libc::SYS_pivot_root, here, here), c"pivot_root");
        check(libc::umount2(here, libc::MNT_DETACH).into(), c"umount2");
        libc::sethostname(c"floor".as_ptr(), 5);
        let argv = [program.as_ptr(), null_mut()];
        let envp = [c"PATH=/bin".as_ptr(), null_mut()];
        check(
            libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()).into(),
            c"execve",
        );
        libc::_exit(FAILED)
    }
}
