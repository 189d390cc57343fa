//! hull's node agent: a slim kubelet.
//!
//! It watches the pods bound to its node and makes them real: image, volumes, network, containers (through the
//! warden of hull-runtime), probes, logs, status. It also runs the service proxy's user-space half, the node's DNS
//! and the kubelet API. What decides is pure (`pod::decide`, `pod::status`, `proxy::compute`), what acts is thin.
//! It must never import the control plane: the Kubernetes API is the only way between the two.

mod bpf;
pub mod client;
pub mod config;
pub mod dns;
pub mod events;
pub mod identity;
pub mod image;
pub mod join;
pub mod manifest;
pub mod network;
pub mod node;
pub mod nodes;
pub mod observe;
pub mod pod;
pub mod proxy;
pub mod run;
pub mod server;
pub mod services;
pub mod teardown;
pub mod volume;

pub use config::AgentConfig;
