//! The environment of a container, from the pod, the objects it refers to and the services it may see.
//!
//! Order and precedence are the kubelet's: `envFrom` in order, then `env` in order (each may use what stands before
//! it), then the services' variables where the name is still free. The image's own variables come first of all.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, Service};

use super::expand::expand;
use super::fields::{self, NodeFacts};
use super::references::Objects;

/// What a container's environment is computed from.
pub struct Sources<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The addresses this node gave it.
    pub pod_ips: &'a [IpAddr],
    /// The node.
    pub node: &'a NodeFacts,
    /// Fetched ConfigMaps and Secrets.
    pub objects: &'a Objects,
    /// Variables that describe services.
    pub services: &'a BTreeMap<String, String>,
}

/// The variables of `container` in the order they are set.
pub fn build(container: &Container, sources: &Sources<'_>) -> Result<Vec<(String, String)>, String> {
    let mut set = Ordered::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match sources.objects.config_map(&reference.name) {
                Some(map) => set.extend(prefix, map.data.iter().flatten().map(|(k, v)| (k, v.clone()))),
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.objects.secret(&reference.name) {
                Some(secret) => {
                    let texts = secret.data.iter().flatten();
                    set.extend(
                        prefix,
                        texts.map(|(k, v)| (k, String::from_utf8_lossy(&v.0).into_owned())),
                    );
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => Some(expand(value, |name| {
                set.get(name).or_else(|| sources.services.get(name).map(String::as_str))
            })),
            (_, Some(source)) => from_source(container, sources, source)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            set.insert(variable.name.clone(), value);
        }
    }
    for (name, value) in sources.services {
        if set.get(name).is_none() {
            set.insert(name.clone(), value.clone());
        }
    }
    Ok(set.list)
}

/// `None`: an optional source that is absent, so the variable stays unset.
fn from_source(container: &Container, sources: &Sources<'_>, from: &EnvVarSource) -> Result<Option<String>, String> {
    if let Some(reference) = &from.field_ref {
        return fields::field(sources.pod, sources.node, sources.pod_ips, &reference.field_path).map(Some);
    }
    if let Some(reference) = &from.resource_field_ref {
        let named = reference.container_name.as_deref().filter(|name| !name.is_empty());
        let target = match named {
            None => container,
            Some(name) => find_container(sources.pod, name)
                .ok_or_else(|| format!("resourceFieldRef names container {name:?}, which the pod does not have"))?,
        };
        return fields::resource(target, sources.node, reference).map(Some);
    }
    if let Some(reference) = &from.config_map_key_ref {
        let map = sources.objects.config_map(&reference.name);
        let value = map
            .and_then(|map| map.data.as_ref())
            .and_then(|data| data.get(&reference.key))
            .cloned();
        return found(
            value,
            map.is_some(),
            reference.optional,
            "configmap",
            &reference.name,
            &reference.key,
        );
    }
    if let Some(reference) = &from.secret_key_ref {
        let secret = sources.objects.secret(&reference.name);
        let value = secret
            .and_then(|secret| secret.data.as_ref())
            .and_then(|data| data.get(&reference.key));
        let value = value.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        return found(
            value,
            secret.is_some(),
            reference.optional,
            "secret",
            &reference.name,
            &reference.key,
        );
    }
    Err("valueFrom has no source that this agent knows".to_owned())
}

fn found(
    value: Option<String>,
    exists: bool,
    optional: Option<bool>,
    kind: &str,
    name: &str,
    key: &str,
) -> Result<Option<String>, String> {
    match value {
        Some(value) => Ok(Some(value)),
        None if optional == Some(true) => Ok(None),
        None if exists => Err(format!("couldn't find key {key} in {kind} {name}")),
        None => Err(format!("{kind} {name:?} not found")),
    }
}

/// A container or init container by name.
#[must_use]
pub fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .find(|container| container.name == name)
}

/// The variables for `services`: those of the pod's namespace if it wants links, and `kubernetes` always.
#[must_use]
pub fn service_variables<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let (Some(name), Some(own)) = (service.metadata.name.as_deref(), service.metadata.namespace.as_deref()) else {
            continue;
        };
        let master = own == "default" && name == "kubernetes";
        if (links && own == namespace) || (master && !chosen.contains_key(name)) {
            chosen.insert(name, service);
        }
    }
    for (name, service) in chosen {
        describe_service(&mut variables, name, service);
    }
    variables
}

fn describe_service(variables: &mut BTreeMap<String, String>, name: &str, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let Some(address) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
        return;
    };
    let prefix = variable_name(name);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let bracketed = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    variables.insert(format!("{prefix}_SERVICE_HOST"), address.to_owned());
    variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for (index, port) in ports.iter().enumerate() {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            variables.insert(
                format!("{prefix}_SERVICE_PORT_{}", variable_name(port_name)),
                port.port.to_string(),
            );
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{bracketed}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            variables.insert(format!("{prefix}_PORT"), url.clone());
        }
        let link = format!("{prefix}_PORT_{}_{protocol}", port.port);
        variables.insert(format!("{link}_PROTO"), protocol.to_lowercase());
        variables.insert(format!("{link}_PORT"), port.port.to_string());
        variables.insert(format!("{link}_ADDR"), address.to_owned());
        variables.insert(link, url);
    }
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

/// Variables in the order of first insertion; a later value replaces an earlier one in place.
#[derive(Default)]
struct Ordered {
    list: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
}

impl Ordered {
    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|&at| self.list[at].1.as_str())
    }

    fn insert(&mut self, name: String, value: String) {
        match self.index.get(&name) {
            Some(&at) => self.list[at].1 = value,
            None => {
                self.index.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }

    /// Adds all entries whose name can be a variable's: no `=`, no NUL, not empty.
    fn extend<'a>(&mut self, prefix: &str, entries: impl Iterator<Item = (&'a String, String)>) {
        for (key, value) in entries {
            let name = format!("{prefix}{key}");
            if !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0') {
                self.insert(name, value);
            }
        }
    }
}

/// The image's variables with the pod's laid over them, as `NAME=value`; `PATH` and `HOSTNAME` have defaults.
#[must_use]
pub fn over_image(image: &[String], hostname: &str, pod: Vec<(String, String)>) -> Vec<String> {
    let mut all = Ordered::default();
    all.insert(
        "PATH".to_owned(),
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
    );
    all.insert("HOSTNAME".to_owned(), hostname.to_owned());
    let from_image = image.iter().filter_map(|entry| entry.split_once('='));
    for (name, value) in from_image
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .chain(pod)
    {
        all.insert(name, value);
    }
    all.list
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};
    use std::sync::Arc;

    fn objects() -> Objects {
        let map = from_value(json!({"metadata": {"name": "conf"}, "data": {"mode": "fast", "a=b": "never"}})).unwrap();
        let secret = from_value(json!({"metadata": {"name": "key"}, "data": {"token": "c2VjcmV0"}})).unwrap();
        Objects {
            config_maps: [("conf".to_owned(), Some(Arc::new(map)))].into(),
            secrets: [("key".to_owned(), Some(Arc::new(secret)))].into(),
        }
    }

    fn built(container: serde_json::Value) -> Result<Vec<(String, String)>, String> {
        let pod = from_value(json!({"metadata": {"name": "web"}, "spec": {"containers": []}})).unwrap();
        let services = [("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned())].into();
        let sources = Sources {
            pod: &pod,
            pod_ips: &[[10, 244, 0, 9].into()],
            node: &NodeFacts::default(),
            objects: &objects(),
            services: &services,
        };
        build(&from_value(container).unwrap(), &sources)
    }

    #[test]
    fn later_sources_win_and_may_use_earlier_ones() {
        let variables = built(json!({"name": "c",
        "envFrom": [{"prefix": "C_", "configMapRef": {"name": "conf"}}, {"secretRef": {"name": "key"}}],
        "env": [
            {"name": "HOST", "value": "$(KUBERNETES_SERVICE_HOST)"},
            {"name": "C_mode", "value": "was $(C_mode)"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "T", "valueFrom": {"secretKeyRef": {"name": "key", "key": "token"}}},
            {"name": "LATER", "value": "$(UNSET)"},
        ]}))
        .unwrap();
        let text: Vec<String> = variables.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            text,
            [
                "C_mode=was fast",
                "token=secret",
                "HOST=10.96.0.1",
                "IP=10.244.0.9",
                "T=secret",
                "LATER=$(UNSET)",
                "KUBERNETES_SERVICE_HOST=10.96.0.1"
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named_unless_optional() {
        let refer = |optional: bool| {
            built(json!({"name": "c", "env": [{"name": "X", "valueFrom":
                {"configMapKeyRef": {"name": "conf", "key": "absent", "optional": optional}}}]}))
        };
        assert_eq!(refer(false).unwrap_err(), "couldn't find key absent in configmap conf");
        assert!(refer(true).unwrap().iter().all(|(name, _)| name != "X"));
        let error = built(json!({"name": "c", "envFrom": [{"secretRef": {"name": "gone"}}]})).unwrap_err();
        assert_eq!(error, "secret \"gone\" not found");
    }

    #[test]
    fn services_are_described_as_docker_links() {
        let service: Service = from_value(json!({"metadata": {"name": "my-web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.3.4", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}))
        .unwrap();
        let variables = service_variables([&service], "shop", true);
        assert_eq!(variables["MY_WEB_SERVICE_HOST"], "10.96.3.4");
        assert_eq!(variables["MY_WEB_SERVICE_PORT_HTTP"], "80");
        assert_eq!(variables["MY_WEB_PORT"], "tcp://10.96.3.4:80");
        assert_eq!(variables["MY_WEB_PORT_80_TCP_ADDR"], "10.96.3.4");
        assert!(service_variables([&service], "other", true).is_empty());
        assert!(service_variables([&service], "shop", false).is_empty());
    }
}
