//! exec over WebSocket: the remote-command protocol `v5.channel.k8s.io` and `v4.channel.k8s.io`.
//!
//! Each binary frame begins with its channel: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize; in v5 `[255, channel]`
//! closes a channel. The error channel carries one `Status` at the end, with the exit code as a cause. See
//! `k8s.io/apimachinery/pkg/util/remotecommand` and KEP-4006.

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use super::session::{Channel, Incoming, Outgoing, Session};
use super::{FAREWELL, Refusal};

const STDIN: u8 = Channel::Stdin as u8;
const RESIZE: u8 = Channel::Resize as u8;
const CLOSE: u8 = 255;

/// Protocols in the order of preference.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// The largest frame a client may send, bytes.
const FRAME_MAX: usize = 1 << 20;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The headers that accept an upgrade.
///
/// # Errors
/// It is malformed, or asks for protocols that this node does not speak.
pub fn accept(headers: &HeaderMap) -> Result<HeaderMap, Refusal> {
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| {
        let message = "a WebSocket needs the header Sec-WebSocket-Key (RFC 6455)";
        (StatusCode::BAD_REQUEST, message.to_owned())
    })?;
    let protocol = protocol(headers).ok_or_else(|| {
        let message = format!("no common protocol: this node speaks {}", PROTOCOLS.join(", "));
        (StatusCode::FORBIDDEN, message)
    })?;
    let mut answer = HeaderMap::new();
    answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(answer)
}

fn protocol(headers: &HeaderMap) -> Option<&'static str> {
    let offered: Vec<&str> = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .collect();
    PROTOCOLS.into_iter().find(|protocol| offered.contains(protocol))
}

/// Serves an exec on an upgraded connection.
pub async fn serve(upgraded: Upgraded, session: Session) {
    let limits = WebSocketConfig::default()
        .max_message_size(Some(FRAME_MAX))
        .max_frame_size(Some(FRAME_MAX));
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(limits)).await;
    let (sink, stream) = socket.split();
    let first = session.wanted.first_output();
    let (incoming, input) = mpsc::channel(4);
    let (output, outgoing) = mpsc::channel(4);
    let mut receiving = tokio::spawn(receive(stream, incoming));
    let sending = tokio::spawn(send(sink, outgoing, first));
    session.run(input, output).await;
    if sending.await.unwrap_or(false) {
        // The client closes in its turn; until then the connection must stay, or what was sent may be lost.
        let _ = tokio::time::timeout(FAREWELL, &mut receiving).await;
    }
    receiving.abort();
}

/// Takes frames from the client until it is gone.
async fn receive(mut stream: SplitStream<Socket>, input: mpsc::Sender<Incoming>) {
    while let Some(Ok(message)) = stream.next().await {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => continue,
        };
        let incoming = match bytes.first() {
            Some(&STDIN) => Incoming::Data(Channel::Stdin, bytes.split_off(1)),
            Some(&RESIZE) => Incoming::Data(Channel::Resize, bytes.split_off(1)),
            Some(&CLOSE) if bytes[1..] == [STDIN] => Incoming::Closed(Channel::Stdin),
            _ => continue,
        };
        // When the exec is over only the client's close is of interest.
        let _ = input.send(incoming).await;
    }
}

/// Sends frames to the client; whether it was told the end.
async fn send(mut sink: SplitSink<Socket, Message>, mut output: mpsc::Receiver<Outgoing>, first: Channel) -> bool {
    while let Some(outgoing) = output.recv().await {
        let sent = match outgoing {
            // An empty frame tells the client that the streams are up.
            Outgoing::Started => sink.send(frame(first, &[])).await,
            Outgoing::Data(channel, bytes) => sink.send(frame(channel, &bytes)).await,
            Outgoing::Ended(status) => {
                let _ = sink.send(frame(Channel::Error, status.to_string().as_bytes())).await;
                let farewell = CloseFrame {
                    code: CloseCode::Normal,
                    reason: Utf8Bytes::default(),
                };
                return sink.send(Message::Close(Some(farewell))).await.is_ok();
            }
        };
        if sent.is_err() {
            return false;
        }
    }
    false
}

fn frame(channel: Channel, bytes: &[u8]) -> Message {
    let mut payload = Vec::with_capacity(bytes.len() + 1);
    payload.push(channel as u8);
    payload.extend_from_slice(bytes);
    Message::Binary(Bytes::from(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_common_protocol_is_taken() {
        let offered = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(text));
            protocol(&headers)
        };
        assert_eq!(
            offered("v4.channel.k8s.io, v5.channel.k8s.io"),
            Some("v5.channel.k8s.io")
        );
        assert_eq!(offered("v4.channel.k8s.io"), Some("v4.channel.k8s.io"));
        assert_eq!(offered("channel.k8s.io"), None);
    }
}
