//! Everything in memory: a table per resource (objects, recent events, who watches) and the secondary indexes.
//!
//! Invariant: under one hold of the lock the tables, the indexes and `revision` agree; a committed batch enters whole.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use super::ring::Ring;
use super::watcher::Waiter;
use super::{Event, EventKind, Object, Revision};

/// Full key to object, persistent: cloning is O(1).
pub(super) type Map = rpds::RedBlackTreeMapSync<Arc<str>, Arc<Object>>;

/// Objects by full key, under an index value.
type Group = BTreeMap<Arc<str>, Arc<Object>>;

pub(super) struct Table {
    pub(super) objects: Map,
    pub(super) ring: Ring,
    pub(super) waiters: Vec<Arc<Waiter>>,
}

/// All tables at one revision.
pub(super) struct Tables {
    pub(super) revision: Revision,
    /// The revision loaded at the start: earlier events are unknown.
    floor: Revision,
    tables: HashMap<Arc<str>, Table>,
    nodes: HashMap<Box<str>, Group>,
    owners: HashMap<Box<str>, Group>,
}

impl Tables {
    pub(super) fn new() -> Self {
        let (tables, nodes, owners) = Default::default();
        Self {
            revision: 0,
            floor: 0,
            tables,
            nodes,
            owners,
        }
    }

    pub(super) fn get(&self, resource: &str) -> Option<&Table> {
        self.tables.get(resource)
    }

    /// The table of a resource, made if there is none.
    pub(super) fn table(&mut self, resource: &Arc<str>) -> &mut Table {
        let floor = self.floor;
        self.tables.entry(resource.clone()).or_insert_with(|| Table {
            objects: Map::new_sync(),
            ring: Ring::new(floor),
            waiters: Vec::new(),
        })
    }

    /// The lowest revision from which this resource can be watched or listed exactly.
    pub(super) fn floor(&self, resource: &str) -> Revision {
        self.get(resource).map_or(self.floor, |table| table.ring.floor())
    }

    /// Take objects as they were found in the store, without events.
    pub(super) fn load(&mut self, objects: Vec<(Arc<str>, Arc<Object>)>, revision: Revision) {
        (self.revision, self.floor) = (revision, revision);
        for (key, object) in objects {
            self.reindex(&key, None, Some(&object));
            self.table(&object.resource).objects.insert_mut(key, object);
        }
    }

    /// Apply one committed change; `object` is `None` for a deletion.
    pub(super) fn apply(
        &mut self,
        key: Arc<str>,
        resource: &Arc<str>,
        object: Option<Arc<Object>>,
        revision: Revision,
        now: Instant,
    ) {
        self.revision = revision;
        let table = self.table(resource);
        let previous = table.objects.get(&*key).cloned();
        let kind = match (&previous, &object) {
            (None, None) => return,
            (None, Some(_)) => EventKind::Added,
            (Some(_), Some(_)) => EventKind::Modified,
            (Some(_), None) => EventKind::Deleted,
        };
        match &object {
            Some(object) => table.objects.insert_mut(key.clone(), object.clone()),
            None => _ = table.objects.remove_mut(&*key),
        }
        let gone = || previous.as_ref().map(|previous| Arc::new(previous.at(revision)));
        if let Some(shown) = object.clone().or_else(gone) {
            let position = table.ring.end();
            let event = Event {
                kind,
                revision,
                object: shown,
                previous: previous.clone(),
            };
            for waiter in &table.waiters {
                waiter.offer(&event, position);
            }
            table.ring.push(event, now);
        }
        self.reindex(&key, previous.as_ref(), object.as_ref());
    }

    fn reindex(&mut self, key: &Arc<str>, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        if old.or(new).is_some_and(|object| &*object.resource == "pods") {
            let node = |object: &Arc<Object>| object.field("spec.nodeName").filter(|n| !n.is_empty()).map(Box::from);
            regroup(&mut self.nodes, key, old.and_then(node), new.and_then(node), new);
        }
        let owners = |object: Option<&Arc<Object>>| -> HashSet<Box<str>> {
            object
                .map(|object| object.index.owners.iter().cloned().collect())
                .unwrap_or_default()
        };
        let (before, after) = (owners(old), owners(new));
        for uid in before.difference(&after) {
            regroup(&mut self.owners, key, Some(uid.clone()), None, None);
        }
        for uid in after {
            regroup(&mut self.owners, key, None, Some(uid), new);
        }
    }

    pub(super) fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.nodes.get(node).into_iter().flat_map(BTreeMap::values)
    }

    pub(super) fn owned_by(&self, uid: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.owners.get(uid).into_iter().flat_map(BTreeMap::values)
    }
}

/// Move an object from one index value's group to another's.
fn regroup(
    groups: &mut HashMap<Box<str>, Group>,
    key: &Arc<str>,
    from: Option<Box<str>>,
    to: Option<Box<str>>,
    object: Option<&Arc<Object>>,
) {
    if let Some(from) = from.filter(|from| Some(from) != to.as_ref())
        && let Some(group) = groups.get_mut(&from)
    {
        group.remove(key);
        if group.is_empty() {
            groups.remove(&from);
        }
    }
    if let (Some(to), Some(object)) = (to, object) {
        groups.entry(to).or_default().insert(key.clone(), object.clone());
    }
}

/// One resource at one revision; O(1) to take and to clone.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) objects: Map,
    pub(super) revision: Revision,
    pub(super) resource: Arc<str>,
}

impl Snapshot {
    /// The revision this is a state of.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// How many objects.
    pub fn len(&self) -> usize {
        self.objects.size()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// All objects in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    /// The objects of one namespace in name order.
    pub fn namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.range(Some(namespace), None)
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&*super::key(&self.resource, namespace, name))
    }

    /// The objects of one or all namespaces behind the key suffix `after`.
    pub(super) fn range(&self, namespace: Option<&str>, after: Option<&str>) -> impl Iterator<Item = &Arc<Object>> {
        let prefix = super::prefix(&self.resource);
        let (mut start, end) = match namespace.filter(|n| !n.is_empty()) {
            // '0' is the character behind '/': the end of all keys within the namespace.
            Some(n) => (
                Bound::Included(format!("{prefix}{n}/").into()),
                Bound::Excluded(format!("{prefix}{n}0").into()),
            ),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        if let Some(after) = after {
            let key: Arc<str> = format!("{prefix}{after}").into();
            if !matches!(&start, Bound::Included(least) if *least > key) {
                start = Bound::Excluded(key);
            }
        }
        let empty = matches!((&start, &end), (Bound::Excluded(a), Bound::Excluded(b)) if a >= b);
        let range = (!empty).then(|| {
            self.objects
                .range::<Arc<str>, (Bound<Arc<str>>, Bound<Arc<str>>)>((start, end))
        });
        range.into_iter().flatten().map(|(_, object)| object)
    }
}
