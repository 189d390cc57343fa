//! Where a cluster lives on this machine: directories, addresses, names. `hull up` and `hull agent` write what they were
//! started with to `<run-dir>/cluster.json`, so that `down`, `status` and `image` need no flags to find it again.

mod parts;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use hull_agent::network::{Cidr, Transport};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::addresses::{self, ranges};

/// Size of a node's pod ranges, IPv4 and IPv6.
const NODE_BITS: (u8, u8) = (24, 64);

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
    /// Addresses of this node as pods and other nodes see it, one of each family [default: that of the way to the API
    /// server, else of the default route, else of the pod network]
    #[arg(long = "node-ip", global = true, value_name = "IP", value_delimiter = ',')]
    pub node_ips: Vec<IpAddr>,
    /// Where the API server listens; [::] is IPv4 too
    #[arg(long, global = true, default_value = "[::]:6443", value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Further name or address in the API server's certificate; may be repeated
    #[arg(long = "tls-san", global = true, value_name = "NAME")]
    pub tls_sans: Vec<String>,
    /// Where the agent's kubelet API listens; [::] is IPv4 too
    #[arg(long, global = true, default_value = "[::]:10250", value_name = "IP:PORT")]
    pub agent_listen: SocketAddr,
    /// Addresses of all nodes' pods, one range or one of each family; each node gets a /24 and a /64 of them
    #[arg(long, global = true, default_value = "10.244.0.0/16", value_name = "CIDR[,CIDR]")]
    pub cluster_cidr: String,
    /// Addresses of this node's pods [default: the first part of the cluster's that is free]
    #[arg(long, global = true, value_name = "CIDR[,CIDR]")]
    pub pod_cidr: Option<String>,
    /// Addresses of services, one range or one of each family
    #[arg(long, global = true, default_value = "10.96.0.0/16", value_name = "CIDR[,CIDR]")]
    pub service_cidr: String,
    /// How packets get to the pods of other nodes: auto, direct or vxlan
    #[arg(long, global = true, default_value = "auto", value_name = "WAY")]
    pub pod_network: String,
    /// Ranges of external IPs that the cluster owns: this node's own clients reach services there by others' addresses too
    #[arg(long, global = true, value_name = "CIDR", value_delimiter = ',')]
    #[serde(default)]
    pub external_cidrs: Vec<String>,
    /// Ranges of this node's addresses on which node ports are served [default: all]
    #[arg(long, global = true, value_name = "CIDR", value_delimiter = ',')]
    #[serde(default)]
    pub nodeport_addresses: Vec<String>,
    /// Ranges outside of the cluster that see pods' own addresses instead of the node's
    #[arg(
        long = "non-masquerade-cidr",
        global = true,
        value_name = "CIDR",
        value_delimiter = ','
    )]
    #[serde(default)]
    pub non_masquerade_cidrs: Vec<String>,
    /// The cgroup, below the cgroup2 mount, of this node's processes: pods live in it, clients in it see the services
    /// [default: the whole machine]
    #[arg(
        long,
        global = true,
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    pub node_cgroup: String,
    /// The cgroup, below the node's, that holds all pods
    #[arg(long, global = true, default_value = "hull", value_name = "NAME")]
    pub cgroup: String,
    /// Where the service proxy pins its maps and links
    #[arg(long, global = true, default_value = "/sys/fs/bpf/hull", value_name = "DIR")]
    pub bpf_dir: PathBuf,
    /// Registries that are spoken to without TLS, `host:port` (loopback always is); may be repeated
    #[arg(long = "insecure-registry", global = true, value_name = "HOST:PORT")]
    pub insecure_registries: Vec<String>,
    /// A node whose agent was silent for so long is not ready
    #[arg(long, global = true, default_value = "40s", value_name = "TIME", value_parser = duration)]
    pub node_monitor_grace_period: Duration,
    /// For how long the agent's lease is good; it is renewed four times in that time
    #[arg(long, global = true, default_value = "40s", value_name = "TIME", value_parser = duration)]
    pub node_lease_duration: Duration,
    /// How long certificates are good for; they are renewed in time
    #[arg(long, global = true, default_value = "8760h", value_name = "TIME", value_parser = duration)]
    pub cluster_signing_duration: Duration,
    /// URL of the API server of the cluster that this machine joined (hull agent --join)
    #[arg(skip)]
    #[serde(default)]
    pub joined: Option<String>,
}

/// `40s`, `15m`, `8760h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    match Duration::try_from(parsed) {
        Ok(time) if time >= Duration::from_secs(1) => Ok(time),
        _ => Err("at least one second".to_owned()),
    }
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
        let services = ranges(&self.service_cidr).context("--service-cidr")?;
        let cluster = ranges(&self.cluster_cidr).context("--cluster-cidr")?;
        let pods = match &self.pod_cidr {
            Some(text) => ranges(text).context("--pod-cidr")?,
            None => cluster,
        };
        let _: Transport = self.pod_network.parse().context("--pod-network")?;
        for (flag, texts) in [
            ("--external-cidrs", &self.external_cidrs),
            ("--nodeport-addresses", &self.nodeport_addresses),
            ("--non-masquerade-cidr", &self.non_masquerade_cidrs),
        ] {
            for text in texts {
                let _: Cidr = text.trim().parse().context(flag)?;
            }
        }
        self.check_node_ips()?;
        for listen in [&mut self.listen, &mut self.agent_listen] {
            if listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !addresses::is_dual_stack() {
                listen.set_ip(Ipv4Addr::UNSPECIFIED.into());
            }
        }
        if self.node_ips.is_empty() {
            let found = match self.joined.as_deref() {
                Some(server) => addresses::towards(server).or_else(addresses::default),
                None => self.own_address(&services, &pods),
            };
            self.node_ips.extend(found.or_else(|| pods[0].nth(1)));
        }
        Ok(self)
    }

    fn check_node_ips(&self) -> Result<()> {
        if let [first, second] = self.node_ips[..] {
            ensure!(
                first.is_ipv4() != second.is_ipv4(),
                "--node-ip: two addresses of one family"
            );
        }
        ensure!(
            self.node_ips.len() <= 2,
            "--node-ip: more than one address of each family"
        );
        for ip in &self.node_ips {
            let link_local = match ip {
                IpAddr::V4(ip) => ip.is_link_local(),
                IpAddr::V6(ip) => ip.is_unicast_link_local(),
            };
            ensure!(
                !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local),
                "--node-ip {ip}: pods and other nodes cannot reach this machine by that address. Without --node-ip a machine \
                 that has no other takes the first address of its pod network"
            );
        }
        Ok(())
    }

    /// This machine's address of the family that services have first: the API server's service leads there.
    fn own_address(&self, services: &[Cidr], pods: &[Cidr]) -> Option<IpAddr> {
        let ipv4 = services[0].is_ipv4();
        let gateway = pods.iter().find(|range| range.is_ipv4() == ipv4);
        addresses::default_of(ipv4)
            .or_else(|| gateway?.nth(1))
            .or_else(addresses::default)
    }

    /// This node's pod ranges where nobody assigns them: as given, else the first of the cluster's.
    ///
    /// # Errors
    /// The cluster's ranges are malformed.
    pub fn first_pod_cidr(&self) -> Result<String> {
        if let Some(given) = &self.pod_cidr {
            return Ok(given.clone());
        }
        let first = |range: &Cidr| {
            let bits = if range.is_ipv4() { NODE_BITS.0 } else { NODE_BITS.1 };
            Cidr::new(range.base(), bits.max(range.prefix())).map(|range| range.to_string())
        };
        let cluster = ranges(&self.cluster_cidr).context("--cluster-cidr")?;
        Ok(cluster.iter().filter_map(first).collect::<Vec<_>>().join(","))
    }

    /// What the cluster with this run directory was started with, if it was; else these flags, completed.
    ///
    /// # Errors
    /// The record exists but cannot be read.
    pub fn started(self) -> Result<Self> {
        let path = self.record();
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{}: not a record of hull", path.display()))
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

    /// The cluster administrator's kubeconfig; on a machine that joined, its node's.
    pub fn kubeconfig(&self) -> PathBuf {
        match self.joined {
            Some(_) => self.data_dir.join("agent/kubeconfig"),
            None => self.pki_dir().join("admin.kubeconfig"),
        }
    }

    /// Logs of hull's own processes when detached.
    pub fn log_path(&self) -> PathBuf {
        self.data_dir.join("hull.log")
    }

    /// The node's name; only empty before [`Cluster::complete`].
    pub fn node(&self) -> &str {
        self.node_name.as_deref().unwrap_or_default()
    }

    /// The address at which the API server is known to pods and nodes: of the family that services have first.
    ///
    /// # Errors
    /// The machine has none.
    pub fn advertised(&self) -> Result<IpAddr> {
        let services = ranges(&self.service_cidr).context("--service-cidr")?;
        let fits = |ip: &&IpAddr| ip.is_ipv4() == services[0].is_ipv4();
        let found = self.node_ips.iter().find(fits).copied();
        found.with_context(|| {
            let family = if services[0].is_ipv4() { "IPv4" } else { "IPv6" };
            format!(
                "--service-cidr {}: services have {family} addresses first, so the API server needs one too, for the service \
                 `kubernetes`; --node-ip says {:?}",
                self.service_cidr, self.node_ips
            )
        })
    }

    /// The API server as clients on this machine reach it.
    pub fn server_url(&self) -> String {
        if let Some(joined) = &self.joined {
            return joined.clone();
        }
        let ip = match self.listen.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) | IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            ip => ip,
        };
        format!("https://{}", SocketAddr::new(ip, self.listen.port()))
    }

    /// The n-th address of the first service range.
    ///
    /// # Errors
    /// The range is malformed or too small.
    pub fn service_address(&self, n: u128) -> Result<IpAddr> {
        let first = ranges(&self.service_cidr).context("--service-cidr")?[0];
        first
            .nth(n)
            .with_context(|| format!("--service-cidr {}: too small", self.service_cidr))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        cluster: Cluster,
    }

    fn complete(flags: &[&str]) -> Result<Cluster, String> {
        let flags = ["hull", "--node-name=n"].iter().chain(flags);
        let flags = Flags::try_parse_from(flags).map_err(|error| error.to_string())?;
        flags.cluster.complete().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn an_address_that_nobody_else_reaches_is_no_nodes() {
        for wrong in ["127.0.0.1", "::1", "0.0.0.0", "169.254.1.1", "fe80::1", "224.0.0.1"] {
            let error = complete(&[&format!("--node-ip={wrong}")]).unwrap_err();
            assert!(error.contains("cannot reach this machine"), "{error}");
        }
        assert!(complete(&["--node-ip=192.0.2.7"]).is_ok());
    }

    #[test]
    fn ranges_of_operators_are_checked() {
        for flag in ["--external-cidrs", "--nodeport-addresses", "--non-masquerade-cidr"] {
            let error = complete(&[&format!("{flag}=10.0.0.0/8,192.0.2.1/24")]).unwrap_err();
            assert!(error.contains(flag) && error.contains("192.0.2.1/24"), "{error}");
        }
        let flags = ["--node-ip=192.0.2.7", "--non-masquerade-cidr=10.0.0.0/8,fd00::/8"];
        assert_eq!(
            complete(&flags).unwrap().non_masquerade_cidrs,
            ["10.0.0.0/8", "fd00::/8"]
        );
    }

    #[test]
    fn the_api_server_is_known_by_an_address_of_the_services_family() {
        let six = ["--service-cidr=fd00:96::/112", "--cluster-cidr=fd00:10::/48"];
        let with = |ip: &'static str| complete(&[six[0], six[1], ip]).unwrap().advertised();
        assert_eq!(
            with("--node-ip=192.0.2.7,2001:db8::7").unwrap().to_string(),
            "2001:db8::7"
        );
        let error = with("--node-ip=192.0.2.7").unwrap_err().to_string();
        assert!(error.contains("IPv6 addresses first"), "{error}");
        assert!(!complete(&six).unwrap().node_ips[0].is_ipv4(), "found by itself");
        let unspecified = complete(&["--node-ip=192.0.2.7"]).unwrap();
        assert_eq!(unspecified.server_url(), "https://127.0.0.1:6443");
    }
}
