//! Values of `fieldRef` and `resourceFieldRef`: what the downward API can say about a pod.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use super::quantity::Amount;

/// What the node knows about itself that pods may ask for.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// The node's addresses: one, or one of each family.
    pub host_ips: Vec<IpAddr>,
    /// Allocatable processors, in thousandths.
    pub cpu_milli: i64,
    /// Allocatable memory in bytes.
    pub memory: i64,
    /// Allocatable local storage in bytes.
    pub ephemeral_storage: i64,
}

/// The value of a field path, or why there is none. `pod_ips` are the addresses given by this node.
pub fn field(pod: &Pod, node: &NodeFacts, pod_ips: &[IpAddr], path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let entries = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("the field path {path:?} does not support a subscript")),
        };
        return Ok(entries
            .as_ref()
            .and_then(|all| all.get(key))
            .cloned()
            .unwrap_or_default());
    }
    let spec = pod.spec.as_ref();
    match path {
        "metadata.name" => Ok(text(&meta.name)),
        "metadata.namespace" => Ok(text(&meta.namespace)),
        "metadata.uid" => Ok(text(&meta.uid)),
        "metadata.labels" => Ok(format_map(meta.labels.as_ref())),
        "metadata.annotations" => Ok(format_map(meta.annotations.as_ref())),
        "spec.nodeName" => Ok(spec
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_else(|| node.name.clone())),
        "spec.serviceAccountName" => Ok(spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_default()),
        "spec.restartPolicy" => Ok(spec.and_then(|spec| spec.restart_policy.clone()).unwrap_or_default()),
        "status.hostIP" => Ok(join(node.host_ips.iter().take(1))),
        "status.hostIPs" => Ok(join(node.host_ips.iter())),
        "status.podIP" => Ok(join(pod_ips.iter().take(1))),
        "status.podIPs" => Ok(join(pod_ips.iter())),
        _ => Err(format!("unsupported field path {path:?}")),
    }
}

/// Addresses with commas between, as the downward API writes lists.
fn join<'a>(ips: impl Iterator<Item = &'a IpAddr>) -> String {
    ips.map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The value of a resource of `container`: its limit or request, else what the node offers.
pub fn resource(container: &Container, node: &NodeFacts, selector: &ResourceFieldSelector) -> Result<String, String> {
    let name = selector.resource.as_str();
    let Some((kind, resource)) = name.split_once('.') else {
        return Err(format!(
            "unsupported resource {name:?}: expected limits.<resource> or requests.<resource>"
        ));
    };
    let declared = container.resources.as_ref();
    let limit = declared
        .and_then(|all| all.limits.as_ref())
        .and_then(|all| all.get(resource));
    let request = declared
        .and_then(|all| all.requests.as_ref())
        .and_then(|all| all.get(resource));
    let offered = || match resource {
        "cpu" => Ok(Amount::parse(&format!("{}m", node.cpu_milli))),
        "memory" => Ok(Some(Amount::units(node.memory.into()))),
        "ephemeral-storage" => Ok(Some(Amount::units(node.ephemeral_storage.into()))),
        other => Err(format!("unsupported resource {other:?}")),
    };
    let amount = match kind {
        "limits" => limit.map_or_else(offered, |quantity| Ok(Amount::parse(&quantity.0)))?,
        "requests" => request.map_or(Some(Amount::units(0)), |quantity| Amount::parse(&quantity.0)),
        _ => {
            return Err(format!(
                "unsupported resource {name:?}: expected limits.<resource> or requests.<resource>"
            ));
        }
    };
    let amount = amount.ok_or_else(|| format!("{name} is not a quantity"))?;
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(|quantity| Amount::parse(&quantity.0));
    let divisor = divisor.filter(|divisor| !divisor.is_zero()).unwrap_or(Amount::units(1));
    Ok(amount.divided_by(divisor).to_string())
}

/// `metadata.labels['key']` as `("metadata.labels", "key")`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    let quoted = |quote: char| {
        key.strip_prefix(quote)
            .and_then(|inner: &str| inner.strip_suffix(quote))
    };
    Some((map, quoted('\'').or_else(|| quoted('"'))?))
}

/// One `key="value"` line for each entry, as the downward API writes maps.
fn format_map(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn pod() -> Pod {
        from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"app": "web", "tier/x": "a\"b"}},
            "spec": {"containers": [], "nodeName": "n1", "serviceAccountName": "default"},
        }))
        .unwrap()
    }

    #[test]
    fn every_supported_path_has_a_value() {
        let node = NodeFacts {
            name: "n1".into(),
            host_ips: ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap()).into(),
            ..NodeFacts::default()
        };
        let ips = ["10.244.0.5", "fd00::5"].map(|text| text.parse().unwrap());
        let value = |path: &str| field(&pod(), &node, &ips, path);
        assert_eq!(value("metadata.name").unwrap(), "web");
        assert_eq!(value("metadata.labels['app']").unwrap(), "web");
        assert_eq!(value("metadata.labels['absent']").unwrap(), "");
        assert_eq!(value("metadata.labels").unwrap(), "app=\"web\"\ntier/x=\"a\\\"b\"");
        assert_eq!(value("status.podIP").unwrap(), "10.244.0.5");
        assert_eq!(value("status.podIPs").unwrap(), "10.244.0.5,fd00::5");
        assert_eq!(value("status.hostIP").unwrap(), "192.0.2.1");
        assert_eq!(value("status.hostIPs").unwrap(), "192.0.2.1,2001:db8::1");
        assert!(value("spec.containers").unwrap_err().contains("spec.containers"));
    }

    #[test]
    fn resources_fall_back_to_the_node() {
        let container: Container = from_value(json!({
            "name": "c", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}},
        }))
        .unwrap();
        let node = NodeFacts {
            cpu_milli: 2000,
            memory: 1 << 30,
            ..NodeFacts::default()
        };
        let value = |resource: &str, divisor: &str| {
            let selector = from_value(json!({"resource": resource, "divisor": divisor})).unwrap();
            resource_text(&container, &node, &selector)
        };
        assert_eq!(value("limits.memory", "1Mi"), "64");
        assert_eq!(value("limits.cpu", "0"), "2");
        assert_eq!(value("requests.cpu", "1m"), "250");
    }

    fn resource_text(container: &Container, node: &NodeFacts, selector: &ResourceFieldSelector) -> String {
        resource(container, node, selector).unwrap()
    }
}
