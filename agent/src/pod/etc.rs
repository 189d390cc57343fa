//! The node's files in every container: /etc/hosts, /etc/hostname, /etc/resolv.conf. Pure text.
//!
//! Follows the kubelet's `managedHostsFileContent` and "DNS for Services and Pods" of the documentation.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// The most search domains and name servers that resolvers take (resolv.conf(5), and Kubernetes' own limits).
const SEARCH_MAX: usize = 32;
const NAMESERVERS_MAX: usize = 3;

/// The pod's host name.
#[must_use]
pub fn hostname(pod: &Pod, node: &str) -> String {
    let spec = pod.spec.as_ref();
    if spec.is_some_and(uses_host_network) {
        return node.to_owned();
    }
    let named = spec
        .and_then(|spec| spec.hostname.clone())
        .filter(|name| !name.is_empty());
    let name = named.unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default());
    name.chars()
        .take(63)
        .collect::<String>()
        .trim_end_matches(['-', '.'])
        .to_owned()
}

/// Whether the pod uses the node's network.
#[must_use]
pub fn uses_host_network(spec: &PodSpec) -> bool {
    spec.host_network == Some(true)
}

/// /etc/hosts. `host` is the node's own file, used when the pod shares its network.
#[must_use]
pub fn hosts(pod: &Pod, hostname: &str, ips: &[IpAddr], host: &str, domain: &str) -> String {
    let Some(spec) = &pod.spec else { return String::new() };
    let mut text = if uses_host_network(spec) {
        format!("# Kubernetes-managed hosts file (host network).\n{host}")
    } else {
        let mut text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                        fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let names = match spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty()) {
            Some(subdomain) => format!("{hostname}.{subdomain}.{namespace}.svc.{domain}\t{hostname}"),
            None => hostname.to_owned(),
        };
        for ip in ips {
            text.push_str(&format!("{ip}\t{names}\n"));
        }
        text
    };
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

#[derive(Default)]
struct Resolver {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

/// /etc/resolv.conf. `host` is the node's own file.
#[must_use]
pub fn resolv_conf(pod: &Pod, cluster_dns: IpAddr, domain: &str, host: &str) -> String {
    let Some(spec) = &pod.spec else { return String::new() };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let of_host = parse(host);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !uses_host_network(spec));
    let mut resolver = if policy == "None" {
        Resolver::default()
    } else if cluster {
        let mut search = vec![
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.to_owned(),
        ];
        search.extend(of_host.search);
        Resolver {
            nameservers: vec![cluster_dns.to_string()],
            search,
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        of_host
    };
    if let Some(extra) = &spec.dns_config {
        resolver.nameservers.extend(extra.nameservers.iter().flatten().cloned());
        resolver.search.extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            resolver.options.retain(|other| other.split(':').next() != Some(&name));
            resolver.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    render(resolver)
}

fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
            Some("options") => resolver.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    resolver
}

fn render(resolver: Resolver) -> String {
    let mut seen = std::collections::HashSet::new();
    let search: Vec<String> = resolver
        .search
        .into_iter()
        .filter(|domain| seen.insert(domain.clone()))
        .take(SEARCH_MAX)
        .collect();
    let mut text = String::new();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    for server in resolver.nameservers.iter().take(NAMESERVERS_MAX) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !resolver.options.is_empty() {
        text.push_str(&format!("options {}\n", resolver.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        from_value(json!({"metadata": {"name": "web-1", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    fn resolv(spec: Value) -> String {
        let host = "nameserver 192.0.2.53\nsearch corp.example\noptions timeout:1\n";
        resolv_conf(&pod(spec), "10.96.0.10".parse().unwrap(), "cluster.local", host)
    }

    #[test]
    fn pods_ask_the_cluster_first() {
        assert_eq!(
            resolv(json!({})),
            "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(
            resolv(json!({"hostNetwork": true})),
            "search corp.example\nnameserver 192.0.2.53\noptions timeout:1\n"
        );
        assert!(resolv(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})).contains("10.96.0.10"));
    }

    #[test]
    fn dns_config_adds_and_overrides() {
        let config = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"], "searches": ["a.b"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        assert_eq!(
            resolv(config),
            "search a.b\nnameserver 192.0.2.1\noptions ndots:2 edns0\n"
        );
        let over = json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}});
        assert!(resolv(over).ends_with("options ndots:1\n"));
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let pod = pod(json!({"subdomain": "sub", "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]}));
        let text = hosts(&pod, "web-1", &["10.244.0.3".parse().unwrap()], "", "cluster.local");
        assert!(text.contains("10.244.0.3\tweb-1.sub.shop.svc.cluster.local\tweb-1\n"));
        assert!(text.contains("192.0.2.9\ta\tb\n"));
        assert_eq!(hostname(&pod, "node"), "web-1");
    }
}
