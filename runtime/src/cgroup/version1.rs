//! Resources that only cgroup version 1 has: refused by name. config-linux.md, "Control groups" and "Unified".

use crate::error::{Error, Result};
use crate::spec::LinuxResources;

/// What only cgroup version 1 could do: there is nothing to convert it to.
pub(super) fn refuse(resources: &LinuxResources) -> Result<()> {
    let set = |limit: Option<i64>| limit.is_some_and(|limit| limit > 0);
    let (memory, cpu, io) = (resources.memory(), resources.cpu(), resources.block_io());
    let network = resources.network().as_ref();
    let asked = [
        (
            "memory.kernel",
            memory.as_ref().is_some_and(|memory| set(memory.kernel())),
        ),
        (
            "memory.kernelTCP",
            memory.as_ref().is_some_and(|memory| set(memory.kernel_tcp())),
        ),
        (
            "memory.swappiness",
            memory.as_ref().is_some_and(|memory| memory.swappiness().is_some()),
        ),
        (
            "memory.disableOOMKiller",
            memory
                .as_ref()
                .is_some_and(|memory| memory.disable_oom_killer() == Some(true)),
        ),
        (
            "cpu.realtimeRuntime",
            cpu.as_ref().is_some_and(|cpu| set(cpu.realtime_runtime())),
        ),
        (
            "cpu.realtimePeriod",
            cpu.as_ref()
                .is_some_and(|cpu| cpu.realtime_period().is_some_and(|period| period > 0)),
        ),
        (
            "blockIO.leafWeight",
            io.as_ref()
                .is_some_and(|io| io.leaf_weight().is_some_and(|weight| weight > 0)),
        ),
        (
            "network.classID",
            network.is_some_and(|network| network.class_id().is_some_and(|class| class > 0)),
        ),
        (
            "network.priorities",
            network.is_some_and(|network| network.priorities().as_ref().is_some_and(|list| !list.is_empty())),
        ),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(Error::invalid(format!(
            "linux.resources.{field} needs cgroup version 1; version 2, which this machine has, knows nothing like it"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limits;

    fn lines(json: serde_json::Value) -> crate::error::Result<Vec<String>> {
        let limits = Limits::new(Some(&serde_json::from_value(json).unwrap()))?;
        Ok(limits.settings().iter().map(|setting| setting.file.clone()).collect())
    }

    #[test]
    fn what_version_2_cannot_do_is_named() {
        let refused = |json| lines(json).unwrap_err().to_string();
        assert!(refused(serde_json::json!({"memory": {"swappiness": 0}})).contains("memory.swappiness"));
        assert!(refused(serde_json::json!({"memory": {"disableOOMKiller": true}})).contains("disableOOMKiller"));
        assert!(refused(serde_json::json!({"cpu": {"realtimeRuntime": 95000}})).contains("realtimeRuntime"));
        assert!(refused(serde_json::json!({"network": {"classID": 1048577}})).contains("classID"));
        assert!(
            refused(serde_json::json!({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]})).contains("pageSize")
        );
        let harmless = serde_json::json!({
            "memory": {"disableOOMKiller": false, "kernel": -1, "kernelTCP": 0}, "network": {}
        });
        assert!(lines(harmless).unwrap().is_empty());
    }
}
