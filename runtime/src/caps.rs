//! Capabilities: kernel numbers, the engines' default set, and sets as bit masks.
//! capabilities(7); numbers from linux/capability.h.

use std::collections::HashSet;

use crate::spec::{Capability, LinuxCapabilities};

/// The 14 capabilities that container engines give by default.
pub const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Every capability, in the kernel's order: the index is its number.
pub const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// `CAP_SYS_ADMIN` as a mask.
pub(crate) const SYS_ADMIN: u64 = 1 << 21;
/// `CAP_SYS_RESOURCE` as a mask.
pub(crate) const SYS_RESOURCE: u64 = 1 << 24;

/// The name the kernel's manual uses, e.g. `CAP_NET_RAW`.
pub fn name(capability: Capability) -> String {
    match serde_json::to_value(capability) {
        Ok(serde_json::Value::String(name)) => name,
        _ => capability.to_string(),
    }
}

/// Parse `CAP_NET_RAW` or `net_raw`.
pub fn parse(name: &str) -> Option<Capability> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

/// The engines' default as a complete set of capabilities: bounding, effective and permitted.
pub fn default_set() -> LinuxCapabilities {
    let set: HashSet<Capability> = DEFAULT.into_iter().collect();
    let mut capabilities = none();
    capabilities
        .set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set));
    capabilities
}

/// No capability at all.
pub fn none() -> LinuxCapabilities {
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(None)
        .set_effective(None)
        .set_inheritable(None)
        .set_permitted(None)
        .set_ambient(None);
    capabilities
}

/// The five sets as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

impl Sets {
    /// From the configuration; a missing set is empty.
    pub fn new(capabilities: &LinuxCapabilities) -> Sets {
        let mask = |set: &Option<HashSet<Capability>>| set.iter().flatten().fold(0, |mask, &cap| mask | bit(cap));
        Sets {
            bounding: mask(capabilities.bounding()),
            effective: mask(capabilities.effective()),
            permitted: mask(capabilities.permitted()),
            inheritable: mask(capabilities.inheritable()),
            ambient: mask(capabilities.ambient()),
        }
    }
}

/// Whoever is in the ambient set must be permitted and inheritable (capabilities(7)); what is not stays out.
pub(crate) fn warn_of_ambient(capabilities: &LinuxCapabilities) {
    let Some(ambient) = capabilities.ambient() else { return };
    let sets = Sets::new(capabilities);
    let missing = |&&capability: &&Capability| bit(capability) & sets.permitted & sets.inheritable == 0;
    for capability in ambient.iter().filter(missing) {
        crate::error::warn(&format!(
            "can't raise ambient capability {}: it is not both permitted and inheritable",
            name(*capability)
        ));
    }
}

fn bit(capability: Capability) -> u64 {
    ALL.iter()
        .position(|&other| other == capability)
        .map_or(0, |number| 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(bit(Capability::Chown), 1);
        assert_eq!(bit(Capability::SysAdmin), 1 << 21);
        assert_eq!(bit(Capability::SysResource), SYS_RESOURCE);
        assert_eq!(bit(Capability::CheckpointRestore), 1 << 40);
    }

    #[test]
    fn names_are_read_strictly() {
        assert_eq!(parse("CAP_NET_RAW"), Some(Capability::NetRaw));
        assert_eq!(parse("net_raw"), Some(Capability::NetRaw));
        assert_eq!(parse("CAP_EVERYTHING"), None);
        assert_eq!(name(Capability::NetRaw), "CAP_NET_RAW");
    }

    #[test]
    fn the_default_set_is_the_engines_mask() {
        // /proc/self/status of a container under podman or docker: CapBnd 00000000a80425fb.
        let sets = Sets::new(&default_set());
        assert_eq!(sets.bounding, 0xa804_25fb);
        assert_eq!((sets.inheritable, sets.ambient), (0, 0));
    }
}
