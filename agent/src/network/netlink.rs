//! Requests to the kernel's routing subsystem over one blocking socket; rtnetlink(7).
//!
//! Each request is sent and its acknowledgement awaited: a few tens of microseconds, so nothing here needs to be async.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::Error;

/// A veth pair to create: one end here, the other straight in the pod's namespace.
pub(super) struct Veth<'a> {
    pub(super) host_name: &'a str,
    pub(super) host_mac: [u8; 6],
    pub(super) pod_name: &'a str,
    pub(super) pod_mac: [u8; 6],
    pub(super) pod_namespace: BorrowedFd<'a>,
    pub(super) mtu: u32,
}

/// A route of the main table; without a gateway the destination is on the link.
pub(super) struct Route {
    pub(super) destination: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) interface: u32,
    pub(super) source: Option<Ipv4Addr>,
}

/// A routing socket of the network namespace in which it was opened.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> Result<Netlink, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| failed("open a routing socket", source))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Creates the pair; both ends wait for [`Netlink::set_up`].
    pub(super) fn create_veth(&mut self, veth: &Veth<'_>) -> Result<(), Error> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(veth.pod_name.to_owned()),
            LinkAttribute::Address(veth.pod_mac.to_vec()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::NetNsFd(veth.pod_namespace.as_raw_fd()),
        ];
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(veth.host_name.to_owned()),
            LinkAttribute::Address(veth.host_mac.to_vec()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        let action = format!(
            "create the veth pair {} with {} in the pod",
            veth.host_name, veth.pod_name
        );
        self.request(
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
            &action,
            &[],
        )
        .map(drop)
    }

    /// Deletes a link by name; one that does not exist is fine.
    pub(super) fn delete_link(&mut self, name: &str) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelLink(named(name));
        self.request(message, 0, &format!("delete the interface {name}"), &[libc::ENODEV])
            .map(drop)
    }

    pub(super) fn set_up(&mut self, index: u32) -> Result<(), Error> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(
            RouteNetlinkMessage::SetLink(link),
            0,
            &format!("set interface {index} up"),
            &[],
        )
        .map(drop)
    }

    pub(super) fn index_of(&mut self, name: &str) -> Result<u32, Error> {
        Ok(self.link(name)?.header.index)
    }

    pub(super) fn mtu_of(&mut self, name: &str) -> Result<Option<u32>, Error> {
        let link = self.link(name)?;
        Ok(link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        }))
    }

    fn link(&mut self, name: &str) -> Result<LinkMessage, Error> {
        let action = format!("look up the interface {name}");
        match self.request(RouteNetlinkMessage::GetLink(named(name)), 0, &action, &[])? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(link),
            _ => Err(failed(&action, io::ErrorKind::InvalidData.into())),
        }
    }

    /// Adds a /32 address, or leaves it as it is.
    pub(super) fn add_address(&mut self, index: u32, address: Ipv4Addr) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewAddress(host_address(index, address));
        let action = format!("add the address {address} to interface {index}");
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE, &action, &[libc::EEXIST])
            .map(drop)
    }

    /// Removes a /32 address; one that is not there is fine.
    pub(super) fn remove_address(&mut self, index: u32, address: Ipv4Addr) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelAddress(host_address(index, address));
        let action = format!("remove the address {address} from interface {index}");
        self.request(message, 0, &action, &[libc::EADDRNOTAVAIL]).map(drop)
    }

    /// A permanent neighbour: no ARP is ever sent for it.
    pub(super) fn add_neighbour(&mut self, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Result<(), Error> {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = AddressFamily::Inet;
        neighbour.header.ifindex = index;
        neighbour.header.state = NeighbourState::Permanent;
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        let action = format!("add the neighbour {address} on interface {index}");
        let message = RouteNetlinkMessage::NewNeighbour(neighbour);
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE, &action, &[])
            .map(drop)
    }

    pub(super) fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = route.prefix;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if route.gateway.is_some() {
            RouteScope::Universe
        } else {
            RouteScope::Link
        };
        message.attributes.push(RouteAttribute::Oif(route.interface));
        if route.prefix > 0 {
            message
                .attributes
                .push(RouteAttribute::Destination(RouteAddress::Inet(route.destination)));
        }
        if let Some(gateway) = route.gateway {
            // The gateway is in no subnet of the interface: its neighbour entry says where it is.
            message.header.flags = RouteFlags::Onlink;
            message
                .attributes
                .push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        }
        if let Some(source) = route.source {
            message
                .attributes
                .push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
        }
        let action = format!(
            "add the route {}/{} on interface {}",
            route.destination, route.prefix, route.interface
        );
        self.request(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            &action,
            &[],
        )
        .map(drop)
    }

    /// Sends one request and waits for its end; the errors in `accepted` count as success.
    fn request(
        &mut self,
        payload: RouteNetlinkMessage,
        flags: u16,
        action: &str,
        accepted: &[i32],
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(payload));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(|source| failed(action, source))?;
        match self.reply() {
            Err(error) if error.raw_os_error().is_some_and(|errno| accepted.contains(&errno)) => Ok(None),
            result => result.map_err(|source| failed(action, source)),
        }
    }

    fn reply(&self) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut answer = None;
        loop {
            let (buffer, _) = self.socket.recv_from_full()?;
            let mut rest = buffer.as_slice();
            while rest.len() >= HEADER_LENGTH {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = (message.header.length as usize)
                    .next_multiple_of(4)
                    .clamp(HEADER_LENGTH, rest.len());
                rest = &rest[length..];
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answer),
                    NetlinkPayload::InnerMessage(inner) => answer = Some(inner),
                    _ => {}
                }
            }
        }
    }
}

const HEADER_LENGTH: usize = 16;

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    link
}

fn host_address(index: u32, address: Ipv4Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Address(IpAddr::V4(address)),
    ];
    message
}

fn failed(action: &str, source: io::Error) -> Error {
    Error::Netlink {
        action: action.to_owned(),
        source,
    }
}
