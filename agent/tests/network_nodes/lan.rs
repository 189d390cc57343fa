//! Network namespaces as hosts: two links with a router between them that knows nothing of pods.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use hull_agent::network::fabric::Changes;
use hull_agent::network::namespaces::{Kind, Pinned};
use hull_agent::network::{Cidr, Fabric, FabricConfig, NetworkConfig, NodeRoute, PodNetwork, Transport};

use crate::support::Host;
use crate::traffic::Echo;

pub fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
}

/// Two links and the router between them, in the namespace of the test's thread. A family is true for IPv4.
pub struct Lan<'a> {
    pub router: Host,
    pub outside: &'a [bool],
    pub inside: &'a [bool],
    pub transport: Transport,
}

impl<'a> Lan<'a> {
    pub fn new(outside: &'a [bool], inside: &'a [bool], transport: Transport) -> Lan<'a> {
        let router = Host::enter();
        sysctl("ipv6/conf/default/disable_ipv6", "0");
        sysctl("ipv6/conf/default/accept_dad", "0");
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        for link in [1, 2] {
            run(&format!("ip link add lan{link} type bridge"));
            run(&format!("ip link set lan{link} up"));
            for ipv4 in outside {
                let address = outer(*ipv4, link, 254);
                let (prefix, options) = if *ipv4 { (24, "") } else { (64, " nodad") };
                run(&format!("ip addr add {address}/{prefix} dev lan{link}{options}"));
            }
        }
        Lan {
            router,
            outside,
            inside,
            transport,
        }
    }

    pub fn node(&self, name: &'static str, link: u8, number: u8) -> Node<'_> {
        let namespace = self.router.pin(name, None);
        let path = namespace.path(Kind::Net);
        run(&format!(
            "ip link add to-{name} type veth peer name eth0 netns {}",
            path.display()
        ));
        run(&format!("ip link set to-{name} master lan{link} up"));
        let route = NodeRoute {
            name: name.to_owned(),
            addresses: self.outside.iter().map(|ipv4| outer(*ipv4, link, number)).collect(),
            pod_cidrs: self.inside.iter().map(|ipv4| range(*ipv4, number)).collect(),
        };
        let (network, fabric) = self.router.inside(&namespace, || {
            sysctl("ipv6/conf/eth0/accept_dad", "0");
            sysctl("ipv6/conf/eth0/disable_ipv6", "0");
            run("ip link set eth0 up");
            for address in &route.addresses {
                join(*address, link);
            }
            self.start(&route)
        });
        Node {
            lan: self,
            namespace,
            route,
            network,
            fabric,
        }
    }

    /// The agent's part, in the host's namespace.
    pub fn start(&self, route: &NodeRoute) -> (PodNetwork, Arc<Fabric>) {
        let network = PodNetwork::new(&NetworkConfig {
            pod_cidrs: route.pod_cidrs.clone(),
            run_dir: self.router.dir.path().join(&route.name),
            mtu: None,
            node_ip: route.addresses.first().copied(),
            transport: self.transport,
        })
        .unwrap();
        let config = FabricConfig::new(route.clone(), self.transport, network.mtu());
        (network, Arc::new(Fabric::new(config).unwrap()))
    }
}

pub fn outer(ipv4: bool, link: u8, number: u8) -> IpAddr {
    let text = if ipv4 {
        format!("192.0.{link}.{number}")
    } else {
        format!("2001:db8:{link}::{number}")
    };
    text.parse().unwrap()
}

pub fn range(ipv4: bool, number: u8) -> Cidr {
    let text = if ipv4 {
        format!("10.244.{number}.0/24")
    } else {
        format!("fd00:244:{number}::/64")
    };
    text.parse().unwrap()
}

/// Gives `eth0` an address on the link and the router as gateway.
pub fn join(address: IpAddr, link: u8) {
    let (prefix, options) = if address.is_ipv4() { (24, "") } else { (64, " nodad") };
    run(&format!("ip addr add {address}/{prefix} dev eth0{options}"));
    let router = outer(address.is_ipv4(), link, 254);
    run(&format!("ip route add default via {router} dev eth0"));
}

/// A host of the cluster.
pub struct Node<'a> {
    pub lan: &'a Lan<'a>,
    pub namespace: Pinned,
    pub route: NodeRoute,
    pub network: PodNetwork,
    pub fabric: Arc<Fabric>,
}

impl Node<'_> {
    pub fn inside<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        self.lan.router.inside(&self.namespace, task)
    }

    /// Applies the nodes; how many entries were written and removed.
    pub fn apply(&self, nodes: &[&Node<'_>]) -> (usize, usize) {
        let routes: Vec<NodeRoute> = nodes.iter().map(|node| node.route.clone()).collect();
        let changes = self.apply_routes(&routes);
        assert_eq!(changes.problems, [] as [String; 0]);
        (changes.put, changes.removed)
    }

    pub fn apply_routes(&self, routes: &[NodeRoute]) -> Changes {
        self.inside(|| self.fabric.apply(routes).unwrap())
    }

    pub fn pod(&self, name: &str) -> Pod<'_> {
        let namespace = self.lan.router.pin(&format!("{}-{name}", self.route.name), Some(name));
        let address = self.inside(|| self.network.setup(name, &namespace.path(Kind::Net)).unwrap());
        Pod {
            node: self,
            namespace,
            ips: address.ips,
        }
    }

    pub fn routes(&self) -> String {
        self.inside(|| run("ip -4 route") + &run("ip -6 route"))
    }

    /// How many packets the host has cut into fragments.
    pub fn fragments(&self) -> u64 {
        self.inside(|| {
            let ipv6 = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
            let ipv4 = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
            let created = |line: &str| line.split_whitespace().last().and_then(|word| word.parse::<u64>().ok());
            let ipv6 = ipv6.lines().find(|line| line.starts_with("Ip6FragCreates"));
            let mut ip = ipv4.lines().filter(|line| line.starts_with("Ip:"));
            let names: Vec<&str> = ip.next().unwrap().split(' ').collect();
            let place = names.iter().position(|name| *name == "FragCreates").unwrap();
            let values: Vec<&str> = ip.next().unwrap().split(' ').collect();
            values[place].parse::<u64>().unwrap() + ipv6.and_then(created).unwrap()
        })
    }
}

pub struct Pod<'a> {
    pub node: &'a Node<'a>,
    pub namespace: Pinned,
    pub ips: Vec<IpAddr>,
}

impl Pod<'_> {
    pub fn inside<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        self.node.lan.router.inside(&self.namespace, task)
    }

    pub fn ip(&self, ipv4: bool) -> IpAddr {
        *self.ips.iter().find(|ip| ip.is_ipv4() == ipv4).unwrap()
    }

    /// Servers on all of the pod's addresses, until dropped.
    pub fn serve(&self) -> Vec<Echo> {
        self.inside(|| self.ips.iter().map(|ip| Echo::start(SocketAddr::new(*ip, 7))).collect())
    }
}
