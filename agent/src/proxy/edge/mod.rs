//! Packets: services for clients outside of the node, pods' flows to the world, the short way between local pods.
//!
//! The programs of `edge.bpf.o` hang on the uplinks and on the pods' interfaces. They read the maps of the socket
//! programs ([`super::Proxy`] fills them) and those filled here: which pod is where, which interfaces lead out, which
//! destinations belong to the cluster, who may use a service. Everything is pinned: packets go on as they do while no
//! agent runs, and a new agent finds its connections. All calls block briefly: keep them off the async threads.

mod attach;
mod carry;
mod error;
pub mod health;
mod interfaces;
mod load;
mod maps;
mod slot;
mod view;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use hull_ebpf_types::edge::{Local, Reason, Uplink};
use parking_lot::Mutex;

pub use attach::Attach;
pub use error::Error;
pub use slot::Slot;
pub use view::{EdgeView, PortRange, free_ports};

use crate::network::{Cidr, PodAddress};
use interfaces::Interface;
use maps::Maps;

/// What the edge of one node is made from.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// Where maps and links are pinned, the socket programs' too.
    pub bpf_dir: PathBuf,
    /// How much the maps can hold.
    pub limits: EdgeLimits,
    /// How programs are attached to interfaces.
    pub attach: Attach,
    /// Map layout; anything but the default is for trying an upgrade.
    pub layout: u32,
}

const TUNNELLED: &str = "not all nodes are on one link, and behind VXLAN packets cannot be handed over as they are";

/// Ports of which a service takes its node port unless the cluster says otherwise.
const NODE_PORTS: (u16, u16) = (30_000, 32_767);

/// The ports that this machine's kernel gives to sockets which ask for none (ip(7) `ip_local_port_range`).
fn local_ports() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

impl EdgeView {
    /// What is known of a node before the others are: its addresses in its pod ranges, and these.
    #[must_use]
    pub fn of_node(gateways: &[IpAddr], pod_cidrs: &[Cidr]) -> EdgeView {
        EdgeView {
            gateways: gateways.to_vec(),
            cluster: pod_cidrs.to_vec(),
            neighbours: false,
            ports: local_ports()
                .map(|local| free_ports(local, NODE_PORTS))
                .unwrap_or_default(),
        }
    }
}

impl EdgePod {
    /// A pod as the pod network has made it.
    #[must_use]
    pub fn of(address: &PodAddress) -> EdgePod {
        EdgePod {
            interface: address.host_interface.clone(),
            addresses: address.ips.clone(),
            mac: address.mac(),
        }
    }
}

impl EdgeConfig {
    /// The usual limits and layout.
    #[must_use]
    pub fn new(bpf_dir: &Path) -> EdgeConfig {
        EdgeConfig {
            bpf_dir: bpf_dir.to_owned(),
            limits: EdgeLimits::default(),
            attach: Attach::probe(),
            layout: hull_ebpf_types::edge::LAYOUT,
        }
    }
}

/// Capacities of the maps, fixed when they are made: by default by the machine's memory, as the kernel sizes its own
/// connection tracking, of which they take a thousandth. Flows take 136 bytes each, used or not; a connection has two
/// entries, or four when its backend is on another node. Of all these the least recently used are forgotten.
///
/// The kernel tells nobody which entry it forgets. A connection that was forgotten while it was in use shows when its next
/// packet comes: it is counted as [`Reason::UnknownConnection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeLimits {
    /// Entries for TCP.
    pub streams: u32,
    /// Entries for everything else.
    pub datagrams: u32,
    /// Datagrams of which fragments are under way.
    pub fragments: u32,
    /// Clients with session affinity, times their services.
    pub clients: u32,
    /// Addresses of pods and of the node; these are never forgotten.
    pub addresses: u32,
    /// Interfaces that lead out.
    pub interfaces: u32,
    /// The cluster's networks, and all source ranges of services: room for these costs nothing.
    pub ranges: u32,
}

impl EdgeLimits {
    /// Memory, in bytes, for which there is one entry of TCP.
    const MEMORY_OF_STREAM: u64 = 256 << 10;
    const STREAMS: std::ops::RangeInclusive<u32> = 1 << 14..=1 << 20;

    /// For a machine with so many bytes of memory.
    #[must_use]
    pub fn of_memory(bytes: u64) -> EdgeLimits {
        let wanted = u32::try_from(bytes / EdgeLimits::MEMORY_OF_STREAM).unwrap_or(u32::MAX);
        let streams = 1
            << wanted
                .clamp(*EdgeLimits::STREAMS.start(), *EdgeLimits::STREAMS.end())
                .ilog2();
        EdgeLimits {
            streams,
            datagrams: streams / 2,
            fragments: streams / 16,
            clients: streams / 4,
            addresses: 1 << 13,
            interfaces: 1 << 10,
            ranges: 1 << 20,
        }
    }
}

impl Default for EdgeLimits {
    /// For this machine.
    fn default() -> EdgeLimits {
        let info = rustix::system::sysinfo();
        EdgeLimits::of_memory(info.totalram as u64 * u64::from(info.mem_unit))
    }
}

/// A pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgePod {
    /// The host's side.
    pub interface: String,
    /// The pod's addresses: all it may send from.
    pub addresses: Vec<IpAddr>,
    /// The link-layer address inside the pod.
    pub mac: [u8; 6],
}

/// The edge of this node. Dropping it leaves everything in force.
pub struct Edge {
    state: Mutex<State>,
}

struct State {
    config: EdgeConfig,
    ebpf: Ebpf,
    maps: Maps,
    view: EdgeView,
    /// The view is what was told, not what an edge begins with.
    applied: bool,
    uplinks: BTreeMap<u32, Uplink>,
    /// By the name of the host's side.
    pods: BTreeMap<String, (u32, Vec<IpAddr>)>,
    /// Maps of another layout stay in force until these are filled.
    waiting: bool,
}

impl Edge {
    /// Loads the programs and adopts what is pinned. The socket programs have to be there already.
    pub fn load(config: EdgeConfig) -> Result<Edge, Error> {
        let mut ebpf = load::load(&config)?;
        let maps = Maps::take(&mut ebpf)?;
        super::load::give_memory_back();
        let waiting = !load::other_layouts(&config.bpf_dir, config.layout)?.is_empty();
        if waiting {
            carry::carry_over(&config)?;
        }
        let mut state = State {
            config,
            ebpf,
            maps,
            view: EdgeView::default(),
            applied: false,
            uplinks: BTreeMap::new(),
            pods: BTreeMap::new(),
            waiting,
        };
        if !waiting {
            state.take_over()?;
        }
        Ok(Edge {
            state: Mutex::new(state),
        })
    }

    /// Tells the edge of the node and its cluster; it looks at the machine's interfaces by itself.
    pub fn apply(&self, view: &EdgeView) -> Result<(), Error> {
        let mut state = self.state.lock();
        state.maps.set_node(&view::node(view))?;
        state.maps.set_ranges(&view::ranges(view))?;
        if !view.neighbours && (state.view.neighbours || !state.applied) {
            tracing::info!("services that ask for direct return are answered through this node: {TUNNELLED}");
        }
        state.view = view.clone();
        state.applied = true;
        state.refresh(&interfaces::list()?)?;
        if state.waiting {
            state.take_over()?;
            // What the programs of the other layout have learnt meanwhile.
            carry::carry_over(&state.config)?;
            load::remove(&load::other_layouts(&state.config.bpf_dir, state.config.layout)?)?;
            state.waiting = false;
        }
        Ok(())
    }

    /// Who may use which services: networks by [`hull_ebpf_types::Service`]'s reference. A set without networks lets
    /// nobody in.
    pub fn set_sources(&self, sets: &BTreeMap<u32, Vec<Cidr>>) -> Result<(), Error> {
        let all = sets
            .iter()
            .flat_map(|(set, ranges)| ranges.iter().map(move |range| (*set, range)));
        let keys: BTreeSet<(u32, u32, [u32; 4])> = all
            .map(|(set, range)| {
                let (length, address) = view::prefix(range);
                (length, set, address)
            })
            .collect();
        self.state.lock().maps.set_sources(&keys)
    }

    /// Serves a pod's interface: from here on the pod can send from its own addresses only. Repeating it is fine.
    pub fn attach_pod(&self, pod: &EdgePod) -> Result<(), Error> {
        let interfaces = interfaces::list()?;
        let mut state = self.state.lock();
        state.attach_pod(pod, &interfaces)
    }

    /// Forgets a pod, whose interface may be gone already.
    pub fn detach_pod(&self, interface: &str) -> Result<(), Error> {
        self.state.lock().detach_pod(interface)
    }

    /// The pods of this node as a new agent finds them: all of them are served, and what is left of others is removed.
    pub fn adopt(&self, pods: &[EdgePod]) -> Result<(), Error> {
        let interfaces = interfaces::list()?;
        let mut state = self.state.lock();
        for pod in pods {
            match state.attach_pod(pod, &interfaces) {
                // It ended meanwhile.
                Err(Error::NoInterface(_)) => {}
                result => result?,
            }
        }
        let known = state.local_of_pods();
        maps::set(&mut state.maps.local, "edge_local", &known, |_, local| {
            local.interface != 0
        })?;
        state.forget_links(&interfaces)
    }

    /// Why backends on other nodes cannot answer clients directly, if so; flows are masqueraded then.
    pub fn no_direct_return(&self) -> Option<&'static str> {
        let state = self.state.lock();
        (state.applied && !state.view.neighbours).then_some(TUNNELLED)
    }

    /// How often packets were handled or dropped for each reason; names in [`Reason::NAMES`].
    pub fn reasons(&self) -> Result<[u64; Reason::NAMES.len()], Error> {
        self.state.lock().maps.reasons()
    }
}

impl State {
    /// Gives every pinned link the programs just loaded.
    fn take_over(&mut self) -> Result<(), Error> {
        let interfaces = interfaces::list()?;
        for (path, _) in load::pins(&self.config.bpf_dir)? {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some((index, program)) = name.and_then(attach::parse_pin) else {
                continue;
            };
            match interfaces.get(&index) {
                Some(interface) => {
                    let (both, dir) = (attach::both(program), &self.config.bpf_dir);
                    attach::attach(&mut self.ebpf, Attach::Tcx, dir, index, &interface.name, both)?;
                }
                None => attach::release(&path)?,
            }
        }
        Ok(())
    }

    fn attach(&mut self, index: u32, interface: &str, programs: [&'static str; 2]) -> Result<(), Error> {
        let EdgeConfig {
            attach: how, bpf_dir, ..
        } = &self.config;
        if programs == attach::POD {
            // Attaching a link makes the kernel wait, for 12 ms a program here, and every other change of interfaces with
            // it; a filter is there in 0.1 ms.
            let filters = attach::attach(&mut self.ebpf, Attach::Clsact, bpf_dir, index, interface, programs);
            if filters.is_ok() || *how == Attach::Clsact {
                return filters.and_then(|()| attach::release_links(bpf_dir, index, programs));
            }
        }
        attach::attach(&mut self.ebpf, *how, bpf_dir, index, interface, programs)
    }

    fn refresh(&mut self, interfaces: &BTreeMap<u32, Interface>) -> Result<(), Error> {
        let own = view::own_addresses(interfaces);
        maps::set(&mut self.maps.local, "edge_local", &own, |_, local| {
            local.interface == 0
        })?;
        let desired = view::uplinks(interfaces, &self.view);
        maps::set(&mut self.maps.uplinks, "edge_uplinks", &desired, |_, _| true)?;
        let mut outcome = Ok(());
        for index in desired
            .keys()
            .filter(|index| !self.uplinks.contains_key(index))
            .copied()
            .collect::<Vec<_>>()
        {
            if let Some(interface) = interfaces.get(&index) {
                outcome = outcome.and(self.attach(index, &interface.name, attach::UPLINK));
            }
        }
        for index in self.uplinks.keys().filter(|index| !desired.contains_key(index)) {
            let name = interfaces.get(index).map(|interface| interface.name.as_str());
            attach::detach(&self.config.bpf_dir, *index, name, attach::UPLINK)?;
        }
        if outcome.is_ok() {
            self.uplinks = desired;
        }
        outcome
    }

    fn attach_pod(&mut self, pod: &EdgePod, interfaces: &BTreeMap<u32, Interface>) -> Result<(), Error> {
        let found = interfaces.iter().find(|(_, interface)| interface.name == pod.interface);
        let Some((index, interface)) = found else {
            return Err(Error::NoInterface(pod.interface.clone()));
        };
        let local = Local {
            interface: *index,
            pod: pod.mac,
            host: interface.mac,
        };
        for address in &pod.addresses {
            maps::put(&mut self.maps.local, "edge_local", &view::words(*address), &local)?;
        }
        self.pods.insert(pod.interface.clone(), (*index, pod.addresses.clone()));
        self.attach(*index, &pod.interface, attach::POD)
    }

    fn detach_pod(&mut self, interface: &str) -> Result<(), Error> {
        let Some((index, addresses)) = self.pods.remove(interface) else {
            return Ok(());
        };
        for address in addresses {
            maps::gone("edge_local", self.maps.local.remove(&view::words(address)))?;
        }
        attach::detach(&self.config.bpf_dir, index, Some(interface), attach::POD)
    }

    /// What the map of local addresses should say of pods.
    fn local_of_pods(&self) -> BTreeMap<[u32; 4], Local> {
        let addresses = self.pods.values().flat_map(|(_, addresses)| addresses);
        let keys = addresses.map(|address| view::words(*address));
        keys.filter_map(|key| Some((key, self.maps.local.get(&key, 0).ok()?)))
            .collect()
    }

    /// Removes links of pods' interfaces that no pod has.
    fn forget_links(&self, interfaces: &BTreeMap<u32, Interface>) -> Result<(), Error> {
        let known: BTreeSet<u32> = self.pods.values().map(|(index, _)| *index).collect();
        for (path, _) in load::pins(&self.config.bpf_dir)? {
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some((index, program)) = name.and_then(attach::parse_pin) {
                let of_pod = attach::POD.contains(&program);
                if !interfaces.contains_key(&index) || (of_pod && !known.contains(&index)) {
                    attach::release(&path)?;
                }
            }
        }
        Ok(())
    }
}

/// Detaches every program and removes every pin of the edge in `bpf_dir`; a directory that does not exist is fine.
pub fn unload(bpf_dir: &Path) -> Result<(), Error> {
    if !bpf_dir.exists() {
        return Ok(());
    }
    for interface in interfaces::list()?.values().filter(|interface| interface.ethernet) {
        attach::remove_filters(&interface.name);
    }
    let (links, maps): (Vec<_>, Vec<_>) = load::pins(bpf_dir)?
        .into_iter()
        .partition(|(_, layout)| layout.is_none());
    for (path, _) in links {
        attach::release(&path)?;
    }
    load::remove(&maps.into_iter().map(|(path, _)| path).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_have_a_share_of_the_memory() {
        let of = |gibibytes: u64| EdgeLimits::of_memory(gibibytes << 30).streams;
        assert_eq!(
            [1, 4, 16, 23, 64].map(of),
            [1 << 14, 1 << 14, 1 << 16, 1 << 16, 1 << 18]
        );
        assert_eq!(of(4096), 1 << 20, "no machine has more");
    }
}
