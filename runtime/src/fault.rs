//! How the child of clone3 says what went wrong: a sentence in a fixed buffer and an errno, sent over a socket.
//! Invariant: nothing here allocates; the parent turns the message into an [`Error`].

use std::ffi::CStr;
use std::fmt::{self, Write};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::error::{Error, Kind, errno_text};

const TEXT: usize = 1024;

/// First byte of a message that carries a [`Fault`].
pub(crate) const FAULT: u8 = b'E';

/// Text of bounded length on the stack; what does not fit is cut off.
pub(crate) struct Text {
    bytes: [u8; TEXT],
    length: usize,
}

impl Text {
    pub fn new() -> Text {
        Text {
            bytes: [0; TEXT],
            length: 0,
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = TEXT - self.length;
        let taken = text.len().min(room);
        self.bytes[self.length..self.length + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.length += taken;
        Ok(())
    }
}

/// A step of the child that failed.
pub(crate) struct Fault {
    errno: i32,
    text: Text,
}

/// Result of a step of the child.
pub(crate) type Step<T = ()> = Result<T, Fault>;

impl Fault {
    /// What was tried, and what the kernel said.
    pub fn new(errno: Errno, what: fmt::Arguments) -> Fault {
        let mut fault = Fault::plain(what);
        fault.errno = errno.raw_os_error();
        fault
    }

    /// A failure that no system call reported.
    pub fn plain(what: fmt::Arguments) -> Fault {
        let mut text = Text::new();
        let _ = text.write_fmt(what);
        Fault { errno: 0, text }
    }

    /// Send it; the receiver's end may be gone, which changes nothing for us.
    pub fn send(&self, socket: BorrowedFd) {
        let mut message = [0; 5 + TEXT];
        let text = self.text.as_bytes();
        message[0] = FAULT;
        message[1..5].copy_from_slice(&self.errno.to_le_bytes());
        message[5..5 + text.len()].copy_from_slice(text);
        let _ = rustix::net::send(socket, &message[..5 + text.len()], SendFlags::NOSIGNAL);
    }

    /// What the kernel said; EPERM where it was not asked.
    pub fn errno(&self) -> Errno {
        match self.errno {
            0 => Errno::PERM,
            errno => Errno::from_raw_os_error(errno),
        }
    }

    /// The receiving side: an error from the bytes of a message.
    pub fn decode(message: &[u8]) -> Option<Error> {
        let (&FAULT, rest) = message.split_first()? else {
            return None;
        };
        let (errno, text) = rest.split_first_chunk::<4>()?;
        let text = String::from_utf8_lossy(text);
        Some(match i32::from_le_bytes(*errno) {
            0 => Error::new(Kind::System, text),
            errno => Error::os(text, std::io::Error::from_raw_os_error(errno)),
        })
    }

    /// The text, for a log line written without a parent to tell.
    pub fn into_error(self) -> Error {
        let text = String::from_utf8_lossy(self.text.as_bytes()).into_owned();
        match self.errno {
            0 => Error::new(Kind::System, text),
            errno => Error::new(Kind::System, format!("{text}: {}", errno_text(errno))),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        for chunk in self.text.as_bytes().utf8_chunks() {
            out.write_str(chunk.valid())?;
        }
        match self.errno {
            0 => Ok(()),
            errno => write!(out, ": {}", ErrnoName(errno)),
        }
    }
}

/// An errno in words, without allocating.
struct ErrnoName(i32);

impl fmt::Display for ErrnoName {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            libc::ENOENT => out.write_str("no such file or directory"),
            libc::EACCES => out.write_str("permission denied"),
            libc::EPERM => out.write_str("operation not permitted"),
            libc::EINVAL => out.write_str("invalid argument"),
            libc::ENOEXEC => out.write_str("exec format error"),
            libc::ENOTDIR => out.write_str("not a directory"),
            other => write!(out, "errno {other}"),
        }
    }
}

/// Adds to an errno what was being tried.
pub(crate) trait Explain<T> {
    fn explain(self, what: fmt::Arguments) -> Step<T>;
}

impl<T> Explain<T> for Result<T, Errno> {
    fn explain(self, what: fmt::Arguments) -> Step<T> {
        self.map_err(|errno| Fault::new(errno, what))
    }
}

/// Shows a path that is relative to the root file system as the container sees it.
pub(crate) struct InRoot<'a>(pub &'a CStr);

impl fmt::Display for InRoot<'_> {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("/")?;
        match self.0.to_bytes() {
            b"." => Ok(()),
            _ => write!(out, "{}", Shown(self.0)),
        }
    }
}

/// Shows a C string.
pub(crate) struct Shown<'a>(pub &'a CStr);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        for chunk in self.0.to_bytes().utf8_chunks() {
            out.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                out.write_str("\u{fffd}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_crosses_a_socket() {
        use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
        let (child, parent) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        use std::os::fd::AsFd;
        Fault::new(Errno::NOENT, format_args!("open {}", InRoot(c"proc/sys"))).send(child.as_fd());
        let mut buffer = [0; 2048];
        let (length, _) = rustix::net::recv(&parent, &mut buffer, RecvFlags::empty()).unwrap();
        let error = Fault::decode(&buffer[..length]).unwrap();
        assert_eq!(error.to_string(), "open /proc/sys: no such file or directory");
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert!(Fault::decode(b"O").is_none());
        assert!(Fault::decode(b"E1").is_none());
    }

    #[test]
    fn long_text_is_cut_not_lost() {
        let long = "x".repeat(4000);
        let fault = Fault::plain(format_args!("{long}"));
        assert_eq!(fault.into_error().to_string().len(), TEXT);
    }
}
