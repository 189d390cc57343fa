//! The scheduler: which node a pod runs on. Kubernetes: "Scheduling, Preemption and Eviction".
//!
//! The decision ([`decide`]) is a pure function of a [`cluster::Cluster`] and a pod; the cluster is kept from events, so a
//! decision costs microseconds and a pod is bound as soon as it is seen. Invariant: what is decided counts at once, so
//! nodes are never given more than they have.

pub mod affinity;
pub mod amounts;
pub mod cluster;
pub mod decide;
pub mod pod;
pub mod queue;
pub mod runner;
#[cfg(test)]
mod tests;
pub mod topology;

use std::sync::Arc;

use self::runner::Runner;
use crate::controllers::Handle;
use crate::controllers::recorder::Recorder;
use crate::registry::Registry;

/// Start the scheduler. Must be called within a tokio runtime; it stops when the handle is dropped.
pub fn start(registry: Arc<Registry>) -> Handle {
    let (recorder, events) = Recorder::new(registry.clone());
    let runner = Runner::new(registry, recorder);
    Handle::new(vec![tokio::spawn(events), tokio::spawn(runner.run())])
}
