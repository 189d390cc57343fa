//! The control plane as one value: store, cache, registry, API, controllers and scheduler, wired and started.
//!
//! [`run`] is what `hull control` calls. It needs no root: a data directory, the keys in the PKI directory, one port.
//! `/readyz` says yes when the objects every cluster has are there and the controllers run.

mod bootstrap;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::api::{Api, NodeDialer, Shutdown, listen};
use crate::auth::tokens::Tokens;
use crate::auth::{Authenticator, Authorizer};
use crate::cache::Cache;
use crate::controllers;
use crate::registry::{Environment, Ipv4Range, Registry, Status};
use crate::scheduler;
use crate::schema;
use crate::store::{Embedded, Store, StoreError};

/// What a control plane needs to be told.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Where the store lives (`store/` in it).
    pub data_dir: PathBuf,
    /// Certificates and keys, made by [`crate::pki::ensure`].
    pub pki_dir: PathBuf,
    /// Address of the API.
    pub listen: SocketAddr,
    /// The address that pods reach the API at (endpoint of the `kubernetes` service).
    pub advertise: IpAddr,
    /// Range of service addresses, e.g. `10.96.0.0/16`.
    pub service_cidr: String,
    /// Range that nodes get their pod ranges from, e.g. `10.244.0.0/16`.
    pub pod_cidr: String,
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
        let service_range: Ipv4Range = config.service_cidr.parse().map_err(ServerError::Config)?;
        let cluster_cidr = config.pod_cidr.parse().map_err(ServerError::Config)?;
        let keys = tls::Keys::load(&config.pki_dir)?;
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
            service_range,
            environment,
        ));
        let (stop, shutdown) = Shutdown::channel();
        let dialer = NodeDialer::new(keys.client.clone());
        let api = Arc::new(Api::new(
            registry.clone(),
            authenticator,
            authorizer,
            dialer,
            shutdown.clone(),
        ));
        let accepting = tokio::spawn(listen::serve(listener, keys.server.clone(), api.clone(), shutdown));
        bootstrap::run(
            &registry,
            service_range,
            SocketAddr::new(config.advertise, address.port()),
        )
        .await?;
        let settings = controllers::Config {
            cluster_cidr,
            root_ca_pem: keys.ca_pem.as_str().into(),
        };
        let controllers = controllers::start(registry.clone(), settings);
        let scheduler = scheduler::start(registry.clone());
        api.set_ready();
        tracing::info!(%address, "the API is ready");
        Ok(Self {
            address,
            registry,
            stop,
            accepting,
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
