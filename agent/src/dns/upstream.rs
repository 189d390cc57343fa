//! One question to one resolver, over UDP and, when the answer is cut off, over TCP (RFC 7766).
//!
//! A reply is only believed from the server asked, with the id and the question asked, and a port and an id of each
//! question's own (RFC 5452). A resolver that does not know EDNS is asked again without (RFC 6891, 6.2.2).

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::cache::Query;
use super::reply::append_opt;
use super::wire::{CLASS_IN, HEADER, SAFE_SIZE, code, flag, number};

/// Numbers that nobody can guess who has not seen the key: SipHash of a counter.
#[derive(Debug, Default)]
pub(super) struct Random {
    key: RandomState,
    count: AtomicU64,
}

impl Random {
    pub(super) fn next(&self) -> u64 {
        self.key.hash_one(self.count.fetch_add(1, Ordering::Relaxed))
    }
}

/// The resolver's reply.
pub(super) async fn ask(query: &Query, resolver: SocketAddr, random: &Random) -> io::Result<Vec<u8>> {
    let reply = ask_with(query, resolver, random, true).await?;
    match flags(&reply) & flag::CODE {
        code::FORMERR | code::NOTIMP => ask_with(query, resolver, random, false).await,
        _ => Ok(reply),
    }
}

async fn ask_with(query: &Query, resolver: SocketAddr, random: &Random, edns: bool) -> io::Result<Vec<u8>> {
    let question = encode(query, random, edns);
    let reply = over_udp(&question, resolver).await?;
    if flags(&reply) & flag::TRUNCATED == 0 {
        return Ok(reply);
    }
    // What was cut off is better than nothing.
    Ok(over_tcp(&question, resolver).await.unwrap_or(reply))
}

fn flags(message: &[u8]) -> u16 {
    number(message, 2).unwrap_or_default()
}

fn encode(query: &Query, random: &Random, edns: bool) -> Vec<u8> {
    let [a, b, ..] = random.next().to_ne_bytes();
    let checking = if query.unchecked { flag::CHECKING_DISABLED } else { 0 };
    let [c, d] = (flag::RECURSION_DESIRED | flag::AUTHENTIC | checking).to_be_bytes();
    let mut message = vec![a, b, c, d, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    message.extend_from_slice(query.name.as_bytes());
    message.extend_from_slice(&query.kind.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    if edns {
        append_opt(&mut message, code::NOERROR, query.dnssec);
    }
    message
}

async fn over_udp(question: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
    // The kernel takes a random free port.
    let any: SocketAddr = match resolver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; usize::from(SAFE_SIZE).max(question.len())];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if replies(question, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(question: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    match replies(question, &reply) {
        true => Ok(reply),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the reply is for another question",
        )),
    }
}

/// Same id, marked as a response, same question.
fn replies(question: &[u8], reply: &[u8]) -> bool {
    let options = match number(question, 10) {
        Some(0) | None => 0,
        Some(_) => super::wire::OPT_LENGTH,
    };
    let asked = &question[HEADER..question.len() - options];
    reply.len() >= HEADER
        && reply[..2] == question[..2]
        && flags(reply) & (flag::RESPONSE | flag::OPCODE) == flag::RESPONSE
        && number(reply, 4) == Some(1)
        && reply
            .get(HEADER..HEADER + asked.len())
            .is_some_and(|echo| echo.eq_ignore_ascii_case(asked))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::name::Name;

    #[test]
    fn only_the_answer_to_the_question_is_believed() {
        let query = Query {
            name: Name::from_text("www.example").unwrap(),
            kind: 1,
            dnssec: true,
            unchecked: false,
        };
        let question = encode(&query, &Random::default(), true);
        let mut reply = question[..question.len() - super::super::wire::OPT_LENGTH].to_vec();
        assert!(!replies(&question, &reply), "a question is no answer");
        reply[2] |= 0x80;
        reply.extend_from_slice(b"more");
        assert!(replies(&question, &reply));
        reply[14] = b'W';
        assert!(replies(&question, &reply), "names are compared without case");
        reply[14] = b'x';
        assert!(!replies(&question, &reply));
        reply[14] = b'w';
        reply[1] ^= 1;
        assert!(!replies(&question, &reply), "another id");
        assert!(!replies(&question, &reply[..11]));
    }

    #[test]
    fn ids_differ() {
        let random = Random::default();
        let ids: std::collections::HashSet<u64> = (0..100).map(|_| random.next()).collect();
        assert_eq!(ids.len(), 100);
    }
}
