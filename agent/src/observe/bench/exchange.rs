//! One operation: connect, ask, ask again on the open connection, close; with the time of each step.
//!
//! Blocking calls in a thread of its own: nothing between the system call and the clock. HTTP/1.1 is read only as far
//! as needed to know where an answer ends (RFC 9112, 6).

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_timeout, set_tcp_nodelay};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};

use super::plan::Talk;

/// Each step may take this long.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest head of an HTTP answer.
const HEAD_MAX: usize = 64 << 10;
/// Largest body that is waited for.
const BODY_MAX: usize = 1 << 20;

/// How long the steps took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From the begin to the established connection.
    pub connect: Duration,
    /// From the begin to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// From a second request, on the open connection, to the end of its answer.
    pub round_trip: Option<Duration>,
}

/// What is said, ready to be sent.
#[derive(Clone, Debug)]
pub struct Exchange {
    bytes: Vec<u8>,
    answer: Answer,
    /// Ends connections with a reset: no port of ours waits (TIME_WAIT) for a minute.
    reset: bool,
}

/// Where an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    None,
    Http,
    Length(usize),
    Any,
}

impl Exchange {
    /// For a talk with `host`, as HTTP names it.
    pub fn new(talk: &Talk, host: &str, reset: bool) -> Self {
        let (bytes, answer) = match talk {
            Talk::Connect => (Vec::new(), Answer::None),
            Talk::Http(path) => {
                let head =
                    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: hull-bench\r\nAccept: */*\r\n\r\n");
                (head.into_bytes(), Answer::Http)
            }
            Talk::Echo(text) => (text.clone().into_bytes(), Answer::Length(text.len())),
            Talk::Raw(text) => (text.clone().into_bytes(), Answer::Any),
        };
        Exchange { bytes, answer, reset }
    }

    /// Carries it out with `address`. What was due at `due` took as long as from then on.
    pub fn run(&self, address: SocketAddr, due: Instant) -> io::Result<Times> {
        let mut stream = open(address)?;
        let connect = due.elapsed();
        let mut times = Times {
            connect,
            first_byte: None,
            round_trip: None,
        };
        if self.answer != Answer::None {
            let (first, open) = self.ask(&mut stream)?;
            times.first_byte = Some(first.saturating_duration_since(due));
            if open {
                let asked = Instant::now();
                self.ask(&mut stream)?;
                times.round_trip = Some(asked.elapsed());
            }
        }
        if self.reset {
            set_socket_linger(&stream, Some(Duration::ZERO))?;
        }
        Ok(times)
    }

    /// Asks, and reads the answer to its end. When its first byte came, and whether the connection may be used again.
    fn ask(&self, stream: &mut TcpStream) -> io::Result<(Instant, bool)> {
        let mut buffer = [0; 8 << 10];
        stream.write_all(&self.bytes)?;
        let mut read = some(stream, &mut buffer)?;
        let first = Instant::now();
        let open = match self.answer {
            Answer::None | Answer::Any => true,
            Answer::Length(length) => {
                while read < length {
                    read += some(stream, &mut buffer)?;
                }
                true
            }
            Answer::Http => http(stream, buffer[..read].to_vec())?,
        };
        Ok((first, open))
    }
}

fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    // connect(2) takes the time to send as its own (socket(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(STEP_TIMEOUT))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(STEP_TIMEOUT))?;
    set_tcp_nodelay(&socket, true)?;
    connect(&socket, &address).map_err(|error| match error {
        rustix::io::Errno::INPROGRESS => io::ErrorKind::TimedOut.into(),
        other => io::Error::from(other),
    })?;
    Ok(socket.into())
}

/// At least one byte.
fn some(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    match stream.read(buffer) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        result => result,
    }
}

/// Reads an HTTP answer to its end; whether the connection stays open.
fn http(stream: &mut TcpStream, mut seen: Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 8 << 10];
    loop {
        match progress(&seen).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))? {
            Progress::Done { open } => return Ok(open),
            Progress::More => {
                let read = some(stream, &mut buffer)?;
                seen.extend_from_slice(&buffer[..read]);
            }
            // Where the answer ends with the connection, there is no second request.
            Progress::UntilClosed => return Ok(false),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    More,
    Done { open: bool },
    UntilClosed,
}

/// How far an answer has come.
fn progress(seen: &[u8]) -> Result<Progress, String> {
    let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if seen.len() > HEAD_MAX {
            Err(format!("an HTTP head of more than {HEAD_MAX} bytes"))
        } else {
            Ok(Progress::More)
        };
    };
    let head = String::from_utf8_lossy(&seen[..end]).to_ascii_lowercase();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let mut words = status.split(' ');
    let (version, code) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if !version.starts_with("http/1.") {
        return Err(format!(
            "not an HTTP/1 answer: {:?}",
            status.chars().take(40).collect::<String>()
        ));
    }
    if code.starts_with('5') {
        return Err(format!("HTTP status {code}"));
    }
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
    let header = |name: &str| {
        headers
            .iter()
            .find(|(own, _)| *own == name)
            .map(|(_, value)| value.trim())
    };
    let closes = match header("connection") {
        Some(value) => value.split(',').any(|word| word.trim() == "close"),
        None => version == "http/1.0",
    };
    let body = &seen[end + 4..];
    let complete = if matches!(code, "204" | "304") {
        true
    } else if header("transfer-encoding").is_some_and(|value| value.ends_with("chunked")) {
        all_chunks(body)?
    } else if let Some(length) = header("content-length") {
        let length: usize = length.parse().map_err(|_| format!("content-length {length:?}"))?;
        if length > BODY_MAX {
            return Err(format!(
                "an answer of {length} bytes: ask for a smaller one with --request"
            ));
        }
        body.len() >= length
    } else {
        return Ok(Progress::UntilClosed);
    };
    Ok(if complete {
        Progress::Done { open: !closes }
    } else {
        Progress::More
    })
}

/// Whether the last chunk and the end of the trailers are there (RFC 9112, 7.1).
fn all_chunks(mut body: &[u8]) -> Result<bool, String> {
    loop {
        let Some(end) = body.windows(2).position(|two| two == b"\r\n") else {
            return Ok(false);
        };
        let line = String::from_utf8_lossy(&body[..end]);
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| format!("chunk size {size:?}"))?;
        if size > BODY_MAX {
            return Err(format!("a chunk of {size} bytes"));
        }
        let rest = &body[end + 2..];
        if size == 0 {
            return Ok(rest.starts_with(b"\r\n") || rest.windows(4).any(|four| four == b"\r\n\r\n"));
        }
        match rest.get(size + 2..) {
            Some(next) => body = next,
            None => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Result<Progress, String> {
        progress(text.as_bytes())
    }

    #[test]
    fn an_answer_ends_where_http_says() {
        let open = Ok(Progress::Done { open: true });
        assert_eq!(at("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"), Ok(Progress::More));
        assert_eq!(at("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), open);
        assert_eq!(at("HTTP/1.1 204 No Content\r\n\r\n"), open);
        assert_eq!(
            at("HTTP/1.1 404 Not Found\r\nconnection: Close\r\ncontent-length: 0\r\n\r\n"),
            Ok(Progress::Done { open: false })
        );
        assert_eq!(
            at("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"),
            Ok(Progress::Done { open: false })
        );
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(at(&format!("{chunked}3\r\nabc\r\n")), Ok(Progress::More));
        assert_eq!(at(&format!("{chunked}3;x=y\r\nabc\r\n0\r\n\r\n")), open);
        assert_eq!(at(&format!("{chunked}0\r\nTrailer: 1\r\n")), Ok(Progress::More));
        assert_eq!(at(&format!("{chunked}0\r\nTrailer: 1\r\n\r\n")), open);
        assert_eq!(at("HTTP/1.1 200 OK\r\n\r\nuntil closed"), Ok(Progress::UntilClosed));
    }

    #[test]
    fn what_is_no_good_answer_is_an_error() {
        assert!(at("SSH-2.0-x\r\n\r\n").is_err());
        assert!(at("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").is_err());
        assert!(at("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").is_err());
        assert!(progress(&vec![b'a'; HEAD_MAX + 1]).is_err());
    }
}
