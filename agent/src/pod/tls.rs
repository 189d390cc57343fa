//! TLS without verification, for HTTPS probes and hooks (as with the kubelet, a probe asks whether the container answers, not
//! who it is) and for reading `cluster-info`, which is signed by itself, before joining. Nothing else.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A connector that accepts every certificate.
#[derive(Clone)]
pub struct InsecureTls {
    connector: TlsConnector,
}

impl InsecureTls {
    /// The one of this process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<InsecureTls> = OnceLock::new();
        SHARED.get_or_init(|| {
            let provider = Arc::new(ring::default_provider());
            let verifier = Arc::new(AcceptAll(Arc::clone(&provider)));
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap_or_else(|_| unreachable!("ring supports the default protocol versions"))
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth();
            InsecureTls {
                connector: TlsConnector::from(Arc::new(config)),
            }
        })
    }

    /// Speaks TLS over `stream`.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("invalid host {host:?}: {error}"))?;
        self.connector
            .connect(name, stream)
            .await
            .map_err(|error| format!("TLS handshake with {host}: {error}"))
    }
}

#[derive(Debug)]
struct AcceptAll(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
