//! Performs one probe or hook: a command in the container, an HTTP request, a TCP connection, a gRPC health check.
//!
//! Everything here is bounded by the caller's time-out; the text of a failure is what the event shows.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::exec::{self, Outcome};
use super::tls::InsecureTls;
use super::warden::Warden;

/// How much of a response is read.
const RESPONSE_MAX: usize = 10 << 10;

/// What to do.
#[derive(Clone, Debug)]
pub enum Handler {
    /// Run a command.
    Exec(Vec<String>),
    /// GET a URL.
    Http(HTTPGetAction),
    /// Connect.
    Tcp(TCPSocketAction),
    /// Ask `grpc.health.v1.Health`.
    Grpc(GRPCAction),
    /// Wait.
    Sleep(Duration),
}

impl Handler {
    /// What `probe` does.
    #[must_use]
    pub fn of_probe(probe: &Probe) -> Option<Self> {
        if let Some(exec) = &probe.exec {
            return Some(Handler::Exec(exec.command.clone().unwrap_or_default()));
        }
        let http = probe.http_get.clone().map(Handler::Http);
        let tcp = || probe.tcp_socket.clone().map(Handler::Tcp);
        http.or_else(tcp).or_else(|| probe.grpc.clone().map(Handler::Grpc))
    }

    /// What `hook` does.
    #[must_use]
    pub fn of_hook(hook: &LifecycleHandler) -> Option<Self> {
        if let Some(exec) = &hook.exec {
            return Some(Handler::Exec(exec.command.clone().unwrap_or_default()));
        }
        let sleep = || {
            Some(Handler::Sleep(Duration::from_secs(
                u64::try_from(hook.sleep.as_ref()?.seconds).ok()?,
            )))
        };
        hook.http_get.clone().map(Handler::Http).or_else(sleep)
    }
}

/// What is checked.
#[derive(Clone)]
pub struct Target {
    /// Runs commands.
    pub warden: Warden,
    /// The container's id.
    pub id: String,
    /// Its config.json.
    pub config: PathBuf,
    /// The container, for the names of its ports.
    pub container: Arc<Container>,
    /// The pod's address, or the node's for pods in its network.
    pub ip: IpAddr,
}

impl Target {
    /// Does it, in at most `timeout`.
    pub async fn check(&self, handler: &Handler, timeout: Duration) -> Result<(), String> {
        if let Handler::Exec(command) = handler {
            return match exec::run(&self.warden, &self.id, &self.config, command, timeout).await? {
                Outcome::Exited(0, _) => Ok(()),
                Outcome::Exited(code, output) if output.trim().is_empty() => {
                    Err(format!("command exited with code {code}"))
                }
                Outcome::Exited(_, output) => Err(output),
                Outcome::TimedOut => Err(format!("command timed out: {command:?} timed out after {timeout:?}")),
            };
        }
        match tokio::time::timeout(timeout, self.reach(handler)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {timeout:?} (context deadline exceeded)")),
        }
    }

    async fn reach(&self, handler: &Handler) -> Result<(), String> {
        match handler {
            Handler::Exec(_) => Ok(()),
            Handler::Sleep(duration) => {
                tokio::time::sleep(*duration).await;
                Ok(())
            }
            Handler::Tcp(action) => {
                let port = self.port(&action.port)?;
                let host = self.host(action.host.as_deref());
                connect(&host, port).await.map(drop)
            }
            Handler::Http(action) => self.http(action).await,
            Handler::Grpc(action) => self.grpc(action).await,
        }
    }

    fn host(&self, named: Option<&str>) -> String {
        named
            .filter(|host| !host.is_empty())
            .map_or_else(|| self.ip.to_string(), str::to_owned)
    }

    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        let number = match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => {
                let named = self
                    .container
                    .ports
                    .iter()
                    .flatten()
                    .find(|port| port.name.as_ref() == Some(name));
                named.map(|port| port.container_port).or_else(|| name.parse().ok())
            }
        };
        let number = number.ok_or_else(|| format!("couldn't find port: {port:?}"))?;
        u16::try_from(number)
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("invalid port number: {number}"))
    }

    async fn http(&self, action: &HTTPGetAction) -> Result<(), String> {
        let port = self.port(&action.port)?;
        let host = self.host(action.host.as_deref());
        let path = action.path.as_deref().unwrap_or("/");
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        let stream = connect(&host, port).await?;
        let authority = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let headers = action.http_headers.iter().flatten();
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(&path)
            .header("connection", "close");
        let mut named: Vec<String> = Vec::new();
        for header in headers {
            request = request.header(header.name.as_str(), header.value.as_str());
            named.push(header.name.to_ascii_lowercase());
        }
        for (name, value) in [
            ("host", authority.as_str()),
            ("user-agent", "kube-probe/hull"),
            ("accept", "*/*"),
        ] {
            if !named.iter().any(|other| other == name) {
                request = request.header(name, value);
            }
        }
        let request = request
            .body(Full::default())
            .map_err(|error| format!("invalid probe request: {error}"))?;
        let status = if action.scheme.as_deref() == Some("HTTPS") {
            get(InsecureTls::shared().connect(&host, stream).await?, request).await
        } else {
            get(stream, request).await
        };
        match status.map_err(|error| format!("Get \"{authority}{path}\": {error}"))? {
            200..=399 => Ok(()),
            status => Err(format!("HTTP probe failed with statuscode: {status}")),
        }
    }

    async fn grpc(&self, action: &GRPCAction) -> Result<(), String> {
        let port = u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
        let host = self.ip.to_string();
        let stream = TokioIo::new(connect(&host, port).await?);
        let failed = |error: hyper::Error| format!("grpc probe: {error}");
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(failed)?;
        let driver = tokio::spawn(connection);
        let body = health_request(action.service.as_deref().unwrap_or_default());
        let request = Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| format!("invalid probe request: {error}"))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(failed)?;
            let collected = Limited::new(response.into_body(), RESPONSE_MAX).collect().await;
            collected
                .map(|body| body.to_bytes())
                .map_err(|error| format!("grpc probe: {error}"))
        };
        let answer = answer.await;
        driver.abort();
        // Message: field 1 (status) as varint, SERVING = 1, behind the five bytes of the gRPC frame.
        match answer?.get(5..7) {
            Some([0x08, 0x01]) => Ok(()),
            _ => Err("service unhealthy (responded with a status other than SERVING)".to_owned()),
        }
    }
}

/// `HealthCheckRequest{service}` in a gRPC frame.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        message.push(u8::try_from(service.len().min(127)).unwrap_or(127));
        message.extend(service.as_bytes().iter().take(127));
    }
    let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap_or(u8::MAX)];
    frame.extend(message);
    frame
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let failed = |error: std::io::Error| format!("dial tcp {host}:{port}: {error}");
    match host.parse::<IpAddr>() {
        Ok(ip) => TcpStream::connect(SocketAddr::new(ip, port)).await.map_err(failed),
        Err(_) => TcpStream::connect((host, port)).await.map_err(failed),
    }
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<u16, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| error.to_string());
    driver.abort();
    Ok(response?.status().as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_frames_carry_the_service() {
        assert_eq!(health_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }
}
