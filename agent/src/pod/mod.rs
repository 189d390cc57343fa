//! Pods on this node: from the Pod object to running containers and back to a status.
//!
//! `manager` owns one `worker` per pod. A worker keeps the observed `state`, asks the pure `decide` what to do,
//! carries the actions out, and publishes the pure `status`. Invariant: only a pod's own worker touches what belongs
//! to that pod, so nothing here needs a lock across pods.

pub mod backoff;
pub mod command;
pub mod decide;
pub mod env;
pub mod expand;
pub mod fields;
pub mod qos;
pub mod quantity;
pub mod references;
pub mod resources;
pub mod security;
pub mod spec;
pub mod state;
pub mod status;
pub mod user;
