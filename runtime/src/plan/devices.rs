//! The plan of /dev: the default nodes, those of the configuration, and the usual symbolic links.
//! config-linux.md, "Devices" and "Default Devices".

use std::ffi::{CStr, CString};

use super::mounts::in_root;
use super::process::c_path;
use crate::error::{Error, Result};
use crate::spec::{self, LinuxDeviceType};

/// One device node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DevicePlan {
    /// Path relative to the root file system.
    pub path: CString,
    /// File type and permissions for mknod(2).
    pub mode: u32,
    pub device: u64,
    pub uid: u32,
    pub gid: u32,
}

/// Nodes that every container has: name, major, minor.
const DEFAULT: [(&CStr, u32, u32); 6] = [
    (c"dev/null", 1, 3),
    (c"dev/zero", 1, 5),
    (c"dev/full", 1, 7),
    (c"dev/random", 1, 8),
    (c"dev/urandom", 1, 9),
    (c"dev/tty", 5, 0),
];

/// Links that every container has in /dev: name and what it points to.
pub(crate) const LINKS: [(&CStr, &CStr); 5] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
];

const DEFAULT_MODE: u32 = 0o666;

/// The default nodes, replaced or followed by those of the configuration.
pub(crate) fn plan(devices: &[spec::LinuxDevice]) -> Result<Vec<DevicePlan>> {
    let mut plans: Vec<DevicePlan> = DEFAULT
        .iter()
        .map(|&(path, major, minor)| DevicePlan {
            path: path.into(),
            mode: libc::S_IFCHR | DEFAULT_MODE,
            device: libc::makedev(major, minor),
            uid: 0,
            gid: 0,
        })
        .collect();
    for device in devices {
        let plan = one(device)?;
        match plans.iter().position(|other| other.path == plan.path) {
            Some(place) => plans[place] = plan,
            None => plans.push(plan),
        }
    }
    Ok(plans)
}

fn one(device: &spec::LinuxDevice) -> Result<DevicePlan> {
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => {
            return Err(Error::invalid(format!(
                "linux.devices: {:?} has type \"a\"; it must be b, c, u or p",
                device.path().display()
            )));
        }
    };
    let number = |value: i64, what: &str| {
        u32::try_from(value).map_err(|_| {
            Error::invalid(format!(
                "linux.devices: {:?} has the {what} number {value}",
                device.path().display()
            ))
        })
    };
    Ok(DevicePlan {
        path: c_path("linux.devices.path", &in_root(device.path()))?,
        mode: kind | device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777,
        device: libc::makedev(number(device.major(), "major")?, number(device.minor(), "minor")?),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_device_replaces_the_default() {
        let devices: Vec<spec::LinuxDevice> = serde_json::from_value(serde_json::json!([
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 384},
            {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200}
        ]))
        .unwrap();
        let plans = plan(&devices).unwrap();
        assert_eq!(plans.len(), DEFAULT.len() + 1);
        assert_eq!(plans[0].mode, libc::S_IFCHR | 0o600);
        assert_eq!(plans[6].path.as_c_str(), c"dev/net/tun");
        assert_eq!(plans[6].device, libc::makedev(10, 200));
    }

    #[test]
    fn impossible_devices_are_refused() {
        let device = |json| plan(&[serde_json::from_value(json).unwrap()]).unwrap_err().to_string();
        assert!(device(serde_json::json!({"path": "/dev/x", "type": "a"})).contains("type \"a\""));
        assert!(device(serde_json::json!({"path": "/dev/x", "type": "c", "major": -1})).contains("major number -1"));
    }
}
