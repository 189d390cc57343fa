//! Intel RDT: the class of service of the container and the schemata to write. config-linux.md, "IntelRdt";
//! Documentation/filesystems/resctrl.rst.

use crate::error::{Error, Result};
use crate::spec::LinuxIntelRdt;

/// What to do in a mounted resctrl.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rdt {
    /// Name of the class; without one it is the container's id.
    pub class: Option<String>,
    /// Texts to write to `schemata`, in order.
    pub schemata: Vec<String>,
    /// Make a monitoring group for the container.
    pub monitor: bool,
}

impl Rdt {
    /// Check `linux.intelRdt`.
    pub fn new(rdt: &LinuxIntelRdt) -> Result<Rdt> {
        let class = rdt.clos_id().as_deref().filter(|class| !class.is_empty());
        if let Some(class) = class.filter(|class| class.contains(['/', '\0', '\n']) || matches!(*class, "." | "..")) {
            return Err(Error::invalid(format!(
                "linux.intelRdt.closID: {class:?} is no name of a directory"
            )));
        }
        let cache = rdt.l3_cache_schema().as_deref().filter(|schema| !schema.is_empty());
        let bandwidth = rdt.mem_bw_schema().as_deref().filter(|schema| !schema.is_empty());
        if let Some(schema) = bandwidth.filter(|schema| !schema.starts_with("MB:") || schema.contains('\n')) {
            return Err(Error::invalid(format!(
                "linux.intelRdt.memBwSchema: {schema:?} must be one line that starts with \"MB:\""
            )));
        }
        let mut schemata = Vec::new();
        match (cache, bandwidth) {
            (None, None) => (),
            (Some(one), None) | (None, Some(one)) => schemata.push(one.to_owned()),
            (Some(cache), Some(bandwidth)) => {
                let mut lines: Vec<&str> = cache.lines().filter(|line| !line.starts_with("MB:")).collect();
                lines.push(bandwidth);
                schemata.push(lines.join("\n"));
            }
        }
        let own = rdt.schemata().as_deref().unwrap_or_default();
        if !own.is_empty() {
            schemata.push(own.join("\n"));
        }
        Ok(Rdt {
            class: class.map(str::to_owned),
            schemata,
            monitor: rdt.enable_monitoring().unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rdt(json: serde_json::Value) -> Result<Rdt> {
        Rdt::new(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn schemata_are_written_last_and_bandwidth_replaces_its_line() {
        let rdt = rdt(serde_json::json!({
            "closID": "web", "l3CacheSchema": "L3:0=7f0\nMB:0=10", "memBwSchema": "MB:0=20", "schemata": ["L2:0=f"]
        }))
        .unwrap();
        assert_eq!(rdt.class.as_deref(), Some("web"));
        assert_eq!(rdt.schemata, ["L3:0=7f0\nMB:0=20", "L2:0=f"]);
    }

    #[test]
    fn what_would_leave_the_directory_is_refused() {
        assert!(rdt(serde_json::json!({"closID": "../other"})).is_err());
        assert!(rdt(serde_json::json!({"closID": ".."})).is_err());
        assert!(rdt(serde_json::json!({"memBwSchema": "MB:0=1\nL3:0=1"})).is_err());
        assert!(rdt(serde_json::json!({"memBwSchema": "L3:0=1"})).is_err());
    }
}
