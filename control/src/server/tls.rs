//! Keys from the PKI directory into rustls configurations: what we serve with, and what we are towards agents.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::ServerError;

/// Configurations made from the PKI directory.
pub(super) struct Keys {
    /// For the API: certificates of clients are optional, but must be ours.
    pub server: Arc<ServerConfig>,
    /// Towards agents.
    pub client: Arc<ClientConfig>,
}

impl Keys {
    /// Reads `ca.crt`, `apiserver.{crt,key}` and `kubelet-client.{crt,key}`.
    pub(super) fn load(dir: &Path) -> Result<Self, ServerError> {
        let ca_path = dir.join("ca.crt");
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&ca_path)? {
            roots.add(certificate).map_err(|error| bad(&ca_path, &error))?;
        }
        let roots = Arc::new(roots);
        Ok(Self {
            server: server(dir, &roots)?,
            client: client(dir, roots)?,
        })
    }
}

fn server(dir: &Path, roots: &Arc<RootCertStore>) -> Result<Arc<ServerConfig>, ServerError> {
    let path = dir.join("apiserver.crt");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| bad(&dir.join("ca.crt"), &error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&path, &error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&path)?, key(&dir.join("apiserver.key"))?)
        .map_err(|error| bad(&path, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn client(dir: &Path, roots: Arc<RootCertStore>) -> Result<Arc<ClientConfig>, ServerError> {
    let path = dir.join("kubelet-client.crt");
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&path, &error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&path)?, key(&dir.join("kubelet-client.key"))?)
        .map_err(|error| bad(&path, &error))?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error: rustls::pki_types::pem::Error| bad(path, &error))
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, ServerError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| bad(path, &error))
}

fn bad(path: &Path, error: &dyn std::fmt::Display) -> ServerError {
    ServerError::Pki {
        path: PathBuf::from(path),
        what: error.to_string(),
    }
}
