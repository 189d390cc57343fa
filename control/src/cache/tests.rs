//! The cache over a store in memory: lists, watches, and their equivalence under random histories (FAULTS 43, 45).

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::store::Memory;

/// An indexer of what the tests of this crate's foundations need.
pub(crate) struct Plain;

impl Indexer for Plain {
    fn index(&self, _resource: &str, object: &Value) -> Index {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .into()
        };
        let labels = object
            .pointer("/metadata/labels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten();
        let owners = object
            .pointer("/metadata/ownerReferences")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        Index {
            labels: labels
                .map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into()))
                .collect(),
            fields: Box::new([
                ("metadata.name", text("/metadata/name")),
                ("metadata.namespace", text("/metadata/namespace")),
                ("spec.nodeName", text("/spec/nodeName")),
            ]),
            owners: owners
                .filter_map(|owner| owner["uid"].as_str())
                .map(Box::from)
                .collect(),
            uid: text("/metadata/uid"),
        }
    }
}

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// An empty cache over a store in memory.
pub(crate) fn empty() -> Arc<Cache> {
    run(Cache::open(Arc::new(Memory::default()), Arc::new(Plain))).unwrap()
}

pub(crate) fn change(resource: &str, namespace: &str, name: &str, object: Option<Value>) -> Change {
    let object = object.map(|mut object| {
        object["metadata"]["name"] = name.into();
        if !namespace.is_empty() {
            object["metadata"]["namespace"] = namespace.into();
        }
        object
    });
    Change {
        resource: resource.into(),
        namespace: namespace.into(),
        name: name.into(),
        object,
        expect: Expect::Any,
    }
}

pub(crate) fn put(cache: &Cache, resource: &str, namespace: &str, name: &str, object: Value) -> Arc<Object> {
    run(cache.commit(vec![change(resource, namespace, name, Some(object))]))
        .unwrap()
        .remove(0)
}

fn delete(cache: &Cache, resource: &str, namespace: &str, name: &str) -> Arc<Object> {
    run(cache.commit(vec![change(resource, namespace, name, None)]))
        .unwrap()
        .remove(0)
}

fn query(resource: &str, namespace: Option<&str>, labels: &str, fields: &str) -> Query {
    let selector = Selector::parse(labels, fields).unwrap();
    Query {
        resource: resource.into(),
        namespace: namespace.map(Into::into),
        selector,
    }
}

fn names(objects: &[Arc<Object>]) -> Vec<String> {
    objects.iter().map(|o| format!("{}/{}", o.namespace, o.name)).collect()
}

#[test]
fn a_commit_is_visible_when_it_returns() {
    let cache = empty();
    let made = put(
        &cache,
        "apps/deployments",
        "d",
        "web",
        json!({"metadata": {"resourceVersion": "77"}, "spec": 1}),
    );
    assert_eq!((made.revision, made.created, cache.revision()), (1, 1, 1));
    assert_eq!(made.value()["metadata"]["resourceVersion"], "1");
    let again = put(
        &cache,
        "apps/deployments",
        "d",
        "web",
        json!({"metadata": {}, "spec": 2}),
    );
    assert_eq!((again.revision, again.created), (2, 1));
    assert_eq!(cache.get("apps/deployments", "d", "web").unwrap().body, again.body);
    assert!(cache.get("deployments", "d", "web").is_none());
    let gone = delete(&cache, "apps/deployments", "d", "web");
    assert_eq!(
        (gone.revision, &gone.value()["metadata"]["resourceVersion"]),
        (3, &json!("3"))
    );
    assert_eq!(gone.value()["spec"], 2);
    assert!(cache.get("apps/deployments", "d", "web").is_none());
    let conflict = run(cache.commit(vec![change("apps/deployments", "d", "web", None)]));
    assert!(matches!(conflict, Err(StoreError::Conflict { current: None, .. })));
    assert!(
        cache.shared.prepared.lock().is_empty(),
        "indexes prepared for commits are taken back"
    );
}

#[test]
fn a_cache_opened_later_holds_the_same() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let first = run(Cache::open(store.clone(), Arc::new(Plain))).unwrap();
    put(&first, "nodes", "", "n1", json!({"metadata": {}}));
    let pod = put(
        &first,
        "pods",
        "d",
        "a",
        json!({"metadata": {"labels": {"x": "y"}}, "spec": {"nodeName": "n1"}}),
    );
    drop(first);
    let second = run(Cache::open(store, Arc::new(Plain))).unwrap();
    assert_eq!(second.revision(), 2);
    let loaded = second.get("pods", "d", "a").unwrap();
    assert_eq!((&loaded.body, &loaded.index), (&pod.body, &pod.index));
    assert_eq!(names(&second.pods_on_node("n1")), ["d/a"]);
    let expired = second.watch(query("pods", None, "", ""), 1).err();
    assert_eq!(
        expired,
        Some(Expired {
            requested: 1,
            oldest: 2
        })
    );
    let mut watcher = second.watch(query("pods", None, "", ""), 2).unwrap();
    put(&second, "pods", "d", "b", json!({"metadata": {}}));
    assert_eq!(&*watcher.try_next().unwrap().unwrap().object.name, "b");
}

#[test]
fn pages_are_one_consistent_list() {
    let cache = empty();
    for namespace in ["a", "a-b", "a0"] {
        for name in ["x", "y", "z"] {
            put(
                &cache,
                "pods",
                namespace,
                name,
                json!({"metadata": {"labels": {"n": name}}}),
            );
        }
    }
    let all = query("pods", None, "", "");
    let first = cache.list(&all, Some(4), None, None).unwrap();
    assert_eq!((first.revision, first.remaining), (9, Some(5)));
    delete(&cache, "pods", "a", "z");
    put(&cache, "pods", "a0", "new", json!({"metadata": {}}));
    put(
        &cache,
        "pods",
        "a0",
        "x",
        json!({"metadata": {"labels": {"n": "changed"}}}),
    );
    let mut items = first.items;
    let (mut next, mut pages) = (first.next, 1);
    while let Some(after) = next {
        let page = cache.list(&all, Some(4), Some(&after), Some(first.revision)).unwrap();
        assert_eq!(page.revision, 9);
        items.extend(page.items);
        (next, pages) = (page.next, pages + 1);
    }
    assert_eq!((items.len(), pages), (9, 3));
    assert!(items.iter().all(|object| object.revision <= 9));
    let mut keys: Vec<_> = names(&items);
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 9);
    let in_a = query("pods", Some("a"), "", "");
    assert_eq!(
        names(&cache.list(&in_a, None, None, None).unwrap().items),
        ["a/x", "a/y"]
    );
    assert_eq!(
        names(&cache.list(&in_a, None, None, Some(9)).unwrap().items),
        ["a/x", "a/y", "a/z"]
    );
    let page = cache
        .list(&query("pods", None, "n in (x,y)", ""), Some(2), None, Some(9))
        .unwrap();
    assert_eq!(
        (names(&page.items), page.remaining),
        (vec!["a-b/x".into(), "a-b/y".into()], None)
    );
    assert!(page.next.is_some());
    let one = query("pods", Some("a"), "", "metadata.name=y");
    assert_eq!(names(&cache.list(&one, None, None, None).unwrap().items), ["a/y"]);
    assert_eq!(
        cache.list(&all, None, None, Some(13)).err(),
        Some(Expired {
            requested: 13,
            oldest: 0
        })
    );
}

#[test]
fn selectors_turn_changes_into_additions_and_deletions() {
    let cache = empty();
    let mut watcher = cache.watch(query("pods", Some("d"), "app=web", ""), 0).unwrap();
    let labelled = |app: &str| json!({"metadata": {"labels": {"app": app}}});
    put(&cache, "pods", "d", "a", labelled("db"));
    put(&cache, "pods", "other", "a", labelled("web"));
    put(&cache, "pods", "d", "a", labelled("web"));
    put(&cache, "pods", "d", "a", labelled("web"));
    put(&cache, "pods", "d", "a", labelled("db"));
    put(&cache, "pods", "d", "a", labelled("web"));
    delete(&cache, "pods", "d", "a");
    let mut seen = Vec::new();
    while let Some(event) = watcher.try_next().unwrap() {
        let value = event.object.value();
        assert_eq!(value["metadata"]["labels"]["app"], "web", "what is shown matched");
        assert_eq!(value["metadata"]["resourceVersion"], event.revision.to_string());
        seen.push((event.kind, event.revision));
    }
    use EventKind::{Added, Deleted, Modified};
    assert_eq!(
        seen,
        [(Added, 3), (Modified, 4), (Deleted, 5), (Added, 6), (Deleted, 7)]
    );
    assert_eq!(watcher.revision(), 7);
    put(&cache, "nodes", "", "n", json!({"metadata": {}}));
    assert_eq!(watcher.revision(), 8, "nothing of another resource is missed");
}

#[test]
fn indexes_follow_the_objects() {
    let cache = empty();
    let owned = |uid: &str| json!({"metadata": {"ownerReferences": [{"uid": uid}, {"uid": "both"}]}});
    put(
        &cache,
        "pods",
        "d",
        "a",
        json!({"metadata": {}, "spec": {"nodeName": ""}}),
    );
    put(
        &cache,
        "pods",
        "d",
        "a",
        json!({"metadata": {}, "spec": {"nodeName": "n1"}}),
    );
    put(
        &cache,
        "pods",
        "d",
        "b",
        json!({"metadata": {}, "spec": {"nodeName": "n1"}}),
    );
    let on_n1 = query("pods", None, "", "spec.nodeName=n1");
    let page = cache.list(&on_n1, Some(1), None, None).unwrap();
    assert_eq!(
        (names(&page.items), page.next.as_deref()),
        (vec!["d/a".into()], Some("d/a"))
    );
    let page = cache.list(&on_n1, Some(1), Some("d/a"), None).unwrap();
    assert_eq!((names(&page.items), page.next), (vec!["d/b".into()], None));
    put(
        &cache,
        "pods",
        "d",
        "a",
        json!({"metadata": {}, "spec": {"nodeName": "n2"}}),
    );
    delete(&cache, "pods", "d", "b");
    assert_eq!(
        (cache.pods_on_node("n1").len(), names(&cache.pods_on_node("n2"))),
        (0, vec!["d/a".into()])
    );
    put(&cache, "apps/replicasets", "d", "r", owned("u1"));
    put(&cache, "pods", "d", "p", owned("u1"));
    put(&cache, "pods", "d", "p", owned("u2"));
    assert_eq!(
        (names(&cache.dependents("u1")), names(&cache.dependents("u2"))),
        (vec!["d/r".into()], vec!["d/p".into()])
    );
    assert_eq!(cache.dependents("both").len(), 2);
    assert_eq!(
        cache.dependents("both")[1].revision,
        cache.revision(),
        "the newest state"
    );
    delete(&cache, "pods", "d", "p");
    delete(&cache, "apps/replicasets", "d", "r");
    assert!(cache.dependents("both").is_empty());
}

#[test]
fn pods_of_no_node_can_be_watched() {
    let cache = empty();
    let mut watcher = cache.watch(query("pods", None, "", "spec.nodeName="), 0).unwrap();
    let waiting = run(async {
        let writer = cache.clone();
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            let pod = |node: &str| Some(json!({"metadata": {}, "spec": {"nodeName": node}}));
            writer
                .commit(vec![change("pods", "d", "placed", pod("n1"))])
                .await
                .unwrap();
            writer
                .commit(vec![change("pods", "d", "waiting", pod(""))])
                .await
                .unwrap();
        });
        watcher.next().await.unwrap()
    });
    assert_eq!(&*waiting.object.name, "waiting");
}

#[test]
fn a_watcher_that_sleeps_too_long_is_told_so() {
    let cache = empty();
    let mut slow = cache.watch(query("pods", None, "", ""), 0).unwrap();
    let mut elsewhere = cache.watch(query("pods", Some("quiet"), "", ""), 0).unwrap();
    let mut of_node = cache.watch(query("pods", None, "", "spec.nodeName=n1"), 0).unwrap();
    let big = json!({"metadata": {}, "data": "x".repeat(1 << 20)});
    for _ in 0..20 {
        put(&cache, "pods", "busy", "a", big.clone());
    }
    let expired = slow.try_next().unwrap_err();
    assert!(expired.oldest > 0 && expired.requested < expired.oldest, "{expired:?}");
    assert!(cache.watch(query("pods", None, "", ""), 1).is_err());
    // Those whom the flood does not concern have missed nothing.
    assert!(elsewhere.try_next().unwrap().is_none());
    assert_eq!(elsewhere.revision(), cache.revision());
    assert!(of_node.try_next().unwrap().is_none());
    put(
        &cache,
        "pods",
        "quiet",
        "b",
        json!({"metadata": {}, "spec": {"nodeName": "n1"}}),
    );
    assert_eq!(&*elsewhere.try_next().unwrap().unwrap().object.name, "b");
    assert_eq!(&*of_node.try_next().unwrap().unwrap().object.name, "b");
}

#[test]
fn waiting_watchers_are_woken_and_forgotten_when_dropped() {
    let cache = empty();
    let mut watcher = cache.watch_all(&["pods", "nodes"]);
    run(async {
        let writer = cache.clone();
        let write = tokio::spawn(async move {
            for (resource, namespace) in [("nodes", ""), ("pods", "d"), ("services", "d"), ("nodes", "")] {
                tokio::task::yield_now().await;
                writer
                    .commit(vec![change(resource, namespace, "x", Some(json!({"metadata": {}})))])
                    .await
                    .unwrap();
            }
        });
        let mut seen = Vec::new();
        for _ in 0..3 {
            let event = watcher.next().await.unwrap();
            seen.push((event.object.resource.to_string(), event.revision));
        }
        assert_eq!(seen, [("nodes".into(), 1), ("pods".into(), 2), ("nodes".into(), 4)]);
        write.await.unwrap();
    });
    drop(watcher);
    assert!(cache.shared.tables.read().get("pods").unwrap().waiters.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Put {
        namespace: u8,
        name: u8,
        label: u8,
        node: u8,
    },
    Delete {
        namespace: u8,
        name: u8,
    },
    /// Let the informer catch up with some events.
    Read(u8),
    /// The informer's connection breaks: it resumes from its last revision.
    Resume,
    /// A page of a list that was begun earlier.
    Page,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3u8, 0..4u8, 0..3u8, 0..3u8).prop_map(|(namespace, name, label, node)| Step::Put { namespace, name, label, node }),
        2 => (0..3u8, 0..4u8).prop_map(|(namespace, name)| Step::Delete { namespace, name }),
        3 => (0..6u8).prop_map(Step::Read),
        1 => Just(Step::Resume),
        2 => Just(Step::Page),
    ]
}

/// What an informer does: a map, from a list and the events after it.
struct Informer {
    query: Query,
    watcher: Watcher,
    objects: BTreeMap<String, bytes::Bytes>,
    last: Revision,
}

impl Informer {
    fn new(cache: &Cache, query: Query) -> Self {
        let list = cache.list(&query, None, None, None).unwrap();
        let objects = list
            .items
            .iter()
            .map(|o| (format!("{}/{}", o.namespace, o.name), o.body.clone()))
            .collect();
        let watcher = cache.watch(query.clone(), list.revision).unwrap();
        Self {
            query,
            watcher,
            objects,
            last: list.revision,
        }
    }

    fn read(&mut self, events: usize) {
        for _ in 0..events {
            let Some(event) = self.watcher.try_next().unwrap() else {
                break;
            };
            assert!(event.revision > self.last, "no duplicate, in order");
            self.last = event.revision;
            let key = format!("{}/{}", event.object.namespace, event.object.name);
            let body = event.object.body.clone();
            match event.kind {
                EventKind::Added => assert!(self.objects.insert(key, body).is_none(), "added once"),
                EventKind::Modified => assert!(self.objects.insert(key, body).is_some(), "known before"),
                EventKind::Deleted => assert!(self.objects.remove(&key).is_some(), "known before"),
            }
        }
    }

    fn check(&mut self, cache: &Cache) {
        self.read(usize::MAX);
        let list = cache.list(&self.query, None, None, None).unwrap();
        let now = list
            .items
            .iter()
            .map(|o| (format!("{}/{}", o.namespace, o.name), o.body.clone()))
            .collect();
        assert_eq!(self.objects, now, "list and watch agree with a list");
        assert_eq!(self.watcher.revision(), cache.revision());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// FAULTS 45: whoever lists and then follows, with any breaks, ends with what a list shows; and a list continued
    /// page by page is the list as it was when it was begun.
    #[test]
    fn list_and_watch_are_equivalent_to_a_list(steps in proptest::collection::vec(step(), 1..80)) {
        let cache = empty();
        let queries = [
            query("pods", None, "", ""),
            query("pods", Some("ns1"), "", ""),
            query("pods", None, "l=l1", ""),
            query("pods", Some("ns0"), "l!=l1", ""),
            query("pods", None, "", "spec.nodeName=n1"),
            query("pods", Some("ns1"), "", "metadata.name=p2"),
        ];
        let mut informers = queries.clone().map(|query| Informer::new(&cache, query));
        let mut history: BTreeMap<Revision, Vec<bytes::Bytes>> = BTreeMap::new();
        let bodies = |items: &[Arc<Object>]| items.iter().map(|o| o.body.clone()).collect::<Vec<_>>();
        let mut begun: Option<(Revision, Vec<bytes::Bytes>, Option<String>)> = None;
        for step in steps {
            match step {
                Step::Put { namespace, name, label, node } => {
                    let object = json!({
                        "metadata": {"labels": {"l": format!("l{label}")}},
                        "spec": {"nodeName": if node == 0 { String::new() } else { format!("n{node}") }},
                    });
                    put(&cache, "pods", &format!("ns{namespace}"), &format!("p{name}"), object);
                }
                Step::Delete { namespace, name } => {
                    let change = change("pods", &format!("ns{namespace}"), &format!("p{name}"), None);
                    let _ = run(cache.commit(vec![change]));
                }
                Step::Read(events) => informers.iter_mut().for_each(|informer| informer.read(events.into())),
                Step::Resume => for informer in &mut informers {
                    informer.last = informer.last.max(informer.watcher.revision());
                    informer.watcher = cache.watch(informer.query.clone(), informer.last).unwrap();
                },
                Step::Page => {
                    let (revision, mut seen, after) = match begun.take() {
                        Some((revision, seen, Some(after))) => (Some(revision), seen, Some(after)),
                        _ => (None, Vec::new(), None),
                    };
                    let page = cache.list(&queries[0], Some(2), after.as_deref(), revision).unwrap();
                    seen.extend(bodies(&page.items));
                    if page.next.is_none() {
                        prop_assert_eq!(seen.clone(), history.get(&page.revision).cloned().unwrap_or_default());
                    }
                    begun = Some((page.revision, seen, page.next));
                }
            }
            let all = cache.list(&queries[0], None, None, None).unwrap();
            history.insert(all.revision, bodies(&all.items));
        }
        for (revision, expected) in &history {
            let then = cache.list(&queries[0], None, None, Some(*revision)).unwrap();
            prop_assert_eq!(&bodies(&then.items), expected);
        }
        for mut informer in informers {
            informer.check(&cache);
        }
    }
}
