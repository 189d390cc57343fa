//! Controllers: what the cluster should be, made so, object by object. Kubernetes: "Controllers".
//!
//! Each controller is a pure `reconcile(what it sees, key, now) -> writes` ([`controller::Controller`]); one task drives
//! them all from the watch cache ([`runner`]) and writes through the registry like any client. Invariant: decisions depend
//! on nothing but the objects, the clock handed in and the controller's own memory, so simulated time can drive them.

pub mod bootstrap_token;
pub mod controller;
pub mod csr;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod event_ttl;
pub mod execute;
pub mod garbage;
pub mod intstr;
pub mod labels;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
pub mod memory;
pub mod metadata;
pub mod namespace;
pub mod node;
pub mod pod_gc;
pub mod pods;
pub mod queue;
pub mod recorder;
pub mod replicaset;
pub mod runner;
pub mod service_account;
pub mod service_address;
pub mod service_cidr;
pub mod view;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::task::JoinHandle;

use self::controller::Controller;
use self::execute::Executor;
use self::recorder::Recorder;
use self::runner::Runner;
use crate::auth::{Attributes, Decision, User};
use crate::pki::Authority;
use crate::registry::Registry;
use crate::schema;

/// What controllers need to be told.
#[derive(Clone)]
pub struct Config {
    /// The ranges that nodes get the ranges of their pods from.
    pub cluster_ranges: node::cidr::ClusterRanges,
    /// A node that has been silent for so long is not ready.
    pub node_grace: Duration,
    /// The cluster's authority: signs requests, and its certificate is in `kube-root-ca.crt`.
    pub authority: Arc<Authority>,
    /// Longest life of a certificate signed on request.
    pub signing_life: SignedDuration,
    /// A kubeconfig without credentials, for `cluster-info`.
    pub cluster_info: Arc<str>,
}

/// Running tasks; they stop when it is dropped.
#[derive(Debug)]
pub struct Handle(Vec<JoinHandle<()>>);

impl Handle {
    /// A handle on tasks.
    pub(crate) fn new(tasks: Vec<JoinHandle<()>>) -> Self {
        Self(tasks)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Start all controllers. Must be called within a tokio runtime.
pub fn start(registry: Arc<Registry>, config: Config) -> Handle {
    let (recorder, events) = Recorder::new(registry.clone());
    let executor = Executor::new(registry.clone(), recorder);
    let runner = Runner::new(registry.cache().clone(), all(config, &registry), watched(), executor);
    Handle::new(vec![tokio::spawn(events), tokio::spawn(runner.run())])
}

fn all(config: Config, registry: &Arc<Registry>) -> Vec<Box<dyn Controller>> {
    let mut all = endpoints::controllers();
    let others: Vec<Box<dyn Controller>> = vec![
        Box::new(deployment::Deployments),
        Box::new(replicaset::ReplicaSets::of_replica_sets()),
        Box::new(replicaset::ReplicaSets::of_replication_controllers()),
        Box::new(service_address::ServiceAddresses),
        Box::new(service_cidr::ServiceRangesInUse),
        Box::new(service_account::ServiceAccounts {
            root_ca: config.authority.pem().clone(),
        }),
        Box::new(csr::approve::Approver::new(may_create(registry))),
        Box::new(csr::sign::Signer {
            authority: config.authority,
            life: config.signing_life,
        }),
        Box::new(csr::clean::Cleaner),
        Box::new(bootstrap_token::TokenCleaner),
        Box::new(bootstrap_token::ClusterInfo {
            kubeconfig: config.cluster_info,
        }),
        Box::new(node::lifecycle::NodeLifecycle::new(config.node_grace)),
        Box::new(disruption::Disruption),
        Box::<node::eviction::TaintEviction>::default(),
        Box::new(node::cidr::NodeRanges {
            cluster: config.cluster_ranges,
        }),
        Box::new(namespace::Namespaces),
        Box::new(garbage::GarbageCollector),
        Box::<pod_gc::PodGc>::default(),
        Box::new(event_ttl::EventTtl),
    ];
    all.extend(others);
    all
}

/// What the authorizer says of somebody who wants to create a subresource of certificate signing requests.
fn may_create(registry: &Arc<Registry>) -> csr::approve::MayCreate {
    let authorizer = registry.authorizer().clone();
    Box::new(move |who, subresource| {
        let asked = Attributes {
            verb: "create",
            group: "certificates.k8s.io",
            resource: "certificatesigningrequests",
            subresource,
            ..Attributes::default()
        };
        matches!(authorizer.authorize(who, &asked), Decision::Allow(_))
    })
}

/// Everything stored but events: nothing is decided by them, and they are many.
fn watched() -> Vec<&'static str> {
    let stored = schema::resources()
        .iter()
        .filter(|r| r.storage && r.key != "events")
        .map(|r| r.key);
    stored.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The identity of a component of the control plane.
pub(crate) fn system_user(name: &str) -> User {
    User {
        name: name.to_owned(),
        groups: vec!["system:masters".to_owned()],
        ..User::default()
    }
}
