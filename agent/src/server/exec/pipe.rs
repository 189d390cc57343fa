//! The agent's end of a program's pipe or terminal, read and written without blocking.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;

use crate::pod::fd;

/// A pipe or terminal without blocking.
pub struct Pipe {
    fd: AsyncFd<OwnedFd>,
}

impl Pipe {
    /// Makes `fd` non-blocking and watches it.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Pipe { fd: fd::watch(fd)? })
    }

    /// Reads what there is; 0 at the end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(result) = ready.try_io(|fd| rustix::io::read(fd.as_fd(), &mut *buffer).map_err(Into::into)) {
                return result;
            }
        }
    }

    /// Writes everything.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            if let Ok(result) = ready.try_io(|fd| rustix::io::write(fd.as_fd(), bytes).map_err(Into::into)) {
                bytes = &bytes[result?..];
            }
        }
        Ok(())
    }

    /// Tells a terminal its size; a pipe has none.
    pub fn resize(&self, size: Winsize) {
        let _ = tcsetwinsize(self.fd.get_ref(), size);
    }
}
