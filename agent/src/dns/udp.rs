//! Questions over UDP: a thread for each address takes all that have come (recvmmsg(2)), answers, and sends the replies
//! with one call (sendmmsg(2)). Nothing is allocated for an answer from memory.
//!
//! What has to be asked elsewhere goes to the runtime, so one slow name delays nobody else's answer.

use std::io;
use std::mem::zeroed;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::net::Shutdown;
use tokio::runtime::Handle;

use super::reply::Transport;
use super::server::{Outcome, Shared};

/// Datagrams taken at once.
const BATCH: usize = 16;
/// Bytes of the largest question taken: far more than a name with its options.
const MAX_QUESTION: usize = 2048;
/// Enough for the thread, which calls nothing deep.
const STACK: usize = 256 << 10;

/// A thread that serves a socket, until this is dropped.
pub(super) struct Serving {
    socket: Arc<UdpSocket>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Starts to serve a socket. To be called on a runtime, which is used for what has to wait.
    pub(super) fn start(socket: Arc<UdpSocket>, shared: Arc<Shared>) -> io::Result<Serving> {
        let stop = Arc::new(AtomicBool::new(false));
        let server = Loop {
            socket: socket.clone(),
            shared,
            runtime: Handle::current(),
            stop: stop.clone(),
            rotation: 0,
        };
        let builder = std::thread::Builder::new().name("dns".to_owned()).stack_size(STACK);
        Ok(Serving {
            socket,
            stop,
            thread: Some(builder.spawn(move || server.run())?),
        })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Not connected, says the kernel, but it wakes who waits for a datagram; that is all that is wanted.
        let _ = rustix::net::shutdown(self.socket.as_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // It only ends early when it panicked, which was told then.
            let _ = thread.join();
        }
    }
}

struct Loop {
    socket: Arc<UdpSocket>,
    shared: Arc<Shared>,
    runtime: Handle,
    stop: Arc<AtomicBool>,
    rotation: usize,
}

impl Loop {
    fn run(mut self) {
        let mut batch = Batch::new();
        while !self.stop.load(Ordering::Acquire) {
            match batch.receive(&self.socket) {
                Ok(count) => {
                    let started = Instant::now();
                    self.answer(&mut batch, count);
                    batch.send(&self.socket);
                    for _ in 0..batch.replies {
                        self.shared.metrics.local(started.elapsed());
                    }
                }
                // A client that closed its socket shows as an error of the next call: nothing to do about it.
                Err(error) => tracing::debug!(%error, "receive DNS questions"),
            }
        }
    }

    fn answer(&mut self, batch: &mut Batch, count: usize) {
        batch.replies = 0;
        for (index, incoming) in batch.incoming[..count].iter().enumerate() {
            let Some(question) = incoming.question() else { continue };
            // Counts on while questions are answered one after the other.
            self.rotation = self.rotation.wrapping_add(1);
            let reply = &mut batch.outgoing[batch.replies];
            match self
                .shared
                .answer(question, Transport::Udp, self.rotation, &mut reply.bytes)
            {
                Outcome::Reply => {
                    self.shared.metrics.response(&reply.bytes);
                    reply.to = index;
                    batch.replies += 1;
                }
                Outcome::Wait => {
                    if let Some(client) = incoming.client() {
                        self.resolve(question.to_vec(), client);
                    }
                }
                Outcome::Silence => {}
            }
        }
    }

    /// Answers later, from the runtime.
    fn resolve(&self, question: Vec<u8>, client: SocketAddr) {
        let (socket, shared, rotation) = (self.socket.clone(), self.shared.clone(), self.rotation);
        self.runtime.spawn(async move {
            let mut reply = Vec::new();
            shared.resolve(&question, Transport::Udp, rotation, &mut reply).await;
            shared.metrics.response(&reply);
            // A client that is gone needs no reply, and one datagram never has to wait long for room.
            let _ = socket.send_to(&reply, client);
        });
    }
}

/// Datagrams that came, and those that go.
struct Batch {
    incoming: Vec<Incoming>,
    outgoing: Vec<Outgoing>,
    replies: usize,
}

struct Incoming {
    bytes: Box<[u8; MAX_QUESTION]>,
    length: usize,
    whole: bool,
    client: libc::sockaddr_in6,
    client_length: u32,
}

#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    /// Whose question it answers.
    to: usize,
}

impl Incoming {
    fn question(&self) -> Option<&[u8]> {
        self.bytes.get(..self.length).filter(|_| self.whole)
    }

    fn client(&self) -> Option<SocketAddr> {
        let client = &self.client;
        let port = u16::from_be(client.sin6_port);
        match i32::from(client.sin6_family) {
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(client.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(ip, port, client.sin6_flowinfo, client.sin6_scope_id).into())
            }
            // The port is at the same place; the address is where the other family has its flow.
            libc::AF_INET => Some(SocketAddr::new(IpAddr::from(client.sin6_flowinfo.to_ne_bytes()), port)),
            _ => None,
        }
    }
}

impl Batch {
    fn new() -> Batch {
        let incoming = || Incoming {
            bytes: Box::new([0; MAX_QUESTION]),
            length: 0,
            whole: false,
            // SAFETY: a plain structure of numbers, for which zero is a value.
            client: unsafe { zeroed() },
            client_length: 0,
        };
        Batch {
            incoming: (0..BATCH).map(|_| incoming()).collect(),
            outgoing: (0..BATCH).map(|_| Outgoing::default()).collect(),
            replies: 0,
        }
    }

    /// Waits for a datagram and takes what else is there.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: plain structures of numbers and pointers, for which zero is a value.
        let mut vectors: [libc::iovec; BATCH] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        for ((incoming, vector), message) in self.incoming.iter_mut().zip(&mut vectors).zip(&mut messages) {
            vector.iov_base = incoming.bytes.as_mut_ptr().cast();
            vector.iov_len = MAX_QUESTION;
            message.msg_hdr.msg_name = (&raw mut incoming.client).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every message points to a vector, a buffer and an address that live until the call is over; the
        // lengths are theirs. sockaddr_in6 is large enough for both families that UDP sockets here have.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (incoming, message) in self.incoming.iter_mut().zip(&messages).take(count) {
            incoming.length = message.msg_len as usize;
            incoming.whole = message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            incoming.client_length = message.msg_hdr.msg_namelen;
        }
        Ok(count)
    }

    /// Sends the replies. A client whose reply cannot be sent asks again.
    fn send(&mut self, socket: &UdpSocket) {
        // SAFETY: plain structures of numbers and pointers, for which zero is a value.
        let mut vectors: [libc::iovec; BATCH] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        let replies = &mut self.outgoing[..self.replies];
        for ((reply, vector), message) in replies.iter_mut().zip(&mut vectors).zip(&mut messages) {
            let incoming = &mut self.incoming[reply.to];
            vector.iov_base = reply.bytes.as_mut_ptr().cast();
            vector.iov_len = reply.bytes.len();
            message.msg_hdr.msg_name = (&raw mut incoming.client).cast();
            message.msg_hdr.msg_namelen = incoming.client_length;
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        let mut rest = &mut messages[..self.replies];
        while !rest.is_empty() {
            // SAFETY: every message points to a vector, a reply and an address that live until the call is over.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
            // The first that is left failed: the others may still go.
            let done = usize::try_from(sent).unwrap_or(1).clamp(1, rest.len());
            rest = &mut rest[done..];
        }
    }
}
