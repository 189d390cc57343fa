//! Drives all controllers from one task: cache events in, reconciled keys out to the executor.
//!
//! Decisions happen on this task, one after the other; writes happen concurrently, at most one set per key. A watch that
//! fell behind starts over from a full listing, which level-triggered controllers do not mind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use tokio::time::Instant;

use super::controller::{Context, Controller, Key, Now};
use super::execute::{Executor, Failure};
use super::queue::{End, Queue};
use super::view::{CacheView, View};
use crate::cache::{Cache, Event, EventKind, Expired, Watcher};

/// Keys whose writes may be under way at the same time.
const IN_FLIGHT: usize = 128;
/// Events taken in before the queue is served again.
const EVENT_BATCH: usize = 256;

/// A controller's index and a key of it.
type Job = (usize, Key);
/// A job whose writes have ended, when to look again, and how they went.
type Written = (Job, Option<Duration>, Result<(), Failure>);

/// The state of the one task.
pub struct Runner {
    view: CacheView,
    controllers: Vec<Box<dyn Controller>>,
    resources: Vec<&'static str>,
    executor: Arc<Executor>,
    queue: Queue<Job>,
    failures: HashMap<Job, String>,
    started: Instant,
    in_flight: FuturesUnordered<BoxFuture<'static, Written>>,
}

impl Runner {
    /// A runner for `controllers`, which see events of `resources`.
    pub fn new(
        cache: Arc<Cache>,
        controllers: Vec<Box<dyn Controller>>,
        resources: Vec<&'static str>,
        executor: Executor,
    ) -> Self {
        Self {
            view: CacheView(cache),
            controllers,
            resources,
            executor: Arc::new(executor),
            queue: Queue::default(),
            failures: HashMap::new(),
            started: Instant::now(),
            in_flight: FuturesUnordered::new(),
        }
    }

    /// Run until aborted.
    pub async fn run(mut self) {
        let mut watcher = self.list_and_watch();
        loop {
            self.serve();
            let due = self.queue.next_due();
            let deadline = self.started + due.unwrap_or(Duration::from_secs(3600));
            tokio::select! {
                event = watcher.next() => {
                    if self.take_in(&mut watcher, event).is_err() {
                        watcher = self.list_and_watch();
                    }
                }
                Some((job, after, result)) = self.in_flight.next() => self.finish(job, after, result),
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    /// Everything there is, as if just added, and a watch for what comes.
    fn list_and_watch(&mut self) -> Watcher {
        let watcher = self.view.0.watch_all(&self.resources);
        for resource in self.resources.clone() {
            for object in self.view.list(resource, None) {
                let revision = object.revision;
                self.dispatch(&Event {
                    kind: EventKind::Added,
                    revision,
                    object,
                    previous: None,
                });
            }
        }
        for (index, controller) in self.controllers.iter().enumerate() {
            for key in controller.start() {
                self.queue.add((index, key));
            }
        }
        watcher
    }

    fn take_in(&mut self, watcher: &mut Watcher, first: Result<Event, Expired>) -> Result<(), Expired> {
        self.dispatch(&first?);
        for _ in 1..EVENT_BATCH {
            match watcher.try_next() {
                Ok(Some(event)) => self.dispatch(&event),
                Ok(None) => break,
                Err(expired) => return Err(expired),
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, event: &Event) {
        for (index, controller) in self.controllers.iter().enumerate() {
            controller.keys(&self.view, event, &mut |key| self.queue.add((index, key)));
        }
    }

    fn now(&self) -> Now {
        Now {
            wall: Timestamp::now(),
            monotonic: self.started.elapsed(),
        }
    }

    /// Reconcile what is ready, as far as writes may be under way.
    fn serve(&mut self) {
        while self.in_flight.len() < IN_FLIGHT {
            let now = self.now();
            let Some(job) = self.queue.pop(now.monotonic) else {
                return;
            };
            let failure = self.failures.remove(&job);
            let context = Context {
                view: &self.view,
                now,
                failure: failure.as_deref(),
            };
            let outcome = self.controllers[job.0].reconcile(&context, &job.1);
            let after = outcome.requeue_after;
            if outcome.operations.is_empty() && outcome.notices.is_empty() {
                self.finish(job, after, Ok(()));
                continue;
            }
            let (executor, name) = (self.executor.clone(), self.controllers[job.0].name());
            self.in_flight
                .push(async move { (job, after, executor.run(name, outcome).await) }.boxed());
        }
    }

    fn finish(&mut self, job: Job, after: Option<Duration>, result: Result<(), Failure>) {
        let end = match result {
            Ok(()) => End::Done(after),
            Err(failure) => {
                if !failure.conflict {
                    self.failures.insert(job.clone(), failure.message);
                }
                End::Failed
            }
        };
        let now = self.started.elapsed();
        self.queue.end(&job, end, now);
    }
}
