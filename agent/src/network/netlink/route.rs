//! Routes of the main table; rtnetlink(7) RTM_*ROUTE, ip-route(8).

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::{Netlink, Request, family};
use crate::network::{Cidr, Error};

/// Who made a route: numbers that no routing daemon uses (/etc/iproute2/rt_protos).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) enum Protocol {
    /// The fabric: ways to other nodes' pods.
    Fabric,
    /// The pod network: ways to this node's pods, and theirs to the host.
    Pod,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) struct Route {
    pub(in crate::network) destination: Cidr,
    /// Without one the destination is on the link. One of IPv6 may lead to an IPv4 destination (RFC 8950).
    pub(in crate::network) gateway: Option<IpAddr>,
    /// Without one the destination is unreachable, and senders are told so.
    pub(in crate::network) interface: Option<u32>,
    /// The address with which this host speaks to the destination.
    pub(in crate::network) source: Option<IpAddr>,
    /// In bytes; without one that of the interface.
    pub(in crate::network) mtu: Option<u32>,
    pub(in crate::network) protocol: Protocol,
}

impl Protocol {
    pub(in crate::network) fn number(self) -> u8 {
        match self {
            Protocol::Fabric => 104,
            Protocol::Pod => 105,
        }
    }
}

impl Route {
    /// Adds the route or replaces the one to the same destination.
    pub(in crate::network) fn put(&self) -> Request {
        Request {
            message: RouteNetlinkMessage::NewRoute(self.message()),
            flags: NLM_F_CREATE | NLM_F_REPLACE,
            accepted: &[],
            action: format!("add the route to {self}"),
        }
    }

    /// Removes the route; one that is not there is fine.
    pub(in crate::network) fn remove(&self) -> Request {
        Request {
            message: RouteNetlinkMessage::DelRoute(self.message()),
            flags: 0,
            accepted: &[libc::ESRCH, libc::ENODEV],
            action: format!("remove the route to {self}"),
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.destination.is_ipv4());
        message.header.destination_prefix_length = self.destination.prefix();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Other(self.protocol.number());
        message.header.scope = match (self.interface, self.gateway) {
            (Some(_), None) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        message.header.kind = match self.interface {
            Some(_) => RouteType::Unicast,
            None => RouteType::Unreachable,
        };
        let attributes = &mut message.attributes;
        attributes.extend(self.interface.map(RouteAttribute::Oif));
        if self.destination.prefix() > 0 {
            attributes.push(RouteAttribute::Destination(self.destination.base().into()));
        }
        if let Some(gateway) = self.gateway {
            // The gateway may be in no subnet of the interface: its neighbour entry says where it is.
            message.header.flags = RouteFlags::Onlink;
            attributes.push(match (self.destination.is_ipv4(), gateway) {
                (true, IpAddr::V6(gateway)) => RouteAttribute::Via(RouteVia::Inet6(gateway)),
                _ => RouteAttribute::Gateway(gateway.into()),
            });
        }
        attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(source.into())));
        attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        message
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        match self.interface {
            Some(interface) => write!(f, " on interface {interface}"),
            None => f.write_str(" as unreachable"),
        }
    }
}

impl Netlink {
    /// The routes of the main table that `protocol` made, both families.
    pub(in crate::network) fn routes(&mut self, protocol: Protocol) -> Result<Vec<Route>, Error> {
        let mut found = Vec::new();
        for ipv4 in [true, false] {
            let mut message = RouteMessage::default();
            message.header.address_family = family(ipv4);
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message.header.protocol = RouteProtocol::Other(protocol.number());
            let answers = self.dump(RouteNetlinkMessage::GetRoute(message), "list the machine's routes")?;
            found.extend(answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => parse(message, ipv4, protocol),
                _ => None,
            }));
        }
        Ok(found)
    }
}

impl Netlink {
    /// The interface of the default route, IPv4's before IPv6's.
    pub(in crate::network) fn default_interface(&mut self) -> Result<Option<u32>, Error> {
        for ipv4 in [true, false] {
            let mut message = RouteMessage::default();
            message.header.address_family = family(ipv4);
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            let answers = self.dump(RouteNetlinkMessage::GetRoute(message), "look for the default route")?;
            let preferred = answers.iter().filter_map(default_route).min();
            if let Some((_, interface)) = preferred {
                return Ok(Some(interface));
            }
        }
        Ok(None)
    }
}

/// Priority and interface of a default route.
fn default_route(answer: &RouteNetlinkMessage) -> Option<(u32, u32)> {
    let RouteNetlinkMessage::NewRoute(message) = answer else {
        return None;
    };
    let header = &message.header;
    let wanted = header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && header.destination_prefix_length == 0;
    let (mut priority, mut interface) = (0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(value) => priority = *value,
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    Some((priority, interface.filter(|_| wanted)?))
}

/// The route in a message; `None` for one of another table or maker.
fn parse(message: &RouteMessage, ipv4: bool, protocol: Protocol) -> Option<Route> {
    let header = &message.header;
    if header.protocol != RouteProtocol::Other(protocol.number()) || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let unspecified = if ipv4 {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0; 16])
    };
    let (mut destination, mut route) = (
        unspecified,
        Route {
            destination: Cidr::host(unspecified),
            gateway: None,
            interface: None,
            source: None,
            mtu: None,
            protocol,
        },
    );
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            // IPv6 says that unreachable routes lead to `lo`.
            RouteAttribute::Oif(index) if header.kind == RouteType::Unicast => route.interface = Some(*index),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    route.destination = Cidr::new(destination, header.destination_prefix_length)?;
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
