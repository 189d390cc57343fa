//! What the agent is told at start: names, directories, addresses. Nothing here is read from the environment, so
//! that several agents can run side by side on one machine, each with its own directories.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use crate::network::{Cidr, Transport};

/// The port of the kubelet API, as every Kubernetes client and the API server expect it.
pub const KUBELET_PORT: u16 = 10250;

/// The range of pod addresses unless told otherwise.
const DEFAULT_POD_CIDR: &str = "10.244.0.0/24";

/// The configuration of one node agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Name of the Node object; also the value of `kubernetes.io/hostname`.
    pub node_name: String,
    /// State that a reboot may erase: namespaces, records of pods, sockets.
    pub run_dir: PathBuf,
    /// State that a reboot must keep: images, emptyDir volumes, logs.
    pub data_dir: PathBuf,
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// Certificate (PEM) of the kubelet API.
    pub serving_cert: PathBuf,
    /// Private key (PEM) of the kubelet API.
    pub serving_key: PathBuf,
    /// Authority (PEM) that signs the clients of the kubelet API.
    pub client_ca: PathBuf,
    /// Range from which this node's pods get addresses, e.g. `10.244.0.0/24`; or one of each family with a comma between.
    /// Empty: as the Node object says.
    pub pod_cidr: String,
    /// Ranges of the pods of all nodes, as `pod_cidr`.
    pub cluster_cidr: String,
    /// Ranges, DNS and transport are as the cluster tells, not as said here.
    pub joined: bool,
    /// Range of service addresses, e.g. `10.96.0.0/16`; or one of each family with a comma between.
    pub service_cidr: String,
    /// How packets get to the pods of other nodes.
    pub pod_network: Transport,
    /// Ranges of external addresses that the cluster owns, with commas between them. For this node's own clients
    /// `externalIPs` of services outside of them, and not of this node, are left to the network.
    pub external_cidrs: String,
    /// Ranges of this node's addresses on which node ports are served, with commas between them; empty is all.
    pub node_port_addresses: String,
    /// Ranges outside of the cluster that see pods' own addresses instead of the node's, with commas between them.
    pub non_masquerade_cidrs: String,
    /// Address at which the node's DNS answers pods.
    pub cluster_dns: Ipv4Addr,
    /// Node-local address on which the node's DNS server listens; the proxy leads `cluster_dns` there. See
    /// [`AgentConfig::dns_address`] for what it is when absent.
    pub dns_listen: Option<SocketAddrV4>,
    /// DNS domain of the cluster, without the final dot.
    pub cluster_domain: String,
    /// The cgroup, below the cgroup2 mount, of all processes of this node: clients in it and below see the services, pods
    /// live below it. Empty: the mount's root, the whole machine.
    pub node_cgroup: String,
    /// The cgroup below [`AgentConfig::node_cgroup`] that holds all pods.
    pub cgroup_parent: String,
    /// Where the service proxy pins its maps and links.
    pub bpf_dir: PathBuf,
    /// Where the kubelet API listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The `hull-runtime` binary, run as the warden.
    pub runtime_binary: PathBuf,
    /// The node's addresses as other nodes see them, one of each family at most; found from the routing table when absent.
    pub node_ips: Vec<IpAddr>,
    /// For how long the node's lease is good, in seconds; it is renewed four times in that time.
    pub lease_seconds: u32,
    /// How many pods the node offers.
    pub max_pods: u32,
    /// Registries that are spoken to without TLS, as `host:port` (loopback always is).
    pub insecure_registries: Vec<String>,
}

impl AgentConfig {
    /// The configuration of a node named `node_name` with every other value at its default.
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        let data = Path::new("/var/lib/hull");
        AgentConfig {
            node_name: node_name.to_owned(),
            run_dir: PathBuf::from("/run/hull"),
            data_dir: data.to_owned(),
            kubeconfig: data.join("pki/agent.kubeconfig"),
            serving_cert: data.join("pki/agent.crt"),
            serving_key: data.join("pki/agent.key"),
            client_ca: data.join("pki/ca.crt"),
            pod_cidr: DEFAULT_POD_CIDR.to_owned(),
            cluster_cidr: "10.244.0.0/16".to_owned(),
            joined: false,
            service_cidr: "10.96.0.0/16".to_owned(),
            pod_network: Transport::Auto,
            external_cidrs: String::new(),
            node_port_addresses: String::new(),
            non_masquerade_cidrs: String::new(),
            cluster_dns: Ipv4Addr::new(10, 96, 0, 10),
            dns_listen: None,
            cluster_domain: "cluster.local".to_owned(),
            node_cgroup: String::new(),
            cgroup_parent: "hull".to_owned(),
            bpf_dir: PathBuf::from("/sys/fs/bpf/hull"),
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, KUBELET_PORT)),
            runtime_binary: PathBuf::from("hull-runtime"),
            node_ips: Vec::new(),
            lease_seconds: 40,
            max_pods: 110,
            insecure_registries: Vec::new(),
        }
    }

    /// Where the node's DNS server listens: as configured, else the usual address, else, for an agent with a pod
    /// range of its own (another one may run on this machine), an address made from that range.
    #[must_use]
    pub fn dns_address(&self) -> SocketAddrV4 {
        let second = self.pod_cidr.split('.').nth(1).and_then(|octet| octet.parse().ok());
        match (self.dns_listen, second) {
            (Some(address), _) => address,
            (None, Some(octet)) if self.pod_cidr != DEFAULT_POD_CIDR => {
                SocketAddrV4::new(Ipv4Addr::new(169, 254, octet, 53), 53)
            }
            (None, _) => crate::dns::DEFAULT_LISTEN,
        }
    }

    /// The cgroup of all pods, relative to the cgroup2 mount.
    #[must_use]
    pub fn pods_cgroup(&self) -> String {
        match self.node_cgroup.trim_matches('/') {
            "" => self.cgroup_parent.clone(),
            node => format!("{node}/{}", self.cgroup_parent),
        }
    }

    /// Certificates of this node that the cluster signed, and what it was told.
    #[must_use]
    pub fn identity_dir(&self) -> PathBuf {
        self.data_dir.join("agent")
    }

    /// The client certificate and its key.
    #[must_use]
    pub fn client_pair(&self) -> PathBuf {
        self.identity_dir().join("client.pem")
    }

    /// The serving certificate and its key.
    #[must_use]
    pub fn serving_pair(&self) -> PathBuf {
        self.identity_dir().join("serving.pem")
    }

    /// Where the node's DNS server listens, for each family that services have; [`AgentConfig::dns_address`], and one made
    /// from it.
    #[must_use]
    pub fn dns_addresses(&self) -> Vec<SocketAddr> {
        let local = self.dns_address();
        let families = self.cluster_dns_addresses().into_iter();
        let address = families.map(|cluster| match cluster {
            IpAddr::V4(_) => SocketAddr::V4(local),
            IpAddr::V6(_) => {
                let [a, b, c, d] = local.ip().octets().map(u16::from);
                let ip = Ipv6Addr::new(0xfd68, 0x756c, 0x6c00, 0, 0, 0, a << 8 | b, c << 8 | d);
                SocketAddr::from((ip, local.port()))
            }
        });
        address.collect()
    }

    /// Addresses at which the node's DNS answers pods, for each family that services have; that of the first first.
    #[must_use]
    pub fn cluster_dns_addresses(&self) -> Vec<IpAddr> {
        let range = |text: &str| text.trim().parse::<Cidr>().ok();
        let told = IpAddr::V4(self.cluster_dns);
        let address = |range: Cidr| match range.contains(told) {
            true => Some(told),
            // As usual for clusters: the tenth of the range.
            false => range.nth(10),
        };
        let ranges = self.service_cidr.split(',').filter_map(range);
        let addresses: Vec<IpAddr> = ranges.filter_map(address).collect();
        match addresses.is_empty() {
            true => vec![IpAddr::V4(self.cluster_dns)],
            false => addresses,
        }
    }

    /// The warden's directory.
    #[must_use]
    pub fn warden_dir(&self) -> PathBuf {
        self.run_dir.join("warden")
    }

    /// The image store's directory.
    #[must_use]
    pub fn image_dir(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    /// Where the namespaces of pods are pinned, one directory per pod.
    #[must_use]
    pub fn netns_dir(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    /// Records of the pods on this node.
    #[must_use]
    pub fn records_dir(&self) -> PathBuf {
        self.run_dir.join("pods")
    }

    /// Volumes that live on disk (emptyDir).
    #[must_use]
    pub fn volumes_dir(&self) -> PathBuf {
        self.data_dir.join("pods")
    }

    /// Volumes whose content must not reach a disk (secrets, tokens, configuration).
    #[must_use]
    pub fn memory_dir(&self) -> PathBuf {
        self.run_dir.join("memory")
    }

    /// Logs of containers, one directory per pod.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.data_dir.join("logs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_of_services_has_its_dns_address_whichever_is_first() {
        let mut config = AgentConfig::new("n1");
        let mut addresses = |ranges: &str| {
            ranges.clone_into(&mut config.service_cidr);
            let all = config.cluster_dns_addresses().into_iter();
            all.map(|ip| ip.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(addresses("10.96.0.0/16"), ["10.96.0.10"]);
        assert_eq!(addresses("fd00:96::/112"), ["fd00:96::a"]);
        assert_eq!(addresses("fd00:96::/112,10.200.0.0/16"), ["fd00:96::a", "10.200.0.10"]);
    }
}
