//! What a process can do where it is: run inside a container by the tests, which read one answer a line.
//! `probe identity`: privileges that the runtime should have dropped. `probe syscalls`: numbers the seccomp filter denies.
//! `probe writable DIR...`: files that can be opened for writing. `probe overwrite`: CVE-2019-5736. `probe pages N`:
//! N huge pages.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rest = arguments.get(1..).unwrap_or_default();
    match arguments.first().map(String::as_str) {
        Some("identity") => identity(),
        Some("syscalls") => syscalls(),
        Some("writable") => rest.iter().for_each(|dir| writable(Path::new(dir))),
        Some("overwrite") => overwrite(),
        Some("pages") => pages(rest.first().and_then(|count| count.parse().ok()).unwrap_or(1)),
        _ => {
            eprintln!("usage: probe identity | syscalls | writable DIR... | overwrite | pages N");
            std::process::exit(2);
        }
    }
}

fn prctl(option: i32) -> i32 {
    // SAFETY: only options without a pointer are asked for.
    unsafe { libc::prctl(option, 0, 0, 0, 0) }
}

/// State that survives execve unless somebody resets it.
fn identity() {
    let mut signal = 0;
    // SAFETY: the option stores one integer.
    unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
    println!("parent-death signal: {signal}");
    println!("keep capabilities: {}", prctl(libc::PR_GET_KEEPCAPS));
    println!("secure bits: {}", prctl(libc::PR_GET_SECUREBITS));
    println!("subreaper: {}", subreaper());
    // SAFETY: no arguments that matter.
    let (session, own) = unsafe { (libc::getsid(0), libc::getpid()) };
    println!("session leader: {}", session == own);
    println!("keyring: {}", keyring());
    println!("signals: {}", signals());
    println!("descriptors: {}", descriptors());
}

fn subreaper() -> i32 {
    let mut set = -1;
    // SAFETY: the option stores one integer.
    unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut set) };
    set
}

/// The session keyring's description ends in its name.
fn keyring() -> String {
    const KEYCTL_DESCRIBE: i32 = 6;
    const KEY_SPEC_SESSION_KEYRING: i32 = -3;
    let mut text = [0u8; 256];
    // SAFETY: the buffer and its length belong together.
    let length = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_DESCRIBE,
            KEY_SPEC_SESSION_KEYRING,
            text.as_mut_ptr(),
            text.len(),
        )
    };
    let text = String::from_utf8_lossy(&text[..length.clamp(1, 256) as usize - 1]).into_owned();
    text.rsplit(';').next().unwrap_or_default().to_owned()
}

/// Signals that are ignored or blocked, as the kernel's masks.
fn signals() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Rust's own start-up ignores SIGPIPE.
    let sigpipe = 1u64 << (libc::SIGPIPE - 1);
    let mask = |name: &str| {
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default();
        u64::from_str_radix(value.trim(), 16).unwrap_or(u64::MAX) & !sigpipe
    };
    format!("ignored {:x} blocked {:x}", mask("SigIgn:"), mask("SigBlk:"))
}

fn descriptors() -> String {
    let open = |fd: &i32| {
        // SAFETY: only asked about.
        unsafe { libc::fcntl(*fd, libc::F_GETFD) >= 0 }
    };
    let numbers: Vec<String> = (0..1024).filter(open).map(|fd| fd.to_string()).collect();
    numbers.join(" ")
}

/// No call is executed: a second filter hands what the first one allows to a tracer that is not there (ENOSYS).
fn syscalls() {
    const HIGHEST: i64 = 480;
    /// Only for the kernel's own trampolines (uretprobe, uprobe): SIGILL for everybody else, filter or not.
    const TRAMPOLINES: [i64; 2] = [335, 336];
    const TRACE: u32 = 0x7ff0_0000;
    const ALLOW: u32 = 0x7fff_0000;
    let returned = |k| libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k,
    };
    // What this program itself needs to report and to end passes.
    let own = [
        libc::SYS_write,
        libc::SYS_exit_group,
        libc::SYS_munmap,
        libc::SYS_brk,
        libc::SYS_sigaltstack,
    ];
    let mut filter = vec![libc::sock_filter {
        code: 0x20,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    for (index, number) in own.iter().enumerate() {
        let jt = (own.len() - index) as u8;
        filter.push(libc::sock_filter {
            code: 0x15,
            jt,
            jf: 0,
            k: *number as u32,
        });
    }
    filter.extend([returned(TRACE), returned(ALLOW)]);
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    let mut denied = String::new();
    // SAFETY: the program lives through the call; the calls below are not executed.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program);
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        for number in (0..=HIGHEST).filter(|number| !own.contains(number) && !TRAMPOLINES.contains(number)) {
            let result = libc::syscall(number, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64);
            if result == -1 && *libc::__errno_location() == libc::EPERM {
                denied.push_str(&format!("{number} "));
            }
        }
    }
    println!("{}", denied.trim_end());
}

/// Files below `dir` that can be opened for writing; processes' own directories are left out.
fn writable(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        let name = path.file_name().unwrap_or_default().as_bytes();
        let process = dir == Path::new("/proc") && (name[0].is_ascii_digit() || name.ends_with(b"self"));
        if metadata.is_dir() && !process {
            writable(&path);
        } else if metadata.is_file() {
            let path = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
            // SAFETY: the path is a C string; a descriptor is closed again.
            unsafe {
                let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_NONBLOCK | libc::O_CLOEXEC);
                if fd >= 0 {
                    libc::close(fd);
                    println!("{}", path.to_string_lossy());
                }
            }
        }
    }
}

/// Wait for a process whose program is neither the container's init's nor our own, hold its program, and write to it as
/// soon as it is not busy any more.
fn overwrite() {
    println!("ready");
    let known = [
        place(Path::new("/proc/1/exe")),
        place(Path::new("/proc/self/exe")),
        (0, 0),
    ];
    loop {
        let Ok(processes) = std::fs::read_dir("/proc") else {
            return;
        };
        for process in processes.flatten() {
            let exe = process.path().join("exe");
            let Ok(path) = CString::new(exe.as_os_str().as_bytes()) else {
                continue;
            };
            if known.contains(&place(&exe)) {
                continue;
            }
            // SAFETY: a C string; the descriptor, if there is one, is ours.
            let held = unsafe {
                match libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) {
                    ..0 => continue,
                    fd => OwnedFd::from_raw_fd(fd),
                }
            };
            let through = format!("/proc/self/fd/{}", held.as_raw_fd());
            if known.contains(&place(Path::new(&through))) {
                continue;
            }
            println!("held {}: {}", exe.display(), write_to(Path::new(&through)));
            return;
        }
    }
}

/// Why it cannot be written, once nobody executes it any more.
fn write_to(path: &Path) -> String {
    loop {
        match std::fs::OpenOptions::new().write(true).open(path) {
            Ok(mut file) => {
                let _ = std::io::Write::write_all(&mut file, b"#!/overwritten\n");
                return "written".to_owned();
            }
            Err(e) if e.raw_os_error() == Some(libc::ETXTBSY) => (),
            Err(e) => return e.to_string(),
        }
    }
}

/// Device and inode behind a path; zeros if it cannot be reached.
fn place(path: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or((0, 0), |metadata| (metadata.dev(), metadata.ino()))
}

/// Map and touch huge pages of 2 MiB; prints how many there were before the kernel refused.
fn pages(count: usize) {
    const SIZE: usize = 2 << 20;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    let mut got = 0;
    for _ in 0..count {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            break;
        }
        got += 1;
    }
    println!("huge pages: {got}");
}
