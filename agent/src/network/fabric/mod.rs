//! The network between nodes: routes to other nodes' pods, direct where nodes share a link, through VXLAN (RFC 7348)
//! elsewhere.
//!
//! What must be there is computed from the nodes and this machine's interfaces (`plan`), compared with what the kernel
//! has (`kernel`), and only the difference is written. Routes carry a protocol number and a source address of our own, so
//! that a restarted agent knows them again, changes nothing that is right, and never touches others' routes.

mod kernel;
mod node;
mod plan;
mod watch;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use parking_lot::Mutex;

pub use node::NodeRoute;

use super::Error;
use super::netlink::Netlink;
pub(super) use kernel::clear;

/// The UDP port of VXLAN between nodes, in use for this purpose long before IANA assigned 4789.
pub const DEFAULT_PORT: u16 = 8472;
/// The VXLAN network identifier: "hul", so that other tunnels on the same port are told apart.
pub const DEFAULT_VNI: u32 = 0x68_756c;

/// How packets get to the pods of other nodes; `--pod-network`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Directly to nodes on the same link, through VXLAN to the others.
    #[default]
    Auto,
    /// Only directly; between links the network's routers must know the pods' ranges.
    Direct,
    /// Always through VXLAN, for networks that drop packets with pods' addresses.
    Vxlan,
}

impl Transport {
    /// How many bytes of the machine's MTU every packet between nodes needs, given the family of the nodes' addresses. With
    /// `auto` only packets to some nodes need them: those nodes' routes are narrower, and senders are told so.
    #[must_use]
    pub fn overhead(self, ipv4: bool) -> u32 {
        match self {
            Transport::Direct | Transport::Auto => 0,
            Transport::Vxlan => vxlan_overhead(ipv4),
        }
    }
}

/// How many bytes longer VXLAN makes a packet: inner Ethernet 14, VXLAN 8, UDP 8, and the outer IP header.
fn vxlan_overhead(outer_ipv4: bool) -> u32 {
    30 + if outer_ipv4 { 20 } else { 40 }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Auto => "auto",
            Transport::Direct => "direct",
            Transport::Vxlan => "vxlan",
        })
    }
}

/// Text that names no way between nodes.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no way between nodes: it is auto, direct or vxlan")]
pub struct InvalidTransport(String);

impl FromStr for Transport {
    type Err = InvalidTransport;

    fn from_str(text: &str) -> Result<Transport, InvalidTransport> {
        match text {
            "auto" => Ok(Transport::Auto),
            "direct" => Ok(Transport::Direct),
            "vxlan" => Ok(Transport::Vxlan),
            other => Err(InvalidTransport(other.to_owned())),
        }
    }
}

/// What the fabric of one node is made from.
#[derive(Clone, Debug)]
pub struct FabricConfig {
    /// This node.
    pub node: NodeRoute,
    /// How packets get to others.
    pub transport: Transport,
    /// The MTU of pods, in bytes: see [`super::PodNetwork::mtu`].
    pub mtu: u32,
    /// The UDP port of VXLAN, the same on all nodes.
    pub port: u16,
    /// The VXLAN network identifier, 24 bits, the same on all nodes.
    pub vni: u32,
}

impl FabricConfig {
    /// With the usual port and identifier.
    #[must_use]
    pub fn new(node: NodeRoute, transport: Transport, mtu: u32) -> FabricConfig {
        FabricConfig {
            node,
            transport,
            mtu,
            port: DEFAULT_PORT,
            vni: DEFAULT_VNI,
        }
    }
}

/// What one call changed in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Routes, neighbours, forwarding entries and interfaces added or changed.
    pub put: usize,
    /// Those removed.
    pub removed: usize,
    /// Peers that cannot be reached, one sentence each.
    pub problems: Vec<String>,
}

/// The ways from this node to the others' pods; one per agent, in the network namespace in which it was made.
pub struct Fabric {
    config: FabricConfig,
    state: Mutex<State>,
}

struct State {
    netlink: Netlink,
    /// `None` until the first call: what the kernel has is not to be judged before.
    others: Option<BTreeSet<NodeRoute>>,
    /// The kernel has what follows from `others`, as far as is known.
    clean: bool,
    problems: BTreeSet<String>,
}

impl Fabric {
    /// Opens a routing socket; what an earlier run left stays in use until [`Fabric::apply`] is called.
    pub fn new(config: FabricConfig) -> Result<Fabric, Error> {
        Ok(Fabric {
            config,
            state: Mutex::new(State {
                netlink: Netlink::open()?,
                others: None,
                clean: false,
                problems: BTreeSet::new(),
            }),
        })
    }

    /// Makes the kernel lead to the pods of exactly these nodes; this node itself may be among them. Costs nothing when
    /// they are those of the last call. Blocks for some milliseconds otherwise.
    ///
    /// # Errors
    /// The first thing that the kernel refused; everything else is done, and the next call tries again.
    pub fn apply(&self, nodes: &[NodeRoute]) -> Result<Changes, Error> {
        let others: BTreeSet<NodeRoute> = nodes.iter().cloned().collect();
        let mut state = self.state.lock();
        if state.clean && state.others.as_ref() == Some(&others) {
            return Ok(Changes::default());
        }
        state.others = Some(others);
        self.reconcile(&mut state)
    }

    /// Compares the kernel with the nodes of the last [`Fabric::apply`] and repairs it: after an interface went down and
    /// came back, routes on it are gone.
    ///
    /// # Errors
    /// As of [`Fabric::apply`].
    pub fn repair(&self) -> Result<Changes, Error> {
        self.reconcile(&mut self.state.lock())
    }

    fn reconcile(&self, state: &mut State) -> Result<Changes, Error> {
        let Some(others) = &state.others else {
            return Ok(Changes::default());
        };
        let others: Vec<NodeRoute> = others.iter().cloned().collect();
        state.clean = false;
        let (plan, put, removed) = kernel::reconcile(&self.config, &others, &mut state.netlink)?;
        for problem in plan.problems.difference(&state.problems) {
            tracing::warn!("{problem}");
        }
        state.problems = plan.problems;
        state.clean = true;
        Ok(Changes {
            put,
            removed,
            problems: state.problems.iter().cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_have_names_and_a_price() {
        for transport in [Transport::Auto, Transport::Direct, Transport::Vxlan] {
            assert_eq!(transport.to_string().parse::<Transport>().unwrap(), transport);
        }
        assert!("gre".parse::<Transport>().unwrap_err().to_string().contains("vxlan"));
        assert_eq!(
            [Transport::Auto, Transport::Direct, Transport::Vxlan].map(|transport| transport.overhead(true)),
            [0, 0, 50]
        );
        assert_eq!(Transport::Vxlan.overhead(false), 70);
    }
}
