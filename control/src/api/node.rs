//! To the agent of a pod's node: logs are streamed, exec and its like are tunnelled.
//!
//! The agent speaks the kubelet's API on its daemon port, over TLS, and knows us by our client certificate. A WebSocket
//! upgrade is forwarded as it is; after the agent's 101 this side only copies bytes.

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::Context;
use super::body::{self, BodyError, Request, Response};
use super::dial::{Node, agent_address};
use super::query::Params;
use crate::cache::Object;
use crate::registry::{Registry, Status};

/// What is read of an agent's error.
const MAX_ERROR: usize = 64 << 10;
/// Headers of an upgrade that travel on.
const FORWARDED: &[HeaderName] = &[
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
];

/// The body of a request to an agent.
pub(super) type Outgoing = UnsyncBoxBody<Bytes, BodyError>;

/// `GET pods/<name>/log`.
///
/// # Errors
/// 404 and 400 for pods and containers that cannot be asked; 502 if the agent cannot be reached; what the agent refuses.
pub async fn log(api: &super::Api, context: &Context) -> Result<Response, Status> {
    let (node, container) = locate(&api.registry, context)?;
    let route = &context.route;
    let mut target = format!("/containerLogs/{}/{}/{container}", route.namespace, route.name);
    let kept: Vec<String> = context
        .params
        .iter()
        .filter(|(name, _)| *name != "container")
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    if !kept.is_empty() {
        target = format!("{target}?{}", kept.join("&"));
    }
    let mut sender = api.nodes.dial(&node).await?;
    let request = agent_request(&target, &node, HeaderMap::new())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| broken(&node, &error))?;
    if response.status() != StatusCode::OK {
        return Err(agent_error(response).await);
    }
    let mut shutdown = api.shutdown.clone();
    let chunks = BodyStream::new(response.into_body())
        .take_while(|frame| std::future::ready(frame.is_ok()))
        .filter_map(|frame| std::future::ready(frame.ok().and_then(|frame| frame.into_data().ok())))
        .take_until(Box::pin(async move { shutdown.wait().await }));
    Ok(body::respond(200, "text/plain", body::streamed(chunks)))
}

/// `exec`, `attach`, `portforward`: forwards the upgrade and copies bytes both ways.
///
/// # Errors
/// As [`log`]; 400 if the request is no upgrade.
pub async fn stream(api: &super::Api, context: &Context, request: Request) -> Result<Response, Status> {
    if !request.headers().contains_key(header::UPGRADE) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let (node, container) = locate(&api.registry, context)?;
    let target = stream_target(context, &container);
    let mut headers = HeaderMap::new();
    for name in FORWARDED {
        for value in request.headers().get_all(name) {
            headers.append(name, value.clone());
        }
    }
    for (name, value) in request.headers() {
        if name.as_str().starts_with("x-stream-protocol-version") {
            headers.append(name, value.clone());
        }
    }
    let mut sender = api.nodes.dial(&node).await?;
    let asked = agent_request(&target, &node, headers)?;
    let answered = sender
        .send_request(asked)
        .await
        .map_err(|error| broken(&node, &error))?;
    if answered.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(agent_error(answered).await);
    }
    Ok(tunnel(request, answered))
}

/// Answers an upgrade as the other side did, and from then on copies bytes both ways.
pub(super) fn tunnel(mut request: Request, mut answered: http::Response<Incoming>) -> Response {
    let agent = hyper::upgrade::on(&mut answered);
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // Both upgrades complete once the 101 has been written; either side may hang up at any time.
        if let (Ok(client), Ok(agent)) = tokio::join!(client, agent) {
            let (mut client, mut agent) = (TokioIo::new(client), TokioIo::new(agent));
            _ = tokio::io::copy_bidirectional(&mut client, &mut agent).await;
        }
    });
    let mut response = http::Response::new(body::full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in answered.headers() {
        response.headers_mut().append(name, value.clone());
    }
    response
}

/// The kubelet's path and its names for the parameters, beside the ones kubectl sent.
fn stream_target(context: &Context, container: &str) -> String {
    let route = &context.route;
    let action = match route.sub() {
        Some("portforward") => "portForward",
        Some(other) => other,
        None => "",
    };
    let mut query = Vec::new();
    for (name, value) in context.params.iter().filter(|(name, _)| *name != "container") {
        query.push(format!("{name}={}", encode(value)));
        let kubelet = match name {
            "stdin" => "input",
            "stdout" => "output",
            "stderr" => "error",
            _ => continue,
        };
        query.push(format!(
            "{kubelet}={}",
            if context.params.flag(name) == Some(true) {
                "1"
            } else {
                "0"
            }
        ));
    }
    let place = if action == "portForward" {
        String::new()
    } else {
        format!("/{container}")
    };
    format!(
        "/{action}/{}/{}{place}?{}",
        route.namespace,
        route.name,
        query.join("&")
    )
}

/// The node's agent and the container meant.
fn locate(registry: &Registry, context: &Context) -> Result<(Node, String), Status> {
    let route = &context.route;
    let pod = registry.get(route.resource, &route.namespace, &route.name)?;
    let container = choose_container(&pod.value(), &context.params, &pod)?;
    let node = match pod.field("spec.nodeName") {
        None | Some("") => {
            return Err(Status::bad_request(format!(
                "pod {} does not have a host assigned",
                route.name
            )));
        }
        Some(name) => name,
    };
    let found = registry.cache().get("nodes", "", node).ok_or_else(|| {
        Status::new(
            404,
            "NotFound",
            format!(
                "nodes \"{node}\" not found, so the agent of pod {} is unknown",
                route.name
            ),
        )
    })?;
    Ok((agent_address(&found)?, container))
}

/// The container asked for; without one, the annotated default or the only one.
fn choose_container(pod: &Value, params: &Params, object: &Object) -> Result<String, Status> {
    let named = |list: &str| -> Vec<&str> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.filter_map(|container| container["name"].as_str()).collect()
    };
    let regular = named("containers");
    let asked = params.text("container");
    if !asked.is_empty() {
        let all = ["containers", "initContainers", "ephemeralContainers"];
        return if all.iter().any(|list| named(list).contains(&asked)) {
            Ok(asked.to_owned())
        } else {
            Err(Status::bad_request(format!(
                "container {asked} is not valid for pod {}",
                object.name
            )))
        };
    }
    let default = pod
        .pointer("/metadata/annotations/kubectl.kubernetes.io~1default-container")
        .and_then(Value::as_str);
    match (regular.as_slice(), default) {
        (_, Some(default)) if regular.contains(&default) => Ok(default.to_owned()),
        ([only], _) => Ok((*only).to_owned()),
        _ => Err(Status::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            object.name,
            regular.join(" ")
        ))),
    }
}

fn agent_request(target: &str, node: &Node, headers: HeaderMap) -> Result<http::Request<Outgoing>, Status> {
    let nothing = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let mut request = http::Request::get(target)
        .header(header::HOST, node.host())
        .body(nothing)
        .map_err(|error| Status::bad_request(format!("cannot be forwarded to the agent: {error}")))?;
    request.headers_mut().extend(headers);
    Ok(request)
}

fn broken(node: &Node, error: &hyper::Error) -> Status {
    let message = format!("the agent of node {} broke off: {error}", node.name);
    Status::new(502, "BadGateway", message)
}

/// An agent's refusal, with its own text.
async fn agent_error(response: http::Response<Incoming>) -> Status {
    let code = response.status().as_u16();
    let text = Limited::new(response.into_body(), MAX_ERROR).collect().await;
    let text = text
        .map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned())
        .unwrap_or_default();
    let reason = match code {
        400 => "BadRequest",
        403 => "Forbidden",
        404 => "NotFound",
        _ => "InternalError",
    };
    let code = if (400..600).contains(&code) { code } else { 500 };
    Status::new(
        code,
        reason,
        if text.is_empty() {
            format!("the agent answered {code}")
        } else {
            text
        },
    )
}

/// Percent-encoding of a query value.
fn encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cache::Index;

    fn choose(pod: &Value, query: &str) -> Result<String, String> {
        let object = Object::new(("pods", "d", "web"), 1, 1, Index::default(), pod);
        choose_container(pod, &Params::parse(query), &object).map_err(|status| status.message)
    }

    #[test]
    fn a_container_is_chosen_as_kubectl_expects() {
        let one = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(choose(&one, "").as_deref(), Ok("a"));
        assert_eq!(choose(&one, "container=i").as_deref(), Ok("i"));
        assert_eq!(
            choose(&one, "container=x").unwrap_err(),
            "container x is not valid for pod web"
        );
        let mut two = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(
            choose(&two, "").unwrap_err(),
            "a container name must be specified for pod web, choose one of: [a b]"
        );
        two["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "b"});
        assert_eq!(choose(&two, "").as_deref(), Ok("b"));
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encode("sh -c 'a&b=c'"), "sh%20-c%20%27a%26b%3Dc%27");
    }
}
