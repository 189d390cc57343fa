//! Joining a cluster: from its address and a bootstrap token to credentials of our own.
//!
//! The cluster proves itself first (`discovery`): its authority must be the one that was pinned, and a text that names it
//! must be signed with the token. Only then the token is shown, over TLS, in exchange for a client certificate.

mod discovery;
mod jws;
mod settings;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use crate::client::{Client, ClientError};
use crate::config::AgentConfig;
use crate::identity::{self, Pair, PairError, Request, RequestError};

pub use discovery::DiscoveryError;
pub use settings::{SETTINGS_PATH, Settings, SettingsError};

/// What joining needs to know.
#[derive(Clone, Debug)]
pub struct Join {
    /// `https://host:port` of the API server.
    pub server: String,
    /// `id.secret`; not needed once the node has a certificate.
    pub token: Option<String>,
    /// `sha256:<hex>` of the authority's public key, printed by `hull token create --print-join-command`.
    pub ca_hash: Option<String>,
}

/// Why this machine is not part of the cluster.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No token, and no certificate from an earlier join.
    #[error(
        "this node has no valid certificate yet: give a bootstrap token with --token (on the control plane: hull token create --print-join-command)"
    )]
    NoToken,
    /// The cluster could not be verified.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// The API server cannot be talked to.
    #[error(transparent)]
    Api(#[from] ClientError),
    /// There is no certificate for this node.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Credentials cannot be read or kept.
    #[error(transparent)]
    Files(#[from] PairError),
}

/// Makes sure that `config.kubeconfig` holds credentials of this node's own. Does nothing if it does.
///
/// # Errors
/// [`JoinError`].
pub async fn join(config: &AgentConfig, join: &Join) -> Result<(), JoinError> {
    let path = config.client_pair();
    let kept = Pair::read(&path)?.filter(|pair| pair.is_valid(Timestamp::now()));
    if kept.is_some() && config.kubeconfig.exists() && config.client_ca.exists() {
        return Ok(());
    }
    let token = join.token.as_deref().ok_or(JoinError::NoToken)?;
    let ca = discovery::discover(&join.server, token, join.ca_hash.as_deref()).await?;
    let client = Client::new(&join.server, ca.as_bytes(), None, Some(token))?;
    let request = Request {
        node: config.node_name.clone(),
        names: Vec::new(),
    };
    let pair = identity::obtain(&client, &request).await?;
    pair.write(&path)?;
    identity::replace(&config.client_ca, ca.as_bytes())?;
    identity::replace(&config.kubeconfig, kubeconfig(&join.server, &ca, &path).as_bytes())?;
    tracing::info!(server = join.server, node = config.node_name, "joined the cluster");
    Ok(())
}

fn kubeconfig(server: &str, ca: &str, pair: &Path) -> String {
    let (ca, pair) = (STANDARD.encode(ca), pair.display());
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: hull\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: agent\n  user:\n    client-certificate: {pair}\n    \
         client-key: {pair}\ncontexts:\n- name: hull\n  context:\n    cluster: hull\n    user: agent\n\
         current-context: hull\n"
    )
}
