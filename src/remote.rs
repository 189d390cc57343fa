//! What the commands that ask nodes have in common: the API server of a kubeconfig, and each node's agent behind it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use hull_agent::client::{Client, ClientError};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cluster::Cluster;

/// Which cluster is asked.
#[derive(Args, Clone, Debug)]
pub struct Access {
    /// Kubeconfig of the cluster [default: that of the cluster on this machine]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// A cluster that answers.
pub struct Remote {
    /// The API.
    pub client: Client,
}

impl Access {
    /// Reads the kubeconfig; nothing is connected yet.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(&self, cluster: &Cluster) -> Result<Remote> {
        let path = self.kubeconfig.clone().unwrap_or_else(|| cluster.kubeconfig());
        let client = Client::from_kubeconfig(&path)
            .context("which cluster? Start one here with hull up, or name one with --kubeconfig")?;
        Ok(Remote { client })
    }
}

impl Remote {
    /// The names of the nodes that are ready, and of those that are not.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn nodes(&self) -> Result<(Vec<String>, Vec<String>), ClientError> {
        let nodes = self.client.list("/api/v1/nodes").await?;
        let name = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let (ready, others): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| is_ready(node));
        Ok((
            ready.into_iter().map(name).collect(),
            others.into_iter().map(name).collect(),
        ))
    }

    /// GET at a node's agent.
    ///
    /// # Errors
    /// No answer, a refusal, or one that is not understood.
    pub async fn get<T: DeserializeOwned>(&self, node: &str, path: &str) -> Result<T> {
        let path = format!("/api/v1/nodes/{node}/proxy/{path}");
        let value = self.client.get(&path).await?;
        serde_json::from_value(value)
            .with_context(|| format!("node {node} answers what this version does not understand"))
    }

    /// POST at a node's agent, with an answer within `time`.
    ///
    /// # Errors
    /// As [`Remote::get`].
    pub async fn post<T: DeserializeOwned>(&self, node: &str, path: &str, body: &Value, time: Duration) -> Result<T> {
        let path = format!("/api/v1/nodes/{node}/proxy/{path}");
        let (kind, body) = (Some("application/json"), body.to_string().into());
        let answer = self
            .client
            .request_within(http::Method::POST, &path, kind, body, time)
            .await?;
        serde_json::from_slice(&answer)
            .with_context(|| format!("node {node} answers what this version does not understand"))
    }

    /// The node that a pod runs on.
    ///
    /// # Errors
    /// There is no such pod, or it is not placed yet.
    pub async fn node_of(&self, pod: &str) -> Result<String> {
        let Some((namespace, name)) = pod.split_once('/') else {
            bail!("{pod:?}: a pod is named as NAMESPACE/NAME");
        };
        let found = self
            .client
            .get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))
            .await?;
        let node = found["spec"]["nodeName"].as_str();
        node.map(str::to_owned)
            .with_context(|| format!("pod {pod} is on no node yet"))
    }
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Namespace and name of `NAMESPACE/NAME`; a name alone is in `default`.
///
/// # Errors
/// It is neither.
pub fn service_name(text: &str) -> Result<(String, String)> {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    let is_name = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
    };
    if !is_name(namespace) || !is_name(name) {
        bail!("{text:?}: a service is named as NAMESPACE/NAME");
    }
    Ok((namespace.to_owned(), name.to_owned()))
}

/// A runtime for one thread.
///
/// # Errors
/// The kernel refuses what it needs.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_may_be_named_alone() {
        assert_eq!(service_name("web").unwrap(), ("default".to_owned(), "web".to_owned()));
        assert_eq!(service_name("shop/web").unwrap(), ("shop".to_owned(), "web".to_owned()));
        for wrong in ["", "/", "a/b/c", "shop/", "a b"] {
            assert!(service_name(wrong).is_err(), "{wrong}");
        }
    }
}
