//! The recent events of one resource, bounded in age, count and bytes.
//!
//! Invariant: every event of the resource with a revision above `floor` is here, in order. Kept are at least
//! [`KEEP_COUNT`] events and those of the last [`KEEP_TIME`], but never more than [`MAX_COUNT`] or [`MAX_BYTES`]: the
//! times are Kubernetes' (bookmark period plus slack), so that a client that gets a bookmark a minute can always resume.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Event, Revision};

pub(super) const KEEP_TIME: Duration = Duration::from_secs(75);
pub(super) const KEEP_COUNT: usize = 100;
pub(super) const MAX_COUNT: usize = 102_400;
pub(super) const MAX_BYTES: usize = 16 << 20;
/// What an event costs besides the bodies it keeps alive.
const EVENT_BYTES: usize = 400;

#[derive(Debug)]
pub(super) struct Ring {
    events: VecDeque<(Event, Instant)>,
    /// Position of the first event kept; positions count all events of the resource since the start.
    first: u64,
    bytes: usize,
    floor: Revision,
}

impl Ring {
    /// Covers everything after `floor`.
    pub(super) fn new(floor: Revision) -> Self {
        Self {
            events: VecDeque::new(),
            first: 0,
            bytes: 0,
            floor,
        }
    }

    pub(super) fn push(&mut self, event: Event, now: Instant) {
        self.bytes += cost(&event);
        self.events.push_back((event, now));
        while let Some((oldest, at)) = self.events.front() {
            let stale = self.events.len() > KEEP_COUNT && now.duration_since(*at) > KEEP_TIME;
            let over = self.events.len() > MAX_COUNT || (self.bytes > MAX_BYTES && self.events.len() > 1);
            if !stale && !over {
                break;
            }
            self.floor = oldest.revision;
            self.bytes -= cost(oldest);
            self.first += 1;
            self.events.pop_front();
        }
        if self.events.capacity() > 1024 && self.events.len() < self.events.capacity() / 4 {
            self.events.shrink_to(self.events.len() * 2);
        }
    }

    /// Events after this revision are complete.
    pub(super) fn floor(&self) -> Revision {
        self.floor
    }

    /// Position after the newest event.
    pub(super) fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// The event at a position; `Err` if it is no longer kept, `Ok(None)` if it has not happened.
    pub(super) fn get(&self, position: u64) -> Result<Option<&Event>, ()> {
        let at = position.checked_sub(self.first).ok_or(())?;
        Ok(usize::try_from(at)
            .ok()
            .and_then(|at| self.events.get(at))
            .map(|(event, _)| event))
    }

    /// Position of the first event after a revision, if all of those are kept.
    pub(super) fn after(&self, revision: Revision) -> Option<u64> {
        if revision < self.floor {
            return None;
        }
        let index = self.events.partition_point(|(event, _)| event.revision <= revision);
        Some(self.first + index as u64)
    }

    /// From the newest to the oldest.
    pub(super) fn backwards(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().rev().map(|(event, _)| event)
    }
}

fn cost(event: &Event) -> usize {
    event.object.body.len() + EVENT_BYTES
}

#[cfg(test)]
mod tests {
    use super::super::{EventKind, Index, Object};
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn event(revision: Revision, bytes: usize) -> Event {
        let value = json!({"data": "x".repeat(bytes)});
        let object = Object::new(("secrets", "d", "n"), revision, 1, Index::default(), &value);
        Event {
            kind: EventKind::Added,
            revision,
            object: Arc::new(object),
            previous: None,
        }
    }

    #[test]
    fn young_events_stay_and_old_ones_go_beyond_the_least_count() {
        let start = Instant::now();
        let mut ring = Ring::new(7);
        for n in 0..1000 {
            ring.push(event(10 + n, 1), start);
        }
        assert_eq!((ring.floor(), ring.end()), (7, 1000));
        assert_eq!(ring.after(6), None);
        assert_eq!(ring.after(7), Some(0));
        assert_eq!(ring.after(12), Some(3));
        ring.push(event(2000, 1), start + KEEP_TIME * 2);
        assert_eq!(ring.end() - ring.first, KEEP_COUNT as u64);
        assert_eq!(ring.floor(), 910);
        assert!(ring.get(0).is_err());
        assert_eq!(ring.get(1000).unwrap().unwrap().revision, 2000);
        assert!(ring.get(1001).unwrap().is_none());
    }

    #[test]
    fn bytes_are_bounded() {
        let now = Instant::now();
        let mut ring = Ring::new(0);
        for n in 0..40 {
            ring.push(event(n + 1, 1 << 20), now);
            assert!(ring.bytes <= MAX_BYTES);
        }
        assert!(ring.floor() >= 24, "{}", ring.floor());
        ring.push(event(100, MAX_BYTES + 1), now);
        assert_eq!((ring.events.len(), ring.floor()), (1, 40));
    }
}
