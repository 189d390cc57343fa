//! Pods that wait: those to try now, by priority and age, and those that fitted nowhere, with back-off.
//!
//! A pod that fitted nowhere is tried again when something changed that may help, but not before its back-off is over, and
//! in any case after five minutes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::pod::PodInfo;
use crate::controllers::controller::Key;

/// First back-off; it doubles with each attempt.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest back-off.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Tried again after this time even if nothing happened.
const GIVE_ANOTHER_CHANCE: Duration = Duration::from_secs(300);

/// Higher priority first, then older.
type Rank = (std::cmp::Reverse<i32>, u64);

#[derive(Debug)]
struct Waiting {
    pod: Arc<PodInfo>,
    rank: Rank,
    attempts: u32,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// Being bound.
    Taken,
    /// Did not fit; may be tried from the first time on if something changed, and in any case at the second.
    Unschedulable {
        backoff: Duration,
        latest: Duration,
        changed: bool,
    },
}

/// The queue. Times are of any monotonic clock.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<Key, Waiting>,
    ready: BTreeMap<Rank, Key>,
    /// Those that fitted nowhere.
    aside: HashSet<Key>,
    serial: u64,
}

impl Queue {
    /// A pod waits, or one that waits has changed.
    pub fn put(&mut self, pod: Arc<PodInfo>) {
        let key = pod.key.clone();
        if let Some(waiting) = self.pods.get_mut(&key)
            && waiting.pod.uid == pod.uid
        {
            waiting.pod = pod;
            return;
        }
        self.remove(&key);
        self.serial += 1;
        let rank = (std::cmp::Reverse(pod.priority), self.serial);
        self.ready.insert(rank, key.clone());
        self.pods.insert(
            key,
            Waiting {
                pod,
                rank,
                attempts: 0,
                state: State::Ready,
            },
        );
    }

    /// Whether a pod waits, or is being bound.
    pub fn contains(&self, key: &Key) -> bool {
        self.pods.contains_key(key)
    }

    /// A pod does not wait any more.
    pub fn remove(&mut self, key: &Key) {
        if let Some(waiting) = self.pods.remove(key) {
            self.ready.remove(&waiting.rank);
            self.aside.remove(key);
        }
    }

    /// The next pod to try. [`Queue::remove`], [`Queue::unschedulable`] or [`Queue::retry`] must follow.
    pub fn pop(&mut self, now: Duration) -> Option<Arc<PodInfo>> {
        self.wake(now);
        let (_, key) = self.ready.pop_first()?;
        let waiting = self.pods.get_mut(&key)?;
        waiting.state = State::Taken;
        waiting.attempts += 1;
        Some(waiting.pod.clone())
    }

    /// The pod fits nowhere now.
    pub fn unschedulable(&mut self, key: &Key, now: Duration) {
        self.set_aside(key, now, false);
    }

    /// The attempt went wrong for another reason: again after the back-off.
    pub fn retry(&mut self, key: &Key, now: Duration) {
        self.set_aside(key, now, true);
    }

    fn set_aside(&mut self, key: &Key, now: Duration, changed: bool) {
        if let Some(waiting) = self.pods.get_mut(key) {
            let factor = 1u32 << (waiting.attempts.max(1) - 1).min(10);
            let backoff = now + BACKOFF_MIN.saturating_mul(factor).min(BACKOFF_MAX);
            waiting.state = State::Unschedulable {
                backoff,
                latest: now + GIVE_ANOTHER_CHANCE,
                changed,
            };
            self.aside.insert(key.clone());
        }
    }

    /// Something happened that may help pods that fitted nowhere.
    pub fn changed(&mut self) {
        for key in &self.aside {
            if let Some(State::Unschedulable { changed, .. }) = self.pods.get_mut(key).map(|w| &mut w.state) {
                *changed = true;
            }
        }
    }

    /// When a pod set aside is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.aside
            .iter()
            .filter_map(|key| due(&self.pods.get(key)?.state))
            .min()
    }

    fn wake(&mut self, now: Duration) {
        let Self { pods, ready, aside, .. } = self;
        aside.retain(|key| {
            let Some(waiting) = pods.get_mut(key) else { return false };
            let wakes = due(&waiting.state).is_some_and(|due| due <= now);
            if wakes {
                waiting.state = State::Ready;
                ready.insert(waiting.rank, key.clone());
            }
            !wakes
        });
    }
}

fn due(state: &State) -> Option<Duration> {
    match state {
        State::Unschedulable {
            backoff, changed: true, ..
        } => Some(*backoff),
        State::Unschedulable { latest, .. } => Some(*latest),
        State::Ready | State::Taken => None,
    }
}
