//! The garbage collector: objects whose owners are gone, and the foreground and orphan ways of deletion.
//!
//! Kubernetes: "Garbage Collection". Invariant: an object is deleted only if every owner it names is known to be gone or
//! waits for its dependents; an owner of a kind that is not served counts as alive.

use std::sync::Arc;

use super::controller::{Context, Controller, Key, Outcome};
use super::metadata::{Metadata, OwnerReference, metadata, remove_finalizer, remove_owners};
use super::view::View;
use crate::cache::{Event, EventKind, Object};
use crate::registry::Propagation;
use crate::schema;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// The controller.
pub struct GarbageCollector;

impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "generic-garbage-collector"
    }

    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        let object = &event.object;
        if &*object.resource == "events" {
            return;
        }
        if event.kind == EventKind::Deleted {
            view.dependents(&object.index.uid).iter().for_each(|d| add(Key::of(d)));
        } else if mentions(object, b"deletionTimestamp") && mentions(object, b"finalizers") {
            add(Key::of(object));
        }
        let before = event.previous.as_ref().map(|p| &p.index.owners);
        let owned = !object.index.owners.is_empty();
        if owned && event.kind != EventKind::Deleted && before != Some(&object.index.owners) {
            add(Key::of(object));
        }
        if event.kind == EventKind::Deleted || before.is_some_and(|b| *b != object.index.owners) {
            waiting_owners(view, event, add);
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(object) = context.view.get(&key.resource, &key.namespace, &key.name) else {
            return outcome;
        };
        let meta = metadata(&object);
        if meta.deletion_timestamp.is_some() && meta.has_finalizer(ORPHAN) {
            orphan_dependents(context.view, &object, &meta, &mut outcome);
        } else if is_waiting(&meta) {
            delete_dependents(context.view, &object, &meta, &mut outcome);
        } else if meta.deletion_timestamp.is_none() && !meta.owner_references.is_empty() {
            collect(context.view, &object, &meta, &mut outcome);
        }
        outcome
    }
}

/// Whether the body has these bytes: cheaper than decoding, and a false alarm costs one look.
fn mentions(object: &Object, word: &[u8]) -> bool {
    object.body.windows(word.len()).any(|window| window == word)
}

/// Owners that wait for their dependents learn that one is gone or has changed its owners.
fn waiting_owners(view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
    let state = event.previous.as_ref().unwrap_or(&event.object);
    for reference in metadata(state).owner_references {
        if let Owner::Found(owner) = find(view, &reference, state)
            && metadata(&owner).deletion_timestamp.is_some()
        {
            add(Key::of(&owner));
        }
    }
}

/// In foreground deletion.
fn is_waiting(meta: &Metadata) -> bool {
    meta.deletion_timestamp.is_some() && meta.has_finalizer(FOREGROUND)
}

enum Owner {
    Found(Arc<Object>),
    Gone,
    /// Of a kind that is not served, or in a place it cannot be.
    Unknown,
}

fn find(view: &dyn View, reference: &OwnerReference, dependent: &Object) -> Owner {
    let group = reference.api_version.split_once('/').map_or("", |(group, _)| group);
    let row = schema::resources()
        .iter()
        .find(|r| r.kind == reference.kind && r.group == group && r.storage);
    let Some(row) = row else { return Owner::Unknown };
    if row.namespaced && dependent.namespace.is_empty() {
        return Owner::Unknown;
    }
    let namespace = if row.namespaced { &*dependent.namespace } else { "" };
    match view.get(row.key, namespace, &reference.name) {
        Some(owner) if *owner.index.uid == *reference.uid => Owner::Found(owner),
        _ => Owner::Gone,
    }
}

/// Decide over an object with owners.
fn collect(view: &dyn View, object: &Object, meta: &Metadata, outcome: &mut Outcome) {
    let (mut solid, mut waiting, mut gone) = (0, 0, Vec::new());
    let mut blocking = false;
    for reference in &meta.owner_references {
        match find(view, reference, object) {
            Owner::Unknown => solid += 1,
            Owner::Gone => gone.push(reference.uid.as_str()),
            Owner::Found(owner) if is_waiting(&metadata(&owner)) => {
                waiting += 1;
                blocking |= reference.block_owner_deletion;
                gone.push(reference.uid.as_str());
            }
            Owner::Found(_) => solid += 1,
        }
    }
    if solid > 0 {
        if !gone.is_empty() {
            let mut value = object.value();
            remove_owners(&mut value, |uid| gone.contains(&uid));
            outcome.update(object, None, value);
        }
        return;
    }
    let foreground = waiting > 0 && blocking && !view.dependents(&object.index.uid).is_empty();
    let propagation = if meta.has_finalizer(ORPHAN) {
        Propagation::Orphan
    } else if foreground || meta.has_finalizer(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    outcome.delete(object, Some(propagation));
}

/// Foreground: dependents first; the finalizer goes with the last one that blocks.
fn delete_dependents(view: &dyn View, owner: &Object, meta: &Metadata, outcome: &mut Outcome) {
    let mut blocked = false;
    for dependent in view.dependents(&meta.uid) {
        let its = metadata(&dependent);
        let blocks = its
            .owner_references
            .iter()
            .any(|r| r.uid == meta.uid && r.block_owner_deletion);
        blocked |= blocks;
        if its.deletion_timestamp.is_none() {
            collect(view, &dependent, &its, outcome);
        }
    }
    if !blocked {
        let mut value = owner.value();
        remove_finalizer(&mut value, FOREGROUND);
        outcome.update(owner, None, value);
    }
}

/// Orphan: dependents lose the reference, then the finalizer goes.
fn orphan_dependents(view: &dyn View, owner: &Object, meta: &Metadata, outcome: &mut Outcome) {
    let dependents = view.dependents(&meta.uid);
    for dependent in &dependents {
        let mut value = dependent.value();
        remove_owners(&mut value, |uid| uid == meta.uid);
        outcome.update(dependent, None, value);
    }
    if dependents.is_empty() {
        let mut value = owner.value();
        remove_finalizer(&mut value, ORPHAN);
        outcome.update(owner, None, value);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::controllers::memory::{Memory, World};

    fn config(name: &str, owners: &[&str]) -> Value {
        let reference = |owner: &&str| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": format!("uid-of-{owner}"),
                "blockOwnerDeletion": true})
        };
        let owners = owners.iter().map(reference).collect::<Vec<_>>();
        json!({"metadata": {"name": name, "uid": format!("uid-of-{name}"), "ownerReferences": owners}})
    }

    fn world(objects: &[(&str, &[&str])]) -> World {
        let mut world = World::new(vec![Box::new(GarbageCollector)]);
        for (name, owners) in objects {
            world.memory.put("configmaps", "d", config(name, owners));
        }
        world.settle();
        world
    }

    fn names(memory: &Memory) -> Vec<String> {
        memory
            .objects("configmaps")
            .iter()
            .map(|o| o.name.to_string())
            .collect()
    }

    fn delete_as(world: &mut World, name: &str, propagation: Option<Propagation>) {
        world
            .memory
            .delete(&Key::new("configmaps", "d", name), "", None, propagation);
        world.settle();
    }

    #[test]
    fn background_deletes_the_whole_tree() {
        let mut world = world(&[("a", &[]), ("b", &["a"]), ("c", &["b"]), ("x", &[])]);
        assert_eq!(names(&world.memory), ["a", "b", "c", "x"]);
        delete_as(&mut world, "a", None);
        assert_eq!(names(&world.memory), ["x"]);
    }

    #[test]
    fn one_living_owner_is_enough() {
        let mut world = world(&[("a", &[]), ("b", &[]), ("c", &["a", "b"])]);
        delete_as(&mut world, "a", None);
        assert_eq!(names(&world.memory), ["b", "c"]);
        let owners = world.memory.get("configmaps", "d", "c").unwrap().index.owners.clone();
        assert_eq!(*owners, ["uid-of-b".into()], "the dead one is forgotten");
        delete_as(&mut world, "b", None);
        assert!(names(&world.memory).is_empty());
    }

    #[test]
    fn foreground_goes_leaves_first() {
        let mut world = world(&[("a", &[]), ("b", &["a"]), ("c", &["b"])]);
        world.watch = Box::new(|memory| {
            let names = names(memory);
            let has = |name: &str| names.iter().any(|n| n == name);
            assert!(!has("b") || has("a"), "{names:?}");
            assert!(!has("c") || has("b"), "{names:?}");
        });
        delete_as(&mut world, "a", Some(Propagation::Foreground));
        assert!(names(&world.memory).is_empty());
    }

    #[test]
    fn orphans_stay_without_owner() {
        let mut world = world(&[("a", &[]), ("b", &["a"])]);
        delete_as(&mut world, "a", Some(Propagation::Orphan));
        assert_eq!(names(&world.memory), ["b"]);
        assert!(world.memory.objects("configmaps")[0].index.owners.is_empty());
    }

    #[test]
    fn a_namesake_is_no_owner_and_an_unknown_kind_is_left_alone() {
        let mut world = world(&[("a", &[])]);
        let mut impostor = config("b", &["a"]);
        impostor["metadata"]["ownerReferences"][0]["uid"] = "another".into();
        world.memory.put("configmaps", "d", impostor);
        let mut custom = config("c", &["z"]);
        custom["metadata"]["ownerReferences"][0]["apiVersion"] = "example.com/v1".into();
        world.memory.put("configmaps", "d", custom);
        world.settle();
        assert_eq!(names(&world.memory), ["a", "c"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Objects own only later ones, so there are no cycles.
        #[test]
        fn nothing_with_a_living_owner_is_ever_deleted(
            edges in proptest::collection::vec((0..12usize, 0..12usize), 0..24),
            deletions in proptest::collection::vec((0..12usize, 0..3u8), 1..6),
        ) {
            let names_of = (0..12).map(|i| format!("o{i:02}")).collect::<Vec<_>>();
            let mut world = World::new(vec![Box::new(GarbageCollector)]);
            for (i, name) in names_of.iter().enumerate() {
                let owners = edges.iter().filter(|(a, b)| a.max(b) == &i && a != b).map(|(a, b)| *a.min(b));
                let owners = owners.collect::<BTreeSet<_>>();
                let owners = owners.into_iter().map(|o| names_of[o].as_str()).collect::<Vec<_>>();
                world.memory.put("configmaps", "d", config(name, &owners));
            }
            world.settle();
            let mut deleted = BTreeSet::new();
            for (target, how) in deletions {
                let propagation = [None, Some(Propagation::Foreground), Some(Propagation::Orphan)][usize::from(how)];
                let before = world.memory.objects("configmaps");
                deleted.insert(names_of[target].clone());
                delete_as(&mut world, &names_of[target], propagation);
                let left = names(&world.memory).into_iter().collect::<BTreeSet<_>>();
                for object in before.iter().filter(|o| !left.contains(&*o.name) && !deleted.contains(&*o.name)) {
                    let owners = metadata(object).owner_references;
                    prop_assert!(!owners.is_empty(), "{} had no owner and was not deleted by anyone", object.name);
                    for owner in owners {
                        prop_assert!(!left.contains(&owner.name), "{} lived and owned {}", owner.name, object.name);
                    }
                }
                for object in world.memory.objects("configmaps") {
                    for owner in metadata(&object).owner_references {
                        prop_assert!(left.contains(&owner.name), "{} is left behind by {}", object.name, owner.name);
                    }
                }
            }
        }
    }
}
