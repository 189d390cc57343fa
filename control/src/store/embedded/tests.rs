//! The embedded store against its promises: FAULTS 4, 6-9, 11, 46.

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
