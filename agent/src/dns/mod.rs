//! The node's DNS server: answers for the cluster's services from memory, forwards the rest and remembers the answers.
//!
//! It follows Kubernetes' DNS-based service discovery 1.1.0, and CoreDNS where that leaves things open. [`Handle`] takes
//! changes service by service; answering makes no hop to another machine and allocates nothing. The server listens on
//! node-local addresses on `lo`; the service proxy leads the cluster's DNS address there (`proxy::DnsRedirect`).

mod answer;
mod cache;
mod error;
mod find;
mod forward;
mod metrics;
mod name;
mod records;
mod reply;
mod request;
mod resolv;
mod resolvers;
mod reverse;
mod server;
mod stored;
mod tcp;
mod udp;
mod upstream;
mod wire;
mod zone;

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

pub use error::Error;
pub use records::ServiceRecords;
pub use resolv::{PodDns, host_resolv_conf, resolv_conf};
pub use server::{Config, Handle, Server};
pub use zone::{Change, ZoneConfig};

/// Where the server listens unless told otherwise: the node-local address that Kubernetes' node-local cache uses.
pub const DEFAULT_LISTEN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 20, 10), 53);

/// Takes an address of the server off `lo`, for `hull down`; a server that merely restarts leaves it.
pub fn release(address: IpAddr) -> Result<(), crate::network::Error> {
    if address.is_loopback() || address.is_unspecified() {
        return Ok(());
    }
    crate::network::remove_local_address(address)
}
