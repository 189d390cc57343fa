//! Waiting for descriptors in the runtime's event loop: pidfds, terminals, pipes, inotify queues.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers a descriptor; it is closed when the result is dropped.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, is owned by the AsyncFd from here on, and has the same number until it is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}
