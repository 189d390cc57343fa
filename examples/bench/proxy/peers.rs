//! Rule sets of the shapes that kube-proxy writes, for iptables and nftables: n services of two endpoints each.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use sha2::{Digest as _, Sha256};

use super::hosts::Node;

/// A service of the rule sets.
pub struct Entry {
    number: u32,
    address: Ipv4Addr,
    endpoints: [(Ipv4Addr, u16); 2],
}

/// Services 0 to `count - 2` that nobody asks for, and the target as the last.
pub fn entries(count: u32, target: Ipv4Addr, endpoints: [(Ipv4Addr, u16); 2]) -> Vec<Entry> {
    let last = Entry {
        number: count - 1,
        address: target,
        endpoints,
    };
    (0..count - 1).map(filler).chain([last]).collect()
}

/// Services that no set has, to be added.
pub fn filler(number: u32) -> Entry {
    let endpoint = |offset| (Ipv4Addr::from_bits(0x0af5_0000 + 2 * number + offset), 8080);
    Entry {
        number,
        address: Ipv4Addr::from_bits(0xac1e_000a + number),
        endpoints: [endpoint(0), endpoint(1)],
    }
}

fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02X}")).collect()
}

/// A kind of rules.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Iptables,
    Nftables,
}

impl Peer {
    pub fn name(self) -> &'static str {
        match self {
            Peer::Iptables => "iptables",
            Peer::Nftables => "nftables",
        }
    }

    /// The program that loads rules, if the machine has it.
    pub fn loader(self) -> Option<&'static str> {
        let names: &[&str] = match self {
            Peer::Iptables => &["iptables-legacy-restore", "iptables-restore"],
            Peer::Nftables => &["nft"],
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let exists = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
        names.iter().find(exists).copied()
    }

    /// Puts the node's rules in force; milliseconds it took.
    pub fn load(self, node: &Node, loader: &str, dir: &Path, entries: &[Entry]) -> Result<f64> {
        let rules = match self {
            Peer::Iptables => iptables(entries, entries),
            Peer::Nftables => [NFT_BASE, &nftables(entries)].concat(),
        };
        self.take(node, loader, dir, &rules)
    }

    /// Adds a service as kube-proxy does; milliseconds it took.
    pub fn add(self, node: &Node, loader: &str, dir: &Path, entries: &[Entry], added: Entry) -> Result<f64> {
        let rules = match self {
            Peer::Iptables => iptables(entries, &[added]),
            Peer::Nftables => nftables(&[added]),
        };
        self.take(node, loader, dir, &rules)
    }

    fn take(self, node: &Node, loader: &str, dir: &Path, rules: &str) -> Result<f64> {
        let file = dir.join(self.name());
        fs::write(&file, rules)?;
        let file = file.to_string_lossy().into_owned();
        let began = Instant::now();
        match self {
            Peer::Iptables => node.run(loader, &["--noflush", "--counters", "-w", "5", &file])?,
            Peer::Nftables => node.run(loader, &["-f", &file])?,
        }
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }
}

/// The chains that packets come by, without services.
pub const IPTABLES_BASE: &str = "*filter
:KUBE-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
COMMIT
";

/// `all` services are jumped to; the chains of those in `written` are written.
fn iptables(all: &[Entry], written: &[Entry]) -> String {
    let mut chains = String::from(
        "*filter\n:KUBE-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n*nat\n:KUBE-SERVICES - [0:0]\n\
         :KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n",
    );
    let mut rules = String::from(
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n-A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n",
    );
    for entry in written {
        let (name, service) = names(entry);
        let _ = writeln!(chains, ":KUBE-SVC-{service} - [0:0]");
        for (index, (address, port)) in entry.endpoints.iter().enumerate() {
            let endpoint = hash(&format!("{name}{address}{port}"));
            let _ = writeln!(chains, ":KUBE-SEP-{endpoint} - [0:0]");
            let chance = if index == 0 {
                "-m statistic --mode random --probability 0.5 "
            } else {
                ""
            };
            let _ = writeln!(
                rules,
                "-A KUBE-SVC-{service} -m comment --comment \"{name} -> {address}:{port}\" {chance}-j KUBE-SEP-{endpoint}\n\
                 -A KUBE-SEP-{endpoint} -m comment --comment {name} -s {address} -j KUBE-MARK-MASQ\n\
                 -A KUBE-SEP-{endpoint} -m comment --comment {name} -m tcp -p tcp -j DNAT --to-destination {address}:{port}"
            );
        }
    }
    let known = written.iter().filter(|_| written.len() < all.len());
    // What is added stands before the last, which is the one that is asked for.
    let (last, before) = all
        .split_last()
        .map_or((None, all), |(last, before)| (Some(last), before));
    for entry in before.iter().chain(known).chain(last) {
        let (name, service) = names(entry);
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES -m comment --comment \"{name} cluster IP\" -m tcp -p tcp -d {} --dport 80 -j KUBE-SVC-{service}",
            entry.address
        );
    }
    chains + &rules + "COMMIT\n"
}

fn names(entry: &Entry) -> (String, String) {
    let name = format!("ns{}/svc-{}:http", entry.number % 50, entry.number);
    let hash = hash(&name);
    (name, hash)
}

const NFT_BASE: &str = "table ip kube-proxy
delete table ip kube-proxy
table ip kube-proxy {
 map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
 set cluster-ips { type ipv4_addr; }
 chain mark-for-masquerade { meta mark set mark or 0x4000; }
 chain masquerading { mark and 0x4000 == 0 return; meta mark set mark xor 0x4000; masquerade fully-random; }
 chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
 chain cluster-ips-check { ip daddr @cluster-ips reject; }
 chain filter-forward { type filter hook forward priority -110; ct state new jump cluster-ips-check; }
 chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
 chain nat-output { type nat hook output priority -100; jump services; }
 chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
}
";

fn nftables(entries: &[Entry]) -> String {
    let mut rules = String::new();
    for entry in entries {
        let service = format!("service-{}", entry.number);
        for (index, (address, port)) in entry.endpoints.iter().enumerate() {
            let chain = format!("endpoint-{}-{index}", entry.number);
            let _ = writeln!(
                rules,
                "add chain ip kube-proxy {chain}\nadd rule ip kube-proxy {chain} ip saddr {address} jump mark-for-masquerade\n\
                 add rule ip kube-proxy {chain} meta l4proto tcp dnat to {address}:{port}"
            );
        }
        let _ = writeln!(
            rules,
            "add chain ip kube-proxy {service}\nadd rule ip kube-proxy {service} numgen random mod 2 vmap {{ 0 : goto endpoint-{n}-0, \
             1 : goto endpoint-{n}-1 }}",
            n = entry.number
        );
    }
    for some in entries.chunks(500) {
        let elements: Vec<String> = some
            .iter()
            .map(|entry| format!("{} . tcp . 80 : goto service-{}", entry.address, entry.number))
            .collect();
        let addresses: Vec<String> = some.iter().map(|entry| entry.address.to_string()).collect();
        let _ = writeln!(
            rules,
            "add element ip kube-proxy service-ips {{ {} }}\nadd element ip kube-proxy cluster-ips {{ {} }}",
            elements.join(", "),
            addresses.join(", ")
        );
    }
    rules
}
