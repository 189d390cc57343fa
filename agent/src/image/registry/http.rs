//! One HTTP request to a registry: a connection of its own, TLS unless plain is allowed, redirects followed.
//!
//! Authorization goes to the first host only, never along with a redirect. A silent peer is given up after a while.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, LOCATION, RANGE, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Registries, host_of};
use crate::image::error::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence of a registry while it answers.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
const REDIRECTS_MAX: usize = 5;
/// Where distributions keep the system's certificate authorities.
const SYSTEM_CAS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What to ask for.
#[derive(Debug, Clone, Default)]
pub(super) struct Ask {
    pub accept: Option<&'static str>,
    pub authorization: Option<String>,
    /// The first byte wanted, if not 0.
    pub from: u64,
}

/// Makes requests with one set of trusted authorities.
pub(super) struct Http {
    registries: Registries,
    /// Made at the first use of TLS.
    tls: std::sync::OnceLock<Arc<ClientConfig>>,
}

impl Http {
    pub(super) fn new(registries: Registries) -> Self {
        Self {
            registries,
            tls: std::sync::OnceLock::new(),
        }
    }

    /// `http` or `https` for a registry.
    pub(super) fn scheme(&self, registry: &str) -> &'static str {
        if self.registries.is_plain(registry) {
            "http"
        } else {
            "https"
        }
    }

    /// GET, following redirects.
    pub(super) async fn get(&self, url: &str, ask: &Ask) -> Result<Response<Incoming>, Error> {
        let mut uri = parse(url)?;
        let mut ask = ask.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.request(&uri, &ask).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| resolve(&uri, location));
            let next = next.ok_or_else(|| failed(&uri, "a redirect leads nowhere", false))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(failed(
                    &uri,
                    &format!("it redirects to {next}, which is not protected"),
                    false,
                ));
            }
            if next.authority() != uri.authority() {
                ask.authorization = None;
            }
            uri = next;
        }
        Err(failed(&uri, "it redirects in circles", false))
    }

    async fn request(&self, uri: &Uri, ask: &Ask) -> Result<Response<Incoming>, Error> {
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let tls = uri.scheme_str() == Some("https");
        let host = host_of(authority);
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await;
        let stream = match connect {
            Ok(connected) => connected.map_err(|error| failed(uri, &format!("connecting: {error}"), true))?,
            Err(_) => return Err(failed(uri, "connecting takes too long", true)),
        };
        let _ = stream.set_nodelay(true);
        let request = build(uri, authority, ask).map_err(|error| failed(uri, &error.to_string(), false))?;
        let answer = async {
            if tls {
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                let stream = TlsConnector::from(self.tls()?).connect(name, stream).await?;
                send(stream, request).await
            } else {
                send(stream, request).await
            }
        };
        match tokio::time::timeout(SILENCE, answer).await {
            Ok(answer) => answer.map_err(|error| failed(uri, &error.to_string(), is_transient(&error))),
            Err(_) => Err(failed(uri, "it does not answer", true)),
        }
    }

    fn tls(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.tls.get() {
            return Ok(config.clone());
        }
        let mut roots = RootCertStore::empty();
        let system = SYSTEM_CAS.iter().map(std::path::Path::new).find(|path| path.exists());
        for path in system
            .into_iter()
            .chain(self.registries.ca_files.iter().map(|path| path.as_path()))
        {
            let found = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, &error))?;
            for certificate in found {
                let _ = roots.add(certificate.map_err(|error| unreadable(path, &error))?);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(self.tls.get_or_init(|| Arc::new(config)).clone())
    }
}

fn unreadable(path: &std::path::Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!(
        "reading the certificate authorities in {}: {error}",
        path.display()
    ))
}

/// A failed handshake will fail again; a broken connection may not.
fn is_transient(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::InvalidData
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> io::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // Ends with the response's body.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(io::Error::other)
}

fn build(uri: &Uri, authority: &str, ask: &Ask) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path)
        .header(HOST, authority)
        .header(USER_AGENT, concat!("hull/", env!("CARGO_PKG_VERSION")));
    if let Some(accept) = ask.accept {
        request = request.header(ACCEPT, accept);
    }
    if let Some(authorization) = &ask.authorization {
        let mut value = HeaderValue::try_from(authorization)?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    if ask.from > 0 {
        request = request.header(RANGE, format!("bytes={}-", ask.from));
    }
    request.body(Empty::new())
}

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn body(url: &str, response: Response<Incoming>, limit: u64) -> Result<Bytes, Error> {
    let uri = parse(url)?;
    let limited = http_body_util::Limited::new(response.into_body(), usize::try_from(limit).unwrap_or(usize::MAX));
    match tokio::time::timeout(SILENCE, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => Err(failed(&uri, &format!("reading its answer: {error}"), true)),
        Err(_) => Err(failed(&uri, "it stops in the middle of its answer", true)),
    }
}

pub(super) fn parse(url: &str) -> Result<Uri, Error> {
    let uri: Uri = url
        .parse()
        .map_err(|error| Error::malformed(format!("address {url:?}"), error))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err(Error::malformed(
            format!("address {url:?}"),
            "expected http:// or https:// and a host",
        )),
    }
}

/// A redirect's target may be relative.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let target: Uri = location.parse().ok()?;
    if target.scheme().is_some() {
        return parse(location).ok();
    }
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(
        location
            .strip_prefix('/')
            .map(|rest| format!("/{rest}"))?
            .parse()
            .ok()?,
    );
    Uri::from_parts(parts).ok()
}

pub(super) fn failed(uri: &Uri, reason: &str, transient: bool) -> Error {
    let registry = uri
        .authority()
        .map(|authority| authority.to_string())
        .unwrap_or_default();
    Error::Registry {
        registry,
        reason: format!("GET {}: {reason}", uri.path()),
        transient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_resolve_against_where_they_came_from() {
        let base = parse("https://r.example.org/v2/a/blobs/x").unwrap();
        assert_eq!(resolve(&base, "/other?q=1").unwrap(), "https://r.example.org/other?q=1");
        assert_eq!(
            resolve(&base, "https://cdn.example.org/b").unwrap(),
            "https://cdn.example.org/b"
        );
        for bad in ["ftp://x/y", "file:///etc/passwd", "relative", ""] {
            assert_eq!(resolve(&base, bad), None, "{bad}");
        }
    }
}
