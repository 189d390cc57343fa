//! `proxy` of nodes, pods and services: the request goes on, as it is, to the agent, the pod or a pod of the service.
//!
//! The agent is spoken to with our client certificate, so that who may use `nodes/proxy` may do there what we may:
//! authorization happens before, by the request's verb. Pods are spoken to from this machine, in HTTP or, if the name asks for
//! it, in HTTPS with whatever certificate they have, as in Kubernetes: only who may proxy gets here, and no secret goes there.
//! Names are `name`, `name:port` or `scheme:name:port`, as in Kubernetes' API concepts. Links in the answers of pods and
//! services are put below the path of the proxy (`links`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use http_body_util::BodyStream;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::anyone;
use super::body::{self, Request, Response};
use super::dial::agent_address;
use super::links::{self, Page, Place};
use super::node::{self, Outgoing};
use super::route::ResourceRoute;
use super::{Api, Context};
use crate::cache::Object;
use crate::registry::{Registry, Status};

/// Connecting to a pod.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// A pod that names no port is asked on this one.
const HTTP_PORT: u16 = 80;
/// Label of an endpoint slice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// What concerns one connection only (RFC 9110, 7.6.1).
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// What a server says of other origins is not true of the API server.
const CROSS_ORIGIN: &[HeaderName] = &[
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];
/// Paths of the agent that run a program or open a tunnel, even by GET: a WebSocket can only begin so.
const RUNNING: &[&str] = &["exec", "attach", "run", "portForward", "cri"];

/// Whether a request that looks like reading would run something on the node.
pub fn runs_something(route: &ResourceRoute) -> bool {
    let first = route.rest.split('/').find(|part| !part.is_empty());
    let first = first.map(|part| super::query::decode(part, false));
    route.resource.key == "nodes" && first.is_some_and(|first| RUNNING.contains(&first.as_str()))
}

/// Passes a request on, and the answer back.
///
/// # Errors
/// 404 if there is no such object, 400 for a name or port that makes no sense, 503 if there is nobody to ask yet or the
/// other side cannot be reached, 502 if it is an agent.
pub async fn forward(api: &Api, context: &Context, mut request: Request) -> Result<Response, Status> {
    let route = &context.route;
    let reads = matches!(*request.method(), http::Method::GET | http::Method::HEAD);
    if route.rest.is_empty() && reads && route.resource.key != "nodes" {
        return Ok(below(request.uri()));
    }
    let name = Name::parse(&route.name)?;
    let (mut sender, host) = match route.resource.key {
        "nodes" => dial_node(api, context, &name).await?,
        "pods" => dial(pod_address(&api.registry, context, &name)?, name.tls).await?,
        _ => dial(service_address(&api.registry, context, &name)?, name.tls).await?,
    };
    let upgrade = request.headers().contains_key(header::UPGRADE);
    let place = place(&request, route, &host);
    let bodyless = *request.method() == http::Method::HEAD;
    let outgoing = outgoing(&mut request, &route.rest, &host, upgrade)?;
    let answered = sender
        .send_request(outgoing)
        .await
        .map_err(|error| unreachable(format!("error asking {host}: {error}")))?;
    if answered.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(node::tunnel(request, answered));
    }
    Ok(incoming(api, answered, place.filter(|_| !bodyless)))
}

/// Where the client sees the server, whose links are its own affair if it is an agent.
fn place(request: &Request, route: &ResourceRoute, host: &str) -> Option<Place> {
    let path = request.uri().path();
    let prefix = path.strip_suffix(route.rest.as_str()).unwrap_or(path);
    let front = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    (route.resource.key != "nodes").then(|| Place {
        prefix: prefix.trim_end_matches('/').to_owned(),
        server: host.to_owned(),
        front: front.unwrap_or_default().to_owned(),
    })
}

/// Relative links of a page served behind the proxy only work below it.
fn below(uri: &Uri) -> Response {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = body::text(301, "");
    if let Ok(location) = format!("{}/{query}", uri.path()).parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The request as the other side gets it.
fn outgoing(request: &mut Request, rest: &str, host: &str, upgrade: bool) -> Result<http::Request<Outgoing>, Status> {
    let path = if rest.is_empty() { "/" } else { rest };
    let query = request.uri().query();
    let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let headers = passed_on(request.headers(), upgrade);
    let method = request.method().clone();
    let body = std::mem::take(request.body_mut());
    let mut outgoing = http::Request::builder()
        .method(method)
        .uri(target)
        .body(body)
        .map_err(|error| Status::bad_request(format!("the request cannot be passed on: {error}")))?;
    *outgoing.headers_mut() = headers;
    if let Ok(value) = host.parse() {
        outgoing.headers_mut().insert(header::HOST, value);
    }
    Ok(outgoing)
}

/// The answer as the client gets it; a server that goes down ends it.
fn incoming(api: &Api, answered: http::Response<Incoming>, place: Option<Place>) -> Response {
    let mut shutdown = api.shutdown.clone();
    let (parts, content) = answered.into_parts();
    let mut headers = passed_on(&parts.headers, false);
    CROSS_ORIGIN.iter().for_each(|name| drop(headers.remove(name)));
    let mut page = place.and_then(|place| {
        if headers.contains_key(header::LOCATION) {
            links::put_location(&mut headers, &place);
            return None;
        }
        Page::of(&mut headers, &place)
    });
    let chunks = BodyStream::new(content)
        .take_while(|frame| std::future::ready(frame.is_ok()))
        .filter_map(|frame| std::future::ready(frame.ok().and_then(|frame| frame.into_data().ok())))
        .take_until(Box::pin(async move { shutdown.wait().await }));
    let body = match page.take() {
        None => body::streamed(chunks),
        Some(mut page) => {
            let to_the_end = chunks.map(Some).chain(stream::once(std::future::ready(None)));
            body::streamed(to_the_end.map(move |chunk| page.next(chunk.as_ref())))
        }
    };
    let mut response = http::Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    response
}

/// Headers that travel on: all but those of one connection, and those that say who asks.
fn passed_on(headers: &HeaderMap, upgrade: bool) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let stays = |name: &HeaderName| {
        let name = name.as_str();
        let upgrades = upgrade && matches!(name, "connection" | "upgrade");
        let of_connection = HOP_BY_HOP.contains(&name) || named.iter().any(|other| other == name);
        (of_connection && !upgrades) || name == "authorization" || name.starts_with("impersonate-")
    };
    let mut passed = HeaderMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| !stays(name)) {
        passed.append(name, value.clone());
    }
    passed
}

/// `[scheme:]name[:port]`, the scheme only together with a port, which may be empty.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    name: &'a str,
    port: &'a str,
    tls: bool,
}

impl<'a> Name<'a> {
    fn parse(text: &'a str) -> Result<Self, Status> {
        let named = |name, port, tls| Ok(Name { name, port, tls });
        match *text.split(':').collect::<Vec<_>>() {
            [name] => named(name, "", false),
            [name, port] | ["http" | "", name, port] => named(name, port, false),
            ["https", name, port] => named(name, port, true),
            _ => Err(Status::bad_request(format!("invalid proxy request {text:?}"))),
        }
    }

    fn number(&self) -> Option<u16> {
        self.port.parse().ok().filter(|port| *port != 0)
    }
}

async fn dial_node(api: &Api, context: &Context, name: &Name<'_>) -> Result<(SendRequest<Outgoing>, String), Status> {
    let object = api.registry.get(context.route.resource, "", name.name)?;
    let node = agent_address(&object)?;
    if !name.port.is_empty() && name.number() != Some(node.port) {
        return Err(Status::bad_request(format!(
            "only the agent of node {} is proxied, on its port {}, not {:?}",
            node.name, node.port, name.port
        )));
    }
    Ok((api.nodes.dial(&node).await?, node.host()))
}

async fn dial(address: SocketAddr, tls: bool) -> Result<(SendRequest<Outgoing>, String), Status> {
    let failed = |what: String| unreachable(format!("error dialing {address}: {what}"));
    let connect = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        if tls {
            let stream = anyone::connect(address.ip(), stream).await?;
            return speak(stream).await;
        }
        speak(stream).await
    };
    let sender = tokio::time::timeout(DIAL_TIMEOUT, connect)
        .await
        .map_err(|_| failed("timed out".into()))?
        .map_err(failed)?;
    Ok((sender, address.to_string()))
}

/// HTTP over a connection.
async fn speak<S>(stream: S) -> Result<SendRequest<Outgoing>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

/// As Kubernetes words it, which clients know to try again.
fn unreachable(message: String) -> Status {
    Status::unavailable(format!("error trying to reach service: {message}"))
}

fn pod_address(registry: &Registry, context: &Context, name: &Name<'_>) -> Result<SocketAddr, Status> {
    let pod = registry.get(context.route.resource, &context.route.namespace, name.name)?;
    let port = match name.port {
        "" => first_port(&pod.value()),
        text => name
            .number()
            .ok_or_else(|| Status::bad_request(format!("invalid port {text:?} of pod {}", name.name)))?,
    };
    let address = pod.field("status.podIP").unwrap_or_default();
    let address = address
        .parse()
        .map_err(|_| Status::unavailable(format!("pod {} has no address yet", name.name)))?;
    proxied(address, port)
}

/// The first port that the pod's containers name.
fn first_port(pod: &Value) -> u16 {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    ports
        .filter_map(|port| port["containerPort"].as_u64().and_then(|port| u16::try_from(port).ok()))
        .next()
        .unwrap_or(HTTP_PORT)
}

/// A ready endpoint of the service, by chance.
fn service_address(registry: &Registry, context: &Context, name: &Name<'_>) -> Result<SocketAddr, Status> {
    let namespace = &context.route.namespace;
    let service = registry.get(context.route.resource, namespace, name.name)?.value();
    let port = service_port(&service, name)?;
    let slices = registry.cache().snapshot("discovery.k8s.io/endpointslices");
    let found: Vec<(IpAddr, u16)> = slices
        .namespace(namespace)
        .filter(|slice| slice.label(SERVICE_NAME) == Some(name.name))
        .flat_map(|slice| endpoints(slice, port))
        .collect();
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
    let index = usize::try_from(random).unwrap_or_default().checked_rem(found.len());
    let (address, port) = index
        .map(|index| found[index])
        .ok_or_else(|| Status::unavailable(format!("no endpoints available for service \"{}\"", name.name)))?;
    proxied(address, port)
}

/// The name of the port meant; empty for the only, unnamed one.
fn service_port<'a>(service: &'a Value, name: &Name<'_>) -> Result<&'a str, Status> {
    let ports: Vec<&Value> = service["spec"]["ports"].as_array().into_iter().flatten().collect();
    let found = match (name.port, ports.as_slice()) {
        ("", [only, ..]) => Some(only),
        (asked, all) => all
            .iter()
            .find(|port| port["name"] == asked || port["port"].as_u64() == name.number().map(u64::from)),
    };
    let port =
        found.ok_or_else(|| Status::unavailable(format!("service \"{}\" has no port {:?}", name.name, name.port)))?;
    Ok(port["name"].as_str().unwrap_or_default())
}

fn endpoints(slice: &Object, port: &str) -> Vec<(IpAddr, u16)> {
    let value = slice.value();
    let ports = value["ports"].as_array().into_iter().flatten();
    let number = ports
        .filter(|one| one["name"].as_str().unwrap_or_default() == port)
        .find_map(|one| one["port"].as_u64().and_then(|port| u16::try_from(port).ok()));
    let Some(number) = number else {
        return Vec::new();
    };
    let all = value["endpoints"].as_array().into_iter().flatten();
    let ready = all.filter(|endpoint| endpoint["conditions"]["ready"] != Value::Bool(false));
    let addresses = ready.filter_map(|endpoint| endpoint["addresses"][0].as_str()?.parse().ok());
    addresses.map(|address| (address, number)).collect()
}

/// Addresses of this machine's own are not for those who may only proxy.
fn proxied(address: IpAddr, port: u16) -> Result<SocketAddr, Status> {
    let own = match address {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast(),
    };
    if own {
        return Err(Status::bad_request(format!(
            "address {address} is not allowed to be proxied"
        )));
    }
    Ok(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_carry_scheme_and_port() {
        let parse = |text| {
            Name::parse(text)
                .map(|name| (name.name, name.port, name.tls))
                .map_err(|status| status.code)
        };
        assert_eq!(parse("web"), Ok(("web", "", false)));
        assert_eq!(parse("web:http"), Ok(("web", "http", false)));
        assert_eq!(parse("http:web:"), Ok(("web", "", false)));
        assert_eq!(parse("https:web:443"), Ok(("web", "443", true)));
        assert_eq!(parse("ftp:web:21"), Err(400));
        assert_eq!(parse("a:b:c:d"), Err(400));
    }

    #[test]
    fn headers_of_the_connection_and_of_the_user_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "x-mine, Upgrade"),
            ("upgrade", "websocket"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("authorization", "Bearer x"),
            ("impersonate-user", "root"),
            ("accept", "text/plain"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let names = |upgrade| {
            let mut names: Vec<String> = passed_on(&headers, upgrade).keys().map(ToString::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(names(false), ["accept"]);
        assert_eq!(names(true), ["accept", "connection", "upgrade"]);
    }

    #[test]
    fn a_service_port_is_found_by_name_and_number() {
        let service = json!({"spec": {"ports": [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]}});
        let find = |port| {
            service_port(
                &service,
                &Name {
                    name: "web",
                    port,
                    tls: false,
                },
            )
            .map_err(|status| status.code)
        };
        assert_eq!(find(""), Ok("http"));
        assert_eq!(find("admin"), Ok("admin"));
        assert_eq!(find("81"), Ok("admin"));
        assert_eq!(find("82"), Err(503));
    }

    #[test]
    fn the_machines_own_addresses_are_refused() {
        for own in ["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "0.0.0.0"] {
            assert_eq!(
                proxied(own.parse().unwrap(), 80).map_err(|status| status.code),
                Err(400),
                "{own}"
            );
        }
        assert!(proxied("10.0.0.1".parse().unwrap(), 80).is_ok());
    }
}
