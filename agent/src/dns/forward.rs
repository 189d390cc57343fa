//! What is not the cluster's goes to the resolvers of the host's resolv.conf, byte for byte except for the id.
//!
//! A reply is only believed from the server asked, with the id and the question asked (RFC 5452).

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long one resolver has; clients give up after five seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// Rounds over all resolvers.
const ROUNDS: usize = 2;
/// Questions under way at once; more are refused, so that dead resolvers cannot fill the agent's memory.
const MAX_PENDING: usize = 512;
/// Resolvers used, as in the C libraries.
const MAX_UPSTREAMS: usize = 3;
const HEADER: usize = 12;

/// How the client asked, and so how the resolver is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Sends questions on.
pub(super) struct Forwarder {
    resolv_conf: PathBuf,
    exclude: Vec<IpAddr>,
    known: Mutex<Known>,
    pending: Semaphore,
    ids: AtomicU64,
}

#[derive(Default)]
struct Known {
    changed: Option<SystemTime>,
    upstreams: Vec<SocketAddr>,
}

impl Forwarder {
    /// `exclude` are the addresses that lead back here.
    pub(super) fn new(resolv_conf: PathBuf, exclude: Vec<IpAddr>) -> Forwarder {
        Forwarder {
            resolv_conf,
            exclude,
            known: Mutex::default(),
            pending: Semaphore::new(MAX_PENDING),
            ids: AtomicU64::new(seed()),
        }
    }

    /// The answer of the first resolver that gives one.
    pub(super) async fn ask(&self, question: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        let _permit = self
            .pending
            .try_acquire()
            .map_err(|_| io::Error::other("too many questions are under way"))?;
        let upstreams = self.upstreams();
        let mut failure = io::Error::other("the host's resolv.conf names no other resolver");
        for _ in 0..ROUNDS {
            for upstream in &upstreams {
                match timeout(PATIENCE, self.ask_one(question, *upstream, transport)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => failure = error,
                    Err(_) => failure = io::ErrorKind::TimedOut.into(),
                }
            }
        }
        Err(failure)
    }

    async fn ask_one(&self, question: &[u8], upstream: SocketAddr, transport: Transport) -> io::Result<Vec<u8>> {
        let (Some(asked), Some(rest)) = (question.get(..2), question.get(2..)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let id = self.next_id();
        let renamed = [id.as_slice(), rest].concat();
        let mut answer = match transport {
            Transport::Udp => over_udp(&renamed, upstream).await?,
            Transport::Tcp => over_tcp(&renamed, upstream).await?,
        };
        if !replies(&renamed, &answer) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        answer.splice(..2, asked.iter().copied());
        Ok(answer)
    }

    /// Re-read when the file changes, as when a lease brings other resolvers.
    fn upstreams(&self) -> Vec<SocketAddr> {
        let changed = fs::metadata(&self.resolv_conf)
            .and_then(|metadata| metadata.modified())
            .ok();
        let mut known = self.known.lock();
        if known.upstreams.is_empty() || known.changed != changed {
            let text = fs::read_to_string(&self.resolv_conf).unwrap_or_default();
            *known = Known {
                changed,
                upstreams: parse(&text, &self.exclude),
            };
        }
        known.upstreams.clone()
    }

    /// Hard to guess for who cannot see the traffic; the source port of each question is random, too.
    fn next_id(&self) -> [u8; 2] {
        let mut x = self.ids.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (x ^ (x >> 31)).to_ne_bytes();
        [bytes[0], bytes[1]]
    }
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(SystemTime::now())
}

fn parse(text: &str, exclude: &[IpAddr]) -> Vec<SocketAddr> {
    let nameserver = |line: &str| {
        let address = line.trim().strip_prefix("nameserver")?.trim();
        let address: IpAddr = address.parse().ok()?;
        (!exclude.contains(&address)).then_some(SocketAddr::new(address, 53))
    };
    text.lines().filter_map(nameserver).take(MAX_UPSTREAMS).collect()
}

async fn over_udp(question: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if upstream.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0; 16], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if replies(question, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(question: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// Same id, marked as a response, same question.
fn replies(question: &[u8], answer: &[u8]) -> bool {
    let asked = question_section(question);
    answer.len() >= HEADER
        && answer[..2] == question[..2]
        && answer[2] & 0x80 != 0
        && asked.is_some_and(|asked| {
            answer
                .get(HEADER..HEADER + asked.len())
                .is_some_and(|echo| echo.eq_ignore_ascii_case(asked))
        })
}

/// The first question: name, type and class. Names in questions are not compressed.
fn question_section(message: &[u8]) -> Option<&[u8]> {
    let mut end = HEADER;
    loop {
        match *message.get(end)? {
            0 => break,
            length if length < 64 => end += 1 + usize::from(length),
            _ => return None,
        }
    }
    message.get(HEADER..end + 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_no_resolvers() {
        let text = "nameserver 169.254.20.10\n nameserver 9.9.9.9 \nnameserver 2001:db8::1\nnameserver x\n";
        let found = parse(text, &["169.254.20.10".parse().unwrap()]);
        assert_eq!(
            found,
            ["9.9.9.9:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]
        );
    }

    #[test]
    fn only_the_answer_to_the_question_is_believed() {
        let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\0\0\x01\0\x01";
        let mut answer = question.to_vec();
        assert!(!replies(question, &answer), "a question is no answer");
        answer[2] |= 0x80;
        answer.extend(b"more");
        assert!(replies(question, &answer));
        answer[14] = b'W';
        assert!(replies(question, &answer), "names are compared without case");
        answer[14] = b'x';
        assert!(!replies(question, &answer));
        answer[14] = b'w';
        answer[1] ^= 1;
        assert!(!replies(question, &answer), "another id");
        assert!(!replies(question, &answer[..11]));
        assert!(
            !replies(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\xff", &answer),
            "a question cut short"
        );
    }
}
