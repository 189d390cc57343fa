//! The kernel's notifications of links, addresses and routes, as something to wait for: rtnetlink(7).
//! They come in groups (an interface, its addresses, its routes), and each group is one thing that happened.

use std::io;
use std::time::Duration;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long the rest of a group is awaited.
const SETTLE: Duration = Duration::from_millis(20);

/// Notifications of some multicast groups.
pub(crate) struct Events {
    socket: AsyncFd<Socket>,
}

impl Events {
    /// Of `groups`: RTNLGRP_* of linux/rtnetlink.h.
    pub fn subscribe(groups: &[u32]) -> io::Result<Events> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for &group in groups {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor, always gives the same one, and is dropped with the `AsyncFd`.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Events {
            socket: socket.map_err(|error| error.into_parts().1)?,
        })
    }

    /// Waits for a message that `concerns` the caller, and then until its group is over.
    pub async fn settled(&self, concerns: fn(&[u8]) -> bool) -> io::Result<()> {
        self.next(concerns).await?;
        tokio::time::sleep(SETTLE).await;
        while self.socket.get_ref().recv_from_full().is_ok() {}
        Ok(())
    }

    async fn next(&self, concerns: fn(&[u8]) -> bool) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
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
}
