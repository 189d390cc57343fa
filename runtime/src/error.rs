//! The runtime's error: one sentence for the operator, and a kind that callers and exit codes can branch on.
//! The text says what was tried, on what, what the kernel said and, where it helps, what to do.

use std::fmt;
use std::io;

/// What sort of failure it was, for callers that react rather than print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No container with that id.
    NotFound,
    /// A container with that id exists already.
    AlreadyExists,
    /// The container is in a state in which the operation makes no sense.
    WrongState,
    /// The configuration or the arguments are wrong.
    Invalid,
    /// The kernel or the machine refused.
    System,
}

/// An error of the runtime.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: Kind,
    message: String,
    errno: Option<i32>,
}

/// Result of the runtime's operations.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` with its full text.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            errno: None,
        }
    }

    /// The configuration or an argument is wrong.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(Kind::Invalid, message)
    }

    /// The kernel or machine refused, in words only.
    pub fn system(message: impl Into<String>) -> Error {
        Error::new(Kind::System, message)
    }

    /// A failed system call: `what` was tried, `cause` is what the kernel said.
    pub fn os(what: impl fmt::Display, cause: impl Into<io::Error>) -> Error {
        let cause = cause.into();
        Error {
            kind: Kind::System,
            message: format!("{what}: {}", describe(&cause)),
            errno: cause.raw_os_error(),
        }
    }

    /// The container does not exist.
    pub fn not_found(id: &str) -> Error {
        Error::new(Kind::NotFound, format!("container does not exist: {id}"))
    }

    /// The kind, to branch on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The errno of the system call that failed, if one did.
    pub fn errno(&self) -> Option<i32> {
        self.errno
    }

    /// The same error, with `what` was being done put in front.
    pub fn context(mut self, what: impl fmt::Display) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

/// Say something that is no failure, on standard error.
pub(crate) fn warn(message: &str) {
    eprintln!("hull-runtime: warning: {message}");
}

/// The kernel's words without Rust's "(os error N)".
fn describe(cause: &io::Error) -> String {
    match cause.raw_os_error() {
        Some(code) => errno_text(code),
        None => cause.to_string(),
    }
}

/// strerror(3) in lower case, as runc prints it.
pub(crate) fn errno_text(code: i32) -> String {
    let text = io::Error::from_raw_os_error(code).to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().collect::<String>() + chars.as_str(),
        None => format!("errno {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_was_tried_and_what_the_kernel_said() {
        let error = Error::os("open /nowhere", io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error.to_string(), "open /nowhere: no such file or directory");
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert_eq!(
            error.context("create c1").to_string(),
            "create c1: open /nowhere: no such file or directory"
        );
    }
}
