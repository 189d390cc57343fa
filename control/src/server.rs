//! The control plane as one value: store, cache, registry, API, controllers and scheduler, wired and started.
//!
//! [`run`] is what `hull control` calls. It needs no root: a data directory, the keys in the PKI directory, one port.
//! `/readyz` says yes when the objects every cluster has are there and the controllers run.

mod bootstrap;
mod reload;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinHandle};

use crate::api::{Api, NodeDialer, Shutdown, listen};
use crate::auth::tokens::Tokens;
use crate::auth::{Authenticator, Authorizer};
use crate::cache::Cache;
use crate::controllers;
use crate::pki::{self, Authority, LEAF_LIFE, PkiConfig, PkiError};
use crate::registry::{Environment, Registry, ServiceRanges, Status};
use crate::scheduler;
use crate::schema;
use crate::store::{Embedded, Store, StoreError};

/// What a control plane needs to be told.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Where the store lives (`store/` in it).
    pub data_dir: PathBuf,
    /// Certificates and keys: made when missing, renewed when due.
    pub pki_dir: PathBuf,
    /// What the certificates say.
    pub pki: PkiConfig,
    /// Address of the API.
    pub listen: SocketAddr,
    /// The address that pods and other nodes reach the API at (endpoint of the `kubernetes` service).
    pub advertise: IpAddr,
    /// Range of service addresses, e.g. `10.96.0.0/16`; or one of each family with a comma between.
    pub service_cidr: String,
    /// Range that nodes get their pod ranges from, e.g. `10.244.0.0/16`; or one of each family with a comma between.
    pub cluster_cidr: String,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// How packets get to the pods of other nodes: `auto`, `direct` or `vxlan`.
    pub pod_network: String,
    /// A node that has been silent for so long is not ready.
    pub node_grace: Duration,
    /// Longest life of certificates signed on request.
    pub signing_life: SignedDuration,
}

impl ControlConfig {
    /// A control plane that keeps everything in `data_dir`, with the usual ranges and times.
    pub fn new(data_dir: &Path, pki: PkiConfig, listen: SocketAddr, advertise: IpAddr) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            pki_dir: data_dir.join("pki"),
            pki,
            listen,
            advertise,
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_cidr: "10.244.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            pod_network: "auto".to_owned(),
            node_grace: controllers::node::lifecycle::GRACE,
            signing_life: LEAF_LIFE,
        }
    }

    /// What all nodes are told (`kube-system/hull-node-settings`).
    fn node_settings(&self, ranges: ServiceRanges) -> Value {
        let dns = ranges.primary().nth(10).to_string();
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": crate::auth::NODE_SETTINGS, "namespace": "kube-system"},
            "data": {
                "clusterCIDR": self.cluster_cidr, "serviceCIDR": self.service_cidr, "clusterDNS": dns,
                "clusterDomain": self.cluster_domain, "podNetwork": self.pod_network,
            },
        })
    }
}

/// Why the control plane cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A setting cannot be used.
    #[error("{0}")]
    Config(String),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A certificate or key cannot be used.
    #[error("{path}: {what}; `hull up` makes the files of the PKI directory anew if they are removed")]
    Pki {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        what: String,
    },
    /// A certificate or key cannot be made.
    #[error(transparent)]
    Certificates(#[from] PkiError),
    /// The address is taken.
    #[error("cannot listen on {address}: {error}; is another API server running? `hull status` tells")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// An object that every cluster has could not be made.
    #[error("cannot create {what}: {status}")]
    Bootstrap {
        /// Which.
        what: String,
        /// What the registry said.
        status: Status,
    },
}

/// A running control plane.
pub struct Server {
    address: SocketAddr,
    registry: Arc<Registry>,
    stop: tokio::sync::watch::Sender<bool>,
    accepting: JoinHandle<()>,
    renewing: AbortHandle,
    _controllers: controllers::Handle,
    _scheduler: controllers::Handle,
}

/// Runs a control plane until `shutdown` completes.
///
/// # Errors
/// [`ServerError`] if it cannot start.
pub async fn run(config: ControlConfig, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
    let server = Server::start(config).await?;
    shutdown.await;
    server.stop().await;
    Ok(())
}

impl Server {
    /// Starts everything; returns when `/readyz` says yes.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(config: ControlConfig) -> Result<Self, ServerError> {
        let service_ranges: ServiceRanges = config.service_cidr.parse().map_err(ServerError::Config)?;
        let cluster_ranges = config.cluster_cidr.parse().map_err(ServerError::Config)?;
        pki::ensure(&config.pki_dir, &config.pki)?;
        let keys = tls::Keys::load(&config.pki_dir)?;
        let authority = Arc::new(Authority::load(&config.pki_dir)?);
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|error| ServerError::Listen {
                address: config.listen,
                error,
            })?;
        let address = listener.local_addr().unwrap_or(config.listen);
        let cache = open(&config).await?;
        let tokens = Arc::new(
            Tokens::load(&config.pki_dir.join("sa.key")).map_err(|error| ServerError::Pki {
                path: config.pki_dir.join("sa.key"),
                what: error.to_string(),
            })?,
        );
        let authorizer = Arc::new(Authorizer::new(cache.clone()));
        let authenticator = Arc::new(Authenticator::new(cache.clone(), tokens.clone()));
        let environment = Environment::system();
        let registry = Arc::new(Registry::new(
            cache,
            authorizer.clone(),
            tokens,
            service_ranges,
            environment,
        ));
        let (stop, shutdown) = Shutdown::channel();
        let live = reload::Live::new(&keys);
        let dialer = NodeDialer::new({
            let live = live.clone();
            Arc::new(move || live.client())
        });
        let server_tls = {
            let live = live.clone();
            Arc::new(move || live.server())
        };
        let api = Arc::new(Api::new(
            registry.clone(),
            authenticator,
            authorizer,
            dialer,
            shutdown.clone(),
        ));
        let accepting = tokio::spawn(listen::serve(listener, server_tls, api.clone(), shutdown));
        let advertise = SocketAddr::new(config.advertise, address.port());
        let node_settings = config.node_settings(service_ranges);
        bootstrap::run(&registry, service_ranges, advertise, node_settings).await?;
        let cluster_info = pki::kubeconfig_without_user(&format!("https://{advertise}"), authority.pem());
        let settings = controllers::Config {
            cluster_ranges,
            node_grace: config.node_grace,
            authority,
            signing_life: config.signing_life,
            cluster_info: cluster_info.into(),
        };
        let controllers = controllers::start(registry.clone(), settings);
        let scheduler = scheduler::start(registry.clone());
        let renewing = tokio::spawn(reload::follow(live, config.pki_dir, config.pki));
        api.set_ready();
        tracing::info!(%address, "the API is ready");
        Ok(Self {
            address,
            registry,
            stop,
            accepting,
            renewing: renewing.abort_handle(),
            _controllers: controllers,
            _scheduler: scheduler,
        })
    }

    /// Where the API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The verbs, for use in this process.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Ends watches, lets requests finish, stops.
    pub async fn stop(self) {
        self.renewing.abort();
        _ = self.stop.send(true);
        _ = self.accepting.await;
    }
}

/// Opens the store (off the async threads: every value is read and checked) and loads the cache.
async fn open(config: &ControlConfig) -> Result<Arc<Cache>, ServerError> {
    let dir = config.data_dir.join("store");
    let store = tokio::task::spawn_blocking(move || Embedded::open(&dir))
        .await
        .map_err(|error| ServerError::Config(format!("opening the store panicked: {error}")))??;
    let store: Arc<dyn Store> = Arc::new(store);
    Ok(Cache::open(store, Arc::new(schema::Fields)).await?)
}
