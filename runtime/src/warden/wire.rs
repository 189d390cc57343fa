//! Frames on a Unix stream socket, with descriptors (unix(7), SCM_RIGHTS).
//!
//! A frame's descriptors are sent with its first byte, so they have arrived when the frame has. Sizes from the peer are
//! checked before memory is reserved.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{Context, Error};
use super::protocol::{FDS_MAX, FRAME_MAX, Frame};

const HEADER: usize = 4;
const READ_CHUNK: usize = 16 << 10;

/// The bytes of a frame that announces `fds` descriptors.
pub(crate) fn encode<T: Serialize>(body: &T, fds: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, &Frame { fds, body })
        .map_err(|error| Error::Protocol(format!("a message cannot be encoded: {error}")))?;
    let length = bytes.len() - HEADER;
    if length > FRAME_MAX {
        return Err(Error::Protocol(format!(
            "a message of {length} bytes is longer than {FRAME_MAX}"
        )));
    }
    bytes[..HEADER].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Collects what arrives until a frame is whole.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Reads once. Ok(0) is the end of the stream.
    pub(crate) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let mut chunk = [0u8; READ_CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut chunk)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        self.bytes.extend_from_slice(&chunk[..received.bytes]);
        Ok(received.bytes)
    }

    /// The next whole frame, if it has arrived.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<(T, VecDeque<OwnedFd>)>, Error> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*header) as usize;
        if length > FRAME_MAX {
            return Err(Error::Protocol(format!(
                "a frame of {length} bytes is longer than {FRAME_MAX}"
            )));
        }
        let Some(body) = self.bytes.get(HEADER..HEADER + length) else {
            return Ok(None);
        };
        let frame: Frame<T> = serde_json::from_slice(body)
            .map_err(|error| Error::Protocol(format!("a frame cannot be decoded: {error}")))?;
        if frame.fds > self.fds.len() {
            return Err(Error::Protocol(format!(
                "a frame announces {} descriptors and {} came",
                frame.fds,
                self.fds.len()
            )));
        }
        self.bytes.drain(..HEADER + length);
        if self.bytes.is_empty() && self.bytes.capacity() > READ_CHUNK {
            self.bytes = Vec::new();
        }
        Ok(Some((frame.body, self.fds.drain(..frame.fds).collect())))
    }
}

/// Sends a part of a frame, with descriptors if it is the first part.
pub(crate) fn send_some(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, rustix::io::Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(rustix::io::Errno::INVAL);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
}

/// Sends a whole frame, blocking.
pub(crate) fn send<T: Serialize>(socket: &UnixStream, body: &T, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
    let bytes = encode(body, fds.len())?;
    let mut sent = 0;
    while sent < bytes.len() {
        let with = if sent == 0 { fds } else { &[] };
        match send_some(socket, &bytes[sent..], with) {
            Ok(count) => sent += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::io("sending to the warden", errno)),
        }
    }
    Ok(())
}

/// Receives a whole frame, blocking. Nothing may have been sent behind it.
pub(crate) fn receive<T: DeserializeOwned>(socket: &UnixStream) -> Result<(T, VecDeque<OwnedFd>), Error> {
    let mut decoder = Decoder::default();
    receive_with(socket, &mut decoder)
}

/// Receives a whole frame, blocking; what came behind it stays in the decoder.
pub(crate) fn receive_with<T: DeserializeOwned>(
    socket: &UnixStream,
    decoder: &mut Decoder,
) -> Result<(T, VecDeque<OwnedFd>), Error> {
    loop {
        if let Some(frame) = decoder.next()? {
            return Ok(frame);
        }
        match decoder.fill(socket) {
            Ok(0) => {
                let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(Error::io("the warden closed the connection", closed));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("receiving from the warden", error)),
        }
    }
}

/// Whether the peer has not closed an idle connection.
pub(crate) fn is_open(socket: &UnixStream) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN | PollFlags::RDHUP)];
    matches!(
        poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })),
        Ok(0)
    )
}

/// Makes a socket non-blocking.
pub(crate) fn set_nonblocking(socket: &UnixStream) -> Result<(), Error> {
    socket
        .set_nonblocking(true)
        .context(|| "making a client's connection non-blocking".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::warden::protocol::Request;
    use std::io::Write;

    #[test]
    fn frames_and_descriptors_arrive_together_in_order() {
        let (left, right) = UnixStream::pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&left, &Request::List, &[]).unwrap();
        send(&left, &Request::Hold { id: "a".into() }, &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut decoder = Decoder::default();
        let (first, none): (Request, _) = receive_with(&right, &mut decoder).unwrap();
        assert!(matches!(first, Request::List) && none.is_empty());
        let (second, mut fds): (Request, _) = receive_with(&right, &mut decoder).unwrap();
        assert!(matches!(second, Request::Hold { id } if id == "a"));
        let writer = fds.pop_front().unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&reader, &mut byte).unwrap(), 1);
    }

    #[test]
    fn a_frame_split_anywhere_is_reassembled() {
        let bytes = encode(&Request::Start { id: "web".into() }, 0).unwrap();
        for cut in 0..bytes.len() {
            let (mut left, right) = UnixStream::pair().unwrap();
            let mut decoder = Decoder::default();
            left.write_all(&bytes[..cut]).unwrap();
            if cut > 0 {
                decoder.fill(&right).unwrap();
            }
            assert!(decoder.next::<Request>().unwrap().is_none(), "whole after {cut} bytes");
            left.write_all(&bytes[cut..]).unwrap();
            decoder.fill(&right).unwrap();
            assert!(matches!(decoder.next().unwrap(), Some((Request::Start { id }, _)) if id == "web"));
        }
    }

    #[test]
    fn an_absurd_length_is_refused_before_any_memory_is_reserved() {
        let mut decoder = Decoder {
            bytes: vec![255, 255, 255, 255, b'{'],
            fds: VecDeque::new(),
        };
        assert!(matches!(decoder.next::<Request>(), Err(Error::Protocol(_))));
    }

    #[test]
    fn a_missing_descriptor_is_an_error() {
        let mut decoder = Decoder {
            bytes: encode(&Request::List, 1).unwrap(),
            fds: VecDeque::new(),
        };
        assert!(matches!(decoder.next::<Request>(), Err(Error::Protocol(_))));
    }

    #[test]
    fn an_idle_connection_is_open_until_the_peer_goes() {
        let (left, right) = UnixStream::pair().unwrap();
        assert!(is_open(&left));
        drop(right);
        assert!(!is_open(&left));
    }
}
