//! Node ports from outside: a client in a namespace of its own, through a node's packet programs, to a backend on that
//! node and to one on the next; beside the pods' own addresses by the same hops.
//!
//! ```text
//! client 203.0.113.7 ── node 192.0.2.1 (pod 10.244.1.2) ── node 192.0.2.2 (pod 10.244.2.2)
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path as FilePath, PathBuf};

use anyhow::{Context as _, Result, ensure};
use hull_agent::proxy::edge::{self, Edge, EdgeConfig, EdgePod, EdgeView};
use hull_agent::proxy::{self, NodeView, Proxy, ProxyConfig};

use super::hosts::{ip, within};
use super::ours::{name_of, node_port};
use super::{PORT, Path, traffic};

const NODE: &str = "192.0.2.1";
const NEAR: &str = "10.244.1.2";
const FAR: &str = "10.244.2.2";
const NEAR_PORT: u16 = 30_080;
const FAR_PORT: u16 = 30_081;
/// As the pod network names the host's side of a pod's interface: only such are not taken for a way out.
const POD_INTERFACE: &str = "hull00000000001";

/// The namespaces and the packet programs; all of it goes with the value.
pub struct Outside {
    name: String,
    bpf: PathBuf,
    proxy: Option<(Proxy, Edge)>,
}

impl Outside {
    /// Builds it, serves in the pods, and puts the programs in force.
    pub fn create(dir: &FilePath, cgroup: &FilePath) -> Result<Outside> {
        let mut outside = Outside {
            name: format!("hb{}x", std::process::id()),
            bpf: dir.join("outside"),
            proxy: None,
        };
        outside.connect()?;
        for pod in ["p", "q"] {
            traffic::serve(&outside.namespace(pod), PORT)?;
        }
        let netns = dir.join("netns");
        let (bpf, mac) = (outside.bpf.clone(), outside.mac("p")?);
        let node = outside.namespace("n");
        outside.proxy = Some(within(&node, None, || balance(&bpf, cgroup, &netns, mac))?);
        Ok(outside)
    }

    fn connect(&self) -> Result<()> {
        let n = &self.name;
        for host in ["o", "n", "m", "p", "q"] {
            ip(&format!("netns add {n}{host}"))?;
            ip(&format!("-n {n}{host} link set lo up"))?;
        }
        let forward = |host: &str| {
            within(&self.namespace(host), None, || {
                fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forward packets")
            })
        };
        forward("n")?;
        forward("m")?;
        let link = |one: (&str, &str, &str), other: (&str, &str, &str)| {
            let ((host, interface, address), (other_host, other_interface, other_address)) = (one, other);
            ip(&format!(
                "link add {interface} netns {n}{host} type veth peer name {other_interface} netns {n}{other_host}"
            ))?;
            for (host, interface, address) in [(host, interface, address), (other_host, other_interface, other_address)]
            {
                ip(&format!("-n {n}{host} addr add {address} dev {interface}"))?;
                ip(&format!("-n {n}{host} link set {interface} up"))?;
            }
            anyhow::Ok(())
        };
        link(("o", "up0", "203.0.113.7/24"), ("n", "out0", "203.0.113.1/24"))?;
        link(("n", "lan0", "192.0.2.1/24"), ("m", "lan0", "192.0.2.2/24"))?;
        link(("n", POD_INTERFACE, "10.244.1.1/32"), ("p", "eth0", "10.244.1.2/32"))?;
        link(("m", POD_INTERFACE, "10.244.2.1/32"), ("q", "eth0", "10.244.2.2/32"))?;
        for (pod, host, gateway, address) in [("p", "n", "10.244.1.1", NEAR), ("q", "m", "10.244.2.1", FAR)] {
            ip(&format!("-n {n}{host} route add {address}/32 dev {POD_INTERFACE}"))?;
            ip(&format!("-n {n}{pod} route add {gateway} dev eth0"))?;
            ip(&format!("-n {n}{pod} route add default via {gateway} dev eth0"))?;
        }
        ip(&format!("-n {n}o route add default via 203.0.113.1 dev up0"))?;
        ip(&format!("-n {n}n route add 10.244.2.0/24 via 192.0.2.2"))?;
        ip(&format!("-n {n}m route add default via {NODE}"))
    }

    fn namespace(&self, host: &str) -> PathBuf {
        FilePath::new("/run/netns").join(format!("{}{host}", self.name))
    }

    fn mac(&self, pod: &str) -> Result<[u8; 6]> {
        let text = within(&self.namespace(pod), None, || {
            let output = std::process::Command::new("ip")
                .args(["-o", "link", "show", "dev", "eth0"])
                .output()
                .context("start ip")?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })?;
        let bytes: Vec<u8> = text
            .split("link/ether ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .into_iter()
            .flat_map(|mac| mac.split(':'))
            .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
            .collect();
        bytes.try_into().ok().context("the pod's link-layer address")
    }

    /// The ways to the two backends: each with the pod's own address before it.
    pub fn paths(&self, cgroup: &FilePath) -> Result<Vec<Path>> {
        let node: IpAddr = NODE.parse()?;
        let path = |name, address| Path {
            name,
            namespace: self.namespace("o"),
            cgroup: cgroup.to_owned(),
            address,
            rounds: Vec::new(),
        };
        Ok(vec![
            path("outside: pod here", SocketAddr::new(NEAR.parse()?, PORT)),
            path("outside: NodePort", SocketAddr::new(node, NEAR_PORT)),
            path("outside: pod on B", SocketAddr::new(FAR.parse()?, PORT)),
            path("outside: NodePort B", SocketAddr::new(node, FAR_PORT)),
        ])
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.proxy = None;
        let _ = edge::unload(&self.bpf);
        let _ = proxy::unload(&self.bpf);
        for host in ["p", "q", "o", "m", "n"] {
            let _ = ip(&format!("netns del {}{host}", self.name));
        }
    }
}

/// The node's programs, with both services.
fn balance(bpf: &FilePath, cgroup: &FilePath, netns: &FilePath, mac: [u8; 6]) -> Result<(Proxy, Edge)> {
    let node: IpAddr = NODE.parse()?;
    let view = NodeView {
        name: "bench".to_owned(),
        service_cidrs: vec!["172.16.0.0/12".parse().context("service range")?],
        addresses: vec![node],
        ..NodeView::default()
    };
    let mut proxy = Proxy::load(ProxyConfig::new(bpf, cgroup, netns))?;
    proxy.set_addresses(&[node])?;
    let mut groups = BTreeMap::new();
    for (port, backend) in [(NEAR_PORT, NEAR), (FAR_PORT, FAR)] {
        let (service, slice) = node_port(port, SocketAddr::new(backend.parse()?, PORT))?;
        groups.insert(name_of(&service), proxy::compute(&service, [slice].iter(), &view));
    }
    let report = proxy.apply(&groups)?;
    ensure!(report.rejected.is_empty(), "node ports: {:?}", report.rejected.first());
    let edge = Edge::load(EdgeConfig::new(bpf))?;
    let cluster = ["10.244.0.0/16", "192.0.2.0/24"].map(str::parse);
    edge.apply(&EdgeView {
        gateways: vec!["10.244.1.1".parse()?],
        cluster: cluster.into_iter().collect::<Result<_, _>>().context("pod ranges")?,
        ..EdgeView::of_node(&[], &[])
    })?;
    edge.attach_pod(&EdgePod {
        interface: POD_INTERFACE.to_owned(),
        addresses: vec![NEAR.parse()?],
        mac,
    })?;
    Ok((proxy, edge))
}
