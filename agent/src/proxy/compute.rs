//! From a service and its endpoint slices to the groups of backends of this node: a pure function of that service only.
//!
//! It follows the rules of Kubernetes' own proxy: which addresses a service has (here), which endpoints serve them
//! ([`endpoints`]). A service must not be able to take traffic that is meant for someone else: for the node's own
//! clients only addresses that the cluster owns are rewritten.

mod endpoints;

use std::net::{IpAddr, SocketAddr};

use hull_ebpf_types::flag;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};

#[cfg(test)]
use super::slices::WEIGHTS;
use super::slices::{Slice, port_number};
use super::tables::{Algorithm, Backend, Exposed, Frontend, Group, GroupName, Protocol, Scope, unspecified};
use crate::network::Cidr;
use endpoints::Endpoints;

/// Services with one of these labels, whatever its value, are left to another proxy, or to none.
const NOT_OURS: [&str; 2] = [
    "service.kubernetes.io/service-proxy-name",
    "service.kubernetes.io/headless",
];
/// What the API server defaults `timeoutSeconds` of ClientIP affinity to: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// Annotation of a service: the name of an [`Algorithm`]. Another value counts as `random`, and is reported.
pub const BALANCE: &str = "hull.dev/balance";
/// Annotation of a service: `direct-return` lets backends on other nodes answer clients without passing this one again.
pub const FORWARDING: &str = "hull.dev/forwarding";
const DIRECT_RETURN: &str = "direct-return";
const DNS_PORT: u16 = 53;

/// What the tables depend on besides the cluster's objects.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// This node's name, for services whose traffic stays on the node.
    pub name: String,
    /// Its label `topology.kubernetes.io/zone`, for services whose traffic stays in the zone.
    pub zone: Option<String>,
    /// The ranges of service addresses, at most one of each family.
    pub service_cidrs: Vec<Cidr>,
    /// Ranges of external addresses that the cluster owns, besides the nodes' own addresses: for the node's own
    /// clients `externalIPs` of services are rewritten only in these. Load balancers' addresses need no such leave.
    pub external_cidrs: Vec<Cidr>,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// The cluster's DNS addresses and the node-local servers that answer for them.
    pub dns: Vec<DnsRedirect>,
}

/// Leads a DNS address of the cluster to the server on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsRedirect {
    /// The address in the pods' resolv.conf, port 53.
    pub cluster: IpAddr,
    /// Where the node's DNS server listens.
    pub local: SocketAddr,
}

/// The groups of one service; none for what is not balanced: headless, ExternalName, another proxy's.
pub fn compute<'a>(service: &Service, slices: impl Iterator<Item = &'a Slice> + Clone, node: &NodeView) -> Vec<Group> {
    let Some(spec) = service.spec.as_ref().filter(|_| is_ours(service)) else {
        return Vec::new();
    };
    let cluster = cluster_addresses(spec, node);
    let external = external_addresses(service, spec, node);
    if cluster.is_empty() && external.is_empty() {
        return Vec::new();
    }
    let mut groups = Vec::new();
    for port in spec.ports.iter().flatten() {
        for ipv6 in [false, true] {
            if let Some(maker) = Maker::new(service, spec, port, ipv6, node) {
                let family = |addresses: &[External]| -> Vec<External> {
                    let mine = addresses.iter().filter(|external| external.address.is_ipv6() == ipv6);
                    mine.copied().collect()
                };
                let cluster = cluster.iter().copied().filter(|address| address.is_ipv6() == ipv6);
                maker.make(&mut groups, cluster, &family(&external), slices.clone());
            }
        }
    }
    groups.extend(unserved(&cluster, node));
    groups
}

/// The cluster's DNS addresses, answered on this node.
pub fn dns(node: &NodeView) -> Vec<Group> {
    let protocols = [Protocol::Udp, Protocol::Tcp];
    let redirects = node.dns.iter();
    redirects
        .flat_map(|dns| {
            protocols.map(|protocol| {
                let frontend = Frontend::inside(SocketAddr::new(dns.cluster, DNS_PORT), protocol);
                Group::simple(frontend, [Backend::new(dns.local)])
            })
        })
        .collect()
}

/// The algorithm that a service asks for; an error is the name that is none.
pub fn algorithm(service: &Service) -> Result<Algorithm, &str> {
    match annotation(service, BALANCE) {
        None => Ok(Algorithm::default()),
        Some(name) => Algorithm::from_name(name).ok_or(name),
    }
}

fn annotation<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    let annotations = service.metadata.annotations.as_ref()?;
    annotations.get(name).map(String::as_str)
}

fn is_ours(service: &Service) -> bool {
    let labels = service.metadata.labels.as_ref();
    let elsewhere = labels.is_some_and(|labels| NOT_OURS.iter().any(|name| labels.contains_key(*name)));
    let spec = service.spec.as_ref();
    let kind = spec.and_then(|spec| spec.type_.as_deref());
    let headless = spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
    !elsewhere && kind != Some("ExternalName") && !headless
}

/// Someone else's address must not be taken over, however it came into the object.
fn cluster_addresses(spec: &ServiceSpec, node: &NodeView) -> Vec<IpAddr> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let parsed = all.filter_map(|address| address.parse::<IpAddr>().ok());
    let mut addresses: Vec<IpAddr> = parsed.filter(|address| is_cluster(*address, node)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn is_cluster(address: IpAddr, node: &NodeView) -> bool {
    node.service_cidrs.iter().any(|range| range.contains(address))
}

/// An address of a service that is not the cluster's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct External {
    address: IpAddr,
    /// Given by a load balancer: source ranges count.
    balancer: bool,
    /// Whether the node's own clients are led to the service, too.
    inside: bool,
}

fn external_addresses(service: &Service, spec: &ServiceSpec, node: &NodeView) -> Vec<External> {
    let owned = |address: &IpAddr| {
        node.addresses.contains(address) || node.external_cidrs.iter().any(|range| range.contains(*address))
    };
    let given = spec.external_ips.iter().flatten().filter_map(|text| text.parse().ok());
    let given = given.map(|address| External {
        address,
        balancer: false,
        inside: owned(&address),
    });
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let ingress = ingress.iter().filter(|_| balancer);
    // With ipMode Proxy packets must reach the load balancer itself.
    let virtual_ips = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    let balanced = virtual_ips.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok());
    let balanced = balanced.map(|address| External {
        address,
        balancer: true,
        inside: true,
    });
    let mut all: Vec<External> = given
        .chain(balanced)
        .filter(|external| can_be_external(external.address, node))
        .collect();
    // A balancer's entry stands first, and replaces the same address given by hand.
    all.sort_unstable_by_key(|external| (external.address, !external.balancer));
    all.dedup_by_key(|external| external.address);
    all
}

fn can_be_external(address: IpAddr, node: &NodeView) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let special = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    !special && !link_local && !is_cluster(address, node)
}

/// Clients of ports that nobody serves are refused instead of left to wait.
fn unserved(cluster: &[IpAddr], node: &NodeView) -> Option<Group> {
    let redirected = |address: &&IpAddr| node.dns.iter().any(|dns| dns.cluster == **address);
    let frontends: Vec<Exposed> = cluster
        .iter()
        .filter(|address| !redirected(address))
        .map(|address| Exposed {
            frontend: Frontend::inside(SocketAddr::new(*address, 0), Protocol::Any),
            flags: flag::UNSERVED,
            restricted: false,
        })
        .collect();
    let first = frontends.first()?.frontend;
    Some(Group {
        frontends,
        ..Group::simple(first, [])
    })
}

/// Makes the groups of one port and family.
struct Maker<'a> {
    spec: &'a ServiceSpec,
    node: &'a NodeView,
    name: &'a str,
    port: u16,
    protocol: Protocol,
    node_port: Option<u16>,
    ipv6: bool,
    direct_return: bool,
    algorithm: Algorithm,
}

/// Whether the service asks that backends answer clients directly ([`FORWARDING`]).
#[must_use]
pub fn asks_direct_return(service: &Service) -> bool {
    annotation(service, FORWARDING) == Some(DIRECT_RETURN)
}

impl<'a> Maker<'a> {
    fn new(
        service: &'a Service,
        spec: &'a ServiceSpec,
        port: &'a ServicePort,
        ipv6: bool,
        node: &'a NodeView,
    ) -> Option<Maker<'a>> {
        let node_ports = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
        Some(Maker {
            spec,
            node,
            name: port.name.as_deref().unwrap_or_default(),
            port: port_number(port.port)?,
            protocol: Protocol::from_name(port.protocol.as_deref().unwrap_or("TCP"))?,
            node_port: port.node_port.filter(|_| node_ports).and_then(port_number),
            ipv6,
            direct_return: asks_direct_return(service),
            algorithm: algorithm(service).unwrap_or_default(),
        })
    }

    fn make<'s>(
        &self,
        groups: &mut Vec<Group>,
        cluster: impl Iterator<Item = IpAddr>,
        external: &[External],
        slices: impl Iterator<Item = &'s Slice>,
    ) {
        let internal_local = self.spec.internal_traffic_policy.as_deref() == Some("Local");
        let endpoints = Endpoints::of(self.name, self.protocol, self.ipv6, slices);
        let local = endpoints.here();
        // With direct return the node that has backends keeps what it is handed: two nodes must not pass a packet back and
        // forth.
        let external_local =
            self.spec.external_traffic_policy.as_deref() == Some("Local") || (self.direct_return && !local.is_empty());
        let (mut everywhere, mut here) = (Vec::new(), Vec::new());
        for address in cluster {
            if self.node.dns.iter().any(|dns| dns.cluster == address) && self.port == DNS_PORT {
                continue;
            }
            let to = if internal_local { &mut here } else { &mut everywhere };
            to.push(self.expose(address, self.port, Scope::Inside, 0));
        }
        // The node's own clients of an external address are led to all endpoints, as if they had asked for the
        // cluster's: only what comes from outside is kept on the node by the policy.
        let mut expose = |address, port, flags, inside: bool, restricted: bool| {
            let mut flags = flags;
            if self.direct_return {
                flags |= flag::DIRECT_RETURN;
            }
            if inside {
                let by_packet = if restricted { flag::BY_PACKET } else { 0 };
                everywhere.push(Exposed {
                    restricted,
                    ..self.expose(address, port, Scope::Inside, flags | by_packet)
                });
            }
            let to = if external_local { &mut here } else { &mut everywhere };
            to.push(Exposed {
                restricted,
                ..self.expose(address, port, Scope::Outside, flags)
            });
        };
        let sources = self.sources();
        for external in external {
            let restricted = external.balancer && !self.spec_ranges().is_empty();
            expose(external.address, self.port, flag::EXTERNAL, external.inside, restricted);
        }
        if let Some(node_port) = self.node_port.filter(|_| self.serves_family()) {
            expose(unspecified(self.ipv6), node_port, flag::NODE_PORT, true, false);
        }
        if everywhere.is_empty() && here.is_empty() {
            return;
        }
        let all = endpoints.everywhere(self.node);
        if !here.is_empty() {
            let elsewhere = local.is_empty() && !all.is_empty();
            for exposed in &mut here {
                exposed.flags |= flag::LOCAL | if elsewhere { flag::ELSEWHERE } else { 0 };
            }
            groups.push(self.group(true, here, local, &sources));
        }
        if !everywhere.is_empty() {
            groups.push(self.group(false, everywhere, all, &sources));
        }
    }

    fn expose(&self, address: IpAddr, port: u16, scope: Scope, flags: u32) -> Exposed {
        Exposed {
            frontend: Frontend {
                address: SocketAddr::new(address, port),
                protocol: self.protocol,
                scope,
            },
            flags,
            restricted: false,
        }
    }

    fn group(&self, local: bool, mut frontends: Vec<Exposed>, backends: Vec<Backend>, sources: &[Cidr]) -> Group {
        frontends.sort_unstable();
        let restricted = frontends.iter().any(|exposed| exposed.restricted);
        Group {
            name: GroupName {
                port: self.port,
                protocol: self.protocol,
                ipv6: self.ipv6,
                local,
            },
            frontends,
            backends,
            affinity: affinity(self.spec),
            algorithm: self.algorithm,
            sources: if restricted { sources.to_vec() } else { Vec::new() },
        }
    }

    fn spec_ranges(&self) -> &[String] {
        self.spec.load_balancer_source_ranges.as_deref().unwrap_or_default()
    }

    /// Of this family. What is not understood lets nobody in.
    fn sources(&self) -> Vec<Cidr> {
        let ranges = self.spec_ranges().iter().filter_map(|range| {
            let (address, prefix) = range.trim().split_once('/')?;
            Cidr::new(address.parse::<IpAddr>().ok()?, prefix.parse().ok()?)
        });
        let mut ranges: Vec<Cidr> = ranges.filter(|range| range.is_ipv4() != self.ipv6).collect();
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    }

    fn serves_family(&self) -> bool {
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        match self.spec.ip_families.as_deref() {
            None | Some([]) => !self.ipv6,
            Some(families) => families.iter().any(|name| name == family),
        }
    }
}

fn affinity(spec: &ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let config = spec.session_affinity_config.as_ref();
    let client = config.and_then(|config| config.client_ip.as_ref());
    let seconds = client.and_then(|client| client.timeout_seconds);
    let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
    seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS).max(1)
}

#[cfg(test)]
#[path = "compute_tests.rs"]
mod tests;
