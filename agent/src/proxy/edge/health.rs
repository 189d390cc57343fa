//! Health-check node ports: a load balancer outside asks each node whether it has backends of a service whose external
//! traffic stays on the node, and sends no client where there are none.
//!
//! The answers are those of Kubernetes' own proxy: 200 with at least one ready local endpoint, else 503, for every path.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Service;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::proxy::ServiceName;
use crate::proxy::slices::{Slice, State};

/// Load balancers that weigh nodes read this.
const WEIGHT: &str = "X-Load-Balancing-Endpoint-Weight";

/// What a health-check node port says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// The service's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its ready endpoints on this node.
    pub local: usize,
}

/// The health-check node port of a service, if it has one, and what it says on the node that `slices` are seen from.
pub fn check<'a>(service: &Service, slices: impl IntoIterator<Item = &'a Slice>) -> Option<(u16, Check)> {
    let port = health_port(service)?;
    let places = slices.into_iter().flat_map(|slice| &slice.endpoints);
    let local = places.filter(|place| place.local && place.state == State::Ready);
    let addresses: BTreeSet<IpAddr> = local.map(|place| place.address).collect();
    let families = [true, false].map(|ipv4| addresses.iter().filter(|ip| ip.is_ipv4() == ipv4).count());
    let check = Check {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        name: service.metadata.name.clone().unwrap_or_default(),
        // A pod of two families counts once.
        local: families[0].max(families[1]),
    };
    Some((port, check))
}

fn health_port(service: &Service) -> Option<u16> {
    let spec = service.spec.as_ref()?;
    let balanced = spec.type_.as_deref() == Some("LoadBalancer");
    let stays = spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|_| balanced && stays)?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// The servers behind the ports, by service. Dropping them ends them.
#[derive(Default)]
pub struct HealthServers {
    running: HashMap<ServiceName, Running>,
}

struct Running {
    port: u16,
    says: Arc<ArcSwap<Check>>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HealthServers {
    /// Says what [`check`] found of a service: listens on a new port, stops at one that is gone. A port that cannot be had
    /// is logged and tried again at the service's next change. To be called in tokio's context.
    pub fn update(&mut self, service: &ServiceName, found: Option<(u16, Check)>) {
        let Some((port, check)) = found else {
            self.running.remove(service);
            return;
        };
        if let Some(running) = self.running.get(service).filter(|running| running.port == port) {
            running.says.store(Arc::new(check));
            return;
        }
        self.running.remove(service);
        match listen(port) {
            Ok(listener) => {
                let says = Arc::new(ArcSwap::from_pointee(check));
                let task = tokio::spawn(serve(listener, Arc::clone(&says))).abort_handle();
                self.running.insert(service.clone(), Running { port, says, task });
            }
            Err(error) => tracing::error!(
                port,
                %service,
                %error,
                "cannot listen on a health-check node port: load balancers take this node for one without backends"
            ),
        }
    }
}

/// On all addresses of both families, or of IPv4 where there is no IPv6.
fn listen(port: u16) -> io::Result<TcpListener> {
    let bound = match std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        }
        result => result,
    }?;
    bound.set_nonblocking(true)?;
    TcpListener::from_std(bound)
}

async fn serve(listener: TcpListener, says: Arc<ArcSwap<Check>>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a load balancer's health check was not accepted");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let says = Arc::clone(&says);
        tokio::spawn(async move {
            let answer = service_fn(move |_| {
                let response = respond(&says.load());
                async { Ok::<_, Infallible>(response) }
            });
            // A client that hangs up is no news.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

fn respond(check: &Check) -> Response<Full<Bytes>> {
    let body = json!({
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": check.local,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    if check.local == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    headers.insert("X-Content-Type-Options", http::HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, http::HeaderValue::from(check.local));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn service(port: i32, policy: &str) -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web"},
            "spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy, "healthCheckNodePort": port},
        }))
        .unwrap()
    }

    fn slice(family: &str, endpoints: serde_json::Value) -> Slice {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family,
            "endpoints": endpoints,
        }))
        .unwrap();
        Slice::new(&slice, "one").unwrap()
    }

    #[test]
    fn counts_ready_pods_on_this_node() {
        let four = slice(
            "IPv4",
            json!([
                {"addresses": ["10.244.1.2"], "nodeName": "one", "conditions": {"ready": true}},
                {"addresses": ["10.244.1.3"], "nodeName": "one", "conditions": {"ready": false}},
                {"addresses": ["10.244.1.4"], "nodeName": "one"},
                {"addresses": ["10.244.2.2"], "nodeName": "two", "conditions": {"ready": true}},
            ]),
        );
        let six = slice("IPv6", json!([{"addresses": ["fd00:1::2"], "nodeName": "one"}]));
        let local = |service: &Service, slices: &[&Slice]| check(service, slices.iter().copied());
        let (port, found) = local(&service(31_000, "Local"), &[&four, &six]).unwrap();
        assert_eq!((port, found.local), (31_000, 2));
        assert_eq!(local(&service(31_000, "Local"), &[]).unwrap().1.local, 0);
        assert_eq!(local(&service(31_000, "Cluster"), &[&four]), None);
        assert_eq!(local(&service(0, "Local"), &[&four]), None);
    }

    async fn ask(port: u16) -> String {
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        let request = b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn says_200_with_local_endpoints_and_503_without() {
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let says = |local| {
            let check = Check {
                namespace: "ns".to_owned(),
                name: "web".to_owned(),
                local,
            };
            Some((port, check))
        };
        let name = ServiceName::new("ns", "web");
        let mut servers = HealthServers::default();
        servers.update(&name, says(2));
        let answer = ask(port).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains(r#""localEndpoints":2"#), "{answer}");
        servers.update(&name, says(0));
        assert!(ask(port).await.starts_with("HTTP/1.1 503"));
        servers.update(&name, None);
        let stopped = async {
            while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                .await
                .is_ok()
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(5), stopped)
            .await
            .unwrap();
    }
}
