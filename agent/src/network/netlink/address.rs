//! Addresses of interfaces; rtnetlink(7) RTM_*ADDR, ip-address(8).

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::{Netlink, Request, family};
use crate::network::{Cidr, Error};

/// An address of the machine and the prefix of the network that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) struct Local {
    pub(in crate::network) interface: u32,
    pub(in crate::network) address: IpAddr,
    pub(in crate::network) prefix: u8,
}

impl Netlink {
    /// The machine's addresses; those still or in vain tested for duplicates are left out.
    pub(in crate::network) fn addresses(&mut self) -> Result<Vec<Local>, Error> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump(message, "list the machine's addresses")?;
        let usable = |message: RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewAddress(message) => usable(&message),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(usable).collect())
    }
}

fn usable(message: &AddressMessage) -> Option<Local> {
    let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    if message.header.flags.intersects(unusable) {
        return None;
    }
    let (mut local, mut other) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            // On a point-to-point link this is the other end; elsewhere, with IPv6, all there is.
            AddressAttribute::Address(address) => other = Some(*address),
            _ => {}
        }
    }
    Some(Local {
        interface: message.header.index,
        address: local.or(other)?,
        prefix: message.header.prefix_len,
    })
}

/// Adds an address without a subnet, usable at once (no duplicate address detection), or leaves it as it is.
pub(in crate::network) fn add_address(index: u32, address: IpAddr) -> Request {
    let mut message = host_address(index, address);
    if address.is_ipv6() {
        message.attributes.push(AddressAttribute::Flags(
            AddressFlags::Nodad | AddressFlags::Noprefixroute,
        ));
    }
    Request {
        message: RouteNetlinkMessage::NewAddress(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        accepted: &[libc::EEXIST],
        action: format!("add the address {address} to interface {index}"),
    }
}

/// Removes an address without a subnet; one that is not there is fine.
pub(in crate::network) fn remove_address(index: u32, address: IpAddr) -> Request {
    Request {
        message: RouteNetlinkMessage::DelAddress(host_address(index, address)),
        flags: 0,
        accepted: &[libc::EADDRNOTAVAIL],
        action: format!("remove the address {address} from interface {index}"),
    }
}

fn host_address(index: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.is_ipv4());
    message.header.prefix_len = Cidr::host(address).prefix();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}
