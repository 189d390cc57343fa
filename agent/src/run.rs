//! The agent as a whole: starts the parts, connects them, and ends them together.
//!
//! On shutdown everything that serves pods stays as it is: containers, addresses, service maps. A restarted agent
//! finds and adopts it; only `teardown` takes it away.

mod error;
mod kernel_types;
mod parts;
mod programs;
mod settle;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};

pub use error::AgentError;

use crate::client::Client;
use crate::config::AgentConfig;
use crate::dns;
use crate::events::Recorder;
use crate::identity;
use crate::network::{Cidr, Fabric, FabricConfig, NodeRoute};
use crate::node::{self, Machine, NodeReporter};
use crate::nodes::{self, Own};
use crate::pod::api::Api;
use crate::pod::host::{Host, Services};
use crate::pod::manager::Manager;
use crate::pod::objects::ObjectCache;
use crate::pod::view::Views;
use crate::proxy::edge::{Edge, EdgeView, Slot};
use crate::proxy::{DnsRedirect, NodeView};
use crate::server::{self, Server, ServiceView};
use crate::services::ServiceSync;
use crate::services::host_ports::HostPorts;
use parts::{Parts, cidrs, make_directory, ranges};

/// Arenas of the allocator.
const ARENAS_MAX: libc::c_int = 2;

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
    let (listener, address) = listen(config.listen).await?;
    let parts = Parts::make(&config, pod_cidrs.clone()).await?;
    let dns = dns::Server::bind(dns_config(&config, &pod_cidrs, &service_cidrs)).await?;
    let machine = Machine::read(&config);
    let services: Services = Arc::new(ArcSwap::default());
    let edge_slot = Arc::<Slot>::default();
    let host = Arc::new(Host {
        facts: machine.facts(&config),
        ips: machine.addresses(),
        warden: parts.warden,
        images: parts.images,
        network: parts.network,
        edge: Arc::clone(&edge_slot),
        objects: ObjectCache::new(Arc::clone(&api)),
        events: Recorder::start(Arc::clone(&api), &config.node_name),
        services: Arc::clone(&services),
        host_ports: HostPorts::default(),
        views: Views::default(),
        controllers: node::cgroup_controllers(),
        api: Arc::clone(&api),
        config: config.clone(),
    });
    let edge = tokio::spawn(programs::adopt(parts.edge, Arc::clone(&host)));
    let manager = Manager::adopt(Arc::clone(&host)).await.map_err(AgentError::Adopt)?;
    let query = format!("fieldSelector=spec.nodeName%3D{}", config.node_name);
    let pods = api.follow("/api/v1/pods".to_owned(), query);
    let (followed, following) = nodes::follow(&api, &config.node_name);
    let own_route = NodeRoute {
        name: config.node_name.clone(),
        addresses: machine.addresses(),
        pod_cidrs: pod_cidrs.clone(),
    };
    let settings = FabricConfig::new(own_route, config.pod_network, host.network.mtu());
    let fabric = Fabric::new(settings)?;
    let mut base = EdgeView::of_node(host.network.node_addresses(), &pod_cidrs);
    base.cluster
        .extend(ranges("range not to masquerade", &config.non_masquerade_cidrs)?);
    let node_view = node_view(&config, service_cidrs)?;
    let node_port_addresses = ranges("node port address range", &config.node_port_addresses)?;
    // What needs the kernel's longest; everything else is ready by now.
    let proxy = parts.proxy.await.map_err(|_| AgentError::Loader)??;
    let view = ServiceView {
        observer: parts.observer.await.ok().flatten().map(Arc::new),
        status: Arc::default(),
        dns: Some(dns.handle()),
    };
    let sync = ServiceSync {
        api: Arc::clone(&api),
        services,
        proxy,
        dns: dns.handle(),
        view: node_view,
        node_port_addresses,
        own: followed.own.clone(),
        edge: edge_slot,
        host_ports: host.host_ports.follow(),
        events: host.events.clone(),
        status: Arc::clone(&view.status),
    };
    let mut names: Vec<String> = machine.addresses().iter().map(IpAddr::to_string).collect();
    names.push(config.node_name.clone());
    let serving = settle::serving(&config, client, names, certificate)?;
    let reporter = NodeReporter::new(config, machine, api, address.port());
    let mut tasks = vec![
        following,
        follow_edge(edge, base, followed.others.clone()),
        follow_fabric(fabric, followed.others),
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
    tasks.extend(serving.map(|rotation| tokio::spawn(rotation.run()).abort_handle()));
    Ok(Agent {
        host,
        address,
        ranges: pod_cidrs,
        own: followed.own,
        tasks,
    })
}

/// Binds the kubelet API's socket.
async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), AgentError> {
    let failed = |source| AgentError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn dns_config(config: &AgentConfig, pod_cidrs: &[Cidr], service_cidrs: &[Cidr]) -> dns::Config {
    dns::Config {
        listen: config.dns_addresses(),
        resolv_conf: dns::host_resolv_conf(),
        cluster: config.cluster_dns_addresses(),
        zone: dns::ZoneConfig {
            domain: config.cluster_domain.clone(),
            ranges: [pod_cidrs, service_cidrs].concat(),
        },
    }
}

/// What the service proxy is told of this node before the API server is heard.
fn node_view(config: &AgentConfig, service_cidrs: Vec<Cidr>) -> Result<NodeView, AgentError> {
    let redirects = config.cluster_dns_addresses().into_iter().zip(config.dns_addresses());
    Ok(NodeView {
        name: config.node_name.clone(),
        zone: None,
        service_cidrs,
        external_cidrs: ranges("external address range", &config.external_cidrs)?,
        addresses: Vec::new(),
        dns: redirects
            .map(|(cluster, local)| DnsRedirect { cluster, local })
            .collect(),
    })
}

fn follow_edge(
    edge: JoinHandle<Option<Arc<Edge>>>,
    base: EdgeView,
    nodes: watch::Receiver<Vec<NodeRoute>>,
) -> AbortHandle {
    let following = async move {
        if let Ok(Some(edge)) = edge.await
            && let Err(error) = edge.follow(base, nodes).await
        {
            tracing::error!(%error, "new interfaces and nodes are not served");
        }
    };
    tokio::spawn(following).abort_handle()
}

fn follow_fabric(fabric: Fabric, nodes: watch::Receiver<Vec<NodeRoute>>) -> AbortHandle {
    let fabric = Arc::new(fabric);
    let following = async move {
        if let Err(error) = fabric.follow(nodes).await {
            tracing::error!(%error, "routes to other nodes' pods are not kept up to date");
        }
    };
    tokio::spawn(following).abort_handle()
}
