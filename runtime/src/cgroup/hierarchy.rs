//! Where cgroup v2 is mounted, which controllers it has, and where a container's group goes in it. cgroups(7).

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{Cgroup, words};
use crate::error::{Error, Result};
use crate::mountinfo;

const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// The mounted cgroup2 file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    mount: PathBuf,
}

impl Hierarchy {
    /// Find it: at the usual places, else in /proc/self/mountinfo.
    pub fn find() -> Result<Hierarchy> {
        for usual in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let found = rustix::fs::statfs(usual).is_ok_and(|stat| stat.f_type == CGROUP2_SUPER_MAGIC);
            if found {
                return Ok(Hierarchy { mount: usual.into() });
            }
        }
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").map_err(|e| Error::os("read /proc/self/mountinfo", e))?;
        let mount = mounted_at(&mounts).ok_or_else(|| {
            Error::system("no cgroup2 file system is mounted: mount one, e.g. mount -t cgroup2 none /sys/fs/cgroup")
        })?;
        Ok(Hierarchy { mount })
    }

    /// The hierarchy that is mounted at `mount`.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn at(mount: &Path) -> Hierarchy {
        Hierarchy { mount: mount.into() }
    }

    /// Where it is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// The controllers this machine has in version 2.
    pub fn controllers(&self) -> Result<Vec<String>> {
        words(&self.mount.join("cgroup.controllers"))
    }

    /// The group of a container by its `linux.cgroupsPath`: absolute paths start at the mount, relative ones
    /// beside the caller's own group; without one it is named by the container's id.
    pub fn container(&self, cgroups_path: Option<&Path>, id: &str) -> Result<Cgroup> {
        let path = cgroups_path.filter(|path| !path.as_os_str().is_empty());
        let inner = match path {
            Some(path) if path.is_absolute() => path.to_path_buf(),
            other => self.own_parent()?.join(other.unwrap_or(Path::new(id))),
        };
        let ordinary = |part: &Component| !matches!(part, Component::ParentDir | Component::Prefix(_));
        if !inner.components().all(|part| ordinary(&part)) {
            return Err(Error::invalid(format!(
                "linux.cgroupsPath {:?} contains \"..\"",
                inner.display()
            )));
        }
        let dir = self.mount.join(inner.strip_prefix("/").unwrap_or(&inner));
        if dir == self.mount {
            return Err(Error::invalid("linux.cgroupsPath is the root of the hierarchy"));
        }
        Ok(Cgroup { dir })
    }

    fn own_parent(&self) -> Result<PathBuf> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| Error::os("read /proc/self/cgroup", e))?;
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        Ok(Path::new(path).parent().unwrap_or(Path::new("/")).to_path_buf())
    }
}

/// Inode of the machine's first user namespace, linux/proc_ns.h (PROC_USER_INIT_INO).
const FIRST_USER_NAMESPACE: u64 = 0xefff_fffd;

/// This process is in another user namespace than the machine's first: it is no root, whatever its id.
pub fn in_user_namespace() -> bool {
    rustix::fs::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino != FIRST_USER_NAMESPACE)
}

/// The mount point of the first cgroup2 in mountinfo.
fn mounted_at(mountinfo: &str) -> Option<PathBuf> {
    mountinfo::points(mountinfo, &["cgroup2"]).next().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_in_mountinfo() {
        let mountinfo = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                         41 31 0:38 / /sys/fs/my\\040cgroup rw,relatime - cgroup2 cgroup rw\n";
        assert_eq!(mounted_at(mountinfo), Some("/sys/fs/my cgroup".into()));
        assert_eq!(mounted_at("1 2 0:3 / /x rw - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn paths_stay_inside_the_hierarchy() {
        let hierarchy = Hierarchy { mount: "/cg".into() };
        let dir = |path: &str| hierarchy.container(Some(Path::new(path)), "c1").map(|group| group.dir);
        assert_eq!(dir("/hull/pod1/c1").unwrap(), Path::new("/cg/hull/pod1/c1"));
        assert!(dir("/hull/../../etc").is_err());
        assert!(dir("/").is_err());
    }
}
