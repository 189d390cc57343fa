//! Kubeconfigs: the current context's server, authority and credentials, inline or in files beside it.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use super::{Client, ClientError};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: String,
    clusters: Vec<Named<ClusterHolder>>,
    contexts: Vec<Named<ContextHolder>>,
    users: Vec<Named<UserHolder>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(flatten)]
    value: T,
}

#[derive(Deserialize)]
struct ClusterHolder {
    cluster: Cluster,
}

#[derive(Deserialize)]
struct ContextHolder {
    context: Context,
}

#[derive(Deserialize)]
struct UserHolder {
    user: Credentials,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: Option<String>,
    certificate_authority: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Credentials {
    client_certificate_data: Option<String>,
    client_certificate: Option<String>,
    client_key_data: Option<String>,
    client_key: Option<String>,
    token: Option<String>,
}

/// Inline base64 data, or the content of the file named, relative to the kubeconfig.
fn material(data: Option<&str>, file: Option<&str>, beside: &Path) -> Result<Option<Vec<u8>>, ClientError> {
    if let Some(data) = data {
        return BASE64
            .decode(data.trim())
            .map(Some)
            .map_err(|e| ClientError::transport(format!("kubeconfig: base64 data: {e}")));
    }
    let Some(file) = file else { return Ok(None) };
    let path = beside.join(file);
    std::fs::read(&path)
        .map(Some)
        .map_err(|e| ClientError::transport(format!("kubeconfig: read {}: {e}", path.display())))
}

impl Client {
    /// Reads a kubeconfig's current context: server, CA, client certificate or token, inline or in files.
    ///
    /// # Errors
    /// The file cannot be read, is no kubeconfig, or its certificates do not parse. Nothing is connected yet.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, ClientError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| ClientError::transport(format!("read kubeconfig {}: {e}", path.display())))?;
        let wrong = |what: String| ClientError::transport(format!("kubeconfig {}: {what}", path.display()));
        let config: Kubeconfig = serde_saphyr::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        let context = config.contexts.iter().find(|c| c.name == config.current_context);
        let context = &context
            .ok_or_else(|| wrong(format!("no context {:?}", config.current_context)))?
            .value
            .context;
        let cluster = config.clusters.iter().find(|c| c.name == context.cluster);
        let cluster = &cluster
            .ok_or_else(|| wrong(format!("no cluster {:?}", context.cluster)))?
            .value
            .cluster;
        let user = config.users.iter().find(|c| c.name == context.user);
        let user = &user
            .ok_or_else(|| wrong(format!("no user {:?}", context.user)))?
            .value
            .user;
        let beside = path.parent().unwrap_or(Path::new("/"));
        let ca = material(
            cluster.certificate_authority_data.as_deref(),
            cluster.certificate_authority.as_deref(),
            beside,
        )?;
        let certificate = material(
            user.client_certificate_data.as_deref(),
            user.client_certificate.as_deref(),
            beside,
        )?;
        let key = material(user.client_key_data.as_deref(), user.client_key.as_deref(), beside)?;
        Self::new(
            &cluster.server,
            &ca.ok_or_else(|| wrong("no certificate-authority".into()))?,
            certificate.zip(key),
            user.token.as_deref(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_without_its_context_says_so() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("config");
        std::fs::write(&path, "current-context: b\nclusters: []\nusers: []\ncontexts: []\n").expect("write");
        let error = Client::from_kubeconfig(&path)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(error.contains("no context \"b\""), "{error}");
    }
}
