//! A cluster of several machines on this one, for developers and tests: network namespaces stand for hosts, each with a hull
//! of its own; `cargo xtask cluster --nodes 5`.
//!
//! Everything of a cluster is found again by its name alone (cgroup, network namespaces, directory, BPF pins), so that
//! [`remove`] works after any crash. Nothing of hull's own clean-up is relied on.

mod command;
mod lan;
mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub use command::{Arguments, run};
pub use lan::Layout;
pub use machine::Machine;

use crate::host;
use lan::Lan;

/// How long anything may take to become ready; generous, because CI has two cores and a debug build.
const PATIENCE: Duration = Duration::from_secs(60);

/// Families of addresses that hosts and pods have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    #[default]
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both, IPv4 first.
    Dual,
}

impl Families {
    pub(crate) fn has(self, ipv4: bool) -> bool {
        match self {
            Families::Ipv4 => ipv4,
            Families::Ipv6 => !ipv4,
            Families::Dual => true,
        }
    }

    /// `ipv4`, `ipv6`, or both with a comma between.
    fn choose(self, ipv4: &str, ipv6: &str) -> String {
        match self {
            Families::Ipv4 => ipv4.to_owned(),
            Families::Ipv6 => ipv6.to_owned(),
            Families::Dual => format!("{ipv4},{ipv6}"),
        }
    }
}

/// What a cluster is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tells clusters on this machine apart; letters, digits and `-`.
    pub name: String,
    /// How many nodes.
    pub nodes: usize,
    /// How they are connected.
    pub layout: Layout,
    /// Their addresses.
    pub families: Families,
    /// Where `hull` and `hull-runtime` are.
    pub binaries: PathBuf,
    /// Further flags of `hull control`.
    pub control_flags: Vec<String>,
    /// Further flags of `hull agent`.
    pub agent_flags: Vec<String>,
}

impl Options {
    /// Nodes on one link, IPv4, no further flags.
    pub fn new(name: &str, nodes: usize, binaries: &Path) -> Self {
        Options {
            name: name.to_owned(),
            nodes,
            layout: Layout::L2,
            families: Families::Ipv4,
            binaries: binaries.to_owned(),
            control_flags: Vec::new(),
            agent_flags: Vec::new(),
        }
    }
}

/// A running cluster; removed when it is dropped.
pub struct Cluster {
    options: Options,
    lan: Lan,
    control: Machine,
    nodes: Vec<Machine>,
}

impl Cluster {
    /// Starts everything and waits until all nodes are registered. What an earlier cluster of that name left goes first.
    ///
    /// # Errors
    /// Not root, or a part does not start; what was started is removed again.
    pub fn start(options: Options) -> Result<Self> {
        host::require_root("hosts are network namespaces with interfaces, cgroups and BPF programs")?;
        ensure!(
            !options.name.is_empty()
                && options
                    .name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
            "a cluster's name is made of letters, digits and -, not {:?}",
            options.name
        );
        remove(&options.name)?;
        let lan = Lan::make(&options)?;
        let machine = |role: &str, number: usize| Machine::new(&options, &lan, role, number);
        let control = machine("control", 0);
        let nodes = (1..=options.nodes)
            .map(|number| machine(&format!("node-{number}"), number))
            .collect();
        let mut cluster = Cluster {
            options,
            lan,
            control,
            nodes,
        };
        cluster.boot()?;
        Ok(cluster)
    }

    fn boot(&mut self) -> Result<()> {
        fs::create_dir_all(base(&self.options.name)).context("make the cluster's directory")?;
        let mut flags = vec![
            format!("--listen={}", self.control.socket_address(6443)),
            format!("--node-ip={}", self.control.addresses()),
            "--node-name=control".to_owned(),
            format!(
                "--cluster-cidr={}",
                self.options.families.choose("10.244.0.0/16", "fd00:10:244::/48")
            ),
            format!(
                "--service-cidr={}",
                self.options.families.choose("10.96.0.0/16", "fd00:10:96::/112")
            ),
        ];
        flags.extend(self.options.control_flags.iter().cloned());
        self.lan.plug(&self.control)?;
        self.control.start("control", &flags)?;
        self.control.wait_ready(PATIENCE)?;
        for node in &self.nodes {
            self.lan.plug(node)?;
        }
        let join = self.join_flags()?;
        for node in &mut self.nodes {
            node.start("agent", &join)?;
        }
        self.nodes.iter_mut().try_for_each(|node| node.wait_ready(PATIENCE))
    }

    /// Flags that join a machine with a new token.
    fn join_flags(&self) -> Result<Vec<String>> {
        let out = host::output(self.hull(
            &self.control,
            &["token", "create", "--ttl", "1h", "--print-join-command"],
        ))?;
        let words = out.split_whitespace().skip(2).map(str::to_owned);
        Ok(words.chain(self.options.agent_flags.iter().cloned()).collect())
    }

    /// `hull` with the directories of a machine, outside of its namespace.
    pub fn hull(&self, machine: &Machine, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.options.binaries.join("hull"));
        command.args(machine.directories()).args(arguments);
        command
    }

    /// The administrator's kubeconfig, good on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.control.data_dir().join("pki/admin.kubeconfig")
    }

    /// The host of the control plane.
    pub fn control(&self) -> &Machine {
        &self.control
    }

    /// The control plane's host, to stop and start it.
    pub fn control_mut(&mut self) -> &mut Machine {
        &mut self.control
    }

    /// The hosts of the nodes: `node-1` and so on.
    pub fn nodes(&self) -> &[Machine] {
        &self.nodes
    }

    /// One of them, to stop and start it; the first is 0.
    pub fn node_mut(&mut self, index: usize) -> &mut Machine {
        &mut self.nodes[index]
    }

    /// Starts an agent that has ended again, with a new token, and waits until it is registered.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_agent(&mut self, index: usize) -> Result<()> {
        let join = self.join_flags()?;
        let node = &mut self.nodes[index];
        node.start("agent", &join)?;
        node.wait_ready(PATIENCE)
    }

    /// Imports an image (OCI layout or docker archive) on every node.
    ///
    /// # Errors
    /// What the import says.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("the archive's path is not UTF-8")?;
        for node in &self.nodes {
            host::output(self.hull(node, &["image", "import", archive]))?;
        }
        Ok(())
    }

    /// Takes a host off the network, or connects it again.
    ///
    /// # Errors
    /// What ip(8) says.
    pub fn set_connected(&self, machine: &Machine, connected: bool) -> Result<()> {
        self.lan.set_connected(machine, connected)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.options.name) {
            eprintln!(
                "xtask: cluster {} is not completely removed: {error:#}",
                self.options.name
            );
        }
        self.control.reap();
        self.nodes.iter_mut().for_each(Machine::reap);
    }
}

/// Directories of a cluster.
fn base(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("hull-cluster-{name}"))
}

/// The cgroup of a cluster, relative to the cgroup2 mount.
fn cgroup(name: &str) -> String {
    format!("hull-cluster-{name}")
}

/// BPF pins of a cluster.
fn pins(name: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(format!("hull-cluster-{name}"))
}

/// Removes a cluster whatever state it is in: processes, mounts, namespaces, interfaces, cgroups, pins, files. One that is
/// not there is fine.
///
/// # Errors
/// What could not be removed.
pub fn remove(name: &str) -> Result<()> {
    let cgroup = machine::cgroup2_mount()?.join(cgroup(name));
    machine::kill(&cgroup)?;
    machine::unmount_below(&base(name))?;
    lan::remove(name)?;
    for dir in [pins(name), base(name)] {
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
    }
    machine::remove_cgroup(&cgroup)
}
