//! Lists: pages in key order, now or exactly at a past revision.
//!
//! A past state is not kept: it is rebuilt by undoing, on an O(1) clone, the events since, which the ring has anyway.
//! So a list can be continued exactly for as long as a watch could be resumed from it.

use std::sync::Arc;

use super::table::{Snapshot, Tables};
use super::{Expired, Object, Page, Query, Revision, Shared};

/// A resource exactly as it was at a revision that has happened.
pub(super) fn snapshot_at(tables: &Tables, resource: &Arc<str>, at: Revision) -> Result<Snapshot, Expired> {
    let expired = || Expired {
        requested: at,
        oldest: tables.floor(resource),
    };
    if at > tables.revision || at < tables.floor(resource) {
        return Err(expired());
    }
    let mut objects = tables
        .get(resource)
        .map(|table| table.objects.clone())
        .unwrap_or_default();
    let events = tables
        .get(resource)
        .into_iter()
        .flat_map(|table| table.ring.backwards());
    for event in events.take_while(|event| event.revision > at) {
        let key: Arc<str> = super::key(resource, &event.object.namespace, &event.object.name).into();
        match &event.previous {
            Some(previous) => objects.insert_mut(key, previous.clone()),
            None => _ = objects.remove_mut(&*key),
        }
    }
    Ok(Snapshot {
        objects,
        revision: at,
        resource: resource.clone(),
    })
}

pub(super) fn list(
    shared: &Shared,
    query: &Query,
    limit: Option<usize>,
    after: Option<&str>,
    at: Option<Revision>,
) -> Result<Page, Expired> {
    let tables = shared.tables.read();
    let current = at.is_none_or(|at| at == tables.revision);
    if current
        && &*query.resource == "pods"
        && let Some(node) = query.selector.field("spec.nodeName").filter(|node| !node.is_empty())
    {
        let behind = |object: &&Arc<Object>| after.is_none_or(|after| *suffix(object) > *after);
        return Ok(page(tables.on_node(node).filter(behind), query, limit, tables.revision));
    }
    let snapshot = snapshot_at(&tables, &query.resource, at.unwrap_or(tables.revision))?;
    drop(tables);
    let namespace = query.namespace.as_deref();
    if let Some(name) = query.selector.field("metadata.name")
        && let Some(namespace) = namespace
    {
        let one = snapshot
            .get(namespace, name)
            .filter(|object| after.is_none_or(|after| *suffix(object) > *after));
        return Ok(page(one.into_iter(), query, limit, snapshot.revision));
    }
    Ok(page(snapshot.range(namespace, after), query, limit, snapshot.revision))
}

fn page<'a>(
    objects: impl Iterator<Item = &'a Arc<Object>>,
    query: &Query,
    limit: Option<usize>,
    revision: Revision,
) -> Page {
    let mut matching = objects.filter(|object| {
        query
            .namespace
            .as_ref()
            .is_none_or(|namespace| *namespace == object.namespace)
            && query.selector.matches(&object.index)
    });
    let Some(limit) = limit.filter(|limit| *limit > 0) else {
        return Page {
            items: matching.cloned().collect(),
            revision,
            next: None,
            remaining: None,
        };
    };
    let items: Vec<_> = matching.by_ref().take(limit).cloned().collect();
    let (next, remaining) = if query.selector.is_everything() {
        match matching.count() as u64 {
            0 => (None, None),
            left => (items.last().map(suffix), Some(left)),
        }
    } else {
        (matching.next().and(items.last()).map(suffix), None)
    };
    Page {
        items,
        revision,
        next,
        remaining,
    }
}

/// An object's key behind the resource's prefix.
fn suffix(object: &Arc<Object>) -> String {
    match &*object.namespace {
        "" => object.name.to_string(),
        namespace => format!("{namespace}/{}", object.name),
    }
}
