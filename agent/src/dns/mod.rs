//! The node's DNS server: answers for the cluster's services from memory, forwards the rest.
//!
//! It follows Kubernetes' DNS-based service discovery 1.1.0. A [`Zone`] is computed purely from services and endpoint
//! slices and swapped in whole; answering takes no lock and no hop to another machine. The server listens on a
//! node-local address on `lo`; the service proxy leads the cluster's DNS address there (`proxy::DnsRedirect`).

mod answer;
mod error;
mod forward;
mod resolv;
mod server;
mod zone;

use std::net::{Ipv4Addr, SocketAddrV4};

pub use error::Error;
pub use resolv::{PodDns, resolv_conf};
pub use server::{Config, Handle, Server};
pub use zone::{Zone, ZoneConfig};

/// Where the server listens unless told otherwise: the node-local address that Kubernetes' node-local cache uses.
pub const DEFAULT_LISTEN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 20, 10), 53);

/// Takes the server's address off `lo`, for `hull down`; a server that merely restarts leaves it.
pub fn release(listen: SocketAddrV4) -> Result<(), crate::network::Error> {
    if listen.ip().is_loopback() || listen.ip().is_unspecified() {
        return Ok(());
    }
    crate::network::remove_local_address(*listen.ip())
}
