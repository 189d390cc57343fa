//! The agent as a whole: starts the parts, connects them, and ends them together.
//!
//! On shutdown everything that serves pods stays as it is: containers, addresses, service maps. A restarted agent
//! finds and adopts it; only `teardown` takes it away.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::client::{Client, ClientError};
use crate::config::AgentConfig;
use crate::events::Recorder;
use crate::image::{ImageStore, Registries};
use crate::network::{Cidr, NetworkConfig, PodNetwork};
use crate::node::{self, Machine, NodeReporter};
use crate::pod::api::Api;
use crate::pod::host::{Host, Services};
use crate::pod::manager::Manager;
use crate::pod::objects::ObjectCache;
use crate::pod::view::Views;
use crate::pod::warden::Warden;
use crate::proxy::{DnsRedirect, NodeView, Proxy, ProxyConfig};
use crate::server::{self, Server};
use crate::services::ServiceSync;
use crate::{dns, image, network, proxy};

/// Arenas of the allocator.
const ARENAS_MAX: libc::c_int = 2;

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A value of the configuration makes no sense.
    #[error("the agent's {what} {value:?} is not valid: {reason}")]
    Config {
        /// Which.
        what: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        reason: String,
    },
    /// A directory cannot be made.
    #[error("cannot make the directory {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No credentials for the API server.
    #[error("cannot talk to the API server: {0}")]
    Api(#[from] ClientError),
    /// The warden does not start.
    #[error("cannot start the warden: {0}")]
    Warden(#[from] hull_runtime::warden::Error),
    /// The image store cannot be opened.
    #[error("cannot open the image store: {0}")]
    Images(#[from] image::Error),
    /// The pod network cannot be prepared.
    #[error("cannot prepare the pod network: {0}")]
    Network(#[from] network::Error),
    /// The service proxy cannot be loaded.
    #[error("cannot load the service proxy: {0}")]
    Proxy(#[from] proxy::Error),
    /// The DNS server cannot listen.
    #[error("cannot start the node's DNS server: {0}")]
    Dns(#[from] dns::Error),
    /// The kubelet API has no usable certificate.
    #[error(transparent)]
    Tls(#[from] server::TlsError),
    /// The kubelet API cannot listen.
    #[error("cannot listen on {address} for the kubelet API: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// What an earlier agent left cannot be taken over.
    #[error("cannot adopt the pods on this node: {0}")]
    Adopt(String),
    /// A thread of the agent panicked.
    #[error("a part of the agent broke while starting: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

/// Runs the agent until `shutdown`. `on_ready` is called once the node is registered.
pub async fn run(
    config: AgentConfig,
    on_ready: impl FnOnce() + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AgentError> {
    bound_memory_of_threads();
    let client = Client::from_kubeconfig(&config.kubeconfig)?;
    let api: Arc<dyn Api> = Arc::new(client);
    let (ready, registered) = oneshot::channel();
    let agent = start(config, api, ready).await?;
    tokio::pin!(shutdown);
    tokio::select! {
        () = &mut shutdown => {}
        result = registered => {
            if result.is_ok() {
                on_ready();
            }
            shutdown.await;
        }
    }
    agent.stop();
    Ok(())
}

/// Threads for blocking calls come and go; each would keep an arena of freed memory for itself (mallopt(3)).
fn bound_memory_of_threads() {
    // SAFETY: mallopt only sets a parameter of the allocator; it takes no pointers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX) };
}

/// A running agent.
pub struct Agent {
    /// What its workers share.
    pub host: Arc<Host>,
    /// Where the kubelet API listens.
    pub address: SocketAddr,
    tasks: Vec<tokio::task::AbortHandle>,
}

impl Agent {
    /// Ends the agent's tasks; its pods go on.
    pub fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
        self.host.warden.stop();
    }
}

/// The parts that need the machine, made side by side.
struct Parts {
    warden: Warden,
    images: Arc<ImageStore>,
    network: Arc<PodNetwork>,
    proxy: Proxy,
}

/// Starts every part against `api`. `ready` is told when the node is registered.
pub async fn start(config: AgentConfig, api: Arc<dyn Api>, ready: oneshot::Sender<()>) -> Result<Agent, AgentError> {
    for directory in [
        &config.run_dir,
        &config.data_dir,
        &config.log_dir(),
        &config.volumes_dir(),
    ] {
        make_directory(directory)?;
    }
    let pod_cidr = cidr("pod CIDR", &config.pod_cidr)?;
    let service_cidr = cidr("service CIDR", &config.service_cidr)?;
    let acceptor = server::load_tls(&config)?;
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.map_err(|source| AgentError::Listen {
        address: config.listen,
        source,
    })?;
    let address = listener.local_addr().map_err(|source| AgentError::Listen {
        address: config.listen,
        source,
    })?;
    let parts = make_parts(&config, pod_cidr).await?;
    let dns = dns::Server::bind(dns::Config {
        listen: config.dns_address(),
        resolv_conf: PathBuf::from("/etc/resolv.conf"),
        exclude: vec![IpAddr::V4(config.cluster_dns)],
    })
    .await?;
    let machine = Machine::read(&config);
    let services: Services = Arc::new(ArcSwap::default());
    let host = Arc::new(Host {
        facts: machine.facts(&config),
        ip: machine.address(),
        warden: parts.warden,
        images: parts.images,
        network: parts.network,
        objects: ObjectCache::new(Arc::clone(&api)),
        events: Recorder::start(Arc::clone(&api), &config.node_name),
        services: Arc::clone(&services),
        views: Views::default(),
        controllers: node::cgroup_controllers(),
        api: Arc::clone(&api),
        config: config.clone(),
    });
    let sync = ServiceSync {
        api: Arc::clone(&api),
        services,
        proxy: parts.proxy,
        dns: dns.handle(),
        view: NodeView {
            name: config.node_name.clone(),
            service_cidr,
            dns: Some(DnsRedirect {
                cluster: config.cluster_dns,
                local: config.dns_address(),
            }),
        },
        zone: dns::ZoneConfig {
            domain: config.cluster_domain.clone(),
            ranges: vec![pod_cidr, service_cidr],
        },
    };
    let manager = Manager::adopt(Arc::clone(&host)).await.map_err(AgentError::Adopt)?;
    let query = format!("fieldSelector=spec.nodeName%3D{}", config.node_name);
    let pods = api.follow("/api/v1/pods".to_owned(), query);
    let reporter = NodeReporter::new(config, machine, api, address.port());
    let tasks = vec![
        tokio::spawn(dns.run()).abort_handle(),
        tokio::spawn(sync.run()).abort_handle(),
        tokio::spawn(Server::new(Arc::clone(&host)).run(listener, acceptor)).abort_handle(),
        tokio::spawn(reporter.run(ready)).abort_handle(),
        tokio::spawn(manager.run(pods)).abort_handle(),
    ];
    Ok(Agent { host, address, tasks })
}

async fn make_parts(config: &AgentConfig, pod_cidr: Cidr) -> Result<Parts, AgentError> {
    let (binary, warden_dir) = (config.runtime_binary.clone(), config.warden_dir());
    let warden = tokio::task::spawn_blocking(move || Warden::start(&binary, &warden_dir));
    let registries = Registries {
        plain_http: config.insecure_registries.clone(),
        ..Registries::default()
    };
    let image_dir = config.image_dir();
    let images = tokio::task::spawn_blocking(move || ImageStore::open_with(&image_dir, registries));
    let settings = NetworkConfig {
        pod_cidr,
        run_dir: config.run_dir.clone(),
        mtu: None,
    };
    let network = tokio::task::spawn_blocking(move || PodNetwork::new(&settings));
    let settings = proxy_config(config)?;
    let proxy = tokio::task::spawn_blocking(move || Proxy::load(settings));
    Ok(Parts {
        warden: warden.await??,
        images: Arc::new(images.await??),
        network: Arc::new(network.await??),
        proxy: proxy.await??,
    })
}

fn proxy_config(config: &AgentConfig) -> Result<ProxyConfig, AgentError> {
    let cgroup = node::cgroup_mount().ok_or_else(|| AgentError::Config {
        what: "machine",
        value: "/proc/self/mountinfo".to_owned(),
        reason: "cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup".to_owned(),
    })?;
    Ok(ProxyConfig::new(&config.bpf_dir, &cgroup, &config.netns_dir()))
}

fn cidr(what: &'static str, value: &str) -> Result<Cidr, AgentError> {
    value.parse().map_err(|error: network::InvalidCidr| AgentError::Config {
        what,
        value: value.to_owned(),
        reason: error.to_string(),
    })
}

fn make_directory(path: &Path) -> Result<(), AgentError> {
    std::fs::create_dir_all(path).map_err(|source| AgentError::Directory {
        path: path.to_owned(),
        source,
    })
}
