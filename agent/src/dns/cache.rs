//! Replies of resolvers by question, in bounded memory.
//!
//! The oldest goes first, but one that was used since gets a second chance. What is past its time stays as long as there
//! is room: it is served when no resolver answers (RFC 8767).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::name::Name;
use super::stored::Stored;

/// How long after its time an answer may still be served, when there is no other.
const MAX_STALE: Duration = Duration::from_secs(3600);
/// Memory of an entry besides the reply: keys, tables.
const OVERHEAD: usize = 160;
/// Bytes of the longest key: name, type, wishes.
const MAX_KEY: usize = 255 + 3;

/// A question that is sent on.
#[derive(Clone, Debug)]
pub(super) struct Query {
    pub(super) name: Name,
    pub(super) kind: u16,
    pub(super) dnssec: bool,
    /// The client checks signatures itself: what fails the resolver's check is wanted, too.
    pub(super) unchecked: bool,
}

impl Query {
    /// What tells it from other questions.
    fn key<'b>(&self, buffer: &'b mut [u8; MAX_KEY]) -> &'b [u8] {
        let name = self.name.as_bytes();
        let end = name.len() + 3;
        buffer[..name.len()].copy_from_slice(name);
        buffer[name.len()..end - 1].copy_from_slice(&self.kind.to_be_bytes());
        buffer[end - 1] = u8::from(self.dnssec) | u8::from(self.unchecked) << 1;
        &buffer[..end]
    }

    /// As a key that lasts.
    pub(super) fn to_key(&self) -> Arc<[u8]> {
        self.key(&mut [0; MAX_KEY]).into()
    }
}

/// The cache.
#[derive(Debug)]
pub(super) struct Cache {
    limit: usize,
    bytes: usize,
    entries: HashMap<Arc<[u8]>, Entry>,
    /// All keys, the oldest first.
    order: VecDeque<Arc<[u8]>>,
}

#[derive(Debug)]
struct Entry {
    stored: Arc<Stored>,
    used: bool,
}

fn cost(key: &[u8], stored: &Stored) -> usize {
    OVERHEAD + key.len() + stored.size()
}

impl Cache {
    /// An empty cache of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Cache {
        Cache {
            limit,
            bytes: 0,
            entries: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// The reply to a question, if it is still good.
    pub(super) fn get(&mut self, query: &Query, now: Instant) -> Option<Arc<Stored>> {
        self.find(query, now, Duration::ZERO)
    }

    /// The reply to a question, be it past its time; a failure is no reply.
    pub(super) fn get_stale(&mut self, query: &Query, now: Instant) -> Option<Arc<Stored>> {
        self.find(query, now, MAX_STALE)
            .filter(|stored| stored.code() != super::wire::code::SERVFAIL)
    }

    fn find(&mut self, query: &Query, now: Instant, tolerance: Duration) -> Option<Arc<Stored>> {
        let entry = self.entries.get_mut(query.key(&mut [0; MAX_KEY]))?;
        if entry.stored.staleness(now) > tolerance {
            return None;
        }
        entry.used = true;
        Some(entry.stored.clone())
    }

    /// Keeps a reply, if it may be kept. A failure does not replace an answer.
    pub(super) fn put(&mut self, key: Arc<[u8]>, stored: Arc<Stored>) {
        let added = cost(&key, &stored);
        if stored.lifetime().is_zero() || added > self.limit {
            return;
        }
        self.bytes += added;
        let entry = Entry { stored, used: false };
        match self.entries.insert(key.clone(), entry) {
            Some(before) => self.bytes -= cost(&key, &before.stored),
            None => self.order.push_back(key),
        }
        while self.bytes > self.limit {
            let Some(oldest) = self.order.pop_front() else { return };
            match self.entries.get_mut(&oldest) {
                Some(entry) if entry.used => {
                    entry.used = false;
                    self.order.push_back(oldest);
                }
                _ => {
                    if let Some(entry) = self.entries.remove(&oldest) {
                        self.bytes -= cost(&oldest, &entry.stored);
                    }
                }
            }
        }
    }

    /// Forgets everything, as when other resolvers are to be asked.
    pub(super) fn clear(&mut self) {
        *self = Cache::new(self.limit);
    }

    /// How many replies are kept, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str) -> Query {
        Query {
            name: Name::from_text(name).unwrap(),
            kind: 1,
            dnssec: false,
            unchecked: false,
        }
    }

    fn stored(name: &str, ttl: u32, now: Instant) -> Arc<Stored> {
        let mut message = b"\0\0\x80\0\0\x01\0\x01\0\0\0\0".to_vec();
        message.extend_from_slice(Name::from_text(name).unwrap().as_bytes());
        message.extend_from_slice(&[0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1]);
        message.extend_from_slice(&ttl.to_be_bytes());
        message.extend_from_slice(&[0, 4, 192, 0, 2, 1]);
        Arc::new(Stored::new(message, now).unwrap())
    }

    #[test]
    fn answers_are_kept_for_their_time() {
        let (mut cache, now) = (Cache::new(100_000), Instant::now());
        cache.put(query("a.example").to_key(), stored("a.example", 10, now));
        cache.put(query("b.example").to_key(), stored("b.example", 0, now));
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(cache.get(&query("a.example"), after(9)).is_some());
        assert!(cache.get(&query("a.example"), after(11)).is_none());
        assert!(cache.get_stale(&query("a.example"), after(11)).is_some());
        assert!(cache.get_stale(&query("a.example"), after(4000)).is_none());
        assert!(cache.get(&query("b.example"), now).is_none(), "a lifetime of zero");
        let signed = Query {
            dnssec: true,
            ..query("a.example")
        };
        assert!(cache.get(&signed, now).is_none());
        cache.clear();
        assert_eq!(
            (cache.get_stale(&query("a.example"), now).is_none(), cache.size()),
            (true, (0, 0))
        );
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let (mut cache, now) = (Cache::new(10_000), Instant::now());
        cache.put(query("popular.example").to_key(), stored("popular.example", 60, now));
        for number in 0..1000 {
            let name = format!("n{number}.example");
            cache.put(query(&name).to_key(), stored(&name, 60, now));
            assert!(cache.get(&query("popular.example"), now).is_some(), "{number}");
        }
        let (count, bytes) = cache.size();
        assert!(bytes <= 10_000 && count > 10, "{count} entries, {bytes} bytes");
        assert_eq!(cache.order.len(), count);
    }
}
