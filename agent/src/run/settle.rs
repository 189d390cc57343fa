//! Who this agent is and what holds for its node, found out before anything is started: kept from earlier runs, so that a
//! restarted agent adopts its pods without waiting for the API server, or asked of the cluster the first time.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::AgentError;
use crate::client::Client;
use crate::config::AgentConfig;
use crate::identity::{self, Pair, Rotation};
use crate::join::{SETTINGS_PATH, Settings};
use crate::network::Cidr;
use crate::node::{Machine, NodeReporter};
use crate::pod::api::Api;
use crate::server::{self, Certificate};

/// Pauses between questions.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The client certificate in use: the one that the cluster signed for this node earlier, if it is still good for this
/// cluster, else the one of the kubeconfig.
pub(super) fn own_identity(config: &AgentConfig, client: &Client) -> Result<Option<Pair>, AgentError> {
    match kept(config, &config.client_pair()) {
        Some(pair) => {
            client.set_identity(pair.pem())?;
            Ok(Some(pair))
        }
        None => Ok(client.identity().and_then(|pem| Pair::from_pem(pem).ok())),
    }
}

/// A pair from an earlier run, if it is good for this cluster.
fn kept(config: &AgentConfig, path: &std::path::Path) -> Option<Pair> {
    let pair = Pair::read(path)
        .inspect_err(|error| tracing::warn!(%error, "a certificate from an earlier run is not usable"))
        .ok()??;
    let authority = fs::read(&config.client_ca)
        .map(|pem| identity::own_identifier(&pem))
        .ok()?;
    (authority == pair.authority && pair.is_valid(Timestamp::now())).then_some(pair)
}

/// Shows the serving certificate there is; returns what keeps it fresh, if there is a client to ask with.
pub(super) fn serving(
    config: &AgentConfig,
    client: Option<Client>,
    names: Vec<String>,
    certificate: Arc<Certificate>,
) -> Result<Option<Rotation>, AgentError> {
    let path = config.serving_pair();
    let made = || Pair::from_pem(server::made_here(config)?).ok();
    let current = kept(config, &path).or_else(made);
    if let Some(pair) = &current {
        certificate.replace(pair.pem()).map_err(server::TlsError::Setup)?;
    }
    let node = config.node_name.clone();
    Ok(client.map(|client| identity::serving(client, &node, names, path, current, certificate)))
}

/// Fills in what the node is told by the cluster; waits for it the first time.
pub(super) async fn learn(config: &mut AgentConfig, api: &Arc<dyn Api>) -> Result<(), AgentError> {
    if config.joined {
        let settings = match Settings::kept(config) {
            Some(kept) => kept,
            None => ask_settings(api).await?,
        };
        settings.apply(config)?;
        settings.keep(config)?;
    }
    if let Ok(ranges) = fs::read_to_string(ranges_file(config)) {
        ranges.trim().clone_into(&mut config.pod_cidr);
    }
    if config.pod_cidr.is_empty() {
        let (machine, port) = (Machine::read(config), config.listen.port());
        let mut reporter = NodeReporter::new(config.clone(), machine, Arc::clone(api), port);
        config.pod_cidr = reporter.claim().await.join(",");
        keep_text(config)?;
    }
    Ok(())
}

async fn ask_settings(api: &Arc<dyn Api>) -> Result<Settings, AgentError> {
    let mut delay = ASK_AGAIN.0;
    loop {
        match api.get(SETTINGS_PATH.to_owned()).await {
            Ok(object) => return Ok(Settings::from_object(&object)?),
            Err(error) => tracing::warn!(%error, retry_in = ?delay, "the cluster's settings are not known yet"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(ASK_AGAIN.1);
    }
}

fn ranges_file(config: &AgentConfig) -> PathBuf {
    config.identity_dir().join("pod-cidr")
}

/// Remembers the node's ranges for the agent that is started next.
pub(super) fn keep_ranges(config: &AgentConfig, ranges: &[Cidr]) -> Result<(), AgentError> {
    let texts: Vec<String> = ranges.iter().map(Cidr::to_string).collect();
    Ok(identity::replace(&ranges_file(config), texts.join(",").as_bytes())?)
}

fn keep_text(config: &AgentConfig) -> Result<(), AgentError> {
    Ok(identity::replace(&ranges_file(config), config.pod_cidr.as_bytes())?)
}
