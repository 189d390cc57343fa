//! Watching: a watcher is a cursor into the ring of events, never a queue of its own.
//!
//! A waiter that has seen everything and asks only for one namespace or node is moved along by the publisher when an
//! event is none of its business: it is not woken, and it cannot fall behind because others write.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::sync::Notify;

use super::table::Tables;
use super::{Event, EventKind, Expired, Query, Revision, Shared};

/// How many events a watcher takes in one hold of the lock.
const TAKE: usize = 64;

/// The publisher's view of a watcher's cursor in one resource.
pub(super) struct Waiter {
    wake: Arc<Notify>,
    /// Position of the next event to take. Written under the tables' lock.
    position: AtomicU64,
    namespace: Option<Arc<str>>,
    node: Option<Box<str>>,
}

impl Waiter {
    /// Told of every event of the resource, at its position, under the tables' write lock.
    pub(super) fn offer(&self, event: &Event, position: u64) {
        let concerned = self
            .namespace
            .as_ref()
            .is_none_or(|namespace| *namespace == event.object.namespace)
            && self.node.as_ref().is_none_or(|node| {
                let on_node =
                    |object: &Arc<super::Object>| object.field("spec.nodeName").unwrap_or_default() == &**node;
                on_node(&event.object) || event.previous.as_ref().is_some_and(on_node)
            });
        if concerned {
            self.wake.notify_one();
        } else {
            let _ = self.position.compare_exchange(position, position + 1, Relaxed, Relaxed);
        }
    }
}

struct Cursor {
    resource: Arc<str>,
    waiter: Arc<Waiter>,
}

/// A cursor into the events of one or more resources.
pub struct Watcher {
    shared: Arc<Shared>,
    cursors: Vec<Cursor>,
    query: Option<Query>,
    wake: Arc<Notify>,
    /// Taken, not yet delivered.
    taken: VecDeque<Event>,
    /// All before this is delivered, except what is in `taken`.
    through: Revision,
}

impl Watcher {
    /// Watch one resource, as `query` asks, from `after` on.
    pub(super) fn filtered(shared: &Arc<Shared>, query: Query, after: Revision) -> Result<Self, Expired> {
        let mut tables = shared.tables.write();
        let table = tables.table(&query.resource);
        let Some(position) = table.ring.after(after) else {
            return Err(Expired {
                requested: after,
                oldest: table.ring.floor(),
            });
        };
        let wake = Arc::new(Notify::new());
        let waiter = Arc::new(Waiter {
            wake: wake.clone(),
            position: AtomicU64::new(position),
            namespace: query.namespace.clone(),
            node: query.selector.field("spec.nodeName").map(Box::from),
        });
        table.waiters.push(waiter.clone());
        let cursors = vec![Cursor {
            resource: query.resource.clone(),
            waiter,
        }];
        let shared = shared.clone();
        Ok(Self {
            shared,
            cursors,
            query: Some(query),
            wake,
            taken: VecDeque::new(),
            through: after,
        })
    }

    /// Watch all of some resources from now on.
    pub(super) fn all(shared: &Arc<Shared>, resources: &[&str]) -> Self {
        let wake = Arc::new(Notify::new());
        let mut tables = shared.tables.write();
        let mut cursors = Vec::new();
        for resource in resources {
            let resource = shared.intern(resource);
            let table = tables.table(&resource);
            let position = AtomicU64::new(table.ring.end());
            let waiter = Arc::new(Waiter {
                wake: wake.clone(),
                position,
                namespace: None,
                node: None,
            });
            table.waiters.push(waiter.clone());
            cursors.push(Cursor { resource, waiter });
        }
        let through = tables.revision;
        Self {
            shared: shared.clone(),
            cursors,
            query: None,
            wake,
            taken: VecDeque::new(),
            through,
        }
    }

    /// The next event that the selector lets through; waits for it. Cancel-safe.
    ///
    /// # Errors
    /// [`Expired`] when this watcher lagged past what the cache keeps.
    pub async fn next(&mut self) -> Result<Event, Expired> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            self.wake.notified().await;
        }
    }

    /// The next event if one is there now.
    ///
    /// # Errors
    /// As [`Watcher::next`].
    pub fn try_next(&mut self) -> Result<Option<Event>, Expired> {
        loop {
            while let Some(event) = self.taken.pop_front() {
                if let Some(event) = self.translate(event) {
                    return Ok(Some(event));
                }
            }
            if !self.take()? {
                return Ok(None);
            }
        }
    }

    /// Everything up to this revision has been delivered: what a bookmark says.
    pub fn revision(&self) -> Revision {
        match self.taken.front() {
            Some(event) => event.revision - 1,
            None => self.through.max(self.seen(&self.shared.tables.read())),
        }
    }

    /// Take up to [`TAKE`] events in revision order; false if there is none.
    fn take(&mut self) -> Result<bool, Expired> {
        let shared = self.shared.clone();
        let tables = shared.tables.read();
        while self.taken.len() < TAKE {
            let mut earliest: Option<(&Cursor, &Event)> = None;
            for cursor in &self.cursors {
                if let Some(event) = peek(cursor, &tables).map_err(|()| self.expired(cursor, &tables))?
                    && earliest.is_none_or(|(_, e)| event.revision < e.revision)
                {
                    earliest = Some((cursor, event));
                }
            }
            let Some((cursor, event)) = earliest else { break };
            cursor.waiter.position.fetch_add(1, Relaxed);
            self.taken.push_back(event.clone());
        }
        self.through = self.through.max(self.seen(&tables));
        Ok(!self.taken.is_empty())
    }

    fn expired(&self, cursor: &Cursor, tables: &Tables) -> Expired {
        Expired {
            requested: self.through,
            oldest: tables.floor(&cursor.resource),
        }
    }

    /// Up to which revision the cursors have taken everything.
    fn seen(&self, tables: &Tables) -> Revision {
        let next = self.cursors.iter().map(|cursor| match peek(cursor, tables) {
            Ok(Some(event)) => event.revision - 1,
            Ok(None) => tables.revision,
            Err(()) => self.through,
        });
        next.min().unwrap_or(tables.revision)
    }

    /// The event as this watcher's selector sees it.
    fn translate(&self, event: Event) -> Option<Event> {
        let Some(query) = &self.query else { return Some(event) };
        if query
            .namespace
            .as_ref()
            .is_some_and(|namespace| *namespace != event.object.namespace)
        {
            return None;
        }
        if query.selector.is_everything() {
            return Some(event);
        }
        let matched = event
            .previous
            .as_ref()
            .is_some_and(|previous| query.selector.matches(&previous.index));
        let matches = event.kind != EventKind::Deleted && query.selector.matches(&event.object.index);
        let (kind, object) = match (matched, matches) {
            (false, false) => return None,
            (false, true) => (EventKind::Added, event.object),
            (true, true) => (EventKind::Modified, event.object),
            (true, false) if event.kind == EventKind::Deleted => (EventKind::Deleted, event.object),
            (true, false) => (
                EventKind::Deleted,
                Arc::new(event.previous.as_ref()?.at(event.revision)),
            ),
        };
        Some(Event { kind, object, ..event })
    }
}

fn peek<'t>(cursor: &Cursor, tables: &'t Tables) -> Result<Option<&'t Event>, ()> {
    match tables.get(&cursor.resource) {
        Some(table) => table.ring.get(cursor.waiter.position.load(Relaxed)),
        None => Ok(None),
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut tables = self.shared.tables.write();
        for cursor in &self.cursors {
            tables
                .table(&cursor.resource)
                .waiters
                .retain(|waiter| !Arc::ptr_eq(waiter, &cursor.waiter));
        }
    }
}
