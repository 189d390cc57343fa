//! What each part of hull is told of the cluster: certificates, control plane, agent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use hull_agent::AgentConfig;
use hull_control::pki::PkiConfig;
use hull_control::server::ControlConfig;
use jiff::SignedDuration;

use super::Cluster;
use crate::addresses::ranges;

impl Cluster {
    /// What the certificates must say.
    ///
    /// # Errors
    /// The service ranges are malformed.
    pub fn pki_config(&self) -> Result<PkiConfig> {
        let mut config = PkiConfig::new(self.node(), &self.server_url());
        let services = ranges(&self.service_cidr).context("--service-cidr")?;
        config.ips.clone_from(&self.node_ips);
        config.ips.extend(services.iter().filter_map(|range| range.nth(1)));
        config
            .ips
            .extend([IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]);
        config.names = vec!["localhost".to_owned(), self.node().to_owned()];
        for san in &self.tls_sans {
            match san.parse() {
                Ok(ip) => config.ips.push(ip),
                Err(_) => config.names.push(san.clone()),
            }
        }
        config.ips.sort();
        config.ips.dedup();
        config.life = self.certificate_life();
        Ok(config)
    }

    fn certificate_life(&self) -> SignedDuration {
        SignedDuration::try_from(self.cluster_signing_duration).unwrap_or(SignedDuration::MAX)
    }

    /// The control plane's part of the configuration.
    ///
    /// # Errors
    /// The service ranges are malformed.
    pub fn control_config(&self) -> Result<ControlConfig> {
        let mut config = ControlConfig::new(&self.data_dir, self.pki_config()?, self.listen, self.advertised()?);
        config.pki_dir = self.pki_dir();
        config.service_cidr.clone_from(&self.service_cidr);
        config.cluster_cidr.clone_from(&self.cluster_cidr);
        config.pod_network.clone_from(&self.pod_network);
        config.node_grace = self.node_monitor_grace_period;
        config.signing_life = self.certificate_life();
        Ok(config)
    }

    /// The agent's part of the configuration.
    ///
    /// # Errors
    /// The running binary's path is unknown or hull-runtime is not beside it.
    pub fn agent_config(&self) -> Result<AgentConfig> {
        let mut config = AgentConfig::new(self.node());
        config.run_dir.clone_from(&self.run_dir);
        config.data_dir.clone_from(&self.data_dir);
        if self.joined.is_some() {
            let own = config.identity_dir();
            config.joined = true;
            config.kubeconfig = own.join("kubeconfig");
            config.client_ca = own.join("ca.crt");
            config.serving_cert = own.join("none");
            config.serving_key = own.join("none");
            config.pod_cidr = self.pod_cidr.clone().unwrap_or_default();
        } else {
            let pki = self.pki_dir();
            config.kubeconfig = pki.join("agent.kubeconfig");
            config.serving_cert = pki.join("agent.crt");
            config.serving_key = pki.join("agent.key");
            config.client_ca = pki.join("ca.crt");
            config.pod_cidr = self.first_pod_cidr()?;
        }
        config.cluster_cidr.clone_from(&self.cluster_cidr);
        config.service_cidr.clone_from(&self.service_cidr);
        config.pod_network = self.pod_network.parse().context("--pod-network")?;
        if let IpAddr::V4(dns) = self.service_address(10)? {
            config.cluster_dns = dns;
        }
        config.external_cidrs = self.external_cidrs.join(",");
        config.node_port_addresses = self.nodeport_addresses.join(",");
        config.non_masquerade_cidrs = self.non_masquerade_cidrs.join(",");
        config.node_cgroup.clone_from(&self.node_cgroup);
        config.cgroup_parent.clone_from(&self.cgroup);
        config.bpf_dir.clone_from(&self.bpf_dir);
        config.listen = self.agent_listen;
        config.node_ips.clone_from(&self.node_ips);
        config.lease_seconds = u32::try_from(self.node_lease_duration.as_secs()).unwrap_or(u32::MAX);
        config.runtime_binary = runtime_binary()?;
        config.insecure_registries.clone_from(&self.insecure_registries);
        Ok(config)
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
