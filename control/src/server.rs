//! placeholder: helper A owns this file. The integrator's `src/process.rs` calls exactly this:
//! `run(config: ControlConfig, on_ready: impl FnOnce() + Send, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServerError>`

use std::net::SocketAddr;
use std::path::PathBuf;

/// What the control plane is told at start.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Parent of `store/`.
    pub data_dir: PathBuf,
    /// Certificates and keys made by [`crate::pki::ensure`].
    pub pki_dir: PathBuf,
    /// Where the API server listens.
    pub listen: SocketAddr,
    /// Range of service addresses.
    pub service_cidr: String,
    /// Range of pod addresses of the first node (becomes its `spec.podCIDR`).
    pub pod_cidr: String,
    /// Address and port at which pods reach the API server: the endpoint of the Service default/kubernetes.
    pub advertise: SocketAddr,
}
