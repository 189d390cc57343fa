//! The accept loop: TLS with optional client certificates, HTTP/2 and HTTP/1.1, and a limit on everything a client holds.
//!
//! A client that is slow, silent or hostile costs one connection slot until its time-out, never more: handshakes and
//! headers have deadlines, streams and resets per connection are capped, bodies are bounded where they are read.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::body::BodyError;
use super::{Api, Peer, Shutdown};

/// Connections at a time; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 8192;
/// TCP accepted to TLS established.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's head over HTTP/1.1, idle time between requests included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);
/// HTTP/2 pings on idle connections, so that half-dead ones do not hold their watches forever.
const PING_EVERY: Duration = Duration::from_secs(30);
/// An unanswered ping ends the connection.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Streams at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 250;
/// Resets not yet accounted for on one connection (CVE-2023-44487, rapid reset).
const MAX_PENDING_RESETS: usize = 32;
/// Size of a request's headers.
const MAX_HEADERS: u32 = 64 << 10;
/// How long connections may finish after a shutdown was asked for.
const GRACE: Duration = Duration::from_secs(2);
/// Pause after a failed accept (descriptors are exhausted): retrying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Something that may be replaced while the server runs; the newest is taken for each connection.
pub type Current<T> = Arc<dyn Fn() -> Arc<T> + Send + Sync>;

/// Serves until shutdown, then lets connections end.
pub async fn serve(listener: TcpListener, tls: Current<ServerConfig>, api: Arc<Api>, mut shutdown: Shutdown) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.wait() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((slot, stream)) => {
                let (acceptor, api, shutdown) = (TlsAcceptor::from(tls()), api.clone(), shutdown.clone());
                connections.spawn(async move {
                    connection(stream, acceptor, api, shutdown).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed; raise the limit of open files if this persists");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    _ = tokio::time::timeout(GRACE, ended).await;
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(Option<tokio::sync::OwnedSemaphorePermit>, TcpStream)> {
    let slot = slots.clone().acquire_owned().await.ok();
    let (stream, _) = listener.accept().await?;
    Ok((slot, stream))
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, api: Arc<Api>, shutdown: Shutdown) {
    _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else {
        return;
    };
    let session = stream.get_ref().1;
    let certificate = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|first| first.to_vec());
    let http2 = session.alpn_protocol() == Some(b"h2");
    let peer = Arc::new(Peer { certificate });
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (api, peer) = (api.clone(), peer.clone());
        async move {
            let request = request.map(|body| body.map_err(BodyError::new).boxed_unsync());
            Ok::<_, Infallible>(api.handle(request, peer).await)
        }
    });
    let io = TokioIo::new(stream);
    if http2 {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_header_list_size(MAX_HEADERS)
            .serve_connection(io, service);
        let mut connection = pin!(connection);
        if !ended(connection.as_mut(), shutdown).await {
            connection.as_mut().graceful_shutdown();
            _ = connection.await;
        }
    } else {
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(io, service)
            .with_upgrades();
        let mut connection = pin!(connection);
        if !ended(connection.as_mut(), shutdown).await {
            connection.as_mut().graceful_shutdown();
            _ = connection.await;
        }
    }
}

/// Drives a connection; `false` if it is to be shut down first.
async fn ended(connection: impl Future<Output = hyper::Result<()>>, mut shutdown: Shutdown) -> bool {
    tokio::select! {
        _ = connection => true,
        () = shutdown.wait() => false,
    }
}
