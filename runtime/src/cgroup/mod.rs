//! cgroup v2: where it is mounted, which controllers it has, and one container's directory in it.
