//! Watch: a stream of events that ends by time-out, shutdown, or a lag the cache cannot bridge (410 as an ERROR event).
//!
//! There is no queue per watcher: the response's body pulls from its cursor in the cache, so a slow client costs nothing
//! but its cursor, and is told to list again when it has fallen out of the ring.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use super::body::{self, Response};
use super::encode::{self, Encoder};
use super::list_options::{Freshness, ListOptions};
use super::read::reached;
use super::{Context, Shutdown};
use crate::cache::{Event, EventKind, Expired, Object, Revision, Watcher};
use crate::registry::{Registry, Status};

/// Between bookmarks, for clients that want them.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Watches without a time-out of their own end after 30 to 60 minutes, so that clients spread anew.
const DEFAULT_TIMEOUT: (u64, u32) = (1800, 1800);
/// Events that are ready go out together, up to this size.
const BATCH: usize = 64 << 10;

struct Stream {
    encoder: Encoder,
    initial: VecDeque<Arc<Object>>,
    /// The revision of the initial state, if its end is to be marked.
    initial_end: Option<Revision>,
    watcher: Watcher,
    bookmarks: Option<Interval>,
    deadline: Instant,
    shutdown: Shutdown,
    first: bool,
    ended: bool,
}

/// Starts a watch.
///
/// # Errors
/// 400 and 422 for bad parameters, 504 for a revision not reached yet.
pub fn watch(registry: &Registry, context: &Context, shutdown: Shutdown) -> Result<Response, Status> {
    let options = ListOptions::parse(&context.route, &context.params)?;
    let encoder = context.encoder(registry)?;
    let begun = match begin(registry, &options) {
        Ok(begun) => begun,
        Err(Begin::Refused(status)) => return Err(status),
        Err(Begin::Expired(expired)) => return Ok(only_error(&expired)),
    };
    let (initial, revision, watcher) = begun;
    let (least, spread) = DEFAULT_TIMEOUT;
    let timeout = options
        .timeout_seconds
        .unwrap_or_else(|| least + u64::from(registry.environment().below(spread)));
    let stream = Stream {
        encoder,
        initial: initial.into(),
        initial_end: (options.send_initial_events == Some(true) && options.bookmarks).then_some(revision),
        watcher,
        bookmarks: options.bookmarks.then(bookmark_timer),
        deadline: Instant::now() + Duration::from_secs(timeout),
        shutdown,
        first: true,
        ended: false,
    };
    let chunks = futures_util::stream::unfold(stream, |mut stream| async move {
        stream.next_chunk().await.map(|chunk| (chunk, stream))
    });
    Ok(body::respond(200, body::JSON, body::streamed(chunks)))
}

enum Begin {
    Refused(Status),
    Expired(Expired),
}

impl From<Expired> for Begin {
    fn from(expired: Expired) -> Self {
        Self::Expired(expired)
    }
}

/// The initial state (if the client wants one), its revision, and the cursor behind it.
fn begin(registry: &Registry, options: &ListOptions) -> Result<(Vec<Arc<Object>>, Revision, Watcher), Begin> {
    let cache = registry.cache();
    let from = match options.freshness {
        Freshness::Latest | Freshness::Any => None,
        Freshness::NotOlderThan(revision) | Freshness::Exact(revision) => {
            reached(registry, revision).map_err(Begin::Refused)?;
            Some(revision)
        }
    };
    let with_state = options.send_initial_events.unwrap_or(from.is_none());
    if !with_state {
        let revision = from.unwrap_or_else(|| cache.revision());
        return Ok((Vec::new(), revision, cache.watch(options.query.clone(), revision)?));
    }
    let page = cache.list(&options.query, None, None, None)?;
    let watcher = cache.watch(options.query.clone(), page.revision)?;
    Ok((page.items, page.revision, watcher))
}

fn bookmark_timer() -> Interval {
    let mut timer = interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

/// A watch that begins outside the history: 200 with one ERROR event, as Kubernetes answers.
fn only_error(expired: &Expired) -> Response {
    let mut out = Vec::new();
    encode::error_event(&Status::expired(expired.to_string()), &mut out);
    body::json(200, out)
}

impl Stream {
    /// The next bytes; `None` ends the response.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        while let Some(object) = self.initial.pop_front() {
            self.put("ADDED", &object, &mut out);
            if out.len() >= BATCH {
                return Some(out.into());
            }
        }
        if let Some(revision) = self.initial_end.take() {
            self.encoder.bookmark(revision, true, &mut out);
        }
        if !out.is_empty() {
            return Some(out.into());
        }
        self.wait(&mut out).await;
        (!out.is_empty()).then(|| out.into())
    }

    async fn wait(&mut self, out: &mut Vec<u8>) {
        let tick = async {
            match &mut self.bookmarks {
                Some(timer) => _ = timer.tick().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            event = self.watcher.next() => self.take(event, out),
            () = tick => self.encoder.bookmark(self.watcher.revision(), false, out),
            () = sleep_until(self.deadline) => self.end(out),
            () = self.shutdown.wait() => self.end(out),
        }
    }

    /// Ends orderly; where to resume is said if the client understands it.
    fn end(&mut self, out: &mut Vec<u8>) {
        self.ended = true;
        if self.bookmarks.is_some() {
            self.encoder.bookmark(self.watcher.revision(), false, out);
        }
    }

    /// Encodes an event and all that are ready behind it.
    fn take(&mut self, event: Result<Event, Expired>, out: &mut Vec<u8>) {
        let mut next = event.map(Some);
        loop {
            match next {
                Ok(None) => return,
                Ok(Some(event)) => {
                    let kind = match event.kind {
                        EventKind::Added => "ADDED",
                        EventKind::Modified => "MODIFIED",
                        EventKind::Deleted => "DELETED",
                    };
                    self.put(kind, &event.object, out);
                }
                Err(expired) => {
                    self.ended = true;
                    encode::error_event(&Status::expired(expired.to_string()), out);
                    return;
                }
            }
            if out.len() >= BATCH {
                return;
            }
            next = self.watcher.try_next();
        }
    }

    fn put(&mut self, kind: &str, object: &Object, out: &mut Vec<u8>) {
        let first = std::mem::take(&mut self.first);
        self.encoder.event(kind, object, first, out);
    }
}
