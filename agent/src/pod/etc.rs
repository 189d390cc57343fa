//! The node's files in every container: /etc/hosts, /etc/hostname, /etc/resolv.conf. Pure text.
//!
//! Follows the kubelet's `managedHostsFileContent` and "DNS for Services and Pods" of the documentation.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::dns::{self, PodDns};

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

/// /etc/resolv.conf. `host` is the node's own file.
#[must_use]
pub fn resolv_conf(pod: &Pod, cluster_dns: &[IpAddr], domain: &str, host: &str) -> String {
    let spec = pod.spec.as_ref();
    dns::resolv_conf(&PodDns {
        namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
        policy: spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or_default(),
        host_network: spec.is_some_and(uses_host_network),
        config: spec.and_then(|spec| spec.dns_config.as_ref()),
        nameservers: cluster_dns,
        domain,
        host,
    })
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

    #[test]
    fn name_resolution_follows_the_pod() {
        let host = "nameserver 192.0.2.53\nsearch corp.example\n";
        let text = |spec| resolv_conf(&pod(spec), &["10.96.0.10".parse().unwrap()], "cluster.local", host);
        assert!(
            text(json!({})).contains("search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\n")
        );
        assert!(text(json!({})).contains("nameserver 10.96.0.10\n"));
        assert!(text(json!({"hostNetwork": true})).contains("nameserver 192.0.2.53\n"));
        assert!(text(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})).contains("10.96.0.10"));
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
