//! seccomp: the default profile and the compiler from the OCI profile to a BPF filter.

use crate::error::Result;
use crate::spec::LinuxSeccomp;

/// A compiled filter.
pub(crate) struct Filter {
    pub program: Vec<libc::sock_filter>,
    pub flags: u64,
    pub agent: Option<Agent>,
}

pub(crate) struct Agent;
impl Agent {
    pub fn hand_over(&self, _listener: std::os::fd::OwnedFd) -> crate::fault::Step { Ok(()) }
}
impl Filter {
    pub fn to_bytes(&self) -> Vec<u8> { Vec::new() }
    pub fn from_bytes(_bytes: &[u8]) -> Option<Filter> { None }
}

/// Compile.
pub(crate) fn compile(_profile: &LinuxSeccomp) -> Result<Option<Filter>> {
    Ok(None)
}

/// The profile container engines apply by default: an allow-list, everything else fails with EPERM.
pub fn default_profile() -> LinuxSeccomp {
    LinuxSeccomp::default()
}
