//! exec over SPDY: the remote-command protocols `v4.channel.k8s.io` down to `channel.k8s.io`.
//!
//! The client opens a stream for each channel and names it by the header `streamType`; only when all are there does the
//! program start. From v4 on the error stream carries a `Status` at the end, before that a text if there was an error; v3
//! brought terminal sizes. See `k8s.io/kubelet/pkg/cri/streaming/remotecommand`.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, ReadHalf};
use tokio::sync::mpsc;

use super::session::{Channel, Incoming, Outgoing, Session};
use super::{FAREWELL, Refusal, Wanted};
use crate::server::spdy::{Event, Reader, Writer, split};

/// The header in which protocols are offered, and one is chosen.
pub const PROTOCOL_VERSION: &str = "x-stream-protocol-version";
/// Protocols in the order of preference.
const PROTOCOLS: [&str; 4] = [
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
/// How long a client has to open its streams.
const OPENING: Duration = Duration::from_secs(30);

/// The header that accepts an upgrade.
///
/// # Errors
/// The client offers only protocols that this node does not speak.
pub fn accept(headers: &HeaderMap) -> Result<HeaderMap, Refusal> {
    let offered: Vec<&str> = headers
        .get_all(PROTOCOL_VERSION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .collect();
    // The first protocol had no name yet.
    let chosen = if offered.is_empty() {
        PROTOCOLS.last()
    } else {
        PROTOCOLS.iter().find(|protocol| offered.contains(protocol))
    };
    let chosen = chosen.ok_or_else(|| {
        let message = format!(
            "unable to negotiate protocol: client supports {}, this node {}",
            offered.join(", "),
            PROTOCOLS.join(", ")
        );
        (StatusCode::FORBIDDEN, message)
    })?;
    let mut answer = HeaderMap::new();
    answer.insert(PROTOCOL_VERSION, HeaderValue::from_static(chosen));
    Ok(answer)
}

/// What differs between the protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dialect {
    statuses: bool,
    sizes: bool,
}

impl Dialect {
    fn of(protocol: Option<&HeaderValue>) -> Self {
        let at_most = |last: usize| {
            PROTOCOLS[..=last]
                .iter()
                .any(|name| protocol.is_some_and(|other| other == name))
        };
        Dialect {
            statuses: at_most(0),
            sizes: at_most(1),
        }
    }
}

/// The streams of a client, by channel.
#[derive(Default)]
struct Streams(HashMap<u32, Channel>);

impl Streams {
    fn of(&self, channel: Channel) -> Option<u32> {
        self.0
            .iter()
            .find(|(_, other)| **other == channel)
            .map(|(stream, _)| *stream)
    }
}

/// Serves an exec on an upgraded connection that speaks `protocol`.
pub async fn serve(upgraded: Upgraded, session: Session, protocol: Option<&HeaderValue>) {
    let dialect = Dialect::of(protocol);
    let (mut reader, writer, writing) = split(TokioIo::new(upgraded));
    let opened = tokio::time::timeout(OPENING, open(&mut reader, expected(&session.wanted, dialect))).await;
    let (streams, early) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return tracing::debug!(%error, "a client did not open the streams of its exec"),
        Err(_) => return tracing::debug!("a client did not open the streams of its exec in time"),
    };
    let channels = streams.0.clone();
    let (incoming, input) = mpsc::channel(4);
    let (output, outgoing) = mpsc::channel(4);
    let mut receiving = tokio::spawn(receive(reader, channels, early, incoming));
    let sending = tokio::spawn(send(writer, streams, outgoing, dialect));
    session.run(input, output).await;
    if sending.await.unwrap_or(false) {
        // The client hangs up in its turn; until then the connection must stay, or what was sent may be lost.
        let _ = tokio::time::timeout(FAREWELL, &mut receiving).await;
    }
    receiving.abort();
    // The reader held the last way to the writing task: it ends, and with it the connection.
    let _ = receiving.await;
    let _ = tokio::time::timeout(FAREWELL, writing).await;
}

/// The channels a client opens streams for.
fn expected(wanted: &Wanted, dialect: Dialect) -> Vec<Channel> {
    let channels = [
        (Channel::Error, true),
        (Channel::Stdin, wanted.stdin),
        (Channel::Stdout, wanted.stdout),
        (Channel::Stderr, wanted.stderr),
        (Channel::Resize, wanted.terminal && dialect.sizes),
    ];
    let wanted = channels.into_iter().filter(|(_, wanted)| *wanted);
    wanted.map(|(channel, _)| channel).collect()
}

/// Waits for all streams; and what was sent on them meanwhile.
async fn open<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    mut missing: Vec<Channel>,
) -> io::Result<(Streams, Vec<Incoming>)> {
    let mut streams = Streams::default();
    let mut early = Vec::new();
    while !missing.is_empty() {
        let event = reader.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if let Event::Opened { stream, headers, .. } = &event {
            let kind = headers.iter().find(|(name, _)| name == "streamtype");
            let kind = kind.map_or("", |(_, value)| value.as_str());
            let channel = channel(kind)
                .filter(|channel| missing.contains(channel))
                .ok_or_else(|| {
                    let message = format!("a stream of type {kind:?}, which this exec has not or has already");
                    io::Error::new(io::ErrorKind::InvalidData, message)
                })?;
            missing.retain(|other| *other != channel);
            streams.0.insert(*stream, channel);
        }
        early.extend(incoming(event, &streams.0));
    }
    Ok((streams, early))
}

fn channel(kind: &str) -> Option<Channel> {
    Some(match kind {
        "error" => Channel::Error,
        "stdin" => Channel::Stdin,
        "stdout" => Channel::Stdout,
        "stderr" => Channel::Stderr,
        "resize" => Channel::Resize,
        _ => return None,
    })
}

/// What an event is to the exec: bytes, an end, both or nothing.
fn incoming(event: Event, channels: &HashMap<u32, Channel>) -> Vec<Incoming> {
    let (stream, bytes, finished) = match event {
        Event::Opened { stream, finished, .. } => (stream, None, finished),
        Event::Data {
            stream,
            bytes,
            finished,
        } => (stream, Some(bytes), finished),
        Event::Reset { stream } => (stream, None, true),
    };
    let Some(channel) = channels.get(&stream).copied() else {
        return Vec::new();
    };
    let data = bytes
        .filter(|bytes| !bytes.is_empty())
        .map(|bytes| Incoming::Data(channel, bytes));
    data.into_iter()
        .chain(finished.then_some(Incoming::Closed(channel)))
        .collect()
}

/// Takes what the client sends until it is gone.
async fn receive(
    mut reader: Reader<ReadHalf<TokioIo<Upgraded>>>,
    channels: HashMap<u32, Channel>,
    early: Vec<Incoming>,
    input: mpsc::Sender<Incoming>,
) {
    for incoming in early {
        let _ = input.send(incoming).await;
    }
    loop {
        match reader.next().await {
            Ok(Some(event)) => {
                for incoming in incoming(event, &channels) {
                    // When the exec is over only the client's hanging up is of interest.
                    let _ = input.send(incoming).await;
                }
            }
            Ok(None) => return,
            Err(error) => return tracing::debug!(%error, "the client of an exec broke off"),
        }
    }
}

/// Sends what the client is to get; whether it was told the end.
async fn send(writer: Writer, streams: Streams, mut output: mpsc::Receiver<Outgoing>, dialect: Dialect) -> bool {
    while let Some(outgoing) = output.recv().await {
        let sent = match outgoing {
            Outgoing::Started => true,
            Outgoing::Data(channel, bytes) => match streams.of(channel) {
                Some(stream) => writer.data(stream, &bytes).await,
                None => true,
            },
            Outgoing::Ended(status) => return end(&writer, &streams, &status, dialect).await,
        };
        if !sent {
            return false;
        }
    }
    false
}

/// Closes the output, then says how the program ended.
async fn end(writer: &Writer, streams: &Streams, status: &Value, dialect: Dialect) -> bool {
    for channel in [Channel::Stdout, Channel::Stderr] {
        if let Some(stream) = streams.of(channel) {
            writer.finish(stream).await;
        }
    }
    let Some(stream) = streams.of(Channel::Error) else {
        return false;
    };
    writer.data(stream, last_words(status, dialect).as_bytes()).await && writer.finish(stream).await
}

/// What the error stream carries.
fn last_words(status: &Value, dialect: Dialect) -> String {
    if dialect.statuses {
        status.to_string()
    } else {
        status["message"].as_str().unwrap_or_default().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_best_common_protocol_is_taken() {
        let accepted = |offered: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for protocol in offered {
                headers.append(PROTOCOL_VERSION, HeaderValue::from_static(protocol));
            }
            accept(&headers).map(|headers| headers[PROTOCOL_VERSION].to_str().unwrap().to_owned())
        };
        let all = [
            "v5.channel.k8s.io",
            "v4.channel.k8s.io",
            "v3.channel.k8s.io",
            "channel.k8s.io",
        ];
        assert_eq!(accepted(&all).unwrap(), "v4.channel.k8s.io");
        assert_eq!(
            accepted(&["v2.channel.k8s.io, channel.k8s.io"]).unwrap(),
            "v2.channel.k8s.io"
        );
        assert_eq!(accepted(&[]).unwrap(), "channel.k8s.io");
        assert_eq!(accepted(&["v9.channel.k8s.io"]).unwrap_err().0, StatusCode::FORBIDDEN);
    }

    #[test]
    fn old_protocols_have_no_status_and_no_sizes() {
        let dialect = |name| Dialect::of(Some(&HeaderValue::from_static(name)));
        let (new, old) = (dialect("v4.channel.k8s.io"), dialect("v2.channel.k8s.io"));
        assert!(new.sizes && dialect("v3.channel.k8s.io").sizes && !old.sizes);
        let status = json!({"status": "Failure", "message": "no"});
        assert_eq!(last_words(&status, new), status.to_string());
        assert_eq!(last_words(&status, old), "no");
        assert_eq!(last_words(&json!({"status": "Success"}), old), "");
    }

    #[test]
    fn a_stream_ends_by_its_last_frame_or_a_reset() {
        let channels = HashMap::from([(1, Channel::Stdin)]);
        let last = Event::Data {
            stream: 1,
            bytes: "x".into(),
            finished: true,
        };
        assert!(matches!(
            &incoming(last, &channels)[..],
            [Incoming::Data(..), Incoming::Closed(Channel::Stdin)]
        ));
        let reset = Event::Reset { stream: 1 };
        assert!(matches!(
            &incoming(reset, &channels)[..],
            [Incoming::Closed(Channel::Stdin)]
        ));
        assert!(incoming(Event::Reset { stream: 3 }, &channels).is_empty());
    }
}
