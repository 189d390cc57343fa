//! The child side of `exec`: enter the namespaces of a running container and become the process.
//! Invariant: as in [`super`], only system calls; the process is not dumpable, so nothing inside can look into it.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};

use super::{Console, console, process};
use crate::container::Entry;
use crate::fault::{Explain, Step};
use crate::syscall;

/// Become the process; success closes the socket by execve.
pub(crate) fn run(mut entry: Entry) -> ! {
    let fault = match prepare(&entry) {
        Ok(program) => {
            let report = entry.sync.as_fd();
            process::execute(
                &mut entry.process,
                program,
                entry.proc.as_fd(),
                report,
                entry.preserve_fds,
            )
        }
        Err(fault) => fault,
    };
    fault.send(entry.sync.as_fd());
    syscall::exit(1)
}

fn prepare(entry: &Entry) -> Step<usize> {
    for &fd in &entry.parents {
        // SAFETY: these descriptors belong to the parent's half of the code, which does not run here.
        unsafe { libc::close(fd) };
    }
    let _ = syscall::prctl(libc::PR_SET_DUMPABLE, 0, 0);
    super::reset_signals();
    rustix::process::umask(Mode::empty());
    if let Some(stdio) = &entry.stdio {
        process::wire(&stdio.stdin, &stdio.stdout, &stdio.stderr)?;
    }
    super::await_message(entry.sync.as_fd(), super::GO);
    if let Some(cpus) = &entry.process.affinity.last {
        syscall::sched_setaffinity(cpus.words()).explain(format_args!("set process.execCPUAffinity.final"))?;
    }
    if entry.namespaces != 0 {
        syscall::setns(entry.target.as_fd(), entry.namespaces)
            .explain(format_args!("enter the container's namespaces"))?;
    }
    if entry.namespaces & libc::CLONE_NEWUSER != 0 {
        super::namespaces::become_root(&entry.process)?;
    }
    if let Some(root) = &entry.root {
        rustix::process::fchdir(root).explain(format_args!("enter the container's root"))?;
        rustix::process::chroot(c".").explain(format_args!("enter the container's root"))?;
    }
    rustix::process::setsid().explain(format_args!("setsid"))?;
    if let Some(keyring) = &entry.keyring {
        // As for the init: the caller's keys are not the container's.
        let _ = syscall::join_session_keyring(keyring);
    }
    terminal(entry)?;
    process::change_directory(&entry.process.cwd)?;
    process::find_program(&entry.process)
}

fn terminal(entry: &Entry) -> Step {
    match &entry.console {
        Console::None => Ok(()),
        Console::Slave(slave) => process::take_terminal(slave, entry.process.console_size),
        Console::New { socket } => {
            let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .explain(format_args!("open /"))?;
            let (master, slave) = console::open_pty(root.as_fd())?;
            process::take_terminal(&slave, entry.process.console_size)?;
            console::hand_out(entry.sync.as_fd(), socket.as_ref(), &master)
        }
    }
}
