//! A Kubernetes API client: one HTTP/2 connection over TLS, shared by every request and watch of the agent.
//!
//! Paths are the API's own (`/api/v1/namespaces/x/pods/y?…`), bodies are JSON values: the agent reads with typed structs where it
//! decides and writes patches, so an object's unknown fields are never lost. Invariant: a request that failed in transport is
//! reported, never silently sent twice; only [`ListWatch`] retries, because reading is idempotent.

mod error;
mod kubeconfig;
mod verbs;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub use error::{ApiStatus, ClientError, PatchKind};
pub use watch::{ListWatch, ListWatchEvent, Watch, WatchEvent, WatchKind};

/// Largest answer that is read into memory, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How long a connection attempt may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request other than a watch may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// An idle connection is probed this often, so that a dead server is noticed under a quiet watch.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

struct Inner {
    host: String,
    port: u16,
    server_name: ServerName<'static>,
    roots: Arc<rustls::RootCertStore>,
    /// PEM text of certificate and key that the client was made with.
    identity: Option<Vec<u8>>,
    tls: ArcSwap<rustls::ClientConfig>,
    bearer: Option<HeaderValue>,
    connection: tokio::sync::Mutex<Option<SendRequest<Full<Bytes>>>>,
    /// The connection was made with an identity that has been replaced.
    stale: AtomicBool,
}

/// A client of one API server. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl Client {
    /// A client of `server` (`https://host:port`), trusting the PEM `ca`, identifying itself by a PEM certificate and key or a token.
    ///
    /// # Errors
    /// The address or one of the PEM texts does not parse.
    pub fn new(
        server: &str,
        ca: &[u8],
        identity: Option<(Vec<u8>, Vec<u8>)>,
        token: Option<&str>,
    ) -> Result<Self, ClientError> {
        let wrong = |what: String| ClientError::transport(format!("API server {server}: {what}"));
        let uri: http::Uri = server.parse().map_err(|e| wrong(format!("not a URL: {e}")))?;
        let host = uri
            .host()
            .ok_or_else(|| wrong("no host in the URL".into()))?
            .trim_matches(['[', ']'])
            .to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca) {
            let certificate = certificate.map_err(|e| wrong(format!("CA certificate: {e}")))?;
            roots
                .add(certificate)
                .map_err(|e| wrong(format!("CA certificate: {e}")))?;
        }
        let roots = Arc::new(roots);
        let parts = identity
            .as_ref()
            .map(|(certificate, key)| (certificate.as_slice(), key.as_slice()));
        let tls = tls_config(&roots, parts).map_err(wrong)?;
        let identity = identity.map(|(certificate, key)| [certificate, key].concat());
        let bearer = match token {
            Some(token) => Some(
                HeaderValue::from_str(&format!("Bearer {}", token.trim())).map_err(|e| wrong(format!("token: {e}")))?,
            ),
            None => None,
        };
        let server_name = ServerName::try_from(host.clone()).map_err(|e| wrong(format!("host name: {e}")))?;
        let inner = Inner {
            host,
            port,
            server_name,
            roots,
            identity,
            tls: ArcSwap::from_pointee(tls),
            bearer,
            connection: tokio::sync::Mutex::new(None),
            stale: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Identifies itself by this PEM text, certificate and key, on the next connection; requests under way and watches
    /// end on theirs, new requests make a new one.
    ///
    /// # Errors
    /// The text does not hold a certificate and its key.
    pub fn set_identity(&self, pem: &[u8]) -> Result<(), ClientError> {
        let wrong = |what| ClientError::transport(format!("API server {}: {what}", self.server()));
        let tls = tls_config(&self.inner.roots, Some((pem, pem))).map_err(wrong)?;
        self.inner.tls.store(Arc::new(tls));
        self.inner.stale.store(true, Ordering::Release);
        Ok(())
    }

    /// Certificate and key (PEM) that the client was made with.
    pub fn identity(&self) -> Option<Vec<u8>> {
        self.inner.identity.clone()
    }

    /// `host:port` of the API server.
    pub fn server(&self) -> String {
        let (host, port) = (&self.inner.host, self.inner.port);
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let inner = &self.inner;
        let failed = |what: String| ClientError::transport(format!("connect to API server {}: {what}", self.server()));
        let attempt = async {
            let stream = match inner.host.parse() {
                Ok(ip) => TcpStream::connect(SocketAddr::new(ip, inner.port)).await,
                Err(_) => TcpStream::connect((inner.host.as_str(), inner.port)).await,
            }
            .map_err(|e| failed(e.to_string()))?;
            stream.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
            let stream = TlsConnector::from(inner.tls.load_full())
                .connect(inner.server_name.clone(), stream)
                .await
                .map_err(|e| failed(format!("TLS: {e}")))?;
            let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(256 << 10)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|e| failed(format!("HTTP/2: {e}")))?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection to the API server ended");
                }
            });
            Ok(sender)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, attempt)
            .await
            .map_err(|_| failed(format!("no answer within {CONNECT_TIMEOUT:?}")))?
    }

    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let mut slot = self.inner.connection.lock().await;
        if self.inner.stale.swap(false, Ordering::AcqRel) {
            *slot = None;
        }
        match slot.as_ref() {
            Some(sender) if !sender.is_closed() => Ok(sender.clone()),
            _ => Ok(slot.insert(self.connect().await?).clone()),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let failed = |what: String| ClientError::transport(format!("{method} {path} at {}: {what}", self.server()));
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("https://{}{path}", self.server()))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("hull/", env!("CARGO_PKG_VERSION")));
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(bearer) = &self.inner.bearer {
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(body)).map_err(|e| failed(e.to_string()))?;
        let mut sender = self.sender().await?;
        sender.ready().await.map_err(|e| failed(e.to_string()))?;
        sender.send_request(request).await.map_err(|e| failed(e.to_string()))
    }

    /// Sends a request and decodes the JSON answer; a status of 400 or more becomes an error with the server's `Status`.
    ///
    /// # Errors
    /// No connection, a time-out after 30 s, an error status, or an answer that is not JSON.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<Value, ClientError> {
        let bytes = self.request_bytes(method.clone(), path, content_type, body).await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            ClientError::transport(format!("{method} {path} at {}: answer is not JSON: {e}", self.server()))
        })
    }

    /// As [`Client::request`], with the answer as it came.
    ///
    /// # Errors
    /// No connection, a time-out after 30 s, or an error status.
    pub async fn request_bytes(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        self.request_within(method, path, content_type, body, REQUEST_TIMEOUT)
            .await
    }

    /// As [`Client::request_bytes`], for what takes its time.
    ///
    /// # Errors
    /// No connection, no answer within `time`, or an error status.
    pub async fn request_within(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
        time: Duration,
    ) -> Result<Bytes, ClientError> {
        let exchange = async {
            let response = self.send(method.clone(), path, content_type, body).await?;
            let (status, bytes) = collect(response)
                .await
                .map_err(|e| ClientError::transport(format!("{method} {path}: {e}")))?;
            if status.is_success() {
                Ok(bytes)
            } else {
                Err(answered(&method, path, status, &bytes))
            }
        };
        let late = || {
            ClientError::transport(format!(
                "{method} {path} at {}: no answer within {time:?}",
                self.server()
            ))
        };
        tokio::time::timeout(time, exchange).await.map_err(|_| late())?
    }
}

/// TLS towards a server that `roots` vouch for, with a PEM certificate and key if there is one.
fn tls_config(
    roots: &Arc<rustls::RootCertStore>,
    identity: Option<(&[u8], &[u8])>,
) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(Arc::clone(roots));
    let mut tls = match identity {
        Some((certificate, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
            let chain = chain.map_err(|e| format!("client certificate: {e}"))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("client key: {e}"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| format!("client certificate: {e}"))?
        }
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

fn take_items(list: &mut Value) -> Vec<Value> {
    match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

async fn collect(response: Response<Incoming>) -> Result<(StatusCode, Bytes), String> {
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let bytes = body
        .collect()
        .await
        .map_err(|e| format!("reading the answer: {e}"))?
        .to_bytes();
    Ok((status, bytes))
}

fn answered(method: &Method, path: &str, code: StatusCode, body: &[u8]) -> ClientError {
    let mut status: ApiStatus = serde_json::from_slice(body).unwrap_or_default();
    status.code = code.as_u16();
    if status.message.is_empty() {
        status.message = String::from_utf8_lossy(&body[..body.len().min(256)]).into_owned();
    }
    let what = format!(
        "{method} {path}: the API server answered {} {}: {}",
        status.code, status.reason, status.message
    );
    ClientError {
        status: Some(status),
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_answer_keeps_the_servers_words() {
        let body = br#"{"kind":"Status","reason":"NotFound","message":"pods \"x\" not found","code":404}"#;
        let error = answered(&Method::GET, "/api/v1/namespaces/a/pods/x", StatusCode::NOT_FOUND, body);
        assert!(error.is_not_found());
        assert!(error.to_string().contains("pods \"x\" not found"), "{error}");
        let error = answered(&Method::GET, "/", StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(
            (error.code(), error.status.map(|s| s.message)),
            (502, Some("<html>".to_owned()))
        );
    }
}
