//! sysctls that belong to a namespace the container owns; any other would change the host.
//! config-linux.md, "Sysctl"; sysctl(8) for the two spellings of names.

use std::ffi::CString;

use super::namespaces::Namespaces;
use super::process::c_string;
use crate::error::{Error, Result};
use crate::spec;

/// Path below /proc/sys and value of each.
pub(super) fn plan(linux: &spec::Linux, namespaces: &Namespaces) -> Result<Vec<(CString, CString)>> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg_next_id",
    ];
    let one = |(name, value): (&String, &String)| {
        // "net/ipv4/conf/eth0.100/x" keeps its dots, "net.ipv4.x" has them for slashes.
        let dotted = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
            Some(b'/') => name.replace('/', "."),
            _ => name.clone(),
        };
        let path = match dotted == *name {
            true => name.replace(['.', '/'], "\0").replace('\0', "/"),
            false => name.clone(),
        };
        let (owner, kind) = match &*dotted {
            name if name.starts_with("net.") => (libc::CLONE_NEWNET, "network"),
            name if IPC.contains(&name) || name.starts_with("fs.mqueue.") => (libc::CLONE_NEWIPC, "ipc"),
            "kernel.domainname" => (libc::CLONE_NEWUTS, "uts"),
            "kernel.hostname" => {
                return Err(Error::invalid(
                    "linux.sysctl: kernel.hostname conflicts with the field hostname",
                ));
            }
            _ => {
                return Err(Error::invalid(format!(
                    "linux.sysctl: {name:?} belongs to no namespace, setting it would change the host"
                )));
            }
        };
        if !namespaces.has(owner) {
            return Err(Error::invalid(format!(
                "linux.sysctl: {name:?} needs a {kind} namespace of the container's own in linux.namespaces"
            )));
        }
        Ok((c_string("linux.sysctl", &path)?, c_string("linux.sysctl", value)?))
    };
    let mut sysctls = linux.sysctl().iter().flatten().map(one).collect::<Result<Vec<_>>>()?;
    sysctls.sort();
    Ok(sysctls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctl(name: &str, namespaces: serde_json::Value) -> Result<Vec<(CString, CString)>> {
        let linux = serde_json::json!({"namespaces": namespaces, "sysctl": {name: "1"}});
        let linux = serde_json::from_value(linux).unwrap();
        plan(&linux, &Namespaces::new(&linux).unwrap())
    }

    #[test]
    fn sysctls_of_the_host_are_refused() {
        let ipc = || serde_json::json!([{"type": "ipc"}]);
        assert!(
            sysctl("vm.swappiness", ipc())
                .unwrap_err()
                .to_string()
                .contains("change the host")
        );
        assert_eq!(
            sysctl("kernel.shmmax", ipc()).unwrap()[0].0.as_c_str(),
            c"kernel/shmmax"
        );
        assert!(
            sysctl("net.ipv4.ip_forward", ipc())
                .unwrap_err()
                .to_string()
                .contains("network namespace")
        );
        assert!(
            sysctl("kernel.hostname", ipc())
                .unwrap_err()
                .to_string()
                .contains("hostname")
        );
    }

    #[test]
    fn names_with_slashes_keep_their_dots() {
        let network = serde_json::json!([{"type": "network"}]);
        let plan = sysctl("net/ipv4/conf/eth0.100/rp_filter", network).unwrap();
        assert_eq!(plan[0].0.as_c_str(), c"net/ipv4/conf/eth0.100/rp_filter");
    }
}
