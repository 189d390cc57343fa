//! hull's OCI runtime as a library: config.json becomes a validated plan, the plan becomes a container.
//! The command line (main.rs) and the warden are thin shells over [`container`].
//! Invariant: nothing here uses threads or async, or knows of pods and Kubernetes.

pub mod caps;
pub mod cgroup;
pub mod container;
pub mod defaults;
pub mod error;
pub mod seccomp;
pub mod spec;
pub mod warden;
