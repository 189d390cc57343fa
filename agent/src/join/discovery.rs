//! Finds out whom to trust: reads `kube-public/cluster-info` from a server that is not trusted yet, and checks it.
//!
//! Any certificate is accepted here: what is read this way is trusted for its own signature only. Invariant: nothing secret is
//! sent before the checks. Kubernetes: "kubeadm join", token-based discovery with CA pinning.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::jws;
use crate::pod::tls::InsecureTls;

const PATH: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Why the cluster is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// An argument makes no sense.
    #[error("{0}")]
    Argument(String),
    /// The server does not answer as it should.
    #[error("cannot read cluster-info from {server}: {what}")]
    Unreachable {
        /// The server.
        server: String,
        /// What was wrong.
        what: String,
    },
    /// The signature is missing or wrong.
    #[error(
        "{server} did not prove to know bootstrap token {id}: the token may have expired (hull token list), or this is another cluster"
    )]
    Unsigned {
        /// The server.
        server: String,
        /// Id of the token.
        id: String,
    },
    /// The authority is another one.
    #[error("the authority of {server} is {found}, not {pinned}: this is another cluster, or somebody is in between")]
    OtherAuthority {
        /// The server.
        server: String,
        /// The hash of its public key.
        found: String,
        /// The hash that was asked for.
        pinned: String,
    },
}

#[derive(Deserialize)]
struct Kubeconfig {
    clusters: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    certificate_authority_data: String,
}

/// The certificate (PEM) of the cluster's authority, proven by the token and, if given, the pin.
pub(super) async fn discover(server: &str, token: &str, pin: Option<&str>) -> Result<String, DiscoveryError> {
    let argument = |what: &str| DiscoveryError::Argument(what.to_owned());
    let (id, secret) = token
        .split_once('.')
        .filter(|(id, secret)| id.len() == 6 && secret.len() == 16)
        .ok_or_else(|| argument("--token: a bootstrap token has the form [a-z0-9]{6}.[a-z0-9]{16}"))?;
    if pin.is_some_and(|pin| !pin.starts_with("sha256:")) {
        return Err(argument("--ca-hash: want sha256:<64 hexadecimal digits>"));
    }
    let unreachable = |what: String| DiscoveryError::Unreachable {
        server: server.to_owned(),
        what,
    };
    let info = tokio::time::timeout(TIMEOUT, fetch(server))
        .await
        .map_err(|_| unreachable(format!("no answer within {TIMEOUT:?}")))?
        .map_err(unreachable)?;
    let kubeconfig = info["data"]["kubeconfig"].as_str().unwrap_or_default();
    let signature = info["data"][format!("jws-kubeconfig-{id}")]
        .as_str()
        .unwrap_or_default();
    if !jws::is_signed(kubeconfig, signature, id, secret) {
        return Err(DiscoveryError::Unsigned {
            server: server.to_owned(),
            id: id.to_owned(),
        });
    }
    let ca = authority(kubeconfig).map_err(unreachable)?;
    let found = hash(&ca).map_err(unreachable)?;
    match pin {
        Some(pinned) if !pinned.eq_ignore_ascii_case(&found) => Err(DiscoveryError::OtherAuthority {
            server: server.to_owned(),
            found,
            pinned: pinned.to_owned(),
        }),
        _ => Ok(ca),
    }
}

fn authority(kubeconfig: &str) -> Result<String, String> {
    let config: Kubeconfig = serde_saphyr::from_str(kubeconfig).map_err(|error| format!("its kubeconfig: {error}"))?;
    let cluster = config.clusters.first().ok_or("its kubeconfig names no cluster")?;
    let ca = STANDARD
        .decode(&cluster.cluster.certificate_authority_data)
        .map_err(|error| format!("its authority: {error}"))?;
    String::from_utf8(ca).map_err(|error| format!("its authority: {error}"))
}

/// `sha256:` and the digest of the public key (RFC 7469).
fn hash(ca: &str) -> Result<String, String> {
    let der = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|error| format!("its authority: {error}"))?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| format!("its authority: {error}"))?;
    let digest = Sha256::digest(certificate.public_key().raw);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}

/// The ConfigMap, from whoever answers there.
async fn fetch(server: &str) -> Result<Value, String> {
    let uri: http::Uri = server.parse().map_err(|error| format!("not a URL: {error}"))?;
    if uri.scheme_str() != Some("https") {
        return Err("want https://HOST:PORT".to_owned());
    }
    let host = uri
        .host()
        .ok_or("no host in the URL")?
        .trim_matches(['[', ']'])
        .to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let stream = match host.parse() {
        Ok(ip) => TcpStream::connect(SocketAddr::new(ip, port)).await,
        Err(_) => TcpStream::connect((host.as_str(), port)).await,
    };
    let stream = stream.map_err(|error| error.to_string())?;
    let stream = InsecureTls::shared().connect(&host, stream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = Request::get(PATH)
        .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
        .header(header::ACCEPT, "application/json")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    if status != StatusCode::OK {
        return Err(format!("it answered {status}: {}", String::from_utf8_lossy(&body)));
    }
    serde_json::from_slice(&body).map_err(|error| format!("its answer is not JSON: {error}"))
}
