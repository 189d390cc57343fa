//! What the agent writes down about a pod so that its successor finds it: the pod itself, its sandbox, its containers.
//!
//! One directory per pod under `<run_dir>/pods`, each file replaced atomically by rename(2). A record of a container
//! is written before the container is made, so no container exists that no record names. Records do not survive a
//! reboot: the boot id is kept beside them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::state::ContainerState;

const POD: &str = "pod.json";
const SANDBOX: &str = "sandbox.json";
const BOOT_ID: &str = "boot_id";

/// The sandbox as written down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// When this node accepted the pod.
    pub start_time: Timestamp,
    /// The pod's addresses; absent while the sandbox was not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ips: Option<Vec<IpAddr>>,
}

/// The records of one pod.
#[derive(Clone, Debug)]
pub struct Records {
    dir: PathBuf,
}

/// Everything read back about one pod.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// The pod as last seen.
    pub pod: Pod,
    /// Its sandbox.
    pub sandbox: SandboxRecord,
    /// Its containers by name.
    pub containers: BTreeMap<String, ContainerState>,
}

impl Records {
    /// The records of the pod `uid` below `root`.
    #[must_use]
    pub fn of(root: &Path, uid: &str) -> Self {
        Records { dir: root.join(uid) }
    }

    /// The pod's directory; bundles and the node's files lie beside the records.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The bundle of a container.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join("bundles").join(id)
    }

    /// The mount points of a container's subPaths.
    #[must_use]
    pub fn subpaths(&self, id: &str) -> PathBuf {
        self.dir.join("subpaths").join(id)
    }

    /// The file behind a container's termination message.
    #[must_use]
    pub fn termination_message(&self, id: &str) -> PathBuf {
        self.dir.join("messages").join(id)
    }

    /// The directory of the node's files for the pod.
    #[must_use]
    pub fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    /// The pod's shared memory.
    #[must_use]
    pub fn shm(&self) -> PathBuf {
        self.dir.join("shm")
    }

    /// Makes the directory and writes the pod.
    pub fn write_pod(&self, pod: &Pod) -> io::Result<()> {
        fs::create_dir_all(self.dir.join("containers"))?;
        write(&self.dir.join(POD), pod)
    }

    /// Writes the sandbox.
    pub fn write_sandbox(&self, sandbox: &SandboxRecord) -> io::Result<()> {
        write(&self.dir.join(SANDBOX), sandbox)
    }

    /// Writes a container.
    pub fn write_container(&self, name: &str, state: &ContainerState) -> io::Result<()> {
        write(&self.dir.join("containers").join(format!("{name}.json")), state)
    }

    /// Reads everything back; `None` when there is no readable pod.
    #[must_use]
    pub fn read(&self) -> Option<Remembered> {
        let pod = read(&self.dir.join(POD))?;
        let sandbox = read(&self.dir.join(SANDBOX)).unwrap_or_default();
        let mut containers = BTreeMap::new();
        for entry in fs::read_dir(self.dir.join("containers"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
            if let (Some(name), Some(state)) = (name, read(&entry.path())) {
                containers.insert(name.to_owned(), state);
            }
        }
        Some(Remembered {
            pod,
            sandbox,
            containers,
        })
    }

    /// Removes everything.
    pub fn remove(&self) -> io::Result<()> {
        crate::volume::directory::remove_tree(&self.dir)
    }
}

/// The uids of all pods with records below `root`.
#[must_use]
pub fn uids(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Whether the records below `root` are of this boot; notes this boot for the next call.
pub fn of_this_boot(root: &Path) -> io::Result<bool> {
    fs::create_dir_all(root)?;
    let current = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let file = root.join(BOOT_ID);
    let same = fs::read_to_string(&file).map_or(true, |noted| noted == current);
    fs::write(&file, current)?;
    Ok(same)
}

fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let staged = path.with_extension("new");
    fs::write(&staged, serde_json::to_vec(value)?)?;
    fs::rename(&staged, path)
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a record cannot be read and is ignored");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::state::Phase;
    use serde_json::{from_value, json};

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::of(dir.path(), "uid");
        let pod: Pod = from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": []}})).unwrap();
        let sandbox = SandboxRecord {
            start_time: Timestamp::from_second(1_800_000_000).unwrap(),
            ips: Some(vec!["10.244.0.3".parse().unwrap()]),
        };
        let phase = Phase::Running {
            started_at: sandbox.start_time,
            started: true,
            ready: true,
            killing: false,
        };
        let state = ContainerState {
            attempt: 3,
            id: Some("c".into()),
            phase,
            ..ContainerState::default()
        };
        records.write_pod(&pod).unwrap();
        records.write_sandbox(&sandbox).unwrap();
        records.write_container("a", &state).unwrap();
        let read = records.read().unwrap();
        assert_eq!((read.pod, read.sandbox), (pod, sandbox));
        assert_eq!(read.containers["a"], state);
        assert_eq!(uids(dir.path()), ["uid"]);
        records.remove().unwrap();
        assert!(records.read().is_none());
    }

    #[test]
    fn a_torn_record_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::of(dir.path(), "uid");
        records.write_pod(&Pod::default()).unwrap();
        fs::write(records.dir().join("containers/a.json"), "{\"attempt\":").unwrap();
        assert!(records.read().unwrap().containers.is_empty());
    }
}
