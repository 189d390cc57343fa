//! The cables: one link for all hosts, or links of two hosts each with a router between, in a namespace of their own. This
//! machine is connected to the first link, so that clients here reach the API server.

use std::fs;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Families, Machine, Options};

/// How the hosts are connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// All on one link.
    #[default]
    L2,
    /// Two on each link, and a router that knows nothing of pods between the links.
    Routed,
}

/// Hosts on one link of [`Layout::Routed`].
const PER_LINK: usize = 2;
/// The router's and this machine's place on a link.
const ROUTER: u8 = 254;
const HERE: u8 = 253;
/// Second octets of the links of clusters.
const OCTETS: std::ops::Range<u8> = 100..200;

/// The network of one cluster.
pub(super) struct Lan {
    name: String,
    layout: Layout,
    families: Families,
    octet: u8,
}

impl Lan {
    /// Makes the links and the router, and connects this machine.
    pub(super) fn make(options: &Options) -> Result<Self> {
        let links = match options.layout {
            Layout::L2 => 1,
            Layout::Routed => options.nodes.div_ceil(PER_LINK) + 1,
        };
        ensure!(
            options.nodes > 0 && options.nodes < 200 && links < 250,
            "from 1 to 199 nodes"
        );
        let lan = Lan {
            name: options.name.clone(),
            layout: options.layout,
            families: options.families,
            octet: free_octet()?,
        };
        let router = router(&lan.name);
        ip(&format!("netns add {router}"))?;
        let mut batch = vec!["link set lo up".to_owned()];
        for link in 1..=links {
            batch.push(format!("link add lan{link} type bridge forward_delay 0"));
            batch.push(format!("link set lan{link} up"));
            batch.extend(lan.assign(link, ROUTER, &format!("lan{link}")));
        }
        ip_batch(&router, &batch)?;
        forward(&router)?;
        lan.connect_here(&router)?;
        Ok(lan)
    }

    fn connect_here(&self, router: &str) -> Result<()> {
        let here = format!("hullc{}", self.octet);
        ip(&format!("link add {here} type veth peer name here netns {router}"))?;
        ip_batch(router, &["link set here master lan1 up".to_owned()])?;
        ip(&format!("link set {here} up"))?;
        for line in self.assign(1, HERE, &here) {
            ip(&line)?;
        }
        if self.families.has(true) && self.layout == Layout::Routed {
            ip(&format!(
                "route add 10.{}.0.0/16 via {} dev {here}",
                self.octet,
                self.address(true, 1, ROUTER)
            ))?;
        }
        if self.families.has(false) && self.layout == Layout::Routed {
            ip(&format!(
                "route add fd00:68:{}::/48 via {} dev {here}",
                self.octet,
                self.address(false, 1, ROUTER)
            ))?;
        }
        Ok(())
    }

    /// The link that a host is on: the control plane (0) on the first.
    pub(super) fn segment(&self, number: usize) -> usize {
        match self.layout {
            Layout::L2 => 1,
            Layout::Routed => number.div_ceil(PER_LINK) + 1,
        }
    }

    /// A host's addresses.
    pub(super) fn addresses(&self, number: usize) -> Vec<IpAddr> {
        let place = u8::try_from(number + 2).unwrap_or(u8::MAX);
        let link = self.segment(number);
        let families = [true, false].into_iter().filter(|ipv4| self.families.has(*ipv4));
        families
            .filter_map(|ipv4| self.address(ipv4, link, place).parse().ok())
            .collect()
    }

    fn address(&self, ipv4: bool, link: usize, place: u8) -> String {
        if ipv4 {
            format!("10.{}.{link}.{place}", self.octet)
        } else {
            format!("fd00:68:{}:{link}::{place}", self.octet)
        }
    }

    fn assign(&self, link: usize, place: u8, device: &str) -> Vec<String> {
        let families = [(true, "24", ""), (false, "64", " nodad")];
        let used = families.into_iter().filter(|(ipv4, ..)| self.families.has(*ipv4));
        used.map(|(ipv4, bits, options)| {
            format!(
                "addr add {}/{bits} dev {device}{options}",
                self.address(ipv4, link, place)
            )
        })
        .collect()
    }

    /// Makes a host's namespace and connects it.
    pub(super) fn plug(&self, machine: &Machine) -> Result<()> {
        let (namespace, port) = (machine.namespace(), port(machine));
        ip(&format!("netns add {namespace}"))?;
        let router = router(&self.name);
        ip_batch(
            &router,
            &[
                format!("link add {port} type veth peer name eth0 netns {namespace}"),
                format!("link set {port} master lan{} up", machine.segment()),
            ],
        )?;
        let place = u8::try_from(machine.number() + 2).unwrap_or(u8::MAX);
        let mut batch = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
        batch.extend(self.assign(machine.segment(), place, "eth0"));
        for ipv4 in [true, false] {
            if self.families.has(ipv4) {
                let family = if ipv4 { "-4" } else { "-6" };
                batch.push(format!(
                    "{family} route add default via {}",
                    self.address(ipv4, machine.segment(), ROUTER)
                ));
            }
        }
        let batch: Vec<String> = batch
            .into_iter()
            .map(|line| line.trim_start_matches("-4 ").trim_start_matches("-6 ").to_owned())
            .collect();
        ip_batch(&namespace, &batch)
    }

    pub(super) fn set_connected(&self, machine: &Machine, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        ip_batch(&router(&self.name), &[format!("link set {} {state}", port(machine))])
    }
}

/// The host's end of the cable in the router's namespace.
fn port(machine: &Machine) -> String {
    format!("port{}", machine.number())
}

fn router(name: &str) -> String {
    format!("hc-{name}-lan")
}

/// A second octet that no interface of this machine has in use.
fn free_octet() -> Result<u8> {
    let out = Command::new("ip")
        .args(["-4", "-o", "addr", "show"])
        .output()
        .context("run ip")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let first = u8::try_from(std::process::id() % u32::from(OCTETS.end - OCTETS.start)).unwrap_or(0);
    let candidates = OCTETS.map(|octet| OCTETS.start + (octet - OCTETS.start + first) % (OCTETS.end - OCTETS.start));
    candidates
        .into_iter()
        .find(|octet| !text.contains(&format!(" 10.{octet}.")))
        .context("all of 10.100.0.0 to 10.199.0.0 is in use on this machine")
}

/// Routing between the links.
fn forward(namespace: &str) -> Result<()> {
    let script = "echo 1 > /proc/sys/net/ipv4/ip_forward; \
        [ ! -e /proc/sys/net/ipv6/conf/all/forwarding ] || echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    let status = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{namespace}"))
        .args(["--", "/bin/sh", "-c", script])
        .status()
        .context("run nsenter")?;
    ensure!(status.success(), "switch forwarding on in {namespace}: {status}");
    Ok(())
}

fn ip(arguments: &str) -> Result<()> {
    let out = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("run ip")?;
    ensure!(
        out.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}

/// Several commands in a namespace, with one process.
fn ip_batch(namespace: &str, lines: &[String]) -> Result<()> {
    use std::io::Write as _;
    let mut child = Command::new("ip")
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ip")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.join("\n").as_bytes()).context("write to ip")?;
    }
    let out = child.wait_with_output().context("wait for ip")?;
    if !out.status.success() {
        bail!(
            "ip -n {namespace}: {}\nof:\n{}",
            String::from_utf8_lossy(&out.stderr).trim(),
            lines.join("\n")
        );
    }
    Ok(())
}

/// Removes the namespaces of a cluster, and with them all of its interfaces.
pub(super) fn remove(name: &str) -> Result<()> {
    let prefix = format!("hc-{name}-");
    let entries = fs::read_dir("/run/netns").into_iter().flatten().filter_map(Result::ok);
    for entry in entries {
        let found = entry.file_name().to_string_lossy().into_owned();
        if let Some(rest) = found.strip_prefix(&prefix)
            && (rest == "lan"
                || rest == "control"
                || rest.strip_prefix("node-").is_some_and(|n| n.parse::<u32>().is_ok()))
        {
            ip(&format!("netns del {found}"))?;
        }
    }
    Ok(())
}
