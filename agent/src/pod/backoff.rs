//! How long to wait before starting a container again, or pulling an image again.
//!
//! As the kubelet does: the first retry is immediate, then 10 s, doubling to 5 min; a container that ran for twice
//! the maximum is forgiven.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The first non-zero delay.
pub const INITIAL: Duration = Duration::from_secs(10);
/// The longest delay.
pub const MAXIMUM: Duration = Duration::from_secs(300);

/// The back-off of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    delay: Duration,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<Timestamp>,
}

impl Backoff {
    /// The earliest moment of the next attempt after a failure at `failed`.
    #[must_use]
    pub fn next_attempt(&self, failed: Timestamp) -> Timestamp {
        if self.expired(failed) {
            failed
        } else {
            failed + self.delay
        }
    }

    /// The delay in force.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// Notes that another attempt is made at `now`: the next one waits longer.
    pub fn attempt(&mut self, now: Timestamp) {
        self.delay = if self.delay.is_zero() || self.expired(now) {
            INITIAL
        } else {
            (self.delay * 2).min(MAXIMUM)
        };
        self.last = Some(now);
    }

    fn expired(&self, now: Timestamp) -> bool {
        self.last
            .is_some_and(|last| now.duration_since(last).unsigned_abs() > MAXIMUM * 2 && now > last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn first_restart_is_immediate_then_doubles_to_the_maximum() {
        let mut backoff = Backoff::default();
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let next = backoff.next_attempt(now);
            waits.push(next.duration_since(now).as_secs());
            now = next;
            backoff.attempt(now);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_container_that_ran_long_is_forgiven() {
        let mut backoff = Backoff::default();
        backoff.attempt(at(0));
        backoff.attempt(at(10));
        assert_eq!(backoff.next_attempt(at(600)), at(620));
        assert_eq!(backoff.next_attempt(at(611)), at(611));
        backoff.attempt(at(611));
        assert_eq!(backoff.delay(), INITIAL);
    }
}
