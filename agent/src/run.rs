//! The agent as a whole: starts the parts, connects them, and ends them together.
//!
//! On shutdown everything that serves pods stays as it is: containers, addresses, service maps. A restarted agent
//! finds and adopts it; only `teardown` takes it away.

mod settle;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::client::{Client, ClientError};
use crate::config::AgentConfig;
use crate::events::Recorder;
use crate::identity::{self, PairError};
use crate::image::{ImageStore, Registries};
use crate::join::SettingsError;
use crate::network::{Cidr, Fabric, FabricConfig, NetworkConfig, NodeRoute, PodNetwork};
use crate::node::{self, Machine, NodeReporter};
use crate::nodes::{self, Own};
use crate::observe::{ObserveConfig, Observer};
use crate::pod::api::Api;
use crate::pod::host::{Host, Services};
use crate::pod::manager::Manager;
use crate::pod::objects::ObjectCache;
use crate::pod::view::Views;
use crate::pod::warden::Warden;
use crate::proxy::edge::{self, Edge, EdgeConfig, EdgePod, EdgeView};
use crate::proxy::{DnsRedirect, NodeView, Proxy, ProxyConfig};
use crate::server::{self, Server, ServiceView};
use crate::services::ServiceSync;
use crate::services::host_ports::HostPorts;
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
    /// The node's certificates cannot be read.
    #[error(transparent)]
    Identity(#[from] PairError),
    /// The cluster's settings for nodes cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
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

/// Why an agent ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was asked to.
    Asked,
    /// The cluster gave the node other ranges for its pods: start again.
    NewRanges,
}

/// Runs the agent until `shutdown`. `on_ready` is called once the node is registered.
pub async fn run(
    mut config: AgentConfig,
    on_ready: impl FnOnce() + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<End, AgentError> {
    bound_memory_of_threads();
    let client = Client::from_kubeconfig(&config.kubeconfig)?;
    let current = settle::own_identity(&config, &client)?;
    let api: Arc<dyn Api> = Arc::new(client.clone());
    tokio::pin!(shutdown);
    tokio::select! {
        () = &mut shutdown => return Ok(End::Asked),
        told = settle::learn(&mut config, &api) => told?,
    }
    let (ready, registered) = oneshot::channel();
    let node_name = config.node_name.clone();
    let client_pair = config.client_pair();
    let mut agent = start_with(config, api, Some(client.clone()), ready).await?;
    let rotation = identity::client(client, &node_name, client_pair, current);
    agent.tasks.push(tokio::spawn(rotation.run()).abort_handle());
    let mut on_ready = Some(on_ready);
    tokio::pin!(registered);
    let mut own = agent.own.clone();
    let differ = |own: &Own| !own.ranges.is_empty() && own.ranges != agent.ranges;
    let end = loop {
        tokio::select! {
            () = &mut shutdown => break End::Asked,
            Ok(_) = own.wait_for(differ) => break End::NewRanges,
            result = &mut registered, if on_ready.is_some() => {
                if let (Some(on_ready), Ok(())) = (on_ready.take(), result) {
                    on_ready();
                }
            }
        }
    };
    if end == End::NewRanges {
        let ranges = own.borrow().ranges.clone();
        tracing::warn!(old = ?agent.ranges, new = ?ranges, "the node has other pod ranges now; the agent starts again with them");
        settle::keep_ranges(&agent.host.config, &ranges)?;
    }
    agent.stop();
    Ok(end)
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
    /// The ranges that its pods get addresses from.
    ranges: Vec<Cidr>,
    /// What the API server has of this node.
    own: watch::Receiver<Own>,
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
    observer: Option<Arc<Observer>>,
    edge: Arc<edge::Slot>,
}

/// Starts every part against `api`. `ready` is told when the node is registered.
pub async fn start(config: AgentConfig, api: Arc<dyn Api>, ready: oneshot::Sender<()>) -> Result<Agent, AgentError> {
    start_with(config, api, None, ready).await
}

/// With a client that asks for serving certificates; without one, those of the configuration stay.
async fn start_with(
    config: AgentConfig,
    api: Arc<dyn Api>,
    client: Option<Client>,
    ready: oneshot::Sender<()>,
) -> Result<Agent, AgentError> {
    for directory in [
        &config.run_dir,
        &config.data_dir,
        &config.log_dir(),
        &config.volumes_dir(),
    ] {
        make_directory(directory)?;
    }
    let pod_cidrs = cidrs("pod CIDR", &config.pod_cidr)?;
    let service_cidrs = cidrs("service CIDR", &config.service_cidr)?;
    let (acceptor, certificate) = server::load_tls(&config)?;
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.map_err(|source| AgentError::Listen {
        address: config.listen,
        source,
    })?;
    let address = listener.local_addr().map_err(|source| AgentError::Listen {
        address: config.listen,
        source,
    })?;
    let parts = make_parts(&config, pod_cidrs.clone()).await?;
    let dns = dns::Server::bind(dns::Config {
        listen: config.dns_addresses(),
        resolv_conf: dns::host_resolv_conf(),
        cluster: config.cluster_dns_addresses(),
        zone: dns::ZoneConfig {
            domain: config.cluster_domain.clone(),
            ranges: [pod_cidrs.clone(), service_cidrs.clone()].concat(),
        },
    })
    .await?;
    let machine = Machine::read(&config);
    let services: Services = Arc::new(ArcSwap::default());
    let host = Arc::new(Host {
        facts: machine.facts(&config),
        ips: machine.addresses(),
        warden: parts.warden,
        images: parts.images,
        network: parts.network,
        edge: Arc::clone(&parts.edge),
        objects: ObjectCache::new(Arc::clone(&api)),
        events: Recorder::start(Arc::clone(&api), &config.node_name),
        services: Arc::clone(&services),
        host_ports: HostPorts::default(),
        views: Views::default(),
        controllers: node::cgroup_controllers(),
        api: Arc::clone(&api),
        config: config.clone(),
    });
    let edge = load_edge(&host);
    let manager = Manager::adopt(Arc::clone(&host)).await.map_err(AgentError::Adopt)?;
    let query = format!("fieldSelector=spec.nodeName%3D{}", config.node_name);
    let pods = api.follow("/api/v1/pods".to_owned(), query);
    let (followed, following) = nodes::follow(&api, &config.node_name);
    let redirects = config.cluster_dns_addresses().into_iter().zip(config.dns_addresses());
    let view = ServiceView {
        observer: parts.observer,
        status: Arc::default(),
        dns: Some(dns.handle()),
    };
    let sync = ServiceSync {
        api: Arc::clone(&api),
        services,
        proxy: parts.proxy,
        dns: dns.handle(),
        view: NodeView {
            name: config.node_name.clone(),
            zone: None,
            service_cidrs,
            external_cidrs: ranges("external address range", &config.external_cidrs)?,
            addresses: Vec::new(),
            dns: redirects
                .map(|(cluster, local)| DnsRedirect { cluster, local })
                .collect(),
        },
        node_port_addresses: ranges("node port address range", &config.node_port_addresses)?,
        own: followed.own.clone(),
        edge: parts.edge,
        host_ports: host.host_ports.follow(),
        events: host.events.clone(),
        status: Arc::clone(&view.status),
    };
    let own_route = NodeRoute {
        name: config.node_name.clone(),
        addresses: machine.addresses(),
        pod_cidrs: pod_cidrs.clone(),
    };
    let settings = FabricConfig::new(own_route, config.pod_network, host.network.mtu());
    let fabric = Arc::new(Fabric::new(settings)?);
    let others = followed.others;
    let mut base = EdgeView::of_node(host.network.node_addresses(), &pod_cidrs);
    base.cluster
        .extend(ranges("range not to masquerade", &host.config.non_masquerade_cidrs)?);
    let nodes = others.clone();
    let edge = tokio::spawn(async move {
        if let Ok(Some(edge)) = edge.await
            && let Err(error) = edge.follow(base, nodes).await
        {
            tracing::error!(%error, "new interfaces and nodes are not served");
        }
    })
    .abort_handle();
    let mut names: Vec<String> = machine.addresses().iter().map(IpAddr::to_string).collect();
    names.push(config.node_name.clone());
    let serving = settle::serving(&config, client, names, certificate)?;
    let reporter = NodeReporter::new(config, machine, api, address.port());
    let mut tasks = vec![
        following,
        tokio::spawn(async move {
            if let Err(error) = fabric.follow(others).await {
                tracing::error!(%error, "routes to other nodes' pods are not kept up to date");
            }
        })
        .abort_handle(),
        tokio::spawn(dns.run()).abort_handle(),
        tokio::spawn(sync.run()).abort_handle(),
        tokio::spawn(Server::new(Arc::clone(&host), view.clone()).run(listener, acceptor)).abort_handle(),
        tokio::spawn(reporter.run(ready, followed.own.clone())).abort_handle(),
        tokio::spawn(manager.run(pods)).abort_handle(),
    ];
    tasks.extend(
        view.observer
            .map(|observer| tokio::spawn(observer.keep_tidy(view.status)).abort_handle()),
    );
    tasks.push(edge);
    tasks.extend(serving.map(|rotation| tokio::spawn(rotation.run()).abort_handle()));
    Ok(Agent {
        host,
        address,
        ranges: pod_cidrs,
        own: followed.own,
        tasks,
    })
}

async fn make_parts(config: &AgentConfig, pod_cidrs: Vec<Cidr>) -> Result<Parts, AgentError> {
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
    let settings = proxy_config(config)?;
    let observed = ObserveConfig::new(&settings.bpf_dir, &settings.cgroup);
    let proxy = tokio::task::spawn_blocking(move || {
        let proxy = Proxy::load(settings)?;
        // Services work without; what cannot be seen is missing from the metrics, which say so.
        let observer = Observer::load(&observed)
            .inspect_err(|error| tracing::error!(%error, "latency of services is not observed on this node"));
        Ok::<_, proxy::Error>((proxy, observer.ok().map(Arc::new)))
    });
    let (proxy, observer) = proxy.await??;
    Ok(Parts {
        warden: warden.await??,
        images: Arc::new(images.await??),
        network: Arc::new(network.await??),
        proxy,
        observer,
        edge: Arc::default(),
    })
}

/// Loads the programs for packets beside everything else, and hands them the pods there are. Pods wait for it; the node does
/// not.
fn load_edge(host: &Arc<Host>) -> tokio::task::JoinHandle<Option<Arc<Edge>>> {
    let host = Arc::clone(host);
    tokio::task::spawn_blocking(move || {
        let edge = Edge::load(EdgeConfig::new(&host.config.bpf_dir))
            .inspect_err(|error| {
                tracing::error!(%error, "clients outside are not served, and pods do not reach the world, on this node");
            })
            .ok()
            .map(Arc::new);
        let uids = host.network.pods().into_iter();
        let pods: Vec<EdgePod> = uids
            .filter_map(|uid| host.network.address(&uid))
            .map(|address| EdgePod::of(&address))
            .collect();
        let adopted = edge.as_ref().map_or(Ok(()), |edge| edge.adopt(&pods));
        let filled = adopted.and(host.edge.fill(edge.clone()));
        filled.unwrap_or_else(
            |error| tracing::error!(%error, "packets of pods on this node are not handled as they should"),
        );
        edge
    })
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
fn ranges(what: &'static str, value: &str) -> Result<Vec<Cidr>, AgentError> {
    if value.trim().is_empty() {
        Ok(Vec::new())
    } else {
        cidrs(what, value)
    }
}

/// One network, or one of each family with a comma between them. Never empty.
fn cidrs(what: &'static str, value: &str) -> Result<Vec<Cidr>, AgentError> {
    let parsed: Result<Vec<Cidr>, network::InvalidCidr> = value.split(',').map(|part| part.trim().parse()).collect();
    parsed.map_err(|error| AgentError::Config {
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
