//! What the warden must remember of a container across its own death: `<dir>/c/<id>/record.json`, replaced by rename(2).
//!
//! The record is written before the runtime is asked to create, so nothing exists that no record names; one without a pid is
//! a creation that was interrupted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Context, Error, Refusal};
use super::protocol::{ContainerInfo, ContainerState, CreateRequest, Exit, LogConfig};

const FILE: &str = "record.json";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: String,
    pub bundle: PathBuf,
    pub log: Option<LogConfig>,
    pub terminal: bool,
    pub labels: BTreeMap<String, String>,
    pub oom_score_adj: i32,
    pub cgroup: Option<PathBuf>,
    pub created_at: i64,
    pub started_at: Option<i64>,
    pub process: Option<Process>,
    pub exit: Option<Exit>,
}

/// A process named for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub pid: i32,
    pub start_time: u64,
}

impl Record {
    pub(crate) fn new(request: CreateRequest, oom_score_adj: i32, created_at: i64) -> Self {
        let CreateRequest {
            id,
            bundle,
            log,
            stdin: _,
            terminal,
            labels,
        } = request;
        Self {
            id,
            bundle,
            log,
            terminal,
            labels,
            oom_score_adj,
            cgroup: None,
            created_at,
            started_at: None,
            process: None,
            exit: None,
        }
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<(), Error> {
        let (path, new) = (dir.join(FILE), dir.join("record.json.new"));
        let what = || format!("writing the record {}", path.display());
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::Protocol(format!("the record of {} cannot be encoded: {error}", self.id)))?;
        fs::write(&new, text).context(what)?;
        fs::rename(&new, &path).context(what)
    }

    fn load(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }

    pub(crate) fn info(&self) -> ContainerInfo {
        let process = self.process.unwrap_or(Process { pid: 0, start_time: 0 });
        ContainerInfo {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            pid: process.pid,
            start_time: process.start_time,
            labels: self.labels.clone(),
            created_at: self.created_at,
            started_at: self.started_at,
            log: self.log.clone(),
            state: match (self.exit, self.started_at) {
                (Some(exit), _) => ContainerState::Exited(exit),
                (None, Some(_)) => ContainerState::Running,
                (None, None) => ContainerState::Created,
            },
        }
    }
}

/// What a former warden left: the containers it knew, and ids of directories without a readable record.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub records: Vec<Record>,
    pub unreadable: Vec<String>,
}

/// Reads every record below `containers`.
pub(crate) fn load_all(containers: &Path) -> Result<Left, Error> {
    let mut left = Left::default();
    let what = || format!("reading {}", containers.display());
    for entry in fs::read_dir(containers).context(what)? {
        let entry = entry.context(what)?;
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        match Record::load(&entry.path()) {
            Some(record) if record.id == id => left.records.push(record),
            _ => left.unreadable.push(id),
        }
    }
    Ok(left)
}

/// Accepts only ids that are plain file names.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.+".contains(&byte);
    if id.is_empty() || id.len() > 200 || id.starts_with('.') || !id.bytes().all(good) {
        let message =
            format!("{id:?} is no container id: 1 to 200 letters, digits and _ - . +, not starting with a dot");
        return Err(Error::refused(Refusal::Invalid, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        let request = CreateRequest {
            id: id.into(),
            bundle: "/b".into(),
            log: None,
            stdin: false,
            terminal: false,
            labels: BTreeMap::from([("pod".into(), "web".into())]),
        };
        Record::new(request, 0, 1)
    }

    #[test]
    fn records_survive_and_a_half_written_one_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        for id in ["a", "torn", "other"] {
            fs::create_dir(dir.path().join(id)).unwrap();
        }
        let mut a = record("a");
        a.save(&dir.path().join("a")).unwrap();
        a.process = Some(Process { pid: 7, start_time: 9 });
        a.save(&dir.path().join("a")).unwrap();
        fs::write(dir.path().join("torn").join(FILE), "{\"id\":\"to").unwrap();
        record("a").save(&dir.path().join("other")).unwrap();
        let mut left = load_all(dir.path()).unwrap();
        left.unreadable.sort();
        assert_eq!(
            (left.records, left.unreadable),
            (vec![a], vec!["other".to_owned(), "torn".into()])
        );
    }

    #[test]
    fn the_state_follows_from_what_is_recorded() {
        let mut r = record("a");
        assert_eq!(r.info().state, ContainerState::Created);
        r.started_at = Some(2);
        assert_eq!(r.info().state, ContainerState::Running);
        let exit = Exit {
            code: Some(3),
            signal: None,
            oom_killed: false,
            at: 4,
        };
        r.exit = Some(exit);
        assert_eq!(r.info().state, ContainerState::Exited(exit));
    }

    #[test]
    fn ids_cannot_leave_the_directory() {
        for bad in ["", ".", "..", "a/b", "../x", ".hidden", "a b", "a\0", &"x".repeat(201)] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        check_id("3f2a-web_0.1").unwrap();
    }
}
