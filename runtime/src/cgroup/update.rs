//! New limits for a group that lives: what they leave out stays as it is, also the half of a pair.

use std::fs;
use std::os::fd::AsFd;

use super::{Cgroup, Limits, device_program};
use crate::error::{Error, Result};
use crate::spec::{LinuxMemory, LinuxResources};

/// Change limits, and the rules for devices if there are new ones.
pub(crate) fn update(cgroup: &Cgroup, resources: &LinuxResources) -> Result<Limits> {
    let mut resources = resources.clone();
    if let Some(memory) = resources.memory_mut() {
        complete(cgroup, memory)?;
    }
    let limits = Limits::new(Some(&resources))?;
    cgroup.apply(&limits)?;
    if resources.devices().as_ref().is_some_and(|rules| !rules.is_empty()) {
        device_program::replace(cgroup.open()?.as_fd(), limits.device_program())?;
    }
    Ok(limits)
}

/// A limit of memory and swap is converted by that of memory: the one the group has, unless there is a new one.
fn complete(cgroup: &Cgroup, memory: &mut LinuxMemory) -> Result<()> {
    let read = |file: &str| {
        fs::read_to_string(cgroup.dir().join(file))
            .ok()?
            .trim()
            .parse::<i64>()
            .ok()
    };
    if memory.swap().is_some_and(|swap| swap > 0) && memory.limit().is_none() {
        memory.set_limit(read("memory.max"));
    }
    let limit = memory.limit().filter(|&limit| limit > 0);
    if let (Some(true), Some(limit), Some(used)) = (memory.check_before_update(), limit, read("memory.current"))
        && used > limit
    {
        return Err(Error::invalid(format!(
            "linux.resources.memory: the new limit {limit} is below the {used} bytes in use, \
             and checkBeforeUpdate forbids to kill for it"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(json: serde_json::Value) -> LinuxMemory {
        serde_json::from_value(json).unwrap()
    }

    fn group() -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("memory.max"), "1000\n").unwrap();
        fs::write(dir.path().join("memory.current"), "900\n").unwrap();
        let cgroup = Cgroup::at(dir.path());
        (dir, cgroup)
    }

    #[test]
    fn swap_alone_is_converted_by_the_limit_there_is() {
        let (_dir, cgroup) = group();
        let mut swap = memory(serde_json::json!({"swap": 1500}));
        complete(&cgroup, &mut swap).unwrap();
        assert_eq!(swap.limit(), Some(1000));
    }

    #[test]
    fn a_limit_below_use_is_refused_where_that_is_asked_for() {
        let (_dir, cgroup) = group();
        let mut checked = memory(serde_json::json!({"limit": 800, "checkBeforeUpdate": true}));
        assert!(
            complete(&cgroup, &mut checked)
                .unwrap_err()
                .to_string()
                .contains("in use")
        );
        assert!(complete(&cgroup, &mut memory(serde_json::json!({"limit": 800}))).is_ok());
    }
}
