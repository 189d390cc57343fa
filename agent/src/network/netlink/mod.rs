//! Requests to the kernel's routing subsystem over one blocking socket; rtnetlink(7).
//!
//! A conversation sends any number of requests at once and awaits their acknowledgements: a few tens of microseconds, so
//! nothing here needs to be async. The kernel carries out every request of a conversation, also after one that failed.

mod address;
mod link;
mod neighbour;
mod route;

use std::io;

use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub(super) use address::{Local, add_address, remove_address};
pub(super) use link::{
    Link, Veth, Vxlan, VxlanInfo, delete, delete_group, find, found, no_link_local, set_group, set_mtu, set_up,
};
pub(super) use neighbour::{Forwarding, Neighbour};
pub(super) use route::{Protocol, Route};

use super::Error;

/// Requests sent at once: their acknowledgements fit into a socket's default receive buffer.
const BATCH: usize = 64;
/// How often a dump is repeated that the kernel says was overtaken by a change.
const DUMP_ATTEMPTS: usize = 8;
/// NLM_F_DUMP_INTR of linux/netlink.h: a change came in the middle of a dump.
const NLM_F_DUMP_INTERRUPTED: u16 = 0x10;
const HEADER_LENGTH: usize = 16;

/// One request: the message, and what it is in the operator's words.
pub(super) struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    /// Errors that count as success.
    accepted: &'static [i32],
    action: String,
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
            // The kernel then filters dumps itself; before 4.20 the answer is longer, and filtered here.
            let _ = socket.set_netlink_get_strict_chk(true);
            Ok(socket)
        };
        let socket = open().map_err(|source| failed("open a routing socket", source))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Carries out all of `requests`; returns what the kernel answered to those that ask for something.
    pub(super) fn run(&mut self, requests: Vec<Request>) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut answers = Vec::new();
        let mut outcome = Ok(());
        for batch in requests.chunks(BATCH) {
            let first = self.send(batch)?;
            if let Err(error) = self.acknowledged(batch, first, &mut answers) {
                outcome = outcome.and(Err(error));
            }
        }
        outcome.map(|()| answers)
    }

    /// Sends the requests in one datagram; returns the sequence number of the first.
    fn send(&mut self, batch: &[Request]) -> Result<u32, Error> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(batch.len() * 96);
        for request in batch {
            self.sequence = self.sequence.wrapping_add(1);
            let flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
            append(&mut bytes, request.message.clone(), flags, self.sequence);
        }
        let action = batch.first().map_or("", |request| request.action.as_str());
        let sent = self.socket.send(&bytes, 0);
        sent.map_err(|source| failed(action, source))?;
        Ok(first)
    }

    /// Waits for the end of every request of the batch; the first failure is the batch's.
    fn acknowledged(&self, batch: &[Request], first: u32, answers: &mut Vec<RouteNetlinkMessage>) -> Result<(), Error> {
        let (mut left, mut outcome) = (batch.len(), Ok(()));
        while left > 0 {
            for message in self.receive()? {
                let place = message.header.sequence_number.wrapping_sub(first) as usize;
                let Some(request) = batch.get(place) else { continue };
                match message.payload {
                    NetlinkPayload::Error(error) => {
                        left -= 1;
                        let source = error.to_io();
                        let fine = source
                            .raw_os_error()
                            .is_some_and(|errno| request.accepted.contains(&errno));
                        if error.code.is_some() && !fine && outcome.is_ok() {
                            outcome = Err(failed(&request.action, source));
                        }
                    }
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
        outcome
    }

    /// Everything of the kind that `message` asks for.
    fn dump(&mut self, message: RouteNetlinkMessage, action: &str) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            self.sequence = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            append(&mut bytes, message.clone(), NLM_F_REQUEST | NLM_F_DUMP, self.sequence);
            let sent = self.socket.send(&bytes, 0);
            sent.map_err(|source| failed(action, source))?;
            if let Some(answers) = self.dumped(action)? {
                return Ok(answers);
            }
        }
        Err(failed(action, io::ErrorKind::Interrupted.into()))
    }

    /// The parts of a dump; `None` when something changed in the middle of it.
    fn dumped(&self, action: &str) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
        let (mut answers, mut whole) = (Vec::new(), true);
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= message.header.flags & NLM_F_DUMP_INTERRUPTED == 0;
                match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(failed(action, error.to_io())),
                    NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(whole.then_some(answers)),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }

    fn receive(&self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, Error> {
        let received = self.socket.recv_from_full();
        let (buffer, _) = received.map_err(|source| failed("read the kernel's answer", source))?;
        let mut messages = Vec::new();
        let mut rest = buffer.as_slice();
        while rest.len() >= HEADER_LENGTH {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| failed("understand the kernel's answer", io::Error::other(error)))?;
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = &rest[length.clamp(HEADER_LENGTH, rest.len())..];
            messages.push(message);
        }
        Ok(messages)
    }
}

fn family(ipv4: bool) -> AddressFamily {
    if ipv4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn append(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..start + message.buffer_len()]);
}

fn failed(action: &str, source: io::Error) -> Error {
    Error::Netlink {
        action: action.to_owned(),
        source,
    }
}
