//! The server as a whole: listens on its addresses, decides who answers a question, and takes new names in while it runs.
//!
//! Questions over UDP are answered by a thread for each address (`udp`), without async machinery between the socket and
//! the answer; what has to wait for someone else, and TCP, runs on the agent's runtime.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpListener;

use super::answer::Verdict;
use super::cache::Query;
use super::forward::Forwarder;
use super::metrics::Metrics;
use super::reply::{Reply, Transport};
use super::request::{Rejected, Request};
use super::stored::Stored;
use super::wire::{HEADER, code, flag};
use super::zone::Zone;
use super::{Change, Error, ZoneConfig, tcp, udp};

/// What the server is made from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses and ports; those that are not loopback addresses are put on `lo`.
    pub listen: Vec<SocketAddr>,
    /// Names the resolvers for what is not the cluster's: the host's /etc/resolv.conf.
    pub resolv_conf: PathBuf,
    /// The cluster's DNS addresses: they lead back here, so they are never asked; and they are what `ns.dns` is.
    pub cluster: Vec<IpAddr>,
    /// The names that are the cluster's.
    pub zone: ZoneConfig,
}

/// A server that listens already, but serves only while [`Server::run`] runs.
pub struct Server {
    sockets: Vec<Arc<std::net::UdpSocket>>,
    listeners: Vec<TcpListener>,
    shared: Arc<Shared>,
}

/// Tells a running server the cluster's services; cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

/// What all who answer share.
pub(super) struct Shared {
    zone: Zone,
    forwarder: Arc<Forwarder>,
    pub(super) metrics: Arc<Metrics>,
}

impl Handle {
    /// Takes over changes of services. Questions see all of one call, or nothing of it.
    pub fn apply(&self, changes: Vec<Change>) {
        self.0.zone.apply(changes);
    }

    /// Takes over all services there are: what is missing goes. Until the first time, questions for services fail
    /// (SERVFAIL: the client asks again), for nothing may be called missing that is merely not known yet.
    pub fn replace(&self, all: Vec<Change>) {
        self.0.zone.replace(all);
    }

    /// Appends the server's counters in Prometheus' text format.
    pub fn write_metrics(&self, out: &mut String) {
        self.0.metrics.write(out, self.0.forwarder.cache_size());
    }
}

impl Server {
    /// Puts the addresses on `lo` and listens on them.
    pub async fn bind(config: Config) -> Result<Server, Error> {
        let (mut sockets, mut listeners) = (Vec::new(), Vec::new());
        for address in &config.listen {
            let ip = address.ip();
            if !ip.is_loopback() && !ip.is_unspecified() {
                crate::network::add_local_address(ip)?;
            }
            let failed = |transport| {
                move |source| Error::Listen {
                    address: *address,
                    transport,
                    source,
                }
            };
            let udp = std::net::UdpSocket::bind(address).map_err(failed("UDP"))?;
            // With port 0, as in tests, both transports must still share one port.
            let port = udp.local_addr().map_err(failed("UDP"))?.port();
            sockets.push(Arc::new(udp));
            listeners.push(TcpListener::bind((ip, port)).await.map_err(failed("TCP"))?);
        }
        let listening = config.listen.iter().map(|address| address.ip());
        let own: Vec<IpAddr> = config.cluster.iter().copied().chain(listening).collect();
        let metrics = Arc::new(Metrics::default());
        let shared = Shared {
            zone: Zone::new(&config.zone, config.cluster)?,
            forwarder: Arc::new(Forwarder::new(config.resolv_conf, own, Arc::clone(&metrics))),
            metrics,
        };
        Ok(Server {
            sockets,
            listeners,
            shared: Arc::new(shared),
        })
    }

    /// For telling the server the cluster's services.
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// Where the server listens.
    pub fn local_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(|socket| socket.local_addr()).collect()
    }

    /// Serves until the future is dropped.
    pub async fn run(self) {
        let start = |socket| udp::Serving::start(socket, self.shared.clone());
        let threads: Vec<_> = self.sockets.into_iter().map(start).collect();
        for error in threads.iter().filter_map(|thread| thread.as_ref().err()) {
            tracing::error!(%error, "no thread can be started: DNS over UDP is not served");
        }
        let streams = self
            .listeners
            .into_iter()
            .map(|listener| tcp::serve(listener, self.shared.clone()));
        let forwarder = self.shared.forwarder.clone();
        tokio::join!(futures_util::future::join_all(streams), forwarder.watch());
    }
}

/// What becomes of a question at once.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The reply is complete.
    Reply,
    /// Someone else has to be asked: [`Shared::resolve`].
    Wait,
    /// Not a question at all.
    Silence,
}

impl Shared {
    /// Answers from memory, into `out`. `rotation` is any number.
    pub(super) fn answer(&self, message: &[u8], transport: Transport, rotation: usize, out: &mut Vec<u8>) -> Outcome {
        let request = match Request::parse(message) {
            Ok(request) => request,
            Err(Rejected::Silent) => return Outcome::Silence,
            Err(Rejected::Code {
                header,
                question,
                code,
                edns,
            }) => {
                Reply::reject(out, header, question, code, edns);
                return Outcome::Reply;
            }
        };
        self.metrics.request(transport, request.kind);
        let known = |query: &Query| self.forwarder.cached(query);
        match self.compose(&request, transport, rotation, out, known) {
            None => Outcome::Reply,
            Some(_) => Outcome::Wait,
        }
    }

    /// Answers what [`Shared::answer`] could not, after asking elsewhere.
    pub(super) async fn resolve(&self, message: &[u8], transport: Transport, rotation: usize, out: &mut Vec<u8>) {
        let Ok(request) = Request::parse(message) else { return };
        let Some(query) = self.compose(&request, transport, rotation, out, |_| None) else {
            return;
        };
        let Some(found) = self.forwarder.lookup(query).await else {
            return Reply::reject(out, request.header, request.question, code::SERVFAIL, request.edns);
        };
        self.compose(&request, transport, rotation, out, |_| Some(found.clone()));
    }

    /// Writes the reply; tells what has to be known first if `known` does not have it.
    fn compose(
        &self,
        request: &Request<'_>,
        transport: Transport,
        rotation: usize,
        out: &mut Vec<u8>,
        known: impl Fn(&Query) -> Option<Arc<Stored>>,
    ) -> Option<Query> {
        let query = |name| Query {
            name,
            kind: request.kind,
            dnssec: request.wants_dnssec(),
            unchecked: request.header.flags & flag::CHECKING_DISABLED != 0,
        };
        let mut reply = Reply::new(out, request, transport);
        match self.zone.answer(request, &mut reply, rotation) {
            Verdict::Answered(code) => reply.finish(code, true),
            Verdict::NotReady => reply.finish(code::SERVFAIL, false),
            Verdict::Alias(target) => {
                let alias = reply.position() - target.as_bytes().len();
                let query = query(*target);
                let Some(found) = known(&query) else { return Some(query) };
                found.append(&mut reply, alias, Instant::now());
                reply.finish(found.code(), true);
            }
            Verdict::NotOurs if request.header.flags & flag::RECURSION_DESIRED == 0 => {
                // Only what is here (RFC 1034, 4.3.1): whatever others asked for is not shown.
                reply.finish(code::REFUSED, false);
            }
            Verdict::NotOurs => {
                let query = query(request.name.clone());
                let Some(found) = known(&query) else { return Some(query) };
                found.reply(request, transport, out, Instant::now());
            }
        }
        debug_assert!(out.len() >= HEADER, "a reply has a header");
        None
    }
}
