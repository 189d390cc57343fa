//! Frames of SPDY/3 (draft section 2.2 and 2.6): an eight-byte head, then the payload. Only those are written that a
//! server of streams needs.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};

/// Length of the head of every frame, bytes.
pub const HEAD: usize = 8;
/// The largest payload a client may send, bytes.
pub const PAYLOAD_MAX: usize = 1 << 20;

const VERSION: u16 = 3;
const CONTROL: u8 = 0x80;
const FINISHED: u8 = 1;
const STREAM_ID: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A new stream, its header block still compressed.
    SynStream { stream: u32, block: Bytes, finished: bool },
    /// Further headers of a stream; read only because blocks are compressed as one text.
    Headers { block: Bytes },
    /// Bytes of a stream.
    Data { stream: u32, bytes: Bytes, finished: bool },
    /// A stream is given up.
    Reset { stream: u32 },
    /// To be sent back.
    Ping { id: u32 },
    /// The client opens no more streams.
    GoAway,
    /// SETTINGS, WINDOW_UPDATE and what later versions may add.
    Ignored,
}

/// How many bytes follow this head.
///
/// # Errors
/// More than [`PAYLOAD_MAX`].
pub fn payload_length(head: [u8; HEAD]) -> io::Result<usize> {
    let length = usize::try_from(number(&head[4..8]) & 0x00ff_ffff).map_err(io::Error::other)?;
    if length > PAYLOAD_MAX {
        return Err(malformed(format!(
            "a SPDY frame of {length} bytes, of at most {PAYLOAD_MAX}"
        )));
    }
    Ok(length)
}

/// Reads a frame.
///
/// # Errors
/// Another version, or a payload shorter than its kind.
pub fn parse(head: [u8; HEAD], payload: Bytes) -> io::Result<Frame> {
    let finished = head[4] & FINISHED != 0;
    if head[0] & CONTROL == 0 {
        return Ok(Frame::Data {
            stream: number(&head[..4]) & STREAM_ID,
            bytes: payload,
            finished,
        });
    }
    let version = u16::from_be_bytes([head[0] & !CONTROL, head[1]]);
    if version != VERSION {
        return Err(malformed(format!("SPDY version {version}; this node speaks {VERSION}")));
    }
    let kind = u16::from_be_bytes([head[2], head[3]]);
    let fixed = match kind {
        SYN_STREAM => 10,
        RST_STREAM | GOAWAY => 8,
        SYN_REPLY | PING | HEADERS => 4,
        _ => 0,
    };
    if payload.len() < fixed {
        return Err(malformed(format!(
            "a SPDY frame of kind {kind} with {} bytes, of at least {fixed}",
            payload.len()
        )));
    }
    Ok(match kind {
        SYN_STREAM => Frame::SynStream {
            stream: number(&payload[..4]) & STREAM_ID,
            block: payload.slice(fixed..),
            finished,
        },
        SYN_REPLY | HEADERS => Frame::Headers {
            block: payload.slice(fixed..),
        },
        RST_STREAM => Frame::Reset {
            stream: number(&payload[..4]) & STREAM_ID,
        },
        PING => Frame::Ping {
            id: number(&payload[..4]),
        },
        GOAWAY => Frame::GoAway,
        _ => Frame::Ignored,
    })
}

/// Bytes of a stream; `finished` closes this side of it.
pub fn data(stream: u32, bytes: &[u8], finished: bool) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD + bytes.len());
    frame.put_u32(stream & STREAM_ID);
    put_flags_and_length(&mut frame, finished, bytes.len());
    frame.put_slice(bytes);
    frame.freeze()
}

/// Accepts a stream with the header block `block`.
pub fn syn_reply(stream: u32, block: &[u8]) -> Bytes {
    let mut frame = control(SYN_REPLY, 4 + block.len());
    frame.put_u32(stream & STREAM_ID);
    frame.put_slice(block);
    frame.freeze()
}

/// Refuses a stream: REFUSED_STREAM, section 2.6.3.
pub fn refuse(stream: u32) -> Bytes {
    let mut frame = control(RST_STREAM, 8);
    frame.put_u32(stream & STREAM_ID);
    frame.put_u32(3);
    frame.freeze()
}

/// A ping, or the answer to one.
pub fn ping(id: u32) -> Bytes {
    let mut frame = control(PING, 4);
    frame.put_u32(id);
    frame.freeze()
}

fn control(kind: u16, length: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(HEAD + length);
    frame.put_u16(u16::from(CONTROL) << 8 | VERSION);
    frame.put_u16(kind);
    put_flags_and_length(&mut frame, false, length);
    frame
}

/// One byte of flags, three of length.
fn put_flags_and_length(frame: &mut BytesMut, finished: bool, length: usize) {
    debug_assert!(length <= PAYLOAD_MAX, "frames are written in chunks");
    frame.put_u8(if finished { FINISHED } else { 0 });
    frame.put_uint(length as u64, 3);
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

fn malformed(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Frame> {
        let head = bytes[..HEAD].try_into().unwrap();
        assert_eq!(payload_length(head)?, bytes.len() - HEAD);
        parse(head, Bytes::copy_from_slice(&bytes[HEAD..]))
    }

    #[test]
    fn what_is_written_is_read() {
        let frame = Frame::Data {
            stream: 5,
            bytes: Bytes::from_static(b"hello"),
            finished: true,
        };
        assert_eq!(read(&data(5, b"hello", true)).unwrap(), frame);
        assert_eq!(read(&ping(7)).unwrap(), Frame::Ping { id: 7 });
        assert_eq!(read(&refuse(9)).unwrap(), Frame::Reset { stream: 9 });
    }

    #[test]
    fn a_new_stream_has_its_block_behind_ten_bytes() {
        let bytes = [0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, b'x', b'y'];
        let frame = Frame::SynStream {
            stream: 1,
            block: Bytes::from_static(b"xy"),
            finished: false,
        };
        assert_eq!(read(&bytes).unwrap(), frame);
    }

    #[test]
    fn short_long_and_foreign_frames_are_refused() {
        assert!(read(&[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0]).is_err());
        assert!(read(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]).is_err());
        assert!(payload_length([0, 0, 0, 1, 0, 0xff, 0xff, 0xff]).is_err());
    }
}
