//! Events are forgotten after an hour (`--event-ttl`).
//!
//! One sweep a minute reads the times of all events; at most so many go at once that the store has room for others.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::controller::{Context, Controller, Key, Outcome};
use super::view::View;
use crate::cache::{Event, Object};

const TTL: SignedDuration = SignedDuration::from_hours(1);
const SWEEP: Duration = Duration::from_secs(60);
/// Deletions per step.
const BATCH: usize = 200;

/// The controller.
pub struct EventTtl;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Times {
    last_timestamp: Option<Timestamp>,
    event_time: Option<Timestamp>,
    metadata: Created,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    creation_timestamp: Option<Timestamp>,
}

fn last_seen(object: &Object) -> Option<Timestamp> {
    let times: Times = serde_json::from_slice(&object.body).ok()?;
    times
        .last_timestamp
        .max(times.event_time)
        .max(times.metadata.creation_timestamp)
}

impl Controller for EventTtl {
    fn name(&self) -> &'static str {
        "event-ttl-controller"
    }

    fn start(&self) -> Vec<Key> {
        vec![Key::new("events", "", "")]
    }

    fn keys(&self, _view: &dyn View, _event: &Event, _add: &mut dyn FnMut(Key)) {}

    fn reconcile(&mut self, context: &Context<'_>, _key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let old = |object: &Object| last_seen(object).is_none_or(|seen| context.now.wall.duration_since(seen) > TTL);
        let events = context.view.list("events", None);
        events
            .iter()
            .filter(|event| old(event))
            .take(BATCH)
            .for_each(|event| outcome.delete(event, None));
        let full = outcome.operations.len() == BATCH;
        outcome.requeue(if full { Duration::from_millis(10) } else { SWEEP });
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::memory::World;

    #[test]
    fn an_hour_after_it_was_last_seen() {
        let mut world = World::new(vec![Box::new(EventTtl)]);
        world
            .memory
            .put("events", "d", serde_json::json!({"metadata": {"name": "e"}}));
        world.advance(Duration::from_secs(1800));
        let again = serde_json::json!({"lastTimestamp": world.memory.wall.to_string()});
        world.memory.patch("events", "d", "e", &again);
        world.advance(Duration::from_secs(3590));
        assert_eq!(world.memory.objects("events").len(), 1);
        world.advance(Duration::from_secs(120));
        assert!(world.memory.objects("events").is_empty());
    }
}
