//! What attackers have: a directory of the host that must not change, a thread that swaps two names for ever, links that
//! lead out. And the probe, which asks from inside.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::fs::{CWD, RenameFlags};
use serde_json::{Value, json};

use super::Bundle;

/// Add a mount to the end of the configuration's list.
pub fn mount(bundle: &mut Bundle, mount: Value) {
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
}

/// A bind mount with read and write access.
pub fn bind(bundle: &mut Bundle, source: &Path, destination: &str) {
    mount(
        bundle,
        json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rw"]}),
    );
}

/// Leave out the mounts at and below `destination`.
pub fn unmount(bundle: &mut Bundle, destination: &str) {
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with(destination));
}

/// Give the container /bin/probe.
pub fn probe(bundle: &mut Bundle) {
    let probe = Path::new(super::RUNTIME).with_file_name("examples").join("probe");
    assert!(
        probe.exists(),
        "{} is not built: cargo build --examples",
        probe.display()
    );
    mount(
        bundle,
        json!({"destination": "/bin/probe", "type": "bind", "source": probe, "options": ["bind", "ro"]}),
    );
}

/// A directory outside of every container, with something in it.
pub struct Outside {
    dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Outside {
    pub fn new() -> Outside {
        let dir = tempfile::Builder::new().prefix("hull-outside").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["ptmx", "null", "console", "secret", "sub/kept"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let before = snapshot(dir.path());
        Outside { dir, before }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Nothing was made, removed, written or given to somebody else.
    #[track_caller]
    pub fn unchanged(&self, attack: &str) {
        assert_eq!(snapshot(self.dir.path()), self.before, "{attack}");
    }
}

fn snapshot(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let metadata = entry.path().symlink_metadata().unwrap();
        let text = match metadata.is_file() {
            true => std::fs::read_to_string(entry.path()).unwrap(),
            false => String::new(),
        };
        let what = format!(
            "{:o} {}:{} {} {text}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.rdev()
        );
        if metadata.is_dir() {
            seen.extend(snapshot(&entry.path()));
        }
        seen.insert(entry.path(), what);
    }
    seen
}

/// Exchanges two names with renameat2(RENAME_EXCHANGE), as fast as the kernel does it, until it is dropped.
pub struct Swap {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Swap {
    pub fn new(one: &Path, other: &Path) -> Swap {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (stop.clone(), count.clone());
        let (one, other) = (one.to_path_buf(), other.to_path_buf());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Swap {
            stop,
            count,
            thread: Some(thread),
        }
    }

    /// Wait for `rounds` exchanges in all: on a busy machine the thread may not have had its turn yet.
    pub fn reach(&self, rounds: usize) {
        while self.count.load(Ordering::Relaxed) < rounds as u64 {
            std::thread::yield_now();
        }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Texts of symbolic links by which an image might lead a runtime to `outside`.
pub fn links(outside: &Path) -> Vec<String> {
    let outside = outside.display();
    let up = "../".repeat(12);
    vec![
        outside.to_string(),
        format!("{up}{outside}"),
        format!("/chain{outside}"),
        format!("{outside}/dangling"),
        format!("/proc/1/root{outside}"),
        format!("/proc/self/root/proc/1/cwd/{up}{outside}"),
        "/proc/self/fd/3".to_owned(),
        "/proc/self/fd/7/sub".to_owned(),
        "/proc/thread-self/cwd".to_owned(),
    ]
}
