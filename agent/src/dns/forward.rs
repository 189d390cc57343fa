//! What is not the cluster's: from the cache, else from the resolvers of the host.
//!
//! Equal questions that are under way share one lookup. A resolver that is slow is not waited for alone: the next one is
//! asked too, and whichever answers first is believed. When none does, what was known last is served (RFC 8767), else
//! the client is told so well before it gives up.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::cache::{Cache, Query};
use super::metrics::Metrics;
use super::resolvers::{Resolver, Resolvers};
use super::stored::Stored;
use super::upstream::{Random, ask};
use super::wire::{CLASS_IN, code, flag, number};

/// How long a resolver is waited for alone.
const PATIENCE: Duration = Duration::from_millis(800);
/// Times that resolvers are asked for one question.
const MAX_TRIES: usize = 4;
/// How long a lookup takes at most; clients give up after five seconds.
const DEADLINE: Duration = Duration::from_millis(4000);
/// The same when all resolvers were silent lately.
const SHORT_DEADLINE: Duration = Duration::from_millis(1000);
/// Lookups under way at once, each with a socket; more are refused, so that dead resolvers cannot fill the agent's memory.
const MAX_LOOKUPS: usize = 256;
/// Clients that wait for one lookup.
const MAX_WAITING: usize = 64;
/// Bytes of replies that are kept.
const CACHE_LIMIT: usize = 2 << 20;

type Waiting = Vec<oneshot::Sender<Arc<Stored>>>;

/// Sends questions on.
#[derive(Debug)]
pub(super) struct Forwarder {
    resolvers: Resolvers,
    cache: Mutex<Cache>,
    lookups: Mutex<HashMap<Arc<[u8]>, Waiting>>,
    random: Random,
    metrics: Arc<Metrics>,
}

impl Forwarder {
    /// `exclude` are the addresses that lead back here.
    pub(super) fn new(resolv_conf: PathBuf, exclude: Vec<IpAddr>, metrics: Arc<Metrics>) -> Forwarder {
        Forwarder {
            resolvers: Resolvers::new(resolv_conf, exclude),
            cache: Mutex::new(Cache::new(CACHE_LIMIT)),
            lookups: Mutex::default(),
            random: Random::default(),
            metrics,
        }
    }

    /// Follows the host's resolv.conf for ever.
    pub(super) async fn watch(&self) {
        self.resolvers.watch(|| self.cache.lock().clear()).await;
    }

    /// The reply, if it is known.
    pub(super) fn cached(&self, query: &Query) -> Option<Arc<Stored>> {
        let found = self.cache.lock().get(query, std::time::Instant::now());
        self.metrics.cache(found.is_some());
        found
    }

    /// Replies kept, and their bytes.
    pub(super) fn cache_size(&self) -> (usize, usize) {
        self.cache.lock().size()
    }

    /// The reply, from wherever it comes; `None` when there are too many questions under way.
    pub(super) async fn lookup(self: &Arc<Self>, query: Query) -> Option<Arc<Stored>> {
        let key = query.to_key();
        let (sender, receiver) = oneshot::channel();
        {
            let mut lookups = self.lookups.lock();
            let count = lookups.len();
            match lookups.get_mut(&key) {
                Some(waiting) if waiting.len() < MAX_WAITING => waiting.push(sender),
                Some(_) => return None,
                None if count >= MAX_LOOKUPS => return self.cache.lock().get_stale(&query, std::time::Instant::now()),
                None => {
                    lookups.insert(key.clone(), vec![sender]);
                    // A task of its own: it goes on when the client that asked first does not wait.
                    tokio::spawn(Arc::clone(self).conclude(key, query));
                }
            }
        }
        receiver.await.ok()
    }

    async fn conclude(self: Arc<Self>, key: Arc<[u8]>, query: Query) {
        let stored = self.resolve(&query).await;
        self.cache.lock().put(key.clone(), stored.clone());
        let waiting = self.lookups.lock().remove(&key).unwrap_or_default();
        for sender in waiting {
            // Who waits no more needs no answer.
            let _ = sender.send(stored.clone());
        }
    }

    async fn resolve(&self, query: &Query) -> Arc<Stored> {
        let started = Instant::now();
        let reply = self.ask_resolvers(query).await;
        self.metrics.forwarded(reply.is_ok(), started.elapsed());
        let now = std::time::Instant::now();
        match reply.map(|reply| Stored::new(reply, now)) {
            Ok(Some(stored)) if stored.code() != code::SERVFAIL => return Arc::new(stored),
            Ok(_) => {}
            Err(error) => tracing::debug!(name = ?query.name, %error, "no resolver answers a DNS question"),
        }
        if let Some(stale) = self.cache.lock().get_stale(query, now) {
            self.metrics.stale();
            return stale;
        }
        let question = [
            query.name.as_bytes(),
            &query.kind.to_be_bytes(),
            &CLASS_IN.to_be_bytes(),
        ]
        .concat();
        Arc::new(Stored::failure(&question, now))
    }

    /// The first useful reply; else one that says that the resolver failed.
    async fn ask_resolvers(&self, query: &Query) -> io::Result<Vec<u8>> {
        let now = Instant::now();
        let order = self.resolvers.in_order(now.into_std());
        let any_up = order.iter().any(|resolver| resolver.is_up(now.into_std()));
        let deadline = now + if any_up { DEADLINE } else { SHORT_DEADLINE };
        let mut left: VecDeque<&Arc<Resolver>> = order.iter().cycle().take(MAX_TRIES).collect();
        let mut tries = FuturesUnordered::new();
        let mut unanswered: Vec<(&Arc<Resolver>, Instant)> = Vec::new();
        let mut outcome = Err(io::Error::other("the host's resolv.conf names no other resolver"));
        loop {
            // One more: the first, the next after a failure, or another because the others are slow.
            if let Some(resolver) = left.pop_front() {
                unanswered.push((resolver, Instant::now()));
                tries.push(async move { (resolver, ask(query, resolver.address, &self.random).await) });
            }
            let next_try = (Instant::now() + PATIENCE).min(deadline);
            let reply = tokio::select! {
                reply = tries.next() => reply,
                () = sleep_until(next_try) => None,
            };
            if let Some((resolver, reply)) = reply {
                unanswered.retain(|(other, _)| !Arc::ptr_eq(other, resolver));
                self.judge(resolver, &reply);
                let useful = reply.as_ref().is_ok_and(|reply| is_useful(reply));
                if useful || outcome.is_err() {
                    outcome = reply;
                }
                if useful {
                    break;
                }
            }
            if Instant::now() >= deadline || (tries.is_empty() && left.is_empty()) {
                break;
            }
        }
        for (resolver, asked) in unanswered {
            if asked.elapsed() >= PATIENCE {
                self.mark_silent(resolver);
            }
        }
        outcome
    }

    fn judge(&self, resolver: &Resolver, reply: &io::Result<Vec<u8>>) {
        match reply {
            Ok(_) => resolver.answered(),
            Err(_) => self.mark_silent(resolver),
        }
    }

    fn mark_silent(&self, resolver: &Resolver) {
        let [jitter, ..] = self.random.next().to_ne_bytes();
        resolver.silent(std::time::Instant::now(), jitter);
    }
}

/// Another resolver may know better than one that failed or refuses.
fn is_useful(reply: &[u8]) -> bool {
    let code = number(reply, 2).unwrap_or_default() & flag::CODE;
    matches!(code, code::NOERROR | code::NXDOMAIN)
}
