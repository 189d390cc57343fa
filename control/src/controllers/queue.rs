//! A work queue without a clock of its own: de-duplicating, never handing out a key that is being worked on, with
//! exponential back-off for failures and timers for later looks.
//!
//! Invariant: a key added while it is worked on is handed out again afterwards; nothing added is ever lost.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

/// The first back-off; it doubles with each failure.
pub const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// The longest back-off.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// How work on a key ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Well; look again after the time, if any.
    Done(Option<Duration>),
    /// Badly: try again after the back-off.
    Failed,
}

#[derive(Debug, Default)]
struct State {
    queued: bool,
    running: bool,
    again: bool,
    failures: u32,
    due: Option<Duration>,
}

/// The queue. Times are of any monotonic clock.
#[derive(Debug)]
pub struct Queue<K> {
    ready: VecDeque<K>,
    states: HashMap<K, State>,
    timers: BinaryHeap<Reverse<(Duration, K)>>,
}

impl<K> Default for Queue<K>
where
    K: Ord,
{
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            states: HashMap::new(),
            timers: BinaryHeap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    /// Work on `key` as soon as possible.
    pub fn add(&mut self, key: K) {
        let state = self.states.entry(key.clone()).or_default();
        if state.running {
            state.again = true;
        } else if !state.queued {
            state.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Work on `key` at `due`, unless it is worked on before.
    pub fn add_at(&mut self, key: K, due: Duration) {
        let state = self.states.entry(key.clone()).or_default();
        if state.due.is_none_or(|earlier| due < earlier) {
            state.due = Some(due);
            self.timers.push(Reverse((due, key)));
        }
    }

    /// The next key to work on. [`Queue::end`] must follow.
    pub fn pop(&mut self, now: Duration) -> Option<K> {
        self.fire(now);
        let key = self.ready.pop_front()?;
        let state = self.states.entry(key.clone()).or_default();
        state.queued = false;
        state.running = true;
        state.due = None;
        Some(key)
    }

    /// Work on a key taken with [`Queue::pop`] has ended.
    pub fn end(&mut self, key: &K, end: End, now: Duration) {
        let Some(state) = self.states.get_mut(key) else { return };
        state.running = false;
        let again = std::mem::take(&mut state.again);
        let due = match end {
            End::Done(after) => {
                state.failures = 0;
                after
            }
            End::Failed => {
                state.failures += 1;
                Some(backoff(state.failures))
            }
        };
        if let Some(after) = due {
            self.add_at(key.clone(), now + after);
        }
        if again {
            self.add(key.clone());
        }
        self.forget_if_idle(key);
    }

    /// When the earliest timer fires.
    pub fn next_due(&mut self) -> Option<Duration> {
        while let Some(Reverse((due, key))) = self.timers.peek() {
            if self.states.get(key).and_then(|s| s.due) == Some(*due) {
                return Some(*due);
            }
            self.timers.pop();
        }
        None
    }

    fn fire(&mut self, now: Duration) {
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse((_, key))) = self.timers.pop() else {
                return;
            };
            if let Some(state) = self.states.get_mut(&key) {
                state.due = None;
            }
            self.add(key);
        }
    }

    fn forget_if_idle(&mut self, key: &K) {
        let idle = |s: &State| !s.queued && !s.running && s.failures == 0 && s.due.is_none();
        if self.states.get(key).is_some_and(idle) {
            self.states.remove(key);
        }
    }
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << (failures - 1).min(20)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_key_is_handed_out_once_and_again_if_added_meanwhile() {
        let mut queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.pop(MS), Some("a"));
        queue.add("a");
        assert_eq!(queue.pop(MS), None, "it is being worked on");
        queue.end(&"a", End::Done(None), MS);
        assert_eq!(queue.pop(MS), Some("a"));
        queue.end(&"a", End::Done(None), MS);
        assert_eq!(queue.pop(MS), None);
        assert!(queue.states.is_empty(), "idle keys take no memory");
    }

    #[test]
    fn failures_back_off_exponentially_and_success_resets() {
        let mut queue = Queue::default();
        queue.add("a");
        let mut now = Duration::ZERO;
        for expected in [5, 10, 20, 40] {
            assert_eq!(queue.pop(now), Some("a"));
            queue.end(&"a", End::Failed, now);
            assert_eq!(queue.next_due(), Some(now + MS * expected));
            assert_eq!(queue.pop(now), None);
            now += MS * expected;
        }
        assert_eq!(queue.pop(now), Some("a"));
        queue.end(&"a", End::Done(None), now);
        queue.add("a");
        assert_eq!(queue.pop(now), Some("a"));
        queue.end(&"a", End::Failed, now);
        assert_eq!(queue.next_due(), Some(now + BACKOFF_MIN));
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }

    #[test]
    fn an_event_overtakes_the_timer() {
        let mut queue = Queue::default();
        queue.add_at("a", MS * 100);
        queue.add("a");
        assert_eq!(queue.pop(MS), Some("a"));
        queue.end(&"a", End::Done(None), MS);
        assert_eq!(queue.next_due(), None, "the work replaced the timer");
        queue.add_at("a", MS * 100);
        queue.add_at("a", MS * 50);
        assert_eq!(queue.next_due(), Some(MS * 50));
        assert_eq!(queue.pop(MS * 60), Some("a"));
    }
}
