//! A client's connection on the warden's side: never blocks, and a client that does not read is cut off.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::Error;
use super::wire::{self, Decoder};

/// Most bytes that wait for one client.
const WAITING_MAX: usize = 32 << 20;

#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    pub subscribed: bool,
}

#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Result<Self, Error> {
        wire::set_nonblocking(&stream)?;
        Ok(Self {
            stream,
            decoder: Decoder::default(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            subscribed: false,
        })
    }

    /// Reads what has arrived. False: the client is gone.
    pub(crate) fn fill(&mut self) -> bool {
        match self.decoder.fill(&self.stream) {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) => matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
            ),
        }
    }

    /// The next request that has arrived whole.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<(T, VecDeque<OwnedFd>)>, Error> {
        self.decoder.next()
    }

    /// Queues a message.
    pub(crate) fn push<T: Serialize>(&mut self, body: &T, fds: Vec<OwnedFd>) -> Result<(), Error> {
        let bytes = wire::encode(body, fds.len())?;
        self.waiting_bytes += bytes.len();
        if self.waiting_bytes > WAITING_MAX {
            return Err(Error::Protocol("the client does not read".into()));
        }
        self.waiting.push_back(Waiting { bytes, sent: 0, fds });
        Ok(())
    }

    /// Sends what the socket takes. True: all is sent.
    pub(crate) fn flush(&mut self) -> Result<bool, Errno> {
        while let Some(front) = self.waiting.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = front.fds.iter().map(AsFd::as_fd).collect();
            match wire::send_some(&self.stream, &front.bytes[front.sent..], &fds) {
                Ok(sent) => {
                    front.sent += sent;
                    front.fds.clear();
                    self.waiting_bytes -= sent;
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            if front.sent == front.bytes.len() {
                self.waiting.pop_front();
            }
        }
        Ok(true)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
