//! seccomp: the default profile and the compiler from the OCI profile to a BPF filter.

use crate::spec::LinuxSeccomp;

/// The profile container engines apply by default: an allow-list, everything else fails with EPERM.
pub fn default_profile() -> LinuxSeccomp {
    LinuxSeccomp::default()
}
