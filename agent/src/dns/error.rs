//! What can go wrong with the DNS server, in the operator's words.

use std::io;
use std::net::SocketAddr;

/// A failure of the DNS server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node-local address could not be added.
    #[error("prepare the address of the DNS server: {0}")]
    Address(#[from] crate::network::Error),
    /// The address could not be listened on.
    #[error("listen for DNS on {address} ({transport}): {source}; is another DNS server running there?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// UDP or TCP.
        transport: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cluster's domain is no domain.
    #[error(
        "the cluster's domain {0:?} is no DNS name: labels of 1 to 63 characters with dots between them are needed"
    )]
    Domain(String),
}
