//! The listener of a seccomp filter goes to the agent that the profile names: one connection, one container process
//! state, one descriptor. config-linux.md, "The Container Process State".

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use super::State;
use crate::error::{Error, Result};
use crate::spec::LinuxSeccomp;

/// The agent of a profile with SCMP_ACT_NOTIFY, as the record keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Agent {
    /// Its Unix socket.
    path: PathBuf,
    /// What it is told besides the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
}

/// `containerProcessState` of the specification.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'static str,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: &'a State,
}

impl Agent {
    /// The agent of a profile; the compiler has checked that there is one where the profile needs it.
    pub fn new(profile: &LinuxSeccomp) -> Option<Agent> {
        Some(Agent {
            path: profile.listener_path().clone()?,
            metadata: profile.listener_metadata().clone(),
        })
    }

    /// Hand over the listener of process `pid` of the container.
    pub fn hand_over(&self, listener: BorrowedFd, pid: i32, state: &State) -> Result<()> {
        let process = ProcessState {
            oci_version: crate::features::OCI_VERSION,
            fds: ["seccompFd"],
            pid,
            metadata: self.metadata.as_deref(),
            state,
        };
        let text = serde_json::to_vec(&process).map_err(|e| Error::system(format!("encode: {e}")))?;
        self.send(&text, listener).map_err(|e| {
            Error::os(
                format!("send the seccomp listener to the agent {}", self.path.display()),
                e,
            )
        })
    }

    fn send(&self, text: &[u8], listener: BorrowedFd) -> std::io::Result<()> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&self.path)?)?;
        let fds = [listener];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let parts = [std::io::IoSlice::new(text)];
        let mut sent = rustix::net::sendmsg(socket.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL)?;
        while sent < text.len() {
            sent += rustix::net::send(&socket, &text[sent..], SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }
}
