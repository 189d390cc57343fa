//! The server: one UDP socket, one TCP listener, one zone that is swapped under them.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::Answer;
use super::forward::{Forwarder, Transport};
use super::{Error, Zone};

/// The largest datagram without EDNS (RFC 1035), and the largest we send with it: no fragments on usual links.
const PLAIN_SIZE: u16 = 512;
const EDNS_SIZE: u16 = 1232;
const MAX_CONNECTIONS: usize = 128;
const IDLE: Duration = Duration::from_secs(10);

/// What the server is made from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port; unless it is a loopback address it is put on `lo`.
    pub listen: SocketAddrV4,
    /// Names the resolvers for what is not the cluster's: the host's /etc/resolv.conf.
    pub resolv_conf: PathBuf,
    /// Addresses that lead back here (the cluster's DNS address), so never asked.
    pub exclude: Vec<IpAddr>,
}

/// A server that listens already, but serves only while [`Server::run`] runs.
pub struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

/// Gives a running server new zones; cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    zone: ArcSwap<Zone>,
    forwarder: Forwarder,
    connections: Semaphore,
}

impl Handle {
    /// Serves `zone` from now on.
    pub fn update(&self, zone: Zone) {
        self.0.zone.store(Arc::new(zone));
    }
}

impl Server {
    /// Puts the address on `lo` and listens on it. Until a zone comes everything is forwarded.
    pub async fn bind(config: Config) -> Result<Server, Error> {
        let address = config.listen;
        if !address.ip().is_loopback() && !address.ip().is_unspecified() {
            crate::network::add_local_address(*address.ip())?;
        }
        let failed = |transport| {
            move |source| Error::Listen {
                address,
                transport,
                source,
            }
        };
        let udp = UdpSocket::bind(address).await.map_err(failed("UDP"))?;
        // With port 0, as in tests, both transports must still share one port.
        let port = udp.local_addr().map_err(failed("UDP"))?.port();
        let tcp = TcpListener::bind((*address.ip(), port)).await.map_err(failed("TCP"))?;
        let mut exclude = config.exclude;
        exclude.push(IpAddr::V4(*address.ip()));
        let shared = Shared {
            zone: ArcSwap::default(),
            forwarder: Forwarder::new(config.resolv_conf, exclude),
            connections: Semaphore::new(MAX_CONNECTIONS),
        };
        Ok(Server {
            udp,
            tcp,
            shared: Arc::new(shared),
        })
    }

    /// For giving the server its zones.
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// Where the server listens.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Serves until the future is dropped.
    pub async fn run(self) {
        let udp = Arc::new(self.udp);
        tokio::join!(serve_udp(udp, self.shared.clone()), serve_tcp(self.tcp, self.shared));
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // A client that closed its socket shows as an error of the next call: nothing to do about it.
                tracing::debug!(%error, "receive a DNS question");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let question = &buffer[..length];
        match shared.try_answer(question, Transport::Udp) {
            Outcome::Reply(reply) => drop(socket.try_send_to(&reply, client)),
            Outcome::Drop => {}
            Outcome::Forward(alias) => {
                let (socket, shared, question) = (socket.clone(), shared.clone(), question.to_vec());
                tokio::spawn(async move {
                    let reply = shared.forward(&question, alias, Transport::Udp).await;
                    let _ = socket.send_to(&reply, client).await;
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    if let Ok(_permit) = shared.connections.try_acquire() {
                        let _ = serve_stream(stream, &shared).await;
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept a DNS connection");
                // Out of descriptors, most likely: give others the time to close some.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_stream(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut question = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut question)).await??;
        let reply = match shared.try_answer(&question, Transport::Tcp) {
            Outcome::Reply(reply) => reply,
            Outcome::Forward(alias) => shared.forward(&question, alias, Transport::Tcp).await,
            Outcome::Drop => return Ok(()),
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        timeout(
            IDLE,
            stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat()),
        )
        .await??;
    }
}

/// What becomes of a question.
enum Outcome {
    Reply(Vec<u8>),
    /// Not ours; with the answer so far when an alias of ours leads outside.
    Forward(Option<Box<Alias>>),
    /// Not a question at all.
    Drop,
}

/// A reply that lacks the records of the alias's target, and the question for them.
struct Alias {
    reply: Message,
    question: Vec<u8>,
    limit: u16,
}

impl Shared {
    fn try_answer(&self, bytes: &[u8], transport: Transport) -> Outcome {
        let Ok(request) = Message::from_vec(bytes) else {
            return match bytes.first_chunk::<3>() {
                Some([a, b, flags]) if flags & 0x80 == 0 => {
                    let id = u16::from_be_bytes([*a, *b]);
                    encode(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), u16::MAX)
                }
                _ => Outcome::Drop,
            };
        };
        if request.metadata.message_type != MessageType::Query {
            return Outcome::Drop;
        }
        let limit = limit(&request, transport);
        let mut reply = reply_to(&request);
        let [query] = request.queries.as_slice() else {
            reply.metadata.response_code = ResponseCode::FormErr;
            return encode(&reply, limit);
        };
        if request.metadata.op_code != OpCode::Query {
            reply.metadata.response_code = ResponseCode::NotImp;
            return encode(&reply, limit);
        }
        let answer = self.zone.load().answer(query, usize::from(request.metadata.id));
        reply.metadata.authoritative = true;
        reply.metadata.response_code = answer.code();
        match answer {
            Answer::NotOurs => return Outcome::Forward(None),
            Answer::Alias { record, target } => {
                let mut query = query.clone();
                query.set_name(target);
                let mut question = Message::query();
                question.metadata.recursion_desired = true;
                question.add_query(query);
                reply.add_answer(record);
                return match question.to_vec() {
                    Ok(question) => Outcome::Forward(Some(Box::new(Alias { reply, question, limit }))),
                    Err(_) => encode(&reply, limit),
                };
            }
            Answer::Records {
                answers,
                additionals,
                authority,
            } => {
                reply.insert_answers(answers);
                reply.insert_additionals(additionals);
                reply.insert_authorities(authority.into_iter().collect());
            }
            Answer::NoSuchName { authority } => reply.insert_authorities(vec![authority]),
        }
        encode(&reply, limit)
    }

    async fn forward(&self, question: &[u8], alias: Option<Box<Alias>>, transport: Transport) -> Vec<u8> {
        let Some(mut alias) = alias else {
            return match self.forwarder.ask(question, transport).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(%error, "forward a DNS question");
                    failure(question)
                }
            };
        };
        let answer = self.forwarder.ask(&alias.question, transport).await;
        match answer.ok().and_then(|bytes| Message::from_vec(&bytes).ok()) {
            Some(answer) => {
                alias.reply.metadata.response_code = answer.metadata.response_code;
                alias.reply.add_answers(answer.answers);
            }
            None => alias.reply.metadata.response_code = ResponseCode::ServFail,
        }
        match encode(&alias.reply, alias.limit) {
            Outcome::Reply(reply) => reply,
            _ => failure(question),
        }
    }
}

fn reply_to(request: &Message) -> Message {
    let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
    reply.metadata.recursion_desired = request.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EDNS_SIZE);
        reply.set_edns(edns);
    }
    reply
}

fn limit(request: &Message, transport: Transport) -> u16 {
    match (transport, &request.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => PLAIN_SIZE,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_SIZE, EDNS_SIZE),
    }
}

fn encode(reply: &Message, limit: u16) -> Outcome {
    match reply.to_vec() {
        Ok(bytes) if bytes.len() <= usize::from(limit) => Outcome::Reply(bytes),
        Ok(_) => reply.truncate().to_vec().map(Outcome::Reply).unwrap_or(Outcome::Drop),
        Err(error) => {
            tracing::warn!(%error, "encode a DNS reply");
            Outcome::Drop
        }
    }
}

/// The question as it came, marked as a response that says SERVFAIL.
fn failure(question: &[u8]) -> Vec<u8> {
    let Ok(request) = Message::from_vec(question) else {
        return Vec::new();
    };
    let mut reply = reply_to(&request);
    reply.metadata.response_code = ResponseCode::ServFail;
    reply.to_vec().unwrap_or_default()
}
