//! Where a cluster lives on this machine: directories, addresses, names. `hull up` writes what it was started with to
//! `<run-dir>/cluster.json`, so that `down`, `status` and `image` need no flags to find it again.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use hull_agent::AgentConfig;
use serde::{Deserialize, Serialize};

/// Directories and addresses of a cluster; every default can be overridden, so that several clusters fit on one machine.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Data that a reboot must keep: store, certificates, images
    #[arg(long, global = true, default_value = "/var/lib/hull", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// State that a reboot may erase: sockets, namespaces, records of pods
    #[arg(long, global = true, default_value = "/run/hull", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Name of this node [default: the host name]
    #[arg(long, global = true, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of this node as pods and other nodes see it [default: that of the default route, else of the pod network]
    #[arg(long, global = true, value_name = "IP")]
    pub node_ip: Option<Ipv4Addr>,
    /// Where the API server listens
    #[arg(long, global = true, default_value = "0.0.0.0:6443", value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Where the agent's kubelet API listens
    #[arg(long, global = true, default_value = "0.0.0.0:10250", value_name = "IP:PORT")]
    pub agent_listen: SocketAddr,
    /// Addresses of this node's pods
    #[arg(long, global = true, default_value = "10.244.0.0/24", value_name = "CIDR")]
    pub pod_cidr: String,
    /// Addresses of services
    #[arg(long, global = true, default_value = "10.96.0.0/16", value_name = "CIDR")]
    pub service_cidr: String,
    /// The cgroup, below the cgroup2 mount, that holds all pods
    #[arg(long, global = true, default_value = "hull", value_name = "NAME")]
    pub cgroup: String,
    /// Where the service proxy pins its maps and links
    #[arg(long, global = true, default_value = "/sys/fs/bpf/hull", value_name = "DIR")]
    pub bpf_dir: PathBuf,
    /// Registries that are spoken to without TLS, `host:port` (loopback always is); may be repeated
    #[arg(long = "insecure-registry", global = true, value_name = "HOST:PORT")]
    pub insecure_registries: Vec<String>,
}

impl Cluster {
    /// The same with every name and address that was left to be found filled in.
    ///
    /// # Errors
    /// The host name cannot be read, or an address range is malformed.
    pub fn complete(mut self) -> Result<Self> {
        if self.node_name.is_none() {
            let name = fs::read_to_string("/proc/sys/kernel/hostname").context("read the host name")?;
            self.node_name = Some(name.trim().to_lowercase());
        }
        network(&self.service_cidr).context("--service-cidr")?;
        let (pods, _) = network(&self.pod_cidr).context("--pod-cidr")?;
        if self.node_ip.is_none() {
            self.node_ip = Some(default_address().unwrap_or(Ipv4Addr::from(u32::from(pods) + 1)));
        }
        Ok(self)
    }

    /// What the cluster with this run directory was started with, if it was; else these flags, completed.
    ///
    /// # Errors
    /// The record exists but cannot be read.
    pub fn started(self) -> Result<Self> {
        let path = self.record();
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{}: not a record of hull up", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.complete(),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Writes the record that [`Cluster::started`] reads.
    ///
    /// # Errors
    /// The run directory cannot be written.
    pub fn remember(&self) -> Result<()> {
        let path = self.record();
        let partial = path.with_extension("json.new");
        let text = serde_json::to_vec_pretty(self).context("encode the record")?;
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    fn record(&self) -> PathBuf {
        self.run_dir.join("cluster.json")
    }

    /// The file whose lock says that hull runs here; it holds the supervisor's pid.
    pub fn lock_path(&self) -> PathBuf {
        self.run_dir.join("hull.lock")
    }

    /// Certificates, keys and kubeconfigs.
    pub fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    /// The cluster administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.pki_dir().join("admin.kubeconfig")
    }

    /// Logs of hull's own processes when detached.
    pub fn log_path(&self) -> PathBuf {
        self.data_dir.join("hull.log")
    }

    /// The node's name; only empty before [`Cluster::complete`].
    pub fn node(&self) -> &str {
        self.node_name.as_deref().unwrap_or_default()
    }

    /// The node's address.
    pub fn address(&self) -> IpAddr {
        IpAddr::V4(self.node_ip.unwrap_or(Ipv4Addr::LOCALHOST))
    }

    /// The API server as clients on this machine reach it.
    pub fn server_url(&self) -> String {
        let ip = self.listen.ip();
        let ip = if ip.is_unspecified() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            ip
        };
        format!("https://{}", SocketAddr::new(ip, self.listen.port()))
    }

    /// The n-th address of the service range.
    ///
    /// # Errors
    /// The range is malformed or too small.
    pub fn service_address(&self, n: u32) -> Result<Ipv4Addr> {
        let (base, bits) = network(&self.service_cidr).context("--service-cidr")?;
        ensure!(
            u64::from(n) < 1u64 << (32 - bits),
            "--service-cidr {}: too small",
            self.service_cidr
        );
        Ok(Ipv4Addr::from(u32::from(base) + n))
    }

    /// The agent's part of the configuration.
    ///
    /// # Errors
    /// The running binary's path is unknown or hull-runtime is not beside it.
    pub fn agent_config(&self) -> Result<AgentConfig> {
        let pki = self.pki_dir();
        let mut config = AgentConfig::new(self.node());
        config.run_dir.clone_from(&self.run_dir);
        config.data_dir.clone_from(&self.data_dir);
        config.kubeconfig = pki.join("agent.kubeconfig");
        config.serving_cert = pki.join("agent.crt");
        config.serving_key = pki.join("agent.key");
        config.client_ca = pki.join("ca.crt");
        config.pod_cidr.clone_from(&self.pod_cidr);
        config.service_cidr.clone_from(&self.service_cidr);
        config.cluster_dns = self.service_address(10)?;
        config.cgroup_parent.clone_from(&self.cgroup);
        config.bpf_dir.clone_from(&self.bpf_dir);
        config.listen = self.agent_listen;
        config.node_ip = Some(self.address());
        config.runtime_binary = runtime_binary()?;
        config.insecure_registries.clone_from(&self.insecure_registries);
        Ok(config)
    }
}

/// Base address and prefix length of an IPv4 range.
fn network(cidr: &str) -> Result<(Ipv4Addr, u32)> {
    let (base, bits) = cidr
        .split_once('/')
        .with_context(|| format!("{cidr:?}: want ADDRESS/BITS"))?;
    let base: Ipv4Addr = base.parse().with_context(|| format!("{cidr:?}"))?;
    let bits: u32 = bits.parse().with_context(|| format!("{cidr:?}"))?;
    ensure!(
        (8..=30).contains(&bits),
        "{cidr:?}: the prefix must be between /8 and /30"
    );
    ensure!(
        u32::from(base).trailing_zeros() >= 32 - bits,
        "{cidr:?}: {base} is not the first address of the range"
    );
    Ok((base, bits))
}

/// The source address of the default route. Connecting a UDP socket sends nothing; it only asks the routing table.
fn default_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_unspecified() => Some(ip),
        _ => None,
    }
}

/// `hull-runtime` beside the running binary, else on the PATH.
fn runtime_binary() -> Result<PathBuf> {
    let here = std::env::current_exe().context("path of the running binary")?;
    let beside = here.with_file_name("hull-runtime");
    if beside.is_file() {
        return Ok(beside);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("hull-runtime"))
        .find(|path: &PathBuf| Path::is_file(path));
    match found {
        Some(found) => Ok(found),
        None => bail!(
            "no hull-runtime beside {} nor on the PATH: install both binaries in one directory",
            here.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        assert!(network("10.96.0.0/16").is_ok());
        for wrong in ["10.96.0.0", "10.96.0.1/16", "10.96.0.0/33", "x/8", "10.96.0.0/31"] {
            assert!(network(wrong).is_err(), "{wrong}");
        }
    }
}
