//! The kubelet API: what the API server asks of this node. Logs, exec, the pods, health.
//!
//! HTTPS with a client certificate of the cluster's authority, and only for the API server itself or a cluster
//! administrator. Invariant: whatever floods in is bounded, connections and running execs alike; the surplus is
//! refused (429), never queued.

mod exec;
mod exposition;
mod follow;
mod logs;
mod metrics;
mod observe;
mod query;
mod spdy;
mod tls;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use crate::dns;
use crate::observe::Observer;
use crate::pod::host::Host;
use crate::proxy;
use query::Query;

pub use tls::{Certificate, Error as TlsError, load as load_tls, made_here};

/// Connections at one time.
const CONNECTIONS_MAX: usize = 512;
/// Execs at one time.
const EXECS_MAX: usize = 64;
/// Log readers at one time.
const LOGS_MAX: usize = 128;
/// Measurements at one time: two would measure each other.
const BENCHES_MAX: usize = 1;
/// A client has this long for the TLS handshake and for each request's head.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Bodies of responses.
type Body = BoxBody<Bytes, Infallible>;

/// Where the server reads what services are like on this node.
#[derive(Clone, Default)]
pub struct ServiceView {
    /// What the kernel observes; absent where it cannot.
    pub observer: Option<Arc<Observer>>,
    /// What became of the proxy's work.
    pub status: Arc<proxy::Status>,
    /// The DNS server, which counts its questions.
    pub dns: Option<dns::Handle>,
}

/// The server of one node.
pub struct Server {
    host: Arc<Host>,
    services: ServiceView,
    execs: Arc<Semaphore>,
    logs: Arc<Semaphore>,
    benches: Arc<Semaphore>,
}

impl Server {
    /// A server for the pods of `host`, and what `services` tells of services.
    #[must_use]
    pub fn new(host: Arc<Host>, services: ServiceView) -> Arc<Self> {
        Arc::new(Server {
            host,
            services,
            execs: Arc::new(Semaphore::new(EXECS_MAX)),
            logs: Arc::new(Semaphore::new(LOGS_MAX)),
            benches: Arc::new(Semaphore::new(BENCHES_MAX)),
        })
    }

    /// Serves until the future is dropped.
    pub async fn run(self: Arc<Self>, listener: TcpListener, acceptor: TlsAcceptor) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the kubelet API cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
                continue;
            };
            let (server, acceptor) = (Arc::clone(&self), acceptor.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
                    return;
                };
                let allowed = tls::is_allowed(stream.get_ref().1.peer_certificates());
                let service = service_fn(move |request| {
                    let server = Arc::clone(&server);
                    async move { Ok::<_, Infallible>(server.answer(request, allowed).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HANDSHAKE)
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection of the kubelet API ended");
                }
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>, allowed: bool) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if !allowed {
            return text(
                StatusCode::FORBIDDEN,
                "Forbidden: this client certificate may not use the kubelet API",
            );
        }
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (request.method(), &parts[..]) {
            (&Method::GET, ["healthz"]) => text(StatusCode::OK, "ok"),
            (&Method::GET, ["pods"]) => self.pods(),
            (&Method::GET, ["metrics"]) => {
                let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
                observe::metrics(
                    &self.host,
                    &self.services,
                    &Query::of(request.uri()),
                    accept.unwrap_or_default(),
                )
                .await
            }
            (&Method::GET, ["observe", "services"]) => observe::services(&self.host, &self.services).await,
            (&Method::GET, ["observe", "trace"]) => {
                observe::trace(&self.host, &self.services, &Query::of(request.uri())).await
            }
            (&Method::POST, ["observe", "bench"]) => {
                let Ok(permit) = Arc::clone(&self.benches).try_acquire_owned() else {
                    return text(
                        StatusCode::TOO_MANY_REQUESTS,
                        "a measurement runs on this node already; try again when it has ended",
                    );
                };
                observe::bench(&self.host, request.into_body(), permit).await
            }
            (&Method::GET, ["containerLogs", namespace, pod, container]) => {
                self.container_logs(namespace, pod, container, &Query::of(request.uri()))
            }
            (&Method::GET | &Method::POST, ["exec", namespace, pod, container]) => {
                let (namespace, pod, container) = (*namespace, *pod, *container);
                let Ok(permit) = Arc::clone(&self.execs).try_acquire_owned() else {
                    return text(
                        StatusCode::TOO_MANY_REQUESTS,
                        "too many execs run on this node; try again later",
                    );
                };
                exec::answer(&self.host, namespace, pod, container, request, permit)
            }
            _ => text(StatusCode::NOT_FOUND, format!("404: the kubelet API has no {path}")),
        }
    }

    fn pods(&self) -> Response<Body> {
        let views = self.host.views.all();
        let items: Vec<_> = views.iter().map(|view| &*view.pod).collect();
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
        respond(StatusCode::OK, "application/json", list.to_string())
    }

    fn container_logs(&self, namespace: &str, pod: &str, container: &str, query: &Query) -> Response<Body> {
        let Some(view) = self.host.views.find(namespace, pod) else {
            return text(StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found"));
        };
        let options = match logs::Options::parse(query, jiff::Timestamp::now()) {
            Ok(options) => options,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let source = match follow::Source::find(&self.host, &view, container, options.previous) {
            Ok(source) => source,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let Ok(permit) = Arc::clone(&self.logs).try_acquire_owned() else {
            return text(
                StatusCode::TOO_MANY_REQUESTS,
                "too many logs are read on this node; try again later",
            );
        };
        let (sender, receiver) = mpsc::channel(4);
        let host = Arc::clone(&self.host);
        tokio::spawn(async move {
            let _permit = permit;
            follow::stream(&host, source, options, sender).await;
        });
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver
                .recv()
                .await
                .map(|bytes: Bytes| (Ok::<_, Infallible>(Frame::data(bytes)), receiver))
        });
        let body = BodyExt::boxed(StreamBody::new(frames));
        let mut response = Response::new(body);
        response
            .headers_mut()
            .insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
        response
    }
}

fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    respond(status, "text/plain", message.into())
}

fn respond(status: StatusCode, kind: &'static str, content: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(content)).boxed());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
