//! Writes a set of files so that readers switch from all of the old to all of the new in one step.
//!
//! The kubelet's scheme (`pkg/volume/util/atomic_writer.go`), which containers and libraries rely on: the files live
//! in a directory with a time in its name, `..data` is a symlink to it that is replaced by rename(2), and every
//! visible name is a symlink through `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// One file of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, when not root.
    pub uid: Option<u32>,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, File>;

/// Whether a path may stand in a payload: relative, without `..`, not starting with `..`.
#[must_use]
pub fn is_valid_path(path: &str) -> bool {
    let mut components = Path::new(path).components().peekable();
    components.peek().is_some()
        && !path.starts_with("..")
        && path.len() <= 4096
        && components.all(|part| matches!(part, Component::Normal(name) if name.len() <= 255))
}

/// Makes `target` contain exactly `payload`. Returns whether anything changed.
pub fn write(target: &Path, payload: &Payload, group: Option<u32>, now: Timestamp) -> io::Result<bool> {
    if let Some(bad) = payload.keys().find(|path| !is_valid_path(path)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("invalid path {bad:?} in the volume"),
        ));
    }
    let old = fs::read_link(target.join(DATA)).ok();
    if let Some(old) = &old
        && matches(&target.join(old), payload, group)
    {
        return Ok(false);
    }
    let fresh = format!("..{}.{:09}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond());
    let directory = target.join(&fresh);
    make_dir(&directory, group)?;
    for (path, file) in payload {
        write_file(&directory, path, file, group)?;
    }
    let staged = target.join(NEW_DATA);
    remove_if_there(&staged)?;
    symlink(&fresh, &staged)?;
    fs::rename(&staged, target.join(DATA))?;
    expose(target, payload)?;
    if let Some(old) = old {
        let _ = fs::remove_dir_all(target.join(old));
    }
    Ok(true)
}

/// Makes the visible names equal to the first components of the payload's paths.
fn expose(target: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = target.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let name = entry.file_name();
        let stale = name
            .to_str()
            .is_none_or(|name| !name.starts_with("..") && !wanted.contains(name));
        if stale && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn write_file(directory: &Path, path: &str, file: &File, group: Option<u32>) -> io::Result<()> {
    let full = directory.join(path);
    let mut parent = directory.to_owned();
    for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        if !parent.is_dir() {
            make_dir(&parent, group)?;
        }
    }
    let mode = effective_mode(file.mode, group);
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&full)?;
    out.write_all(&file.data)?;
    if file.uid.is_some() || group.is_some() {
        chown(&full, file.uid, group)?;
    }
    out.set_permissions(Permissions::from_mode(mode))
}

/// A file that a group owns can be read by it.
fn effective_mode(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() { mode | 0o040 } else { mode }
}

fn make_dir(path: &Path, group: Option<u32>) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)?;
    if group.is_some() {
        chown(path, None, group)?;
        fs::set_permissions(path, Permissions::from_mode(0o2755))?;
    } else {
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn matches(directory: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut found = 0;
    let same = |path: &PathBuf| -> Option<()> {
        let relative = path.strip_prefix(directory).ok()?.to_str()?;
        let file = payload.get(relative)?;
        let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
        let equal = mode == effective_mode(file.mode, group) && fs::read(path).ok()? == file.data;
        equal.then_some(())
    };
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        let Ok(entries) = fs::read_dir(&next) else { return false };
        for entry in entries {
            let Ok(entry) = entry else { return false };
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path);
            } else if same(&path).is_none() {
                return false;
            } else {
                found += 1;
            }
        }
    }
    found == payload.len()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File {
            data: text.as_bytes().to_vec(),
            mode: 0o644,
            uid: None,
        };
        files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), file(text)))
            .collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn visible(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with("..")).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_seen_through_the_data_link() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("d/x/y", "2")]), None, at(0)).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.path().join("d/x/y")).unwrap(), "2");
        assert_eq!(fs::read_link(dir.path().join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(visible(dir.path()), ["a", "d"]);
    }

    #[test]
    fn an_update_replaces_everything_at_once_and_leaves_no_rest() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "1"), ("gone", "x")]), None, at(0)).unwrap();
        let before = fs::read_link(dir.path().join(DATA)).unwrap();
        assert!(
            !write(dir.path(), &payload(&[("a", "1"), ("gone", "x")]), None, at(1)).unwrap(),
            "unchanged"
        );
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), before);
        assert!(write(dir.path(), &payload(&[("a", "2")]), None, at(2)).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "2");
        assert_eq!(visible(dir.path()), ["a"]);
        let all = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(all, 3, "..data, one directory, a");
    }

    #[test]
    fn paths_that_lead_outside_are_refused() {
        for bad in ["../x", "/etc/passwd", "a/../../x", "", "..data", "a/./../b"] {
            assert!(!is_valid_path(bad), "{bad}");
            let dir = tempfile::tempdir().unwrap();
            assert!(
                write(dir.path(), &payload(&[(bad, "x")]), None, at(0)).is_err(),
                "{bad}"
            );
        }
        assert!(is_valid_path("a/b"));
    }

    #[test]
    fn a_leftover_of_an_interrupted_write_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        symlink("nowhere", dir.path().join(NEW_DATA)).unwrap();
        assert!(write(dir.path(), &payload(&[("a", "1")]), None, at(0)).unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "1");
    }
}
