//! Whether the kernel's out-of-memory killer struck in a container's cgroup (cgroup v2, memory.events).

use std::fs;
use std::path::{Path, PathBuf};

/// The cgroup v2 directory of a process, as this process sees the hierarchy.
pub(crate) fn cgroup_of(pid: i32) -> Option<PathBuf> {
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    Some(mounts.lines().find_map(cgroup2_mount)?.join(path))
}

/// The mount point, if this line of mountinfo is a whole cgroup2 (proc_pid_mountinfo(5)).
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    let (mount, source) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    (source.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
}

/// Whether memory.events of this cgroup counts a kill.
pub(crate) fn was_killed(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("memory.events")).is_ok_and(|events| counts_a_kill(&events))
}

fn counts_a_kill(events: &str) -> bool {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|count| count.trim().parse::<u64>().ok())
        .is_some_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kill_counts() {
        assert!(counts_a_kill(
            "low 0\nhigh 0\nmax 9\noom 3\noom_kill 1\noom_group_kill 0\n"
        ));
        assert!(!counts_a_kill("low 0\nhigh 0\nmax 9\noom 3\noom_kill 0\n"));
        assert!(!counts_a_kill(""));
    }

    #[test]
    fn the_mount_is_found_by_its_type() {
        let line = "31 24 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mount(line), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            cgroup2_mount("32 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"),
            None
        );
        assert_eq!(cgroup2_mount("31 24 0:26 /a /b rw - cgroup2 cgroup2 rw"), None);
    }
}
