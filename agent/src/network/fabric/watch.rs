//! Follows the cluster's nodes and this machine's interfaces for as long as the agent runs.
//!
//! The kernel takes routes away with the interface that they lead to, and network daemons remove what they do not know:
//! rtnetlink(7) tells of both, and the fabric is repaired. Nothing polls.

use std::sync::Arc;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::route::RouteProtocol;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use tokio::sync::watch;

use super::{Changes, Fabric, NodeRoute};
use crate::network::Error;
use crate::network::events::Events;
use crate::network::netlink::Protocol;

/// Pause before another attempt when the kernel refused something.
const RETRY: Duration = Duration::from_secs(1);
/// RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE of linux/rtnetlink.h.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];

impl Fabric {
    /// Applies every state of `nodes` and repairs what happens to this machine's routes. Ends with the sender of `nodes`.
    /// The value that the channel starts with means nothing: what an earlier agent made stays until the nodes are known.
    ///
    /// # Errors
    /// When the kernel's notifications cannot be followed.
    pub async fn follow(self: Arc<Self>, mut nodes: watch::Receiver<Vec<NodeRoute>>) -> Result<(), Error> {
        let failed = |source| Error::Netlink {
            action: "follow changes of interfaces and routes".to_owned(),
            source,
        };
        let events = Events::subscribe(&GROUPS).map_err(failed)?;
        let mut again = false;
        loop {
            let work = tokio::select! {
                changed = nodes.changed() => match changed {
                    Ok(()) => Work::Apply(nodes.borrow_and_update().clone()),
                    Err(_) => return Ok(()),
                },
                relevant = events.settled(concerns) => {
                    relevant.map_err(failed)?;
                    Work::Repair
                }
                () = tokio::time::sleep(RETRY), if again => Work::Repair,
            };
            again = self.carry_out(work).await;
        }
    }

    /// Whether it has to be tried again.
    async fn carry_out(self: &Arc<Self>, work: Work) -> bool {
        let fabric = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || match work {
            Work::Apply(nodes) => fabric.apply(&nodes),
            Work::Repair => fabric.repair(),
        });
        match done.await {
            Ok(Ok(Changes { put: 0, removed: 0, .. })) => false,
            Ok(Ok(changes)) => {
                tracing::info!(
                    put = changes.put,
                    removed = changes.removed,
                    "routes to other nodes' pods changed"
                );
                false
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "routes to other nodes' pods are incomplete: trying again");
                true
            }
            Err(error) => {
                tracing::error!(%error, "the network between nodes was not repaired");
                true
            }
        }
    }
}

enum Work {
    Apply(Vec<NodeRoute>),
    Repair,
}

/// Pods come and go all the time, and their interfaces with them: those are not of interest here.
fn concerns(buffer: &[u8]) -> bool {
    let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(buffer) else {
        return true;
    };
    let NetlinkPayload::InnerMessage(message) = message.payload else {
        return false;
    };
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            let pods = link.attributes.iter().any(
                |attribute| matches!(attribute, LinkAttribute::IfName(name) if crate::network::is_pod_interface(name)),
            );
            !pods && !link.header.flags.contains(LinkFlags::Loopback)
        }
        // Addresses of pods are not on the host; those on `lo` lead to no other node.
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            address.header.index != LOOPBACK
        }
        RouteNetlinkMessage::DelRoute(route) => {
            route.header.protocol == RouteProtocol::Other(Protocol::Fabric.number())
        }
        _ => false,
    }
}

/// The index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;
