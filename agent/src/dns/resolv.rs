//! The resolv.conf(5) that a pod gets, from its DNS policy.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PodDNSConfig;

/// What the C libraries use of a resolv.conf; what exceeds it is left out, as the API's limits say.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;
/// So that `service.namespace.svc` is tried within the cluster's domain first.
const CLUSTER_NDOTS: &str = "ndots:5";

/// What decides a pod's resolv.conf.
#[derive(Clone, Copy, Debug)]
pub struct PodDns<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// `dnsPolicy`; empty is ClusterFirst.
    pub policy: &'a str,
    /// The pod uses the host's network: ClusterFirst then means Default.
    pub host_network: bool,
    /// `dnsConfig`.
    pub config: Option<&'a PodDNSConfig>,
    /// The cluster's DNS addresses.
    pub nameservers: &'a [IpAddr],
    /// The cluster's domain, without a final dot.
    pub domain: &'a str,
    /// The contents of the host's resolv.conf.
    pub host: &'a str,
}

#[derive(Default)]
struct Settings {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

/// The host's resolv.conf with the resolvers that are meant: where systemd-resolved runs, /etc/resolv.conf names only its
/// stub, which pods cannot reach, and the real ones are in a file beside (systemd-resolved(8)).
#[must_use]
pub fn host_resolv_conf() -> PathBuf {
    let (usual, resolved) = (
        Path::new("/etc/resolv.conf"),
        Path::new("/run/systemd/resolve/resolv.conf"),
    );
    let text = fs::read_to_string(usual).unwrap_or_default();
    let is_stub = names_only_stub(&text) && resolved.exists();
    if is_stub { resolved } else { usual }.to_owned()
}

fn names_only_stub(text: &str) -> bool {
    let nameservers = parse(text).nameservers;
    !nameservers.is_empty()
        && nameservers
            .iter()
            .all(|address| address == "127.0.0.53" || address == "127.0.0.54")
}

/// The contents of the pod's resolv.conf.
pub fn resolv_conf(pod: &PodDns<'_>) -> String {
    let mut settings = match pod.policy {
        "None" => Settings::default(),
        "Default" => parse(pod.host),
        "ClusterFirstWithHostNet" => cluster(pod),
        _ if pod.host_network => parse(pod.host),
        _ => cluster(pod),
    };
    if let Some(config) = pod.config {
        merge(&mut settings, config);
    }
    render(&settings)
}

fn cluster(pod: &PodDns<'_>) -> Settings {
    let (namespace, domain) = (pod.namespace, pod.domain);
    let mut searches = vec![
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.to_owned(),
    ];
    searches.extend(parse(pod.host).searches);
    Settings {
        nameservers: pod.nameservers.iter().map(IpAddr::to_string).collect(),
        searches,
        options: vec![CLUSTER_NDOTS.to_owned()],
    }
}

/// The last `search` or `domain` line counts, as resolv.conf(5) says.
fn parse(text: &str) -> Settings {
    let mut settings = Settings::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let keyword = words.next().unwrap_or_default();
        let values = words.map(str::to_owned);
        match keyword {
            "nameserver" => settings.nameservers.extend(values.take(1)),
            "search" => settings.searches = values.filter(|search| search != ".").map(without_dot).collect(),
            "domain" => settings.searches = values.take(1).map(without_dot).collect(),
            "options" => settings.options.extend(values),
            _ => {}
        }
    }
    settings
}

/// So that a domain that is there with and without its final dot counts once, as for the kubelet.
fn without_dot(domain: String) -> String {
    domain.strip_suffix('.').map(str::to_owned).unwrap_or(domain)
}

fn merge(settings: &mut Settings, config: &PodDNSConfig) {
    settings
        .nameservers
        .extend(config.nameservers.iter().flatten().cloned());
    settings.searches.extend(config.searches.iter().flatten().cloned());
    for option in config.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        settings
            .options
            .retain(|present| present.split(':').next() != Some(name));
        settings.options.push(match &option.value {
            Some(value) => format!("{name}:{value}"),
            None => name.clone(),
        });
    }
}

fn render(settings: &Settings) -> String {
    let mut text = String::new();
    for nameserver in unique(&settings.nameservers).into_iter().take(MAX_NAMESERVERS) {
        text.push_str(&format!("nameserver {nameserver}\n"));
    }
    let mut searches = String::new();
    for search in unique(&settings.searches).into_iter().take(MAX_SEARCHES) {
        if searches.len() + 1 + search.len() > MAX_SEARCH_BYTES {
            break;
        }
        searches.push(' ');
        searches.push_str(search);
    }
    if !searches.is_empty() {
        text.push_str(&format!("search{searches}\n"));
    }
    if !settings.options.is_empty() {
        text.push_str(&format!("options {}\n", settings.options.join(" ")));
    }
    text
}

fn unique(values: &[String]) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    for value in values {
        if !found.contains(&value.as_str()) {
            found.push(value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodDNSConfigOption;

    const HOST: &str = "# made by hand\ndomain old.example\nsearch corp.example.\nnameserver 9.9.9.9\noptions edns0\n";

    const CLUSTER_DNS: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10))];

    fn pod(policy: &'static str) -> PodDns<'static> {
        PodDns {
            namespace: "shop",
            policy,
            host_network: false,
            config: None,
            nameservers: &CLUSTER_DNS,
            domain: "cluster.local",
            host: HOST,
        }
    }

    const CLUSTER: &str = "nameserver 10.96.0.10\n\
        search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\noptions ndots:5\n";
    const NODE: &str = "nameserver 9.9.9.9\nsearch corp.example\noptions edns0\n";

    #[test]
    fn policies_choose_between_cluster_and_host() {
        assert_eq!(resolv_conf(&pod("ClusterFirst")), CLUSTER);
        assert_eq!(resolv_conf(&pod("")), CLUSTER);
        assert_eq!(resolv_conf(&pod("Default")), NODE);
        assert_eq!(resolv_conf(&pod("None")), "");
        let host_network = |policy| PodDns {
            host_network: true,
            ..pod(policy)
        };
        assert_eq!(resolv_conf(&host_network("ClusterFirst")), NODE);
        assert_eq!(resolv_conf(&host_network("ClusterFirstWithHostNet")), CLUSTER);
    }

    #[test]
    fn both_families_of_the_cluster_are_named() {
        let nameservers = ["fd00:10:96::a".parse().unwrap(), CLUSTER_DNS[0]];
        let text = resolv_conf(&PodDns {
            nameservers: &nameservers,
            ..pod("ClusterFirst")
        });
        assert!(
            text.starts_with("nameserver fd00:10:96::a\nnameserver 10.96.0.10\nsearch "),
            "{text}"
        );
    }

    #[test]
    fn a_stub_that_pods_cannot_reach_is_seen() {
        assert!(names_only_stub("nameserver 127.0.0.53\noptions edns0 trust-ad\n"));
        assert!(!names_only_stub("nameserver 127.0.0.53\nnameserver 192.0.2.1\n"));
        assert!(!names_only_stub("nameserver 127.0.0.1\n") && !names_only_stub(""));
    }

    #[test]
    fn the_pods_own_configuration_adds_and_overrides() {
        let option = |name: &str, value: Option<&str>| PodDNSConfigOption {
            name: Some(name.to_owned()),
            value: value.map(str::to_owned),
        };
        let config = PodDNSConfig {
            nameservers: Some(
                ["1.1.1.1", "10.96.0.10", "2.2.2.2", "3.3.3.3"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            searches: Some(vec!["extra.example".to_owned()]),
            options: Some(vec![option("ndots", Some("2")), option("rotate", None)]),
        };
        let text = resolv_conf(&PodDns {
            config: Some(&config),
            ..pod("ClusterFirst")
        });
        assert_eq!(
            text,
            "nameserver 10.96.0.10\nnameserver 1.1.1.1\nnameserver 2.2.2.2\nsearch shop.svc.cluster.local \
             svc.cluster.local cluster.local corp.example extra.example\noptions ndots:2 rotate\n"
        );
    }
}
