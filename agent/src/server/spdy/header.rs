//! Header blocks: names and values with their lengths, all blocks of a connection compressed as one zlib text that begins
//! with a dictionary both sides know (draft section 2.6.10.1).
//!
//! A window of 32 KiB holds what back-references may mean; the dictionary lies at its end, where it would be had it been
//! sent. What is written is stored, not compressed: our replies have no headers.

use std::io;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags::TINFL_FLAG_HAS_MORE_INPUT};

/// The largest header block, bytes.
const BLOCK_MAX: usize = 16 << 10;
/// How far back a reference may reach, bytes (RFC 1951).
const WINDOW: usize = 32 << 10;
/// Adler-32 of the dictionary, by which zlib names it (RFC 1950).
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;
/// The flag of a zlib head that says a dictionary's name follows.
const HAS_DICTIONARY: u8 = 0x20;

/// The dictionary's words, each with its length before it …
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges \
    age allow authorization cache-control connection content-base content-encoding content-language content-length \
    content-location content-md5 content-range content-type date etag expect expires from host if-match if-modified-since \
    if-none-match if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning \
    www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin";
/// … and its text.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let word = word.replace('_', " ");
        bytes.extend_from_slice(&u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
}

/// Names and values of one block, names in lower case.
pub type Headers = Vec<(String, String)>;

/// Reads the blocks of one connection, in their order.
pub struct Inflater {
    state: Box<DecompressorOxide>,
    window: Vec<u8>,
    position: usize,
    begun: bool,
}

impl Inflater {
    /// For a connection's first block.
    pub fn new() -> Self {
        let dictionary = dictionary();
        let mut window = vec![0; WINDOW - dictionary.len()];
        window.extend_from_slice(&dictionary);
        Inflater {
            state: Box::default(),
            window,
            position: 0,
            begun: false,
        }
    }

    /// Names and values of the next block.
    ///
    /// # Errors
    /// It is not what zlib or SPDY writes, or too large.
    pub fn headers(&mut self, block: &[u8]) -> io::Result<Headers> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let mut input = if self.begun { block } else { after_head(block)? };
        self.begun = true;
        let mut plain = Vec::new();
        loop {
            let (status, read, written) = decompress(
                &mut self.state,
                input,
                &mut self.window,
                self.position,
                TINFL_FLAG_HAS_MORE_INPUT,
            );
            input = &input[read..];
            plain.extend_from_slice(&self.window[self.position..self.position + written]);
            self.position = (self.position + written) % WINDOW;
            if plain.len() > BLOCK_MAX {
                return Err(malformed("a SPDY header block is too large"));
            }
            match status {
                TINFLStatus::NeedsMoreInput => return Ok(plain),
                TINFLStatus::HasMoreOutput => {}
                _ => return Err(malformed("a SPDY header block cannot be decompressed")),
            }
        }
    }
}

/// What follows zlib's head, which must name our dictionary or none.
fn after_head(block: &[u8]) -> io::Result<&[u8]> {
    let wrong = || malformed("the first SPDY header block is not compressed with zlib and SPDY/3's dictionary");
    let (head, rest) = block.split_at_checked(2).ok_or_else(wrong)?;
    if head[0] & 0x0f != 8 || u16::from_be_bytes([head[0], head[1]]) % 31 != 0 {
        return Err(wrong());
    }
    if head[1] & HAS_DICTIONARY == 0 {
        return Ok(rest);
    }
    let (name, rest) = rest.split_at_checked(4).ok_or_else(wrong)?;
    if name == DICTIONARY_ID.to_be_bytes() {
        Ok(rest)
    } else {
        Err(wrong())
    }
}

fn parse(plain: &[u8]) -> io::Result<Headers> {
    let mut rest = plain;
    let count = number(&mut rest)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut rest)?.to_ascii_lowercase();
        headers.push((name, text(&mut rest)?));
    }
    Ok(headers)
}

fn number(rest: &mut &[u8]) -> io::Result<usize> {
    let (bytes, after) = rest
        .split_first_chunk::<4>()
        .ok_or_else(|| malformed("a SPDY header block ends early"))?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*bytes)).map_err(io::Error::other)
}

fn text(rest: &mut &[u8]) -> io::Result<String> {
    let length = number(rest)?;
    let (bytes, after) = rest
        .split_at_checked(length)
        .ok_or_else(|| malformed("a SPDY header block ends early"))?;
    *rest = after;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// Blocks without headers, for the replies of one connection.
#[derive(Default)]
pub struct EmptyBlocks {
    begun: bool,
}

impl EmptyBlocks {
    /// The next block: a stored part of zlib's text (RFC 1951 section 3.2.4) that holds the count 0, and an empty one, by
    /// which zlib marks a flush: some clients' readers give nothing out before it.
    pub fn next(&mut self) -> Vec<u8> {
        let mut block = if self.begun { Vec::new() } else { vec![0x78, 0x01] };
        self.begun = true;
        block.extend_from_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
        block.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        block
    }
}

fn malformed(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two blocks as zlib wrote them, one after the other: `streamtype: error`, then `streamtype: stdin` and `host: localhost`.
    const FIRST: &[u8] = &[
        0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0xa6, 0x23, 0x46, 0x70, 0x3a, 0x2b, 0x29, 0x4a, 0x4d, 0xcc, 0x85,
        0x16, 0x25, 0xac, 0xa9, 0xa0, 0x80, 0x06, 0x00, 0x00, 0x00, 0xff, 0xff,
    ];
    const SECOND: &[u8] = &[
        0x02, 0x65, 0x1c, 0x4c, 0xa9, 0xe2, 0x12, 0x60, 0x76, 0x41, 0x2a, 0x41, 0x38, 0x41, 0x79, 0x3b, 0x07, 0xc4,
        0x01, 0x00, 0x00, 0x00, 0xff, 0xff,
    ];

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_draft() {
        let (low, high) = dictionary().iter().fold((1u32, 0u32), |(low, high), byte| {
            let low = (low + u32::from(*byte)) % 65521;
            (low, (high + low) % 65521)
        });
        assert_eq!(high << 16 | low, DICTIONARY_ID);
    }

    #[test]
    fn blocks_are_read_as_one_text() {
        let mut inflater = Inflater::new();
        assert_eq!(inflater.headers(FIRST).unwrap(), [pair("streamtype", "error")]);
        let second = [pair("streamtype", "stdin"), pair("host", "localhost")];
        assert_eq!(inflater.headers(SECOND).unwrap(), second);
    }

    #[test]
    fn the_text_may_be_longer_than_the_window() {
        let mut inflater = Inflater::new();
        inflater.headers(FIRST).unwrap();
        let mut blocks = EmptyBlocks::default();
        blocks.next();
        for _ in 0..2 * WINDOW / 4 {
            assert!(inflater.headers(&blocks.next()).unwrap().is_empty());
        }
    }

    #[test]
    fn our_blocks_are_read_without_the_dictionary() {
        let (mut inflater, mut blocks) = (Inflater::new(), EmptyBlocks::default());
        assert!(inflater.headers(&blocks.next()).unwrap().is_empty());
        assert!(inflater.headers(&blocks.next()).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_block_is_refused() {
        assert!(Inflater::new().headers(b"").is_err());
        assert!(Inflater::new().headers(b"GET / HTTP/1.1").is_err());
        let mut other = FIRST.to_vec();
        other[2] ^= 1;
        assert!(Inflater::new().headers(&other).is_err(), "another dictionary");
        assert!(Inflater::new().headers(&FIRST[..20]).is_err(), "half a block");
        // A stored block that claims 2^32 - 1 pairs.
        let greedy = [0x78, 0x01, 0, 4, 0, 0xfb, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert!(Inflater::new().headers(&greedy).is_err());
    }
}
