//! `run` and `exec` in the foreground: forward signals to the process, carry its terminal, take over its exit code.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use hull_runtime::container::{Created, Running};
use hull_runtime::error::{Error, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::termios::{OptionalActions, OutputModes, Termios};

use super::notify::Proxy;

/// Signals are blocked and read from a descriptor, so that none is lost between create and wait.
pub(super) struct Watch {
    signals: Option<OwnedFd>,
}

impl Watch {
    /// Block all signals that can be forwarded; not for a process that is left alone.
    pub fn new(detached: bool) -> Result<Watch> {
        if detached {
            return Ok(Watch { signals: None });
        }
        // SAFETY: the set is initialised by sigfillset before it is used; the descriptor is ours.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(Error::os("signalfd", std::io::Error::last_os_error()));
        }
        // SAFETY: signalfd returned a descriptor that we own.
        let signals = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Watch { signals: Some(signals) })
    }

    /// Stay until the process ends: its code, or 128 and its signal. Meanwhile pass on that it is ready.
    pub fn until_exit(&self, process: &Created, console: Option<OwnedFd>, mut notify: Option<Proxy>) -> Result<i32> {
        let mut terminal = console.map(Terminal::new);
        if let Some(terminal) = &terminal {
            terminal.copy_size();
        }
        loop {
            let mut polled = vec![PollFd::new(&process.pidfd, PollFlags::IN)];
            if let Some(signals) = &self.signals {
                polled.push(PollFd::new(signals, PollFlags::IN));
            }
            let notify_at = polled.len();
            if let Some(notify) = &notify {
                polled.push(PollFd::from_borrowed_fd(notify.socket(), PollFlags::IN));
            }
            let terminal_at = polled.len();
            if let Some(terminal) = &terminal {
                polled.push(PollFd::new(&terminal.master, PollFlags::IN));
                if let Some(stdin) = &terminal.stdin {
                    polled.push(PollFd::new(stdin, PollFlags::IN));
                }
            }
            match rustix::event::poll(&mut polled, None) {
                Err(Errno::INTR) => continue,
                other => other.map_err(|e| Error::os("poll", e))?,
            };
            let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            if self.signals.is_some() && ready[1] {
                self.forward(process, terminal.as_ref());
            }
            if let Some(proxy) = notify.take_if(|_| ready[notify_at])
                && !proxy.hear(process.pid)?
            {
                notify = Some(proxy);
            }
            if let Some(terminal) = &mut terminal {
                terminal.carry(ready[terminal_at], ready.get(terminal_at + 1) == Some(&true));
            }
            if ready[0] {
                if let Some(terminal) = &mut terminal {
                    terminal.drain();
                }
                return exit_code(process);
            }
        }
    }

    fn forward(&self, process: &Created, terminal: Option<&Terminal>) {
        let Some(signals) = &self.signals else { return };
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(signals, &mut info) == Ok(info.len()) {
            let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            match (number, terminal) {
                // Ours: its own children, and urgent data, say nothing to the container.
                (libc::SIGCHLD | libc::SIGURG | libc::SIGPIPE, _) => (),
                (libc::SIGWINCH, Some(terminal)) => terminal.copy_size(),
                _ => {
                    // SAFETY: the kernel delivered this number, so it is a signal.
                    let signal = unsafe { Signal::from_raw_unchecked(number) };
                    let _ = rustix::process::pidfd_send_signal(&process.pidfd, signal);
                }
            }
        }
    }
}

fn exit_code(process: &Created) -> Result<i32> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(process.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) | Ok(None) => (),
            Err(e) => return Err(Error::os("wait for the process", e)),
            Ok(Some(status)) => {
                let killed = status.terminating_signal().map(|signal| 128 + signal);
                return Ok(status.exit_status().or(killed).unwrap_or(255));
            }
        }
    }
}

/// Remove a container that cannot stay, and reap its init.
pub(super) fn discard(running: Running) {
    end(&running.created);
    let _ = running.delete();
}

/// Kill and reap a process.
pub(super) fn end(process: &Created) {
    let _ = rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL);
    let _ = exit_code(process);
}

/// The master of the process's terminal, between our own streams.
struct Terminal {
    master: File,
    /// `None` once the input has ended.
    stdin: Option<File>,
    /// How our own terminal was set before it was made raw.
    before: Option<Termios>,
}

impl Terminal {
    fn new(master: OwnedFd) -> Terminal {
        let stdin = rustix::stdio::stdin();
        let before = rustix::termios::tcgetattr(stdin).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            // The process's terminal leaves the ends of lines to this one.
            raw.output_modes.insert(OutputModes::OPOST);
            let _ = rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw);
        }
        Terminal {
            stdin: rustix::io::fcntl_dupfd_cloexec(stdin, 3).ok().map(File::from),
            master: File::from(master),
            before,
        }
    }

    fn copy_size(&self) {
        if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    fn carry(&mut self, output: bool, input: bool) {
        let mut buffer = [0; 16 * 1024];
        if output && let Ok(length) = self.master.read(&mut buffer) {
            let _ = std::io::stdout()
                .write_all(&buffer[..length])
                .and_then(|()| std::io::stdout().flush());
        }
        if input && let Some(stdin) = &mut self.stdin {
            match stdin.read(&mut buffer) {
                Ok(length) if length > 0 => drop(self.master.write_all(&buffer[..length])),
                _ => {
                    // End of input: what a user types for it.
                    const END_OF_TRANSMISSION: &[u8] = &[4];
                    let _ = self.master.write_all(END_OF_TRANSMISSION);
                    self.stdin = None;
                }
            }
        }
    }

    /// What the process wrote before it ended.
    fn drain(&mut self) {
        // SAFETY: plain integers.
        unsafe { libc::fcntl(self.master.as_raw_fd(), libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK) };
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = self.master.read(&mut buffer) {
            let _ = std::io::stdout().write_all(&buffer[..length]);
        }
        let _ = std::io::stdout().flush();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}
