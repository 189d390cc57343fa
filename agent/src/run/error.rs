//! Why an agent does not start: what was tried, on what, and what was said to it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::client::ClientError;
use crate::identity::PairError;
use crate::join::SettingsError;
use crate::{dns, image, network, proxy, server};

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
        source: io::Error,
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
        source: io::Error,
    },
    /// What an earlier agent left cannot be taken over.
    #[error("cannot adopt the pods on this node: {0}")]
    Adopt(String),
    /// A thread cannot be started.
    #[error("cannot start a thread that loads eBPF programs: {0}")]
    Thread(io::Error),
    /// A thread of the agent panicked.
    #[error("a part of the agent broke while starting: {0}")]
    Broken(#[from] tokio::task::JoinError),
    /// The thread that loads the service proxy panicked.
    #[error("the thread that loads the service proxy broke while starting")]
    Loader,
}
