//! Follows the cluster's nodes and the machine's interfaces: rtnetlink(7) tells of every change, nothing polls.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::{Edge, EdgeView, Error, interfaces};
use crate::network::{NodeRoute, is_pod_interface};

/// RTNLGRP_LINK, _IPV4_IFADDR, _IPV6_IFADDR of linux/rtnetlink.h.
const GROUPS: [u32; 3] = [1, 5, 9];
/// An interface and its addresses come one after the other: they are awaited for this long.
const SETTLE: Duration = Duration::from_millis(20);
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
        let socket = subscribe().map_err(failed)?;
        // SAFETY: the socket owns its descriptor, always gives the same one, and is dropped with the `AsyncFd`.
        let events = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        let events = events.map_err(|error| failed(error.into_parts().1))?;
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
                concerned = next(&events) => {
                    concerned.map_err(failed)?;
                    tokio::time::sleep(SETTLE).await;
                    while events.get_ref().recv_from_full().is_ok() {}
                }
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

fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Waits for a change that concerns what leads out of the node.
async fn next(events: &AsyncFd<Socket>) -> io::Result<()> {
    loop {
        let mut ready = events.readable().await?;
        match ready.try_io(|socket| socket.get_ref().recv_from_full()) {
            Ok(Ok((buffer, _))) if !concerns(&buffer) => {}
            Ok(Ok(_)) => return Ok(()),
            // More came than the socket holds: something of it may concern us.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
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
