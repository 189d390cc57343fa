//! The container's terminal: a pty of its own devpts, bound to /dev/console, its master handed out.
//! Everything by descriptor: the slave comes from TIOCGPTPEER, never from a path (CVE-2025-52565).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes};

use super::path::{open, ordinary_file};
use super::rootfs::{attach, clone_tree};
use super::{CONSOLE, Console, Init, process};
use crate::fault::{Explain, Fault, Step};

const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// Make the terminal, if the process has one, and make it the controlling one.
pub(super) fn make(init: &Init) -> Step {
    match &init.console {
        Console::None => Ok(()),
        Console::Slave(slave) => take(init, slave),
        Console::New { socket } => {
            let (master, slave) = open_pty(init.rootfs.as_fd())?;
            if init.plan.namespaces.has(libc::CLONE_NEWNS) {
                bind_console(init.rootfs.as_fd(), &slave)?;
            }
            take(init, &slave)?;
            hand_out(init.sync.as_fd(), socket.as_ref(), &master)
        }
    }
}

/// The other end is a runtime that only carries bytes on, perhaps into a pipe: lines end there as the program ends them.
/// A terminal behind it does its own translation.
fn keep_line_ends(master: &OwnedFd) {
    if let Ok(mut settings) = rustix::termios::tcgetattr(master) {
        settings.output_modes.remove(OutputModes::ONLCR);
        let _ = rustix::termios::tcsetattr(master, OptionalActions::Now, &settings);
    }
}

/// A new pty of the devpts below `root`: master and slave.
pub(super) fn open_pty(root: BorrowedFd) -> Step<(OwnedFd, OwnedFd)> {
    let master = open(root, c"dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW).explain(
        format_args!("open /dev/pts/ptmx: process.terminal needs a devpts mounted on /dev/pts"),
    )?;
    let devpts = rustix::fs::fstatfs(&master).is_ok_and(|stat| stat.f_type as u64 == DEVPTS_SUPER_MAGIC);
    let ptmx = rustix::fs::fstat(&master).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == libc::makedev(5, 2)
    });
    if !devpts || !ptmx {
        return Err(Fault::plain(format_args!(
            "/dev/pts/ptmx is not the ptmx (5:2) of a devpts"
        )));
    }
    slave_of(master)
}

/// The slave of a fresh master.
pub(super) fn slave_of(master: OwnedFd) -> Step<(OwnedFd, OwnedFd)> {
    rustix::pty::unlockpt(&master).explain(format_args!("unlock the pty"))?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .explain(format_args!("open the slave of the pty"))?;
    Ok((master, slave))
}

fn bind_console(root: BorrowedFd, slave: &OwnedFd) -> Step {
    let target = ordinary_file(root, c"dev/console")?;
    let tree = clone_tree(slave.as_fd(), false).explain(format_args!("bind the pty"))?;
    attach(tree.as_fd(), target.as_fd(), c"").explain(format_args!("mount the pty on /dev/console"))
}

fn take(init: &Init, slave: &OwnedFd) -> Step {
    process::take_terminal(slave, init.plan.process.console_size)
}

/// Send the master: to the engine's console socket, or to the parent.
pub(crate) fn hand_out(parent: BorrowedFd, socket: Option<&OwnedFd>, master: &OwnedFd) -> Step {
    match socket {
        Some(socket) => send_descriptor(socket.as_fd(), b"/dev/ptmx", master.as_fd()),
        None => {
            keep_line_ends(master);
            send_descriptor(parent, &[CONSOLE], master.as_fd())
        }
    }
    .explain(format_args!(
        "send the master of the terminal (descriptor {})",
        master.as_raw_fd()
    ))
}

/// One message with one descriptor.
pub(super) fn send_descriptor(socket: BorrowedFd, message: &[u8], fd: BorrowedFd) -> Result<(), rustix::io::Errno> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(
        socket,
        &[std::io::IoSlice::new(message)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
}
