//! Questions over TCP (RFC 7766): several at once on a connection, answered as they are ready.
//!
//! Bounded for each client and in all: a pod that opens connections and says nothing must not silence the others.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::reply::Transport;
use super::server::{Outcome, Shared};

/// Connections of all clients, and of one.
const MAX_CONNECTIONS: usize = 512;
const MAX_FROM_CLIENT: usize = 32;
/// How long a client may be silent, or not take its replies.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one connection that wait for an answer from elsewhere; the next is read when one is answered.
const MAX_WAITING: usize = 16;
/// Pause when there are no descriptors: gives others the time to close some.
const BREATH: Duration = Duration::from_millis(100);

/// Open connections by client.
type Open = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A place among the open connections.
struct Seat {
    client: IpAddr,
    open: Open,
}

impl Seat {
    fn take(client: IpAddr, open: &Open) -> Option<Seat> {
        let mut counts = open.lock();
        let total: usize = counts.values().sum();
        let of_client = counts.get(&client).copied().unwrap_or_default();
        if of_client >= MAX_FROM_CLIENT || total >= MAX_CONNECTIONS {
            return None;
        }
        counts.insert(client, of_client + 1);
        Some(Seat {
            client,
            open: open.clone(),
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.open.lock();
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

/// Serves connections until the future is dropped.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let open = Open::default();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => match Seat::take(client.ip(), &open) {
                    Some(seat) => {
                        let shared = shared.clone();
                        connections.spawn(async move {
                            // Whatever ends a connection, its client knows already.
                            let _ = serve_stream(stream, &shared).await;
                            drop(seat);
                        });
                    }
                    None => shared.metrics.refused_connection(),
                },
                Err(error) => {
                    tracing::warn!(%error, "accept a DNS connection");
                    sleep(BREATH).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_stream(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.split();
    let mut questions = Questions::default();
    let mut waiting = FuturesUnordered::new();
    let mut rotation = 0;
    loop {
        let question = tokio::select! {
            Some(reply) = waiting.next() => {
                send(&mut writer, reply, shared).await?;
                continue;
            }
            question = questions.next(&mut reader), if waiting.len() < MAX_WAITING => question?,
            () = sleep(IDLE), if waiting.is_empty() => return Ok(()),
        };
        let Some(question) = question else { break };
        rotation += 1;
        let mut reply = Vec::new();
        match shared.answer(&question, Transport::Tcp, rotation, &mut reply) {
            Outcome::Reply => send(&mut writer, reply, shared).await?,
            Outcome::Silence => return Ok(()),
            Outcome::Wait => waiting.push(async move {
                shared.resolve(&question, Transport::Tcp, rotation, &mut reply).await;
                reply
            }),
        }
    }
    // The client has asked all it wants to, and may still listen.
    while let Some(reply) = waiting.next().await {
        send(&mut writer, reply, shared).await?;
    }
    writer.shutdown().await
}

/// Reads questions piece by piece: what was read of one is kept when something else comes first.
#[derive(Default)]
struct Questions {
    buffer: Vec<u8>,
}

impl Questions {
    /// The next question; `None` at the end of the stream. Nothing is lost when the future is dropped.
    async fn next(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(length) = self
                .buffer
                .first_chunk()
                .map(|length| usize::from(u16::from_be_bytes(*length)))
                && self.buffer.len() >= 2 + length
            {
                let rest = self.buffer.split_off(2 + length);
                let question = std::mem::replace(&mut self.buffer, rest).split_off(2);
                return Ok(Some(question));
            }
            if reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), mut reply: Vec<u8>, shared: &Shared) -> io::Result<()> {
    shared.metrics.response(&reply);
    let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
    reply.splice(..0, length.to_be_bytes());
    timeout(IDLE, writer.write_all(&reply)).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded() {
        let open = Open::default();
        let client = |number: usize| IpAddr::from([10, 0, (number / 256) as u8, (number % 256) as u8]);
        let mut seats: Vec<Seat> = (0..MAX_FROM_CLIENT)
            .map(|_| Seat::take(client(0), &open).unwrap())
            .collect();
        assert!(Seat::take(client(0), &open).is_none(), "one client has all it may");
        seats.extend((MAX_FROM_CLIENT..MAX_CONNECTIONS).map(|number| Seat::take(client(number), &open).unwrap()));
        assert!(Seat::take(client(9999), &open).is_none());
        seats.clear();
        assert!(open.lock().is_empty());
    }
}
