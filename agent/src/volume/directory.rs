//! Where the volumes of one pod live on this node, and making and removing them.
//!
//! emptyDir lies on disk under the data directory, payload volumes in memory (tmpfs) under the run directory, so that
//! no secret reaches a disk. Removal is idempotent and never follows a mount into what it shows.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::payload::{self, Sources};
use super::{VolumeError, atomic, host_path};
use crate::pod::quantity::Amount;

/// `f_type` of tmpfs (linux/magic.h).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Where a volume is to be bind-mounted from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its path on the host.
    pub path: PathBuf,
    /// Whether it must never be written to: payload volumes.
    pub read_only: bool,
}

/// The directories of one pod's volumes.
#[derive(Clone, Debug)]
pub struct VolumeDirs {
    /// On disk.
    pub disk: PathBuf,
    /// In memory.
    pub memory: PathBuf,
}

impl VolumeDirs {
    /// Those of the pod `uid`.
    #[must_use]
    pub fn of(volumes_dir: &Path, memory_dir: &Path, uid: &str) -> Self {
        VolumeDirs {
            disk: volumes_dir.join(uid),
            memory: memory_dir.join(uid),
        }
    }

    /// Where a volume of the pod is, whether it was made or not. Volumes of other kinds are refused when made.
    #[must_use]
    pub fn place(&self, volume: &Volume) -> Place {
        if payload::is_payload(volume) {
            return Place {
                path: self.memory.join(&volume.name),
                read_only: true,
            };
        }
        match &volume.host_path {
            Some(source) => Place {
                path: PathBuf::from(&source.path),
                read_only: false,
            },
            None => Place {
                path: self.disk.join(&volume.name),
                read_only: false,
            },
        }
    }

    /// Makes every volume of `pod`.
    pub fn set_up(&self, pod: &Pod, sources: &Sources<'_>, now: Timestamp) -> Result<(), VolumeError> {
        let group = fs_group(pod);
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            self.set_up_one(volume, sources, group, now)?;
        }
        Ok(())
    }

    /// Writes the payload volumes anew where their content changed. Returns whether any did.
    pub fn refresh(&self, pod: &Pod, sources: &Sources<'_>, now: Timestamp) -> Result<bool, VolumeError> {
        let mut changed = false;
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            if payload::is_payload(volume) {
                changed |= self.write_payload(volume, sources, fs_group(pod), now)?;
            }
        }
        Ok(changed)
    }

    fn set_up_one(
        &self,
        volume: &Volume,
        sources: &Sources<'_>,
        group: Option<u32>,
        now: Timestamp,
    ) -> Result<(), VolumeError> {
        if payload::is_payload(volume) {
            self.write_payload(volume, sources, group, now).map(drop)
        } else if let Some(source) = &volume.host_path {
            host_path::set_up(&volume.name, source).map(drop)
        } else if let Some(source) = &volume.empty_dir {
            self.empty_dir(&volume.name, source, group)
        } else {
            Err(VolumeError::refused(
                &volume.name,
                "this node does not support this kind of volume",
            ))
        }
    }

    fn write_payload(
        &self,
        volume: &Volume,
        sources: &Sources<'_>,
        group: Option<u32>,
        now: Timestamp,
    ) -> Result<bool, VolumeError> {
        let files = payload::compute(volume, sources).map_err(|message| VolumeError::refused(&volume.name, message))?;
        let path = self.memory.join(&volume.name);
        make_dir(&path, 0o755).map_err(VolumeError::system(&volume.name, "make", &path))?;
        atomic::write(&path, &files, group, now).map_err(VolumeError::system(&volume.name, "write to", &path))
    }

    fn empty_dir(&self, name: &str, source: &EmptyDirVolumeSource, group: Option<u32>) -> Result<(), VolumeError> {
        let path = self.disk.join(name);
        let failed = |action| VolumeError::system(name, action, &path);
        let fresh = !path.exists();
        make_dir(&path, 0o777).map_err(VolumeError::system(name, "make", &path))?;
        match source.medium.as_deref().unwrap_or_default() {
            "" => {}
            "Memory" if is_mounted(&path) => return Ok(()),
            "Memory" => {
                let limit = source
                    .size_limit
                    .as_ref()
                    .and_then(|limit| Amount::parse(&limit.0))
                    .map(Amount::value);
                let options = match limit {
                    Some(bytes) if bytes > 0 => format!("mode=0777,size={bytes}"),
                    _ => "mode=0777".to_owned(),
                };
                mount_tmpfs(&path, &options).map_err(failed("mount a tmpfs at"))?;
            }
            other => return Err(VolumeError::refused(name, format!("unknown emptyDir medium {other:?}"))),
        }
        if let Some(group) = group.filter(|_| fresh) {
            chown(&path, None, Some(group)).map_err(VolumeError::system(name, "give to the group", &path))?;
            let mode = Permissions::from_mode(0o2777);
            fs::set_permissions(&path, mode).map_err(VolumeError::system(name, "set the mode of", &path))?;
        }
        Ok(())
    }

    /// Removes every volume of the pod from this node; hostPaths stay.
    pub fn tear_down(&self) -> io::Result<()> {
        for directory in [&self.disk, &self.memory] {
            unmount_below(directory)?;
            remove_tree(directory)?;
        }
        Ok(())
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    u32::try_from(context.fs_group?).ok()
}

/// Makes sure that `directory` keeps its content in memory: on a tmpfs, one that is mounted here if need be.
pub fn ensure_memory(directory: &Path) -> io::Result<()> {
    make_dir(directory, 0o755)?;
    if on_tmpfs(directory) {
        Ok(())
    } else {
        mount_tmpfs(directory, "mode=0755").map_err(Into::into)
    }
}

fn on_tmpfs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC)
}

fn mount_tmpfs(path: &Path, options: &str) -> rustix::io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let options = std::ffi::CString::new(options).map_err(|_| rustix::io::Errno::INVAL)?;
    mount("tmpfs", path, "tmpfs", flags, options.as_c_str())
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Whether a file system is mounted exactly at `path`.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    mounts().is_ok_and(|mounts| mounts.iter().any(|mount| mount == path))
}

/// Unmounts all that is mounted at or below `directory`, the latest first.
pub fn unmount_below(directory: &Path) -> io::Result<()> {
    let mut below: Vec<PathBuf> = mounts()?
        .into_iter()
        .filter(|mount| mount.starts_with(directory))
        .collect();
    while let Some(mount) = below.pop() {
        match unmount(&mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(io::Error::from(error)),
        }
    }
    Ok(())
}

/// Mount points in the order of mounting, from mountinfo (proc_pid_mountinfo(5)).
fn mounts() -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .collect())
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(path: &str) -> String {
    let codes: BTreeMap<&str, &str> = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")].into();
    codes
        .into_iter()
        .fold(path.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// Removes a directory and what is in it; absent is fine.
pub fn remove_tree(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::fields::NodeFacts;
    use crate::pod::references::Objects;
    use serde_json::{from_value, json};

    struct Cleared(VolumeDirs);
    impl Drop for Cleared {
        fn drop(&mut self) {
            let _ = self.0.tear_down();
        }
    }

    fn with_pod(volumes: serde_json::Value, check: impl FnOnce(&VolumeDirs, Result<(), VolumeError>)) {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Cleared(VolumeDirs::of(
            &dir.path().join("disk"),
            &dir.path().join("memory"),
            "uid",
        ));
        let pod: Pod = from_value(
            json!({"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": volumes,
            "securityContext": {"fsGroup": 4321}}}),
        )
        .unwrap();
        let sources = Sources {
            pod: &pod,
            node: &NodeFacts::default(),
            objects: &Objects::default(),
            tokens: &BTreeMap::new(),
        };
        let result = dirs
            .0
            .set_up(&pod, &sources, Timestamp::from_second(1_800_000_000).unwrap());
        check(&dirs.0, result);
        dirs.0.tear_down().unwrap();
        assert!(!dirs.0.disk.exists() && !dirs.0.memory.exists());
    }

    #[test]
    fn memory_volumes_are_sized_and_leave_no_mount() {
        with_pod(
            json!([{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}, {"name": "d", "emptyDir": {}}]),
            |dirs, result| {
                result.expect("needs root");
                assert!(is_mounted(&dirs.disk.join("m")));
                let size = rustix::fs::statvfs(dirs.disk.join("m")).unwrap();
                assert_eq!(size.f_blocks * size.f_frsize, 1 << 20);
                use std::os::unix::fs::MetadataExt as _;
                let made = fs::metadata(dirs.disk.join("d")).unwrap();
                assert_eq!((made.gid(), made.mode() & 0o7777), (4321, 0o2777));
            },
        );
    }

    #[test]
    fn unknown_kinds_are_refused_by_name() {
        with_pod(
            json!([{"name": "n", "nfs": {"server": "s", "path": "/p"}}]),
            |_, result| {
                assert!(result.unwrap_err().to_string().contains("\"n\""));
            },
        );
    }

    #[test]
    fn mount_paths_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }
}
