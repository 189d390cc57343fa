//! hull's OCI runtime as a library: config.json becomes a validated plan, the plan becomes a container.
//! The command line (main.rs) and the warden are thin shells over [`container`].
//! Invariant: nothing here uses threads or async, or knows of pods and Kubernetes.

pub mod caps;
pub mod cgroup;
pub mod container;
pub mod defaults;
pub mod error;
#[allow(
    clippy::result_large_err,
    reason = "a fault carries its text in place: the child may not allocate"
)]
mod fault;
pub mod features;
#[allow(
    clippy::result_large_err,
    reason = "a fault carries its text in place: the child may not allocate"
)]
mod hooks;
#[allow(
    clippy::result_large_err,
    reason = "a fault carries its text in place: the child may not allocate"
)]
mod init;
mod mountinfo;
mod plan;
#[cfg(any(test, fuzzing))]
pub mod properties;
pub mod sealed;
pub mod seccomp;
pub mod signals;
pub mod spec;
mod syscall;
pub mod timestamp;
pub mod warden;
