//! One connection: frames in, events out; frames to be sent go through one task that owns the writing half.
//!
//! The reader answers by itself what the protocol demands (replies to new streams, pings). It ends when the client hangs
//! up or breaks the rules.

use std::collections::HashSet;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::frame::{self, Frame};
use super::header::{EmptyBlocks, Headers, Inflater};

/// Streams of one connection at one time.
const STREAMS_MAX: usize = 256;
/// Frames that wait to be written; then whoever sends waits.
const QUEUE: usize = 8;
/// How much of a stream's bytes travels in one frame.
const CHUNK: usize = 32 << 10;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The client opened a stream; `finished`: it will send nothing on it.
    Opened {
        stream: u32,
        headers: Headers,
        finished: bool,
    },
    /// Bytes of a stream; `finished`: the last ones.
    Data { stream: u32, bytes: Bytes, finished: bool },
    /// The client gave a stream up.
    Reset { stream: u32 },
}

/// Divides a connection. The task ends when every [`Writer`] is gone, the reader's too, or the client is.
pub fn split<T>(connection: T) -> (Reader<ReadHalf<T>>, Writer, JoinHandle<()>)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (input, output) = tokio::io::split(connection);
    let (sender, frames) = mpsc::channel(QUEUE);
    let writer = Writer(sender);
    let reader = Reader {
        input,
        inflater: Inflater::new(),
        replies: EmptyBlocks::default(),
        open: HashSet::new(),
        writer: writer.clone(),
    };
    (reader, writer, tokio::spawn(write(output, frames)))
}

async fn write<T: AsyncWrite>(mut output: WriteHalf<T>, mut frames: mpsc::Receiver<Bytes>) {
    while let Some(frame) = frames.recv().await {
        if output.write_all(&frame).await.is_err() || output.flush().await.is_err() {
            return;
        }
    }
    // The client may have gone already.
    let _ = output.shutdown().await;
}

/// Sends on streams; clones send on the same connection.
#[derive(Clone)]
pub struct Writer(mpsc::Sender<Bytes>);

impl Writer {
    /// Sends bytes. `false`: the client is gone.
    pub async fn data(&self, stream: u32, bytes: &[u8]) -> bool {
        for chunk in bytes.chunks(CHUNK) {
            if !self.send(frame::data(stream, chunk, false)).await {
                return false;
            }
        }
        true
    }

    /// Closes this side of a stream. `false`: the client is gone.
    pub async fn finish(&self, stream: u32) -> bool {
        self.send(frame::data(stream, &[], true)).await
    }

    async fn send(&self, frame: Bytes) -> bool {
        self.0.send(frame).await.is_ok()
    }
}

/// Reads what the client sends.
pub struct Reader<R> {
    input: R,
    inflater: Inflater,
    replies: EmptyBlocks,
    open: HashSet<u32>,
    writer: Writer,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// The next event; `None` when the client has hung up. Not cancel-safe: half a frame would be lost.
    ///
    /// # Errors
    /// The connection broke, or the client does not keep to the protocol.
    pub async fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            let Some(frame) = self.frame().await? else {
                return Ok(None);
            };
            match frame {
                Frame::SynStream {
                    stream,
                    block,
                    finished,
                } => {
                    let headers = self.inflater.headers(&block)?;
                    if self.accept(stream).await {
                        return Ok(Some(Event::Opened {
                            stream,
                            headers,
                            finished,
                        }));
                    }
                }
                Frame::Headers { block } => drop(self.inflater.headers(&block)?),
                Frame::Data {
                    stream,
                    bytes,
                    finished,
                } if self.open.contains(&stream) => {
                    return Ok(Some(Event::Data {
                        stream,
                        bytes,
                        finished,
                    }));
                }
                Frame::Reset { stream } if self.open.remove(&stream) => return Ok(Some(Event::Reset { stream })),
                Frame::Ping { id } => drop(self.writer.send(frame::ping(id)).await),
                Frame::Data { .. } | Frame::Reset { .. } | Frame::GoAway | Frame::Ignored => {}
            }
        }
    }

    async fn accept(&mut self, stream: u32) -> bool {
        // A client's streams have odd numbers (section 2.3.2).
        let accepted = stream % 2 == 1 && self.open.len() < STREAMS_MAX && self.open.insert(stream);
        let answer = if accepted {
            frame::syn_reply(stream, &self.replies.next())
        } else {
            frame::refuse(stream)
        };
        self.writer.send(answer).await;
        accepted
    }

    async fn frame(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; frame::HEAD];
        match self.input.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut payload = BytesMut::zeroed(frame::payload_length(head)?);
        self.input.read_exact(&mut payload).await?;
        frame::parse(head, payload.freeze()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SYN_STREAM of stream 1 with a stored, empty block.
    fn syn_stream(stream: u8) -> Vec<u8> {
        let mut bytes = vec![0x80, 3, 0, 1, 0, 0, 0, 26, 0, 0, 0, stream, 0, 0, 0, 0, 0, 0];
        bytes.extend(EmptyBlocks::default().next());
        bytes
    }

    #[tokio::test]
    async fn streams_are_accepted_used_and_pings_answered() {
        let (client, server) = tokio::io::duplex(1 << 10);
        let (mut reader, writer, task) = split(server);
        let (mut answers, mut requests) = tokio::io::split(client);
        requests.write_all(&syn_stream(1)).await.unwrap();
        requests.write_all(&frame::ping(1)).await.unwrap();
        requests
            .write_all(&frame::data(3, b"of no stream", false))
            .await
            .unwrap();
        requests.write_all(&frame::data(1, b"in", true)).await.unwrap();
        let opened = Event::Opened {
            stream: 1,
            headers: Vec::new(),
            finished: false,
        };
        assert_eq!(reader.next().await.unwrap(), Some(opened));
        let data = Event::Data {
            stream: 1,
            bytes: Bytes::from_static(b"in"),
            finished: true,
        };
        assert_eq!(reader.next().await.unwrap(), Some(data));
        assert!(writer.data(1, b"out").await && writer.finish(1).await);
        requests.shutdown().await.unwrap();
        assert_eq!(reader.next().await.unwrap(), None);
        drop((reader, writer));
        task.await.unwrap();
        let mut sent = Vec::new();
        answers.read_to_end(&mut sent).await.unwrap();
        let expected = [
            frame::syn_reply(1, &EmptyBlocks::default().next()),
            frame::ping(1),
            frame::data(1, b"out", false),
            frame::data(1, b"", true),
        ];
        assert_eq!(sent, expected.concat());
    }

    #[tokio::test]
    async fn a_stream_of_ours_or_one_opened_twice_is_refused() {
        let (client, server) = tokio::io::duplex(1 << 10);
        let (mut reader, _writer, _task) = split(server);
        let (mut answers, mut requests) = tokio::io::split(client);
        requests.write_all(&syn_stream(2)).await.unwrap();
        requests.shutdown().await.unwrap();
        assert_eq!(reader.next().await.unwrap(), None);
        let mut answer = [0; 16];
        answers.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..], frame::refuse(2)[..]);
    }
}
