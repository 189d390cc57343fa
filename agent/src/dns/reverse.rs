//! From addresses back to names: `in-addr.arpa` and `ip6.arpa` (RFC 1035, 3.5; RFC 3596, 2.5).
//!
//! A service's own address is its service's alone; an address of hosts leads to the hosts' names, as in CoreDNS. In the
//! cluster's ranges an unknown address has no name; elsewhere someone else may know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::answer::{ASKED, TTL, Verdict};
use super::name::Name;
use super::reply::{Owner, Reply, Section};
use super::request::Request;
use super::wire::{HEADER, code, kind};
use super::zone::Zone;

impl Zone {
    /// Answers a question about an address; `None` for other names.
    pub(super) fn answer_reverse(&self, request: &Request<'_>, reply: &mut Reply<'_>) -> Option<Verdict> {
        let address = address(&request.name)?;
        let tables = self.tables.read();
        let ours = self.ranges.iter().any(|range| range.contains(address));
        let mut owners = tables.owners(address).peekable();
        let exists = owners.peek().is_some();
        match (exists, ours, tables.complete) {
            (false, true, false) => return Some(Verdict::NotReady),
            (false, false, _) => return Some(Verdict::NotOurs),
            _ => {}
        }
        if exists && request.kind == kind::PTR {
            drop(owners);
            let service = tables
                .owners(address)
                .find(|(_, records)| records.addresses().contains(&address));
            match service {
                Some((key, _)) => self.pointer(reply, &[], key),
                None => {
                    for (key, records) in tables.owners(address) {
                        for host in records.hosts.with_address(address) {
                            let label = host.label();
                            let length = [label.len() as u8];
                            self.pointer(reply, &[&length, label.as_bytes()], key);
                        }
                    }
                }
            }
        } else {
            // The zone that the name is in: its last two labels.
            let zone = HEADER + request.name.labels(0, request.name.count() - 2).len();
            self.soa(reply, Section::Authority, 0, Owner::At(zone));
        }
        Some(Verdict::Answered(if exists { code::NOERROR } else { code::NXDOMAIN }))
    }

    fn pointer(&self, reply: &mut Reply<'_>, host: &[&[u8]], key: &[u8]) {
        let service = [key, b"\x03svc", self.domain.as_bytes()];
        let data: Vec<&[u8]> = host.iter().copied().chain(service).collect();
        reply.record(Section::Answer, ASKED, kind::PTR, TTL, &data);
    }
}

/// The address that a name of `in-addr.arpa` or `ip6.arpa` stands for.
fn address(name: &Name) -> Option<IpAddr> {
    let count = name.count();
    if count < 2 || name.label(count - 1) != b"arpa" {
        return None;
    }
    match (name.label(count - 2), count) {
        (b"in-addr", 6) => {
            let mut octets = [0; 4];
            for (index, octet) in octets.iter_mut().enumerate() {
                *octet = decimal(name.label(3 - index))?;
            }
            Some(Ipv4Addr::from(octets).into())
        }
        (b"ip6", 34) => {
            let mut bits = 0u128;
            for index in (0..32).rev() {
                let [digit] = name.label(index) else { return None };
                bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
            }
            Some(Ipv6Addr::from(bits).into())
        }
        _ => None,
    }
}

/// A number without leading zeros.
fn decimal(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_are_addresses() {
        let read = |text: &str| address(&Name::from_text(text).unwrap());
        assert_eq!(read("4.3.2.1.IN-ADDR.arpa"), Some("1.2.3.4".parse().unwrap()));
        let six = format!("1{}0.0.d.f.ip6.arpa", ".0".repeat(27) + ".");
        assert_eq!(read(&six), Some("fd00::1".parse().unwrap()));
        for other in [
            "3.2.1.in-addr.arpa",
            "04.3.2.1.in-addr.arpa",
            "256.3.2.1.in-addr.arpa",
            "+4.3.2.1.in-addr.arpa",
            "x.4.3.2.1.in-addr.arpa",
            "1.0.0.d.f.ip6.arpa",
            "arpa",
            "4.3.2.1.in-addr.example",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
