//! Network devices of the host that become the container's. config-linux.md, "Network devices".

use std::ffi::CString;

use super::namespaces::Namespaces;
use super::process::c_string;
use crate::error::{Error, Result};
use crate::spec;

/// Longest name of a network device, without the terminating NUL (IFNAMSIZ - 1).
const NAME_LENGTH: usize = 15;

/// One device to move.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NetDevice {
    /// Its name on the host.
    pub host: CString,
    /// Its name in the container.
    pub name: CString,
}

/// Check `linux.netDevices`; in the order of the host's names.
pub(super) fn plan(linux: &spec::Linux, namespaces: &Namespaces) -> Result<Vec<NetDevice>> {
    let Some(devices) = linux.net_devices().as_ref().filter(|devices| !devices.is_empty()) else {
        return Ok(Vec::new());
    };
    if !namespaces.has(libc::CLONE_NEWNET) {
        return Err(Error::invalid(
            "linux.netDevices: unable to move network devices without a NET namespace of the container's own in linux.namespaces",
        ));
    }
    let mut plans = Vec::with_capacity(devices.len());
    for (host, device) in devices {
        let name = device.name().as_deref().filter(|name| !name.is_empty()).unwrap_or(host);
        plans.push(NetDevice {
            host: device_name(host)?,
            name: device_name(name)?,
        });
    }
    plans.sort_by(|one, other| one.host.cmp(&other.host));
    for (at, plan) in plans.iter().enumerate() {
        if plans[..at].iter().any(|other| other.name == plan.name) {
            return Err(Error::invalid(format!(
                "linux.netDevices: two devices would be {:?} in the container",
                plan.name
            )));
        }
    }
    Ok(plans)
}

/// What the kernel takes as a name (dev_valid_name).
fn device_name(name: &str) -> Result<CString> {
    let wrong = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace();
    if name.is_empty() || name.len() > NAME_LENGTH || name == "." || name == ".." || name.bytes().any(wrong) {
        return Err(Error::invalid(format!(
            "linux.netDevices: {name:?} is no name of a network device (1 to {NAME_LENGTH} bytes, no space, / or :)"
        )));
    }
    c_string("linux.netDevices", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(namespaces: serde_json::Value, devices: serde_json::Value) -> Result<Vec<NetDevice>> {
        let linux = serde_json::json!({"namespaces": namespaces, "netDevices": devices});
        let linux = serde_json::from_value(linux).unwrap();
        plan(&linux, &Namespaces::new(&linux).unwrap())
    }

    #[test]
    fn a_device_keeps_its_name_unless_it_gets_another() {
        let network = serde_json::json!([{"type": "network"}]);
        let plans = devices(network, serde_json::json!({"eth7": {"name": "data"}, "eth8": {}})).unwrap();
        assert_eq!((plans[0].host.as_c_str(), plans[0].name.as_c_str()), (c"eth7", c"data"));
        assert_eq!(plans[1].name.as_c_str(), c"eth8");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let network = || serde_json::json!([{"type": "network"}]);
        assert!(devices(serde_json::json!([]), serde_json::json!({"eth7": {}})).is_err());
        assert!(devices(network(), serde_json::json!({"eth7": {"name": "a/b"}})).is_err());
        assert!(
            devices(
                network(),
                serde_json::json!({"eth7": {"name": "x"}, "eth8": {"name": "x"}})
            )
            .is_err()
        );
        assert!(devices(network(), serde_json::json!({"a-name-that-is-too-long": {}})).is_err());
    }
}
