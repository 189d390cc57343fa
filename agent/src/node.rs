//! This machine as a Node: what it has; and, in `report`, what the API server is told of it.

mod report;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};

use hull_runtime::cgroup::Hierarchy;

use crate::config::AgentConfig;
use crate::pod::fields::NodeFacts;

pub use report::NodeReporter;

/// What the machine has.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Processors this process may use.
    pub processors: usize,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of the file system of the data directory.
    pub storage: i64,
    /// Kernel release.
    pub kernel: String,
    /// `Debian GNU/Linux 12 (bookworm)`.
    pub os_image: String,
    /// /etc/machine-id.
    pub machine_id: String,
    /// Changes with each boot.
    pub boot_id: String,
    /// The node's address.
    pub ip: Option<IpAddr>,
    /// Its address of the other family, if it has a route there.
    pub other_ip: Option<IpAddr>,
}

impl Machine {
    /// Reads this machine.
    #[must_use]
    pub fn read(config: &AgentConfig) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let given = |ipv4: bool| config.node_ips.iter().copied().find(|ip| ip.is_ipv4() == ipv4);
        let ip = config
            .node_ips
            .first()
            .copied()
            .or_else(|| route_address(PROBE))
            .or_else(|| route_address(PROBE6));
        let other = |ipv4: bool| given(ipv4).or_else(|| route_address(if ipv4 { PROBE } else { PROBE6 }));
        Machine {
            processors,
            memory: meminfo("MemTotal").unwrap_or(0),
            storage: storage(&config.data_dir).map_or(0, |(total, _)| total),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: os_image(&text("/etc/os-release")),
            machine_id: text("/etc/machine-id"),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            ip,
            other_ip: ip.and_then(|ip| other(!ip.is_ipv4())),
        }
    }

    /// The node's address, loopback when the machine has no other.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// The node's addresses: one, or one of each family.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        std::iter::once(self.address()).chain(self.other_ip).collect()
    }

    /// What pods may know.
    #[must_use]
    pub fn facts(&self, config: &AgentConfig) -> NodeFacts {
        NodeFacts {
            name: config.node_name.clone(),
            host_ips: self.addresses(),
            cpu_milli: i64::try_from(self.processors * 1000).unwrap_or(i64::MAX),
            memory: self.memory,
            ephemeral_storage: self.storage,
        }
    }
}

/// Bytes of an entry of /proc/meminfo.
fn meminfo(name: &str) -> Option<i64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace()
        .next()?
        .parse::<i64>()
        .ok()
        .map(|kilobytes| kilobytes * 1024)
}

/// Total and free bytes of the file system that holds `path` or its nearest parent.
fn storage(path: &Path) -> Option<(i64, i64)> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX);
    Some((bytes(stat.f_blocks), bytes(stat.f_bavail)))
}

fn os_image(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// Addresses that only the default route leads to: those kept for documentation (RFC 5737, RFC 3849).
const PROBE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const PROBE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1));

/// The source address of the route to `probe`: connect(2) on a datagram socket sends nothing.
fn route_address(probe: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if probe.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((probe, 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

/// Where cgroup v2 is mounted.
#[must_use]
pub fn cgroup_mount() -> Option<PathBuf> {
    Hierarchy::find().ok().map(|hierarchy| hierarchy.mount().to_owned())
}

/// The controllers that pods' cgroups can use.
#[must_use]
pub fn cgroup_controllers() -> BTreeSet<String> {
    let controllers = Hierarchy::find().and_then(|hierarchy| hierarchy.controllers());
    controllers.unwrap_or_default().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_read() {
        let machine = Machine::read(&AgentConfig::new("n1"));
        assert!(machine.processors > 0 && machine.memory > 0 && machine.storage > 0);
        assert!(!machine.kernel.is_empty() && !machine.boot_id.is_empty());
        assert_eq!(os_image("A=1\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }
}
