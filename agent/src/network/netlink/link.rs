//! Network interfaces: made, found, changed, deleted; rtnetlink(7) RTM_*LINK, ip-link(8).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::{Netlink, Request, failed};
use crate::network::Error;

/// A veth pair to create: one end here, the other straight in the pod's namespace.
pub(in crate::network) struct Veth<'a> {
    pub(in crate::network) host_name: &'a str,
    pub(in crate::network) host_mac: [u8; 6],
    pub(in crate::network) pod_name: &'a str,
    pub(in crate::network) pod_mac: [u8; 6],
    pub(in crate::network) pod_namespace: BorrowedFd<'a>,
    pub(in crate::network) mtu: u32,
}

/// A VXLAN interface (RFC 7348): it learns nothing, its forwarding entries are written by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) struct Vxlan {
    pub(in crate::network) name: &'static str,
    pub(in crate::network) id: u32,
    pub(in crate::network) port: u16,
    /// The node's own address: the source of what is sent, and what decides the outer family.
    pub(in crate::network) local: IpAddr,
    pub(in crate::network) mac: [u8; 6],
    pub(in crate::network) mtu: u32,
}

/// An interface of the machine.
#[derive(Clone, Debug)]
pub(in crate::network) struct Link {
    pub(in crate::network) index: u32,
    pub(in crate::network) name: String,
    pub(in crate::network) up: bool,
    pub(in crate::network) loopback: bool,
    pub(in crate::network) mtu: u32,
    pub(in crate::network) mac: Vec<u8>,
    pub(in crate::network) vxlan: Option<VxlanInfo>,
}

/// What an existing VXLAN interface was made with; none of it can be changed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) struct VxlanInfo {
    pub(in crate::network) id: u32,
    pub(in crate::network) port: u16,
    pub(in crate::network) local: Option<IpAddr>,
}

impl Veth<'_> {
    /// Creates the pair, both ends down; fails with EEXIST when the host side's name is taken.
    pub(in crate::network) fn create(&self) -> Request {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(self.pod_name.to_owned()),
            LinkAttribute::Address(self.pod_mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::NetNsFd(self.pod_namespace.as_raw_fd()),
        ];
        let mut link = named(self.host_name);
        link.attributes.extend([
            LinkAttribute::Address(self.host_mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ]);
        create(
            link,
            format!(
                "create the veth pair {} with {} in the pod",
                self.host_name, self.pod_name
            ),
        )
    }
}

impl Vxlan {
    /// Creates the interface, down.
    pub(in crate::network) fn create(&self) -> Request {
        let mut link = named(self.name);
        let local = match self.local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        };
        let data = vec![
            InfoVxlan::Id(self.id),
            local,
            InfoVxlan::Port(self.port),
            InfoVxlan::Learning(false),
            // Outer checksums: the kernel derives them from the inner ones (LCO), and receivers can merge packets (GRO).
            InfoVxlan::UDPCsum(true),
            InfoVxlan::UDPZeroCsumTX(false),
            InfoVxlan::UDPZeroCsumRX(false),
        ];
        link.attributes.extend([
            LinkAttribute::Address(self.mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(data)),
            ]),
        ]);
        create(link, format!("create the VXLAN interface {}", self.name))
    }
}

impl Netlink {
    /// All interfaces.
    pub(in crate::network) fn links(&mut self) -> Result<Vec<Link>, Error> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(message, "list the machine's interfaces")?;
        let link = |message| match message {
            RouteNetlinkMessage::NewLink(message) => describe(&message),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// The interface called `name`.
    pub(in crate::network) fn link(&mut self, name: &str) -> Result<Link, Error> {
        let answers = self.run(vec![find(name)])?;
        found(&answers).ok_or_else(|| {
            failed(
                &format!("look up the interface {name}"),
                io::ErrorKind::InvalidData.into(),
            )
        })
    }
}

/// Asks for the interface called `name`; see [`found`].
pub(in crate::network) fn find(name: &str) -> Request {
    Request {
        message: RouteNetlinkMessage::GetLink(named(name)),
        flags: 0,
        accepted: &[],
        action: format!("look up the interface {name}"),
    }
}

/// The interface among the answers of a conversation.
pub(in crate::network) fn found(answers: &[RouteNetlinkMessage]) -> Option<Link> {
    answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => describe(message),
        _ => None,
    })
}

/// Sets the interface up.
pub(in crate::network) fn set_up(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    set(link, &[], format!("set interface {index} up"))
}

/// No link-local IPv6 address: nobody speaks to this interface itself, and each would cost the kernel announcements. To be
/// said before the interface is up.
pub(in crate::network) fn no_link_local(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])];
    set(
        link,
        &[libc::EAFNOSUPPORT],
        format!("give interface {index} no link-local address"),
    )
}

/// Changes the interface's MTU, in bytes.
pub(in crate::network) fn set_mtu(index: u32, mtu: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![LinkAttribute::Mtu(mtu)];
    set(link, &[], format!("set the MTU of interface {index} to {mtu}"))
}

/// Puts the interface into a group; one that does not exist is fine.
pub(in crate::network) fn set_group(name: &str, group: u32) -> Request {
    let mut link = named(name);
    link.attributes.push(LinkAttribute::Group(group));
    set(
        link,
        &[libc::ENODEV],
        format!("put the interface {name} into group {group}"),
    )
}

/// Deletes an interface; one that does not exist is fine.
pub(in crate::network) fn delete(name: &str) -> Request {
    Request {
        message: RouteNetlinkMessage::DelLink(named(name)),
        flags: 0,
        accepted: &[libc::ENODEV],
        action: format!("delete the interface {name}"),
    }
}

/// Deletes all interfaces of a group, in the time that one takes; none is fine.
pub(in crate::network) fn delete_group(group: u32) -> Request {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::Group(group)];
    Request {
        message: RouteNetlinkMessage::DelLink(link),
        flags: 0,
        accepted: &[libc::ENODEV],
        action: format!("delete the interfaces of group {group}"),
    }
}

fn create(link: LinkMessage, action: String) -> Request {
    Request {
        message: RouteNetlinkMessage::NewLink(link),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        accepted: &[],
        action,
    }
}

fn set(link: LinkMessage, accepted: &'static [i32], action: String) -> Request {
    Request {
        message: RouteNetlinkMessage::SetLink(link),
        flags: 0,
        accepted,
        action,
    }
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    link
}

fn describe(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        mtu: 0,
        mac: Vec::new(),
        vxlan: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::LinkInfo(infos) => link.vxlan = infos.iter().find_map(vxlan_info),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn vxlan_info(info: &LinkInfo) -> Option<VxlanInfo> {
    let LinkInfo::Data(InfoData::Vxlan(data)) = info else {
        return None;
    };
    let mut vxlan = VxlanInfo {
        id: 0,
        port: 0,
        local: None,
    };
    for entry in data {
        match entry {
            InfoVxlan::Id(id) => vxlan.id = *id,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(local) => vxlan.local = Some((*local).into()),
            InfoVxlan::Local6(local) => vxlan.local = Some((*local).into()),
            _ => {}
        }
    }
    Some(vxlan)
}
