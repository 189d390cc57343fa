//! Neighbours (address to link-layer address) and VXLAN forwarding entries (link-layer address to node); ip-neighbour(8),
//! bridge(8).

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::{Netlink, Request, family};
use crate::network::Error;

/// A permanent neighbour: nothing is ever asked for it (ARP, NDP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) struct Neighbour {
    pub(in crate::network) interface: u32,
    pub(in crate::network) address: IpAddr,
    pub(in crate::network) mac: [u8; 6],
}

/// To which node a VXLAN interface sends frames for a link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) struct Forwarding {
    pub(in crate::network) interface: u32,
    pub(in crate::network) mac: [u8; 6],
    pub(in crate::network) remote: IpAddr,
}

impl Neighbour {
    /// Adds the entry or changes it to this.
    pub(in crate::network) fn put(&self) -> Request {
        let mut message = self.message();
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(self.mac.to_vec()));
        put(
            message,
            format!("add the neighbour {} on interface {}", self.address, self.interface),
        )
    }

    /// Removes the entry; one that is not there is fine.
    pub(in crate::network) fn remove(&self) -> Request {
        let action = format!("remove the neighbour {} on interface {}", self.address, self.interface);
        remove(self.message(), action)
    }

    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(self.address.is_ipv4());
        message.header.ifindex = self.interface;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![NeighbourAttribute::Destination(address(self.address))];
        message
    }
}

impl Forwarding {
    /// Adds the entry or changes it to this.
    pub(in crate::network) fn put(&self) -> Request {
        put(self.message(), format!("send frames for a node to {}", self.remote))
    }

    /// Removes the entry; one that is not there is fine.
    pub(in crate::network) fn remove(&self) -> Request {
        remove(
            self.message(),
            format!("stop sending frames for a node to {}", self.remote),
        )
    }

    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.interface;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(self.mac.to_vec()),
            NeighbourAttribute::Destination(address(self.remote)),
        ];
        message
    }
}

impl Netlink {
    /// The permanent neighbours on an interface, both families.
    pub(in crate::network) fn neighbours(&mut self, interface: u32) -> Result<Vec<Neighbour>, Error> {
        let mut found = Vec::new();
        for ipv4 in [true, false] {
            for message in self.entries(family(ipv4), interface)? {
                let (Some(address), Some(mac)) = (destination(&message), mac(&message)) else {
                    continue;
                };
                if message.header.state == NeighbourState::Permanent {
                    found.push(Neighbour {
                        interface,
                        address,
                        mac,
                    });
                }
            }
        }
        Ok(found)
    }

    /// The forwarding entries of a VXLAN interface.
    pub(in crate::network) fn forwardings(&mut self, interface: u32) -> Result<Vec<Forwarding>, Error> {
        let entries = self.entries(AddressFamily::Bridge, interface)?;
        let entry = |message: &NeighbourMessage| {
            Some(Forwarding {
                interface,
                mac: mac(message)?,
                remote: destination(message)?,
            })
        };
        Ok(entries.iter().filter_map(entry).collect())
    }

    fn entries(&mut self, family: AddressFamily, interface: u32) -> Result<Vec<NeighbourMessage>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        if family == AddressFamily::Bridge {
            message.header.ifindex = interface;
        } else {
            message.attributes = vec![NeighbourAttribute::IfIndex(interface)];
        }
        let answers = self.dump(RouteNetlinkMessage::GetNeighbour(message), "list neighbours")?;
        let ours = |answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == interface => Some(message),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(ours).collect())
    }
}

fn put(message: NeighbourMessage, action: String) -> Request {
    Request {
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        accepted: &[],
        action,
    }
}

fn remove(message: NeighbourMessage, action: String) -> Request {
    Request {
        message: RouteNetlinkMessage::DelNeighbour(message),
        flags: 0,
        accepted: &[libc::ENOENT, libc::ENODEV],
        action,
    }
}

fn address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        // In forwarding entries the family is not told, only the length.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    })
}

fn mac(message: &NeighbourMessage) -> Option<[u8; 6]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}
