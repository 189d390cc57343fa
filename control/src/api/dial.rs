//! Connections to agents: where a node's agent listens, and TLS with our client certificate.
//!
//! A node may have an address of each family, and this machine a way to one of them only: they are tried in order.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::listen::Current;
use super::node::Outgoing;
use crate::cache::Object;
use crate::registry::Status;

/// Port of the kubelet API where a Node does not say.
const DEFAULT_PORT: u16 = 10250;
/// Connecting to one address of a node, and the TLS handshake.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Opens connections to agents with our client certificate.
pub struct NodeDialer {
    tls: Current<rustls::ClientConfig>,
}

impl NodeDialer {
    /// A dialer that trusts and identifies itself as the current configuration says.
    pub fn new(tls: Current<rustls::ClientConfig>) -> Self {
        Self { tls }
    }

    /// Connects to a node's agent.
    ///
    /// # Errors
    /// 502 when it cannot be reached, or is not who it should be.
    pub(super) async fn dial(&self, node: &Node) -> Result<SendRequest<Outgoing>, Status> {
        let mut problems = Vec::new();
        for address in &node.addresses {
            match self.dial_at(SocketAddr::new(*address, node.port)).await {
                Ok(sender) => return Ok(sender),
                Err(what) => problems.push(what),
            }
        }
        let message = format!("error dialing the agent of node {}: {}", node.name, problems.join("; "));
        Err(Status::new(502, "BadGateway", message))
    }

    /// Connects to one of its addresses. A family that this machine does not have is refused at once by the kernel.
    async fn dial_at(&self, address: SocketAddr) -> Result<SendRequest<Outgoing>, String> {
        let connect = async {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let tls = TlsConnector::from((self.tls)());
            tls.connect(ServerName::IpAddress(address.ip().into()), tcp).await
        };
        let stream = tokio::time::timeout(DIAL_TIMEOUT, connect)
            .await
            .map_err(|_| format!("{address}: timed out"))?
            .map_err(|error| format!("{address}: {error}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("{address}: {error}"))?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }
}

/// Where a node's agent listens.
pub(super) struct Node {
    pub(super) name: String,
    /// In the order in which they are tried; never empty.
    addresses: Vec<IpAddr>,
    pub(super) port: u16,
}

impl Node {
    /// What requests call the agent.
    pub(super) fn host(&self) -> String {
        let address = self.addresses.first().copied();
        address.map_or_else(
            || self.name.clone(),
            |address| SocketAddr::new(address, self.port).to_string(),
        )
    }
}

/// Where the agent of a node listens.
///
/// # Errors
/// 503 while the node has not said.
pub(super) fn agent_address(node: &Object) -> Result<Node, Status> {
    let value = node.value();
    let status = &value["status"];
    let of = |kind: &str| -> Vec<IpAddr> {
        let all = status["addresses"].as_array().into_iter().flatten();
        let named = all.filter(|address| address["type"] == kind);
        named
            .filter_map(|address| address["address"].as_str()?.parse().ok())
            .collect()
    };
    let addresses = [of("InternalIP"), of("ExternalIP")].concat();
    if addresses.is_empty() {
        let message = format!("node {} has no InternalIP address yet", node.name);
        return Err(Status::unavailable(message));
    }
    let port = status
        .pointer("/daemonEndpoints/kubeletEndpoint/Port")
        .and_then(Value::as_u64);
    let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(DEFAULT_PORT);
    Ok(Node {
        name: node.name.to_string(),
        addresses,
        port,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cache::Index;

    #[test]
    fn all_addresses_of_a_node_are_tried_the_inner_ones_first() {
        let body = json!({"metadata": {"name": "n"}, "status": {"addresses": [
            {"type": "ExternalIP", "address": "192.0.2.9"}, {"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "fd00::1"}]}});
        let node = agent_address(&Object::new(("nodes", "", "n"), 1, 1, Index::default(), &body)).unwrap();
        let texts: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.1", "fd00::1", "192.0.2.9"]);
        assert_eq!(node.host(), "10.0.0.1:10250");
        let nothing = Object::new(("nodes", "", "n"), 1, 1, Index::default(), &json!({}));
        assert_eq!(agent_address(&nothing).err().map(|status| status.code), Some(503));
    }
}
