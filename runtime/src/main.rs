//! hull-runtime: the OCI runtime's command line, as podman, buildah and containerd call it, and the warden.
//! Arguments follow runc's. No argument-parsing crate, no async runtime, and not even std's own start-up: a command
//! starts in well under a millisecond.
#![cfg_attr(not(test), no_main)]

mod cli;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod entry;

/// What the C library calls. std's own `main` would first read /proc/self/maps and set up a signal stack.
#[cfg_attr(not(test), unsafe(export_name = "main"))]
extern "C" fn start(_argc: i32, _argv: *const *const std::ffi::c_char) -> i32 {
    open_streams();
    // SAFETY: ignoring runs no code. A closed pipe is an error to report, not a reason to die.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let code = cli::main(&arguments);
    let _ = std::io::Write::flush(&mut std::io::stdout());
    code
}

/// The test harness has a main of its own.
#[cfg(test)]
#[used]
static START: extern "C" fn(i32, *const *const std::ffi::c_char) -> i32 = start;

/// Descriptors 0 to 2 must be taken, or a file opened later becomes a stream.
fn open_streams() {
    // SAFETY: plain integers.
    if (0..=2).all(|fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0) {
        return;
    }
    loop {
        // SAFETY: plain integers and a constant path.
        let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        match fd {
            0..=2 => {
                // SAFETY: plain integers; the stream is to survive execve as streams do.
                unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
            }
            3.. => {
                // SAFETY: the descriptor was just opened here.
                unsafe { libc::close(fd) };
                return;
            }
            _ => return,
        }
    }
}
