//! Pods on this node: from the Pod object to running containers and back to a status.
//!
//! `manager` owns one `worker` per pod. A worker keeps the observed `state`, asks the pure `decide` what to do,
//! carries the actions out, and publishes the pure `status`. Invariant: only a pod's own worker touches what belongs
//! to that pod, so nothing here needs a lock across pods.

pub mod adopt;
pub mod api;
pub mod backoff;
pub mod check;
pub mod command;
pub mod decide;
pub mod ending;
pub mod env;
pub mod etc;
pub mod exec;
pub mod expand;
pub mod fd;
pub mod fields;
pub mod host;
pub mod images;
pub mod manager;
pub mod objects;
pub mod probe;
pub mod probing;
pub mod publish;
pub mod qos;
pub mod quantity;
pub mod record;
pub mod references;
pub mod resources;
pub mod sandbox;
pub mod security;
pub mod spec;
pub mod start;
pub mod state;
pub mod status;
pub mod stop;
pub mod tls;
pub mod user;
pub mod view;
pub mod warden;
pub mod worker;
