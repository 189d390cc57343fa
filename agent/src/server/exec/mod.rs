//! exec: a program run in a container, its streams carried over an upgraded connection, WebSocket or SPDY.

mod pipe;
mod session;
mod spdy;
mod websocket;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use super::query::Query;
use super::{Body, text};
use crate::pod::host::Host;
use session::{Channel, Session};

/// How long the client has to close the connection in its turn.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a request is not served.
type Refusal = (StatusCode, String);

/// What to run, and which streams the client wants.
struct Wanted {
    id: String,
    config: PathBuf,
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    terminal: bool,
}

impl Wanted {
    /// The channel that tells a client first of all that its streams are up.
    fn first_output(&self) -> Channel {
        if self.stdout {
            Channel::Stdout
        } else if self.stderr {
            Channel::Stderr
        } else {
            Channel::Error
        }
    }
}

/// What an exec travels on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    WebSocket,
    Spdy,
}

impl Transport {
    /// The token of the header `Upgrade`.
    const fn name(self) -> &'static str {
        match self {
            Transport::WebSocket => "websocket",
            Transport::Spdy => "SPDY/3.1",
        }
    }

    /// What the client asks to upgrade to.
    fn asked(headers: &HeaderMap) -> Option<Transport> {
        let has = |name, token: &str| {
            let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            values
                .flat_map(|text| text.split(','))
                .any(|other| other.trim().eq_ignore_ascii_case(token))
        };
        [Transport::WebSocket, Transport::Spdy]
            .into_iter()
            .find(|transport| has(CONNECTION, "upgrade") && has(UPGRADE, transport.name()))
    }
}

/// Answers the request: switches to the protocol and runs the program, or says why not.
pub fn answer(
    host: &Arc<Host>,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
    permit: OwnedSemaphorePermit,
) -> Response<Body> {
    let session = wanted(host, namespace, pod, container, &Query::of(request.uri())).map(|wanted| Session {
        host: Arc::clone(host),
        wanted,
    });
    match session.and_then(|session| switch(session, request, permit)) {
        Ok(response) => response,
        Err((status, message)) => text(status, message),
    }
}

/// Accepts the upgrade, and serves the exec once it has happened.
fn switch(
    session: Session,
    mut request: Request<Incoming>,
    permit: OwnedSemaphorePermit,
) -> Result<Response<Body>, Refusal> {
    let transport = Transport::asked(request.headers()).ok_or_else(|| {
        let message = "exec needs a stream: send Connection: Upgrade and Upgrade: websocket or SPDY/3.1";
        (StatusCode::BAD_REQUEST, message.to_owned())
    })?;
    let accepted = match transport {
        Transport::WebSocket => websocket::accept(request.headers())?,
        Transport::Spdy => spdy::accept(request.headers())?,
    };
    let protocol = accepted.get(spdy::PROTOCOL_VERSION).cloned();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _permit = permit;
        match (upgrade.await, transport) {
            (Ok(upgraded), Transport::WebSocket) => websocket::serve(upgraded, session).await,
            (Ok(upgraded), Transport::Spdy) => spdy::serve(upgraded, session, protocol.as_ref()).await,
            (Err(error), _) => tracing::debug!(%error, "an exec's connection was not upgraded"),
        }
    });
    let mut response = Response::new(Empty::new().boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.extend(accepted);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(transport.name()));
    Ok(response)
}

fn wanted(host: &Host, namespace: &str, pod: &str, container: &str, query: &Query) -> Result<Wanted, Refusal> {
    let view = host
        .views
        .find(namespace, pod)
        .ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found")))?;
    let known = view.containers.get(container);
    let known = known.ok_or_else(|| (StatusCode::NOT_FOUND, format!("container not found ({container:?})")))?;
    let id = known.id.clone().filter(|_| known.running);
    let id = id.ok_or_else(|| {
        (
            StatusCode::BAD_REQUEST,
            format!("container {container:?} of pod {pod:?} is not running"),
        )
    })?;
    let command = query.all("command");
    if command.is_empty() {
        return Err((
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 command for the exec".to_owned(),
        ));
    }
    let uid = view.pod.metadata.uid.as_deref().unwrap_or_default();
    let either = |one: &str, other: &str| query.flag(one) || query.flag(other);
    let terminal = query.flag("tty");
    let wanted = Wanted {
        config: host.records(uid).bundle(&id).join("config.json"),
        id,
        command,
        stdin: either("stdin", "input"),
        stdout: either("stdout", "output"),
        stderr: either("stderr", "error") && !terminal,
        terminal,
    };
    if wanted.stdin || wanted.stdout || wanted.stderr {
        Ok(wanted)
    } else {
        Err((
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 of stdin, stdout, stderr".to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transport_is_what_the_client_asks_for() {
        let asked = |connection: &'static str, upgrade: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONNECTION, HeaderValue::from_static(connection));
            headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
            Transport::asked(&headers)
        };
        assert_eq!(asked("keep-alive, Upgrade", "websocket"), Some(Transport::WebSocket));
        assert_eq!(asked("Upgrade", "SPDY/3.1"), Some(Transport::Spdy));
        assert_eq!(asked("close", "SPDY/3.1"), None);
        assert_eq!(asked("Upgrade", "h2c"), None);
    }
}
