//! The HTTP face of the control plane: authenticate, authorize, route, negotiate; then one call into the registry.
//!
//! Routes come from the resource table, so a kind is a row and never a handler. A request that panics is answered with a
//! 500 and takes nothing with it.

mod access;
mod anyone;
pub mod body;
mod dial;
mod discovery;
mod encode;
mod health;
mod links;
mod list_options;
pub mod listen;
mod metrics;
mod negotiate;
mod node;
mod proxy;
mod query;
mod read;
mod review;
mod route;
mod subresource;
mod table;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, header};

use self::body::{Request, Response};
use self::encode::Encoder;
use self::query::Params;
use self::route::{ResourceRoute, Route};
use crate::auth::tokens::ISSUER;
use crate::auth::{Authenticator, Authorizer, User};
use crate::registry::{Registry, Status, Warnings};

pub use self::dial::NodeDialer;

/// Longest time for a request that is not a stream.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Everything a request may need.
pub struct Api {
    registry: Arc<Registry>,
    authenticator: Arc<Authenticator>,
    authorizer: Arc<Authorizer>,
    nodes: NodeDialer,
    ready: AtomicBool,
    shutdown: Shutdown,
}

/// Tells long-running requests and connections that the server goes down.
#[derive(Clone)]
pub struct Shutdown(tokio::sync::watch::Receiver<bool>);

impl Shutdown {
    /// A signal and its sender.
    pub fn channel() -> (tokio::sync::watch::Sender<bool>, Self) {
        let (sender, receiver) = tokio::sync::watch::channel(false);
        (sender, Self(receiver))
    }

    /// Returns when the server goes down (or its signal's owner is gone).
    pub async fn wait(&mut self) {
        _ = self.0.wait_for(|down| *down).await;
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Default)]
pub struct Peer {
    /// The client certificate (DER), verified against our CA.
    pub certificate: Option<Vec<u8>>,
}

/// A request on a resource, understood and allowed.
pub(crate) struct Context {
    user: User,
    route: ResourceRoute,
    params: Params,
    shape: Result<negotiate::Shape, Status>,
    warnings: Warnings,
}

impl Context {
    /// How answers to this request are encoded.
    fn encoder(&self, registry: &Registry) -> Result<Encoder, Status> {
        Encoder::new(
            self.route.resource,
            self.shape.clone()?,
            &self.params,
            registry.environment().now(),
        )
    }
}

impl Api {
    /// The face of `registry`.
    pub fn new(
        registry: Arc<Registry>,
        authenticator: Arc<Authenticator>,
        authorizer: Arc<Authorizer>,
        nodes: NodeDialer,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            registry,
            authenticator,
            authorizer,
            nodes,
            ready: AtomicBool::new(false),
            shutdown,
        }
    }

    /// From now on `/readyz` says yes.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Answers a request, whatever it is.
    pub async fn handle(self: Arc<Self>, request: Request, peer: Arc<Peer>) -> Response {
        let warnings = Warnings::default();
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let answer = AssertUnwindSafe(self.answer(request, &peer, &warnings))
            .catch_unwind()
            .await;
        let mut response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => body::refusal(&status),
            Err(panic) => {
                let what = panic_text(&*panic);
                tracing::error!(%method, path, what, "a request panicked; the server goes on");
                body::refusal(&Status::new(
                    500,
                    "InternalError",
                    "This request caused an error; see the server's log",
                ))
            }
        };
        for warning in warnings.take() {
            add_warning(response.headers_mut(), &warning);
        }
        tracing::debug!(%method, path, code = response.status().as_u16(), "served");
        response
    }

    async fn answer(&self, mut request: Request, peer: &Peer, warnings: &Warnings) -> Result<Response, Status> {
        let params = Params::parse(request.uri().query().unwrap_or_default());
        if let Some(response) = health::answer(self, request.method(), request.uri().path(), &params) {
            return Ok(response);
        }
        let user = access::authenticate(self, request.headers(), request.uri().path(), peer)?;
        // The user has been told apart; the credentials must not travel on (exec is forwarded to an agent).
        request.headers_mut().remove(header::AUTHORIZATION);
        match Route::parse(request.method(), request.uri().path(), &params)? {
            Route::Path(path) => {
                access::authorize_path(self, &user, request.method(), &path)?;
                if let Some(answer) = self.openid(&path) {
                    return Ok(answer);
                }
                if path == "/metrics" && matches!(*request.method(), http::Method::GET | http::Method::HEAD) {
                    return Ok(metrics::answer(self));
                }
                discovery::answer(request.method(), &path, request.headers(), &params)
            }
            Route::Resource(route) => {
                access::authorize(self, &user, &route, &params)?;
                let shape = negotiate::shape(request.headers());
                let context = Context {
                    user,
                    route,
                    params,
                    shape,
                    warnings: warnings.clone(),
                };
                self.dispatch(&context, request).await
            }
        }
    }

    /// What verifiers of service-account tokens outside the cluster ask for (OpenID Connect Discovery).
    fn openid(&self, path: &str) -> Option<Response> {
        let tokens = self.registry.tokens();
        match path {
            "/.well-known/openid-configuration" => Some(body::value(200, &tokens.openid_configuration(ISSUER))),
            "/openid/v1/jwks" => Some(body::value(200, &tokens.jwks())),
            _ => None,
        }
    }

    async fn dispatch(&self, context: &Context, request: Request) -> Result<Response, Status> {
        match (context.route.sub(), context.route.verb) {
            (Some("exec" | "attach" | "portforward"), _) => node::stream(self, context, request).await,
            (Some("log"), _) => node::log(self, context).await,
            (Some("proxy"), _) => proxy::forward(self, context, request).await,
            (_, "watch") => watch::watch(&self.registry, context, self.shutdown.clone()),
            (_, "get") => read::get(&self.registry, context),
            (_, "list") => read::list(&self.registry, context),
            _ => {
                let (parts, incoming) = request.into_parts();
                let write = async {
                    let bytes = body::collect(incoming).await?;
                    self.write(context, &parts.headers, &bytes).await
                };
                tokio::time::timeout(REQUEST_TIMEOUT, write).await.unwrap_or_else(|_| {
                    Err(Status::timeout(
                        "Timeout: request did not complete within the allotted time",
                    ))
                })
            }
        }
    }

    async fn write(&self, context: &Context, headers: &HeaderMap, bytes: &Bytes) -> Result<Response, Status> {
        match context.route.verb {
            "create" => write::create(self, context, headers, bytes).await,
            "update" => write::update(self, context, headers, bytes).await,
            "patch" => write::patch(self, context, headers, bytes).await,
            "delete" => write::delete(self, context, headers, bytes).await,
            "deletecollection" => write::delete_collection(self, context, headers, bytes).await,
            other => Err(Status::method_not_allowed(context.route.resource, other)),
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// `Warning: 299 - "text"` (RFC 7234, 5.5).
fn add_warning(headers: &mut HeaderMap, text: &str) {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
        headers.append(header::WARNING, value);
    }
}
