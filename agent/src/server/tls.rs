//! TLS of the kubelet API: the node's certificate, and clients of the cluster's own authority only.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::AgentConfig;

/// The API server's name when it calls a node.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
/// The group whose members may do everything.
const ADMINISTRATORS: &str = "system:masters";

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A PEM file cannot be read.
    #[error("cannot read the {what} of the kubelet API from {path}: {source}")]
    Pem {
        /// Which.
        what: &'static str,
        /// From where.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The parts do not fit together.
    #[error("cannot set up TLS for the kubelet API: {0}")]
    Setup(String),
}

/// The certificate that is shown to those who connect; may be replaced at any time.
#[derive(Debug)]
pub struct Certificate {
    current: ArcSwapOption<CertifiedKey>,
    provider: Arc<CryptoProvider>,
}

impl Certificate {
    /// Shows another one from now on: PEM, chain and key.
    ///
    /// # Errors
    /// What does not parse, or does not fit together.
    pub fn replace(&self, pem: &[u8]) -> Result<(), String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let chain = chain.map_err(|error| format!("certificate: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("key: {error}"))?;
        let certified = CertifiedKey::from_der(chain, key, &self.provider).map_err(|error| error.to_string())?;
        self.current.store(Some(Arc::new(certified)));
        Ok(())
    }
}

impl ResolvesServerCert for Certificate {
    /// `None`, and a refused handshake, until the node has its first certificate.
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

/// Reads the client authority of `config`; the certificate comes later.
pub fn load(config: &AgentConfig) -> Result<(TlsAcceptor, Arc<Certificate>), Error> {
    let setup = |error: &dyn std::fmt::Display| Error::Setup(error.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in certificates("client authority", &config.client_ca)? {
        roots.add(certificate).map_err(|error| setup(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = verifier.build().map_err(|error| setup(&error))?;
    let certificate = Arc::new(Certificate {
        current: ArcSwapOption::empty(),
        provider: Arc::clone(&provider),
    });
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| setup(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(&certificate) as Arc<dyn ResolvesServerCert>);
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(server)), certificate))
}

/// The pair that was made with the cluster, if this machine made it: `config.serving_cert` and its key, as one PEM text.
pub fn made_here(config: &AgentConfig) -> Option<Vec<u8>> {
    let mut pem = std::fs::read(&config.serving_cert).ok()?;
    pem.extend_from_slice(&std::fs::read(&config.serving_key).ok()?);
    Some(pem)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |source| Error::Pem {
        what,
        path: path.to_owned(),
        source,
    };
    CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<_, _>>()
        .map_err(failed)
}

/// Whether the owner of a verified certificate may use the API: the API server, or an administrator.
pub fn is_allowed(chain: Option<&[CertificateDer<'_>]>) -> bool {
    let Some(Ok((_, certificate))) = chain
        .and_then(|chain| chain.first())
        .map(|leaf| X509Certificate::from_der(leaf))
    else {
        return false;
    };
    let subject = certificate.subject();
    let is_api_server = subject.iter_common_name().any(|name| name.as_str() == Ok(API_SERVER));
    is_api_server
        || subject
            .iter_organization()
            .any(|group| group.as_str() == Ok(ADMINISTRATORS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    fn certificate(name: &str, group: &str) -> CertificateDer<'static> {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        subject.push(DnType::OrganizationName, group);
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn only_the_api_server_and_administrators_are_let_in() {
        assert!(is_allowed(Some(&[certificate(API_SERVER, "x")])));
        assert!(is_allowed(Some(&[certificate("someone", ADMINISTRATORS)])));
        assert!(!is_allowed(Some(&[certificate("system:node:other", "system:nodes")])));
        assert!(!is_allowed(Some(&[])) && !is_allowed(None));
        assert!(!is_allowed(Some(&[CertificateDer::from(vec![1, 2, 3])])));
    }
}
