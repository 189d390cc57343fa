//! A full disk (FAULTS 9): writes are refused, reads go on, writes resume by themselves. Needs root, for a small tmpfs.

use std::fs;
use std::path::PathBuf;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::super::engine::{Engine, WriteFailure};
use super::*;
use crate::store::Change;

struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(dir: &Path, mebibytes: u32) -> Self {
        let options = std::ffi::CString::new(format!("size={mebibytes}m")).unwrap();
        mount("hull-test", dir, "tmpfs", MountFlags::empty(), options.as_c_str())
            .expect("mounting a tmpfs: this test needs root");
        Self(dir.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Fill the file system until a write is refused, free it, and see that all goes on.
fn fill_and_free(reserve: u64) {
    let dir = tempfile::tempdir().unwrap();
    let tmpfs = Tmpfs::new(dir.path(), 64);
    let filler = tmpfs.0.join("filler");
    fs::write(&filler, vec![1; 30 << 20]).unwrap();
    let path = tmpfs.0.join("store");
    let store = Embedded::open_reserving(&path, reserve).unwrap();
    let published = Arc::new(parking_lot::Mutex::new(0));
    let sink = published.clone();
    store.subscribe(Box::new(move |changes| *sink.lock() += changes.len()));
    let mut acknowledged = 0;
    let write = |n: u64| run(store.commit(vec![put(&format!("/k{n}"), &vec![n as u8; 256 << 10], Expect::Absent)]));
    let error = loop {
        match write(acknowledged) {
            Ok(revision) => {
                acknowledged += 1;
                assert_eq!(revision, acknowledged);
            }
            Err(e) => break e,
        }
        assert!(acknowledged < 1000, "64 MiB hold no 250 MiB");
    };
    assert!(matches!(&error, StoreError::Full(_)), "{error}");
    assert!(acknowledged > 4, "{acknowledged}");
    for _ in 0..3 {
        assert!(matches!(write(acknowledged), Err(StoreError::Full(_))));
    }
    assert_eq!(
        (*published.lock(), store.revision()),
        (acknowledged as usize, acknowledged),
        "nothing refused is shown"
    );
    fs::remove_file(&filler).unwrap();
    assert_eq!(write(acknowledged).unwrap(), acknowledged + 1);
    let (values, _) = run(store.load()).unwrap();
    assert_eq!(values.len() as u64, acknowledged + 1);
    drop(store);
    let (values, revision) = run(open(&path).load()).unwrap();
    assert_eq!((values.len() as u64, revision), (acknowledged + 1, acknowledged + 1));
    assert!(
        values
            .iter()
            .all(|kv| kv.value.len() == 256 << 10 && kv.value.iter().all(|b| *b == kv.revision as u8 - 1))
    );
}

#[test]
fn writes_are_refused_while_there_is_still_room_for_what_is_acknowledged() {
    fill_and_free(super::super::writer::RESERVE_BYTES);
}

#[test]
fn a_write_that_finds_the_disk_full_is_refused_and_forgotten() {
    fill_and_free(0);
}

/// The engine's work in the background meets the full disk between the writing of a batch and its fsync.
#[test]
fn a_batch_is_synced_although_the_engine_stopped_after_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let tmpfs = Tmpfs::new(dir.path(), 24);
    let path = tmpfs.0.join("store");
    drop(open(&path));
    let filler = tmpfs.0.join("filler");
    fs::write(&filler, vec![1; 10 << 20]).unwrap();
    let (engine, _) = Engine::open_checked(&path.join("db"), 0).unwrap();
    let mut appended = 0;
    // Flushes come behind the appends, and one of both is the first for which there is no room.
    let failure = loop {
        let revision = appended + 1;
        let change = Change {
            revision,
            key: format!("/k{revision}").into(),
            value: Some(vec![revision as u8; 128 << 10].into()),
            created: revision,
        };
        match engine.append(&[change], revision) {
            Ok(()) => appended = revision,
            Err(failure) => break failure,
        }
        assert!(appended < 1000, "24 MiB hold no 125 MiB");
    };
    assert!(!matches!(failure, WriteFailure::Sync(_)), "{failure}");
    engine.sync().unwrap_or_else(|failure| panic!("{failure}"));
    drop(engine);
    fs::remove_file(&filler).unwrap();
    let (_, contents) = Engine::open_checked(&path.join("db"), appended).unwrap();
    assert_eq!(contents.values.len() as u64, appended);
}
