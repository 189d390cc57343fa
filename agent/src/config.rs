//! What the agent is told at start: names, directories, addresses. Nothing here is read from the environment, so
//! that several agents can run side by side on one machine, each with its own directories.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

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
    /// Range from which this node's pods get addresses, e.g. `10.244.0.0/24`.
    pub pod_cidr: String,
    /// Range of service addresses, e.g. `10.96.0.0/16`.
    pub service_cidr: String,
    /// Address at which the node's DNS answers pods.
    pub cluster_dns: Ipv4Addr,
    /// Node-local address on which the node's DNS server listens; the proxy leads `cluster_dns` there. See
    /// [`AgentConfig::dns_address`] for what it is when absent.
    pub dns_listen: Option<SocketAddrV4>,
    /// DNS domain of the cluster, without the final dot.
    pub cluster_domain: String,
    /// The cgroup below the cgroup2 mount that holds all pods.
    pub cgroup_parent: String,
    /// Where the service proxy pins its maps and links.
    pub bpf_dir: PathBuf,
    /// Where the kubelet API listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The `hull-runtime` binary, run as the warden.
    pub runtime_binary: PathBuf,
    /// The node's address as other nodes see it; found from the routing table when absent.
    pub node_ip: Option<IpAddr>,
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
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_dns: Ipv4Addr::new(10, 96, 0, 10),
            dns_listen: None,
            cluster_domain: "cluster.local".to_owned(),
            cgroup_parent: "hull".to_owned(),
            bpf_dir: PathBuf::from("/sys/fs/bpf/hull"),
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, KUBELET_PORT)),
            runtime_binary: PathBuf::from("hull-runtime"),
            node_ip: None,
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
