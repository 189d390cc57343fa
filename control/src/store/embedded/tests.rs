//! The embedded store against its promises; what crashes, damage and full disks do to it is in the modules below.

mod crash;
mod damage;
mod full;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::super::{Expect, KeyValue, Store, StoreError, Write};
use super::Embedded;

fn put(key: &str, value: &[u8], expect: Expect) -> Write {
    Write {
        key: key.into(),
        value: Some(Bytes::copy_from_slice(value)),
        expect,
    }
}

fn delete(key: &str, expect: Expect) -> Write {
    Write {
        key: key.into(),
        value: None,
        expect,
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn open(dir: &Path) -> Embedded {
    Embedded::open(dir).unwrap()
}

fn pairs(values: &[KeyValue]) -> Vec<(String, Vec<u8>, u64, u64)> {
    values
        .iter()
        .map(|kv| (kv.key.to_string(), kv.value.to_vec(), kv.revision, kv.created))
        .collect()
}

#[test]
fn what_is_acknowledged_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("a/b/store"));
    run(async {
        assert_eq!(store.commit(vec![put("/a", b"1", Expect::Absent)]).await.unwrap(), 1);
        assert_eq!(store.commit(vec![put("/b", b"2", Expect::Any)]).await.unwrap(), 2);
        assert_eq!(
            store
                .commit(vec![put("/a", b"3", Expect::At(1)), put("/c", b"", Expect::Any)])
                .await
                .unwrap(),
            3
        );
        assert_eq!(store.commit(vec![delete("/b", Expect::At(2))]).await.unwrap(), 4);
        assert_eq!(store.commit(vec![]).await.unwrap(), 4);
        let conflict = store
            .commit(vec![put("/c", b"x", Expect::Any), put("/a", b"x", Expect::At(1))])
            .await;
        assert!(matches!(&conflict, Err(StoreError::Conflict { key, current: Some(3), .. }) if &**key == "/a"));
        let conflict = store.commit(vec![delete("/b", Expect::Any)]).await;
        assert!(matches!(conflict, Err(StoreError::Conflict { current: None, .. })));
    });
    drop(store);
    let store = open(&dir.path().join("a/b/store"));
    let (values, revision) = run(store.load()).unwrap();
    assert_eq!(revision, 4);
    assert_eq!(store.revision(), 4);
    let expected = [
        ("/a".to_owned(), b"3".to_vec(), 3, 1),
        ("/c".to_owned(), b"".to_vec(), 3, 3),
    ];
    assert_eq!(pairs(&values), expected);
    assert_eq!(
        pairs(&run(store.load()).unwrap().0),
        expected,
        "a second load reads the disk"
    );
    assert_eq!(run(store.commit(vec![put("/d", b"", Expect::Absent)])).unwrap(), 5);
}

#[test]
fn a_second_process_is_told_who_holds_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path());
    let error = Embedded::open(dir.path()).err().unwrap().to_string();
    assert!(
        error.contains(&format!("in use by process {}", std::process::id())),
        "{error}"
    );
}

#[test]
fn only_durable_batches_are_published_in_revision_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()));
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let sink = seen.clone();
    store.subscribe(Box::new(move |changes| {
        sink.lock().extend(changes.iter().map(|c| c.revision))
    }));
    run(async {
        let writes = (0..200).map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .commit(vec![put(&format!("/{n}"), b"v", Expect::Absent)])
                    .await
                    .unwrap()
            })
        });
        for write in writes.collect::<Vec<_>>() {
            let revision = write.await.unwrap();
            assert!(seen.lock().contains(&revision), "published before it is acknowledged");
        }
    });
    assert_eq!(*seen.lock(), (1..=200).collect::<Vec<_>>());
}

/// FAULTS 46: whatever happens at once, each revision of a key has exactly one winner.
#[test]
fn of_conflicting_writers_exactly_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()));
    run(async {
        let first = store.commit(vec![put("/counter", b"0", Expect::Absent)]).await.unwrap();
        let latest = Arc::new(parking_lot::Mutex::new((first, 0u64)));
        let writers = (0..16).map(|_| {
            let (store, latest) = (store.clone(), latest.clone());
            tokio::spawn(async move {
                let mut wins = Vec::new();
                for _ in 0..50 {
                    let (revision, count) = *latest.lock();
                    let next = (count + 1).to_string();
                    match store
                        .commit(vec![put("/counter", next.as_bytes(), Expect::At(revision))])
                        .await
                    {
                        Ok(won) => {
                            *latest.lock() = (won, count + 1);
                            wins.push((revision, won));
                        }
                        Err(StoreError::Conflict {
                            current: Some(current), ..
                        }) => assert!(current > revision),
                        Err(e) => panic!("{e}"),
                    }
                }
                wins
            })
        });
        let mut wins = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            wins.extend(writer.await.unwrap());
        }
        wins.sort_unstable();
        let (values, revision) = store.load().await.unwrap();
        assert_eq!(values[0].value, wins.len().to_string().as_bytes());
        assert_eq!(revision, first + wins.len() as u64);
        for (n, (expected, won)) in wins.iter().enumerate() {
            assert_eq!(
                (*expected, *won),
                (first + n as u64, first + n as u64 + 1),
                "a chain without forks"
            );
        }
    });
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// FAULTS 46: batches of transactions against a map.
    #[test]
    fn transactions_behave_as_on_a_map(
        batches in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec((0..4u8, 0..3u8, 0..6u64), 0..3), 1..4), 1..12,
        )
    ) {
        let mut heads = crate::store::heads::Heads::default();
        let mut model: std::collections::BTreeMap<String, (u64, u64)> = Default::default();
        let mut revision = 0;
        for batch in batches {
            let mut pending = heads.pending();
            for transaction in batch {
                let writes: Vec<Write> = transaction.iter().map(|(key, action, at)| {
                    let expect = match at { 0 => Expect::Absent, 1 => Expect::Any, n => Expect::At(n - 1) };
                    let key = format!("/{key}");
                    if *action == 0 { delete(&key, expect) } else { put(&key, b"v", expect) }
                }).collect();
                let holds = |write: &Write| {
                    let current = model.get(&*write.key).map(|(revision, _)| *revision);
                    let expected = match write.expect {
                        Expect::Absent => current.is_none(),
                        Expect::Any => true,
                        Expect::At(revision) => current == Some(revision),
                    };
                    expected && (write.value.is_some() || current.is_some())
                };
                let expected = writes.iter().all(holds);
                let taken = pending.add(writes.clone());
                proptest::prop_assert_eq!(taken.is_ok(), expected, "{:?} on {:?}", writes, model);
                if expected && !writes.is_empty() {
                    revision += 1;
                    for write in &writes {
                        let key = write.key.to_string();
                        if write.value.is_some() {
                            let created = model.get(&key).map_or(revision, |(_, created)| *created);
                            model.insert(key, (revision, created));
                        } else {
                            model.remove(&key);
                        }
                    }
                }
                if let Ok(at) = taken {
                    proptest::prop_assert_eq!(at, revision);
                }
            }
            let changes = pending.into_changes();
            heads.accept(&changes);
            proptest::prop_assert_eq!(heads.live(), model.clone());
        }
    }
}
