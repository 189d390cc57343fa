//! Follows the cluster's nodes and the machine's interfaces: rtnetlink(7) tells of every change, nothing polls.

use std::sync::Arc;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use tokio::sync::watch;

use super::{Edge, EdgeView, Error, interfaces};
use crate::network::events::Events;
use crate::network::{NodeRoute, is_pod_interface};

/// RTNLGRP_LINK, _IPV4_IFADDR, _IPV6_IFADDR of linux/rtnetlink.h.
const GROUPS: [u32; 3] = [1, 5, 9];
/// Pause before another attempt when the kernel refused something.
const RETRY: Duration = Duration::from_secs(1);

impl Edge {
    /// Serves interfaces and nodes as they come, for as long as the agent runs. `base` is what is known of this node.
    ///
    /// # Errors
    /// When the kernel's notifications cannot be followed.
    pub async fn follow(
        self: Arc<Self>,
        base: EdgeView,
        mut nodes: watch::Receiver<Vec<NodeRoute>>,
    ) -> Result<(), Error> {
        let failed = |source| Error::Interfaces {
            action: "follow the machine's interfaces",
            source,
        };
        let events = Events::subscribe(&GROUPS).map_err(failed)?;
        // What an earlier agent knew of nodes is in force until this one knows them.
        if nodes.changed().await.is_err() {
            return Ok(());
        }
        nodes.mark_changed();
        let mut again = false;
        loop {
            tokio::select! {
                changed = nodes.changed() => if changed.is_err() {
                    return Ok(());
                },
                concerned = events.settled(concerns) => concerned.map_err(failed)?,
                () = tokio::time::sleep(RETRY), if again => {}
            }
            let (edge, base, routes) = (Arc::clone(&self), base.clone(), nodes.borrow_and_update().clone());
            let done = tokio::task::spawn_blocking(move || edge.apply(&base.with_nodes(&routes, &interfaces::list()?)));
            again = match done.await {
                Ok(Ok(())) => false,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "packets from outside are not served everywhere: trying again");
                    true
                }
                Err(error) => {
                    tracing::error!(%error, "packets from outside are not served everywhere");
                    true
                }
            };
        }
    }
}

/// Pods' interfaces come and go all the time; whoever makes them says so.
fn concerns(buffer: &[u8]) -> bool {
    let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(buffer) else {
        return true;
    };
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)) => {
            !of_pod(&link)
        }
        NetlinkPayload::InnerMessage(_) => true,
        _ => false,
    }
}

fn of_pod(link: &LinkMessage) -> bool {
    link.attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfName(name) if is_pod_interface(name)))
}
