//! The parts that need the machine, made side by side; and what of the configuration they are made from.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{AgentError, programs};
use crate::config::AgentConfig;
use crate::image::{ImageStore, Registries};
use crate::network::{self, Cidr, NetworkConfig, PodNetwork};
use crate::node::{self, Machine};
use crate::observe::Observer;
use crate::pod::warden::Warden;
use crate::proxy::edge::Edge;
use crate::proxy::{self, Proxy, ProxyConfig};

/// What there is when the agent begins to serve, and what is still being loaded.
pub(super) struct Parts {
    pub(super) warden: Warden,
    pub(super) images: Arc<ImageStore>,
    pub(super) network: Arc<PodNetwork>,
    pub(super) proxy: oneshot::Receiver<Result<Proxy, proxy::Error>>,
    pub(super) observer: oneshot::Receiver<Option<Observer>>,
    pub(super) edge: oneshot::Receiver<Option<Edge>>,
}

impl Parts {
    /// Makes all of them.
    pub(super) async fn make(config: &AgentConfig, pod_cidrs: Vec<Cidr>) -> Result<Parts, AgentError> {
        // First, because it takes longest.
        let programs = programs::load(proxy_config(config)?)?;
        let (binary, warden_dir) = (config.runtime_binary.clone(), config.warden_dir());
        let warden = tokio::task::spawn_blocking(move || Warden::start(&binary, &warden_dir));
        let registries = Registries {
            plain_http: config.insecure_registries.clone(),
            ..Registries::default()
        };
        let image_dir = config.image_dir();
        let images = tokio::task::spawn_blocking(move || ImageStore::open_with(&image_dir, registries));
        let settings = NetworkConfig {
            pod_cidrs,
            run_dir: config.run_dir.clone(),
            mtu: None,
            node_ip: Machine::read(config).ip,
            transport: config.pod_network,
        };
        let network = tokio::task::spawn_blocking(move || PodNetwork::new(&settings));
        Ok(Parts {
            warden: warden.await??,
            images: Arc::new(images.await??),
            network: Arc::new(network.await??),
            proxy: programs.proxy,
            observer: programs.observer,
            edge: programs.edge,
        })
    }
}

fn proxy_config(config: &AgentConfig) -> Result<ProxyConfig, AgentError> {
    let cgroup = node::cgroup_mount().ok_or_else(|| AgentError::Config {
        what: "machine",
        value: "/proc/self/mountinfo".to_owned(),
        reason: "cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup".to_owned(),
    })?;
    let cgroup = cgroup.join(config.node_cgroup.trim_matches('/'));
    make_directory(&cgroup)?;
    Ok(ProxyConfig {
        service_cidrs: cidrs("service CIDR", &config.service_cidr)?,
        ..ProxyConfig::new(&config.bpf_dir, &cgroup, &config.netns_dir())
    })
}

/// Any number of networks with commas between them.
pub(super) fn ranges(what: &'static str, value: &str) -> Result<Vec<Cidr>, AgentError> {
    if value.trim().is_empty() {
        Ok(Vec::new())
    } else {
        cidrs(what, value)
    }
}

/// One network, or one of each family with a comma between them. Never empty.
pub(super) fn cidrs(what: &'static str, value: &str) -> Result<Vec<Cidr>, AgentError> {
    let parsed: Result<Vec<Cidr>, network::InvalidCidr> = value.split(',').map(|part| part.trim().parse()).collect();
    parsed.map_err(|error| AgentError::Config {
        what,
        value: value.to_owned(),
        reason: error.to_string(),
    })
}

pub(super) fn make_directory(path: &Path) -> Result<(), AgentError> {
    std::fs::create_dir_all(path).map_err(|source| AgentError::Directory {
        path: path.to_owned(),
        source,
    })
}
