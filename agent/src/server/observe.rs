//! `/observe/…` of the kubelet API: what `hull top`, `hull trace` and `hull bench` ask this node.
//!
//! Reading maps and measuring block, so both happen off the async threads. One measurement at a time: two would
//! measure each other.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use hull_ebpf_types::edge::Reason;
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::OwnedSemaphorePermit;

use super::query::Query;
use super::{Body, ServiceView, exposition, metrics, respond, text};
use crate::observe::bench::plan::{Request, Schedule};
use crate::observe::bench::report::{PathReport, Report};
use crate::observe::bench::{self, Exchange, Job, Target, resolve};
use crate::observe::names::Names;
use crate::observe::snapshot::{Snapshot, clients, named};
use crate::observe::{Observer, trace};
use crate::pod::host::Host;

/// Largest body of a request for a measurement.
const REQUEST_MAX: usize = 256 << 10;
/// With more connections than this to one address, a port of ours might still wait for the last one's end.
const PORTS: u64 = 15_000;

type Response = http::Response<Body>;
/// What is answered instead.
type Refusal = (StatusCode, String);

/// `GET /metrics`.
pub(super) async fn metrics(host: &Arc<Host>, services: &ServiceView, query: &Query, accept: &str) -> Response {
    let format = exposition::Format::negotiate(accept);
    let by_backend = query
        .get("backends")
        .is_none_or(|value| !matches!(value, "false" | "0"));
    let (host, services) = (Arc::clone(host), services.clone());
    let written = blocking(move || {
        let seen = services.observer.map(|observer| see(&host, &observer)).transpose();
        let (snapshot, health) = seen
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "the metrics lack what was observed of services");
                None
            })
            .unzip();
        let mut pods = std::collections::BTreeMap::new();
        for view in host.views.all() {
            let phase = view.pod.status.as_ref().and_then(|status| status.phase.clone());
            *pods.entry(phase.unwrap_or_else(|| "Pending".to_owned())).or_default() += 1;
        }
        let mut out = exposition::Exposition::new(format);
        let facts = metrics::Facts {
            snapshot: snapshot.as_ref(),
            by_backend,
            health: health.unwrap_or_default(),
            pods,
        };
        metrics::write(&mut out, &facts);
        packets(&mut out, &host);
        let mut others = String::new();
        services.status.write_metrics(&mut others);
        if let Some(dns) = &services.dns {
            dns.write_metrics(&mut others);
        }
        out.append(&others);
        Ok(out.finish())
    });
    match written.await {
        Ok(written) => respond(StatusCode::OK, format.content_type(), written),
        Err((status, message)) => text(status, message),
    }
}

/// What the programs that work on packets did with them.
fn packets(out: &mut exposition::Exposition, host: &Host) {
    let Some(Ok(counts)) = host.edge.get().map(|edge| edge.reasons()) else {
        return;
    };
    let help = "Packets handled or dropped by the service proxy on interfaces, by reason.";
    out.family("hull_edge_packets", exposition::Kind::Counter, help);
    for (reason, count) in Reason::NAMES.iter().zip(counts) {
        out.sample("_total", &[("reason", reason)], count);
    }
}

fn see(
    host: &Host,
    observer: &Observer,
) -> Result<(Snapshot, hull_ebpf_types::observe::Health), crate::observe::Error> {
    let names = names(host);
    let snapshot = Snapshot {
        node: host.config.node_name.clone(),
        backends: named(&observer.observed()?, &names),
        clients: clients(observer.clients(&names)?),
    };
    Ok((snapshot, observer.health()?))
}

/// `GET /observe/services`.
pub(super) async fn services(host: &Arc<Host>, services: &ServiceView) -> Response {
    let (host, observer) = (Arc::clone(host), services.observer.clone());
    json(blocking(move || Ok(see(&host, &*present(observer)?).map_err(broken)?.0)).await)
}

/// `GET /observe/trace?namespace=&service=&port=&last=&after=`.
pub(super) async fn trace(host: &Arc<Host>, services: &ServiceView, query: &Query) -> Response {
    let asked = match trace::Asked::parse(|name| query.get(name)) {
        Ok(asked) => asked,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let service = find_service(host, &asked.namespace, &asked.service).ok();
    let slices = match slices(host, &asked.namespace, &asked.service).await {
        Ok(slices) => slices,
        Err((status, message)) => return text(status, message),
    };
    let (host, observer) = (Arc::clone(host), services.observer.clone());
    json(
        blocking(move || {
            let observer = present(observer)?;
            let node = trace::Node {
                name: &host.config.node_name,
                names: &names(&host),
                pods: &pods_by_address(&host),
                service: service.as_deref(),
                slices: &slices,
            };
            trace::trace(&observer, &asked, &node).map_err(broken)
        })
        .await,
    )
}

/// `POST /observe/bench`.
pub(super) async fn bench(host: &Arc<Host>, body: Incoming, permit: OwnedSemaphorePermit) -> Response {
    json(measure(host, body, permit).await)
}

async fn measure(host: &Arc<Host>, body: Incoming, permit: OwnedSemaphorePermit) -> Result<Report, Refusal> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let bytes: Bytes = Limited::new(body, REQUEST_MAX)
        .collect()
        .await
        .map_err(|error| bad(format!("the request cannot be read: {error}")))?
        .to_bytes();
    let request: Request =
        serde_json::from_slice(&bytes).map_err(|error| bad(format!("not a measurement: {error}")))?;
    request.check().map_err(bad)?;
    let service = find_service(host, &request.namespace, &request.service)?;
    let slices = slices(host, &request.namespace, &request.service).await?;
    let resolved = resolve::resolve(&request, &service, &slices, host.ip()).map_err(bad)?;
    let namespace = request
        .pod
        .as_deref()
        .map(|pod| network_namespace(host, pod))
        .transpose()?
        .flatten();
    let reset = match request.schedule {
        Schedule::Closed => true,
        Schedule::Rate(rate) => u64::from(rate) * request.milliseconds / 1_000 > PORTS,
    };
    let named_host = format!("{}.{}.svc", request.service, request.namespace);
    let exchange = Exchange::new(&resolved.talk, &named_host, reset);
    let job = Job {
        targets: resolved
            .paths
            .iter()
            .map(|(path, addresses)| Target {
                path: *path,
                addresses: addresses.clone(),
                exchange: exchange.clone(),
            })
            .collect(),
        schedule: request.schedule,
        connections: request.connections,
        duration: request.duration(),
        namespace,
    };
    let measured = blocking(move || {
        let _permit = permit;
        bench::run(&job).map_err(|error| {
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the measurement could not be made: {error}"),
            )
        })
    })
    .await?;
    let paths = resolved
        .paths
        .iter()
        .zip(&measured)
        .map(|((path, addresses), measured)| {
            PathReport::of(*path, addresses.iter().map(ToString::to_string).collect(), measured)
        });
    Ok(Report {
        node: host.config.node_name.clone(),
        pod: request.pod.clone(),
        service: format!("{}/{}", request.namespace, request.service),
        port: resolved.port,
        talk: resolved.talk.clone(),
        schedule: request.schedule,
        connections: request.connections,
        paths: paths.collect(),
    })
}

fn find_service(host: &Host, namespace: &str, name: &str) -> Result<Arc<Service>, Refusal> {
    let services = host.services.load();
    let found = services.iter().find(|service| {
        let meta = &service.metadata;
        meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
    });
    found.cloned().ok_or_else(|| {
        let message = format!("node {} knows no service {namespace}/{name}", host.config.node_name);
        (StatusCode::NOT_FOUND, message)
    })
}

async fn slices(host: &Host, namespace: &str, service: &str) -> Result<Vec<EndpointSlice>, Refusal> {
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{service}",
    );
    let failed = |what: String| {
        (
            StatusCode::BAD_GATEWAY,
            format!("the endpoints of the service are not known: {what}"),
        )
    };
    let list = host.api.get(path).await.map_err(|error| failed(error.to_string()))?;
    serde_json::from_value(list["items"].clone()).map_err(|error| failed(error.to_string()))
}

/// Of a pod of this node; `None` where it uses the node's own.
fn network_namespace(host: &Host, pod: &str) -> Result<Option<OwnedFd>, Refusal> {
    let absent = || {
        let message = format!(
            "pod {pod:?} does not run on node {}; name it as namespace/pod",
            host.config.node_name
        );
        (StatusCode::NOT_FOUND, message)
    };
    let (namespace, name) = pod.split_once('/').ok_or_else(absent)?;
    let view = host.views.find(namespace, name).ok_or_else(absent)?;
    if view.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
        return Ok(None);
    }
    let uid = view.pod.metadata.uid.as_deref().unwrap_or_default();
    let path = host.namespaces(uid).join("net");
    let opened = std::fs::File::open(&path).map_err(|error: io::Error| {
        let message = format!(
            "cannot open the network namespace of pod {pod} at {}: {error}",
            path.display()
        );
        (StatusCode::CONFLICT, message)
    })?;
    Ok(Some(opened.into()))
}

fn names(host: &Host) -> Names {
    Names::of(host.services.load().iter().map(|service| &**service))
}

fn pods_by_address(host: &Host) -> HashMap<IpAddr, String> {
    let mut all = HashMap::new();
    for view in host.views.all() {
        let meta = &view.pod.metadata;
        let hosts = view.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        let Some(status) = view.pod.status.as_ref().filter(|_| !hosts) else {
            continue;
        };
        let name = format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        );
        let several = status.pod_ips.iter().flatten().map(|one| one.ip.clone());
        let addresses = several.chain(status.pod_ip.clone());
        all.extend(addresses.filter_map(|ip| Some((ip.parse().ok()?, name.clone()))));
    }
    all
}

fn present(observer: Option<Arc<Observer>>) -> Result<Arc<Observer>, Refusal> {
    let message = "the program that observes sockets is not in force on this node; the agent's log says why";
    observer.ok_or_else(|| (StatusCode::SERVICE_UNAVAILABLE, message.to_owned()))
}

fn broken(error: crate::observe::Error) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|error| {
        Err((
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("a part of the agent broke: {error}"),
        ))
    })
}

fn json<T: serde::Serialize>(result: Result<T, Refusal>) -> Response {
    let encoded = result.and_then(|value| {
        serde_json::to_string(&value).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    });
    match encoded {
        Ok(encoded) => respond(StatusCode::OK, "application/json", encoded),
        Err((status, message)) => text(status, message),
    }
}
