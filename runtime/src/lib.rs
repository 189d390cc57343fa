//! hull's OCI runtime as a library: config.json becomes a validated plan, the plan becomes a container.
//! The command line (main.rs) and the warden are thin shells over [`container`].
//! Invariant: nothing here uses threads or async, or knows of pods and Kubernetes.

pub mod caps;
pub mod cgroup;
pub mod container;
pub mod defaults;
pub mod error;
mod fault;
pub mod features;
mod hooks;
mod init;
mod plan;
pub mod sealed;
pub mod seccomp;
pub mod signals;
pub mod spec;
mod syscall;
pub mod warden;
