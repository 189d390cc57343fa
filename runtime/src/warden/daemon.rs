//! Becoming the warden: one per directory, in the background, in a session of its own, parent of orphans, hard to kill.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio, exit};

use nix::unistd::{ForkResult, fork};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::{Context, Error};
use super::{Client, server};

/// What the kernel may use to choose the process to kill when memory is out: this one last.
const OOM_SCORE_ADJ: &str = "-999";
/// The warden's own messages start over beyond this.
const MESSAGES_MAX: u64 = 1 << 20;

/// Runs the warden of `dir` in the background; returns when it answers, or with the reason why it does not.
/// If one runs already, that is success.
pub fn main(dir: &Path) -> Result<(), Error> {
    close_inherited();
    make_dir(dir)?;
    let dir = &fs::canonicalize(dir).context(|| format!("resolving {}", dir.display()))?;
    // Starters queue here, so that the second finds the first one's warden answering.
    let starting = open_lock(dir, "starting")?;
    starting
        .lock()
        .context(|| format!("locking {}/starting", dir.display()))?;
    let lock = match lock(dir)? {
        Some(lock) => lock,
        None if Client::connect(dir).is_ok() => return Ok(()),
        // Held by one that is ending.
        None => {
            let lock = open_lock(dir, "lock")?;
            lock.lock()
                .context(|| format!("waiting for the former warden of {}", dir.display()))?;
            lock
        }
    };
    let (ready, report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context(|| "making the pipe to report readiness".into())?;
    // SAFETY: hull-runtime has one thread, so the child may do anything.
    match unsafe { fork() }.context(|| "forking the warden".into())? {
        ForkResult::Parent { .. } => {
            drop(report);
            await_ready(ready, dir)
        }
        ForkResult::Child => {
            drop((ready, starting));
            exit(background(dir, report, &lock))
        }
    }
}

/// What a starter left open by mistake would stay open for the warden's life.
fn close_inherited() {
    // SAFETY: nothing of this process has opened a descriptor above 2 that is still in use: it has only read its arguments.
    let _ = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Starts the warden of `dir` unless one answers. Any number of callers at once end up with the same one.
pub fn spawn(binary: &Path, dir: &Path) -> Result<(), Error> {
    if Client::connect(dir).is_ok() {
        return Ok(());
    }
    let failed = |reason: String| Error::Start {
        binary: binary.to_owned(),
        reason,
    };
    let output = Command::new(binary)
        .arg("warden")
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(failed(if text.trim().is_empty() {
        output.status.to_string()
    } else {
        text.trim().to_owned()
    }))
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.context(|| format!("making the warden's directory {}", dir.display()))
}

/// The lock that the one warden of a directory holds while it lives; None if another has it.
fn lock(dir: &Path) -> Result<Option<File>, Error> {
    let lock = open_lock(dir, "lock")?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(Error::io(format!("locking {}/lock", dir.display()), error)),
    }
}

fn open_lock(dir: &Path, name: &str) -> Result<File, Error> {
    let path = dir.join(name);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    file.context(|| format!("opening the lock {}", path.display()))
}

fn await_ready(ready: OwnedFd, dir: &Path) -> Result<(), Error> {
    let mut text = String::new();
    File::from(ready)
        .read_to_string(&mut text)
        .context(|| "waiting for the warden".into())?;
    match text.strip_prefix("ready") {
        Some(_) => Ok(()),
        None if text.is_empty() => {
            let reason = format!("it died at once; see {}", dir.join("warden.log").display());
            Err(Error::Protocol(reason))
        }
        None => Err(Error::Protocol(text)),
    }
}

/// The warden's life. Returns its exit code.
fn background(dir: &Path, report: OwnedFd, _lock: &File) -> i32 {
    let mut report = File::from(report);
    let started = detach(dir).and_then(|()| server::Warden::open(dir));
    let mut warden = match started {
        Ok(warden) => warden,
        Err(error) => {
            let _ = write!(report, "{error}");
            return 1;
        }
    };
    let _ = report.write_all(b"ready");
    drop(report);
    match warden.run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("warden: ended: {error}");
            1
        }
    }
}

fn detach(dir: &Path) -> Result<(), Error> {
    let _ = rustix::process::setsid();
    rustix::process::chdir("/").context(|| "changing to /".into())?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // A subreaper is told of the end of every process its containers leave behind.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context(|| "becoming the reaper of orphans".into())?;
    let _ = rustix::thread::set_name(c"hull-warden");
    // Needs CAP_SYS_RESOURCE; without it the warden is as mortal as others.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            ..files
        },
    );
    redirect_streams(dir)
}

fn redirect_streams(dir: &Path) -> Result<(), Error> {
    let path = dir.join("warden.log");
    let what = || format!("opening {}", path.display());
    let messages = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .context(what)?;
    if messages.metadata().is_ok_and(|metadata| metadata.len() > MESSAGES_MAX) {
        messages.set_len(0).context(what)?;
    }
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context(|| "opening /dev/null".into())?;
    rustix::stdio::dup2_stdin(null.as_fd()).context(what)?;
    rustix::stdio::dup2_stdout(null.as_fd()).context(what)?;
    rustix::stdio::dup2_stderr(messages.as_fd()).context(what)
}
