//! `hostPort` of containers: a port of the node that leads to a pod on it, as its own frontend of the service proxy.
//!
//! A port with a `hostIP` is served on that address alone, so that several pods can share its number; one on a loopback
//! address for the node's own processes alone. Pods in the host's network listen there themselves.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hull_ebpf_types::flag;
use k8s_openapi::api::core::v1::{ContainerPort, Pod};
use tokio::sync::watch;

use crate::proxy::{Backend, Exposed, Frontend, Group, Protocol, Scope, ServiceName};

/// Groups by the name they are kept under in the proxy: the pod's uid and the number of the port. No service has an empty
/// namespace.
pub type Mappings = BTreeMap<ServiceName, Vec<Group>>;

/// The ports that pods of this node have open.
#[derive(Clone)]
pub struct HostPorts(Arc<watch::Sender<Mappings>>);

impl Default for HostPorts {
    fn default() -> Self {
        Self(Arc::new(watch::channel(Mappings::new()).0))
    }
}

impl HostPorts {
    /// Opens the ports of a pod that has these addresses.
    pub fn open(&self, pod: &Pod, ips: &[IpAddr]) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let wanted = mappings(uid, pod, ips);
        if !wanted.is_empty() {
            self.0.send_modify(|all| all.extend(wanted));
        }
    }

    /// Closes those of a pod.
    pub fn close(&self, uid: &str) {
        self.0.send_if_modified(|all| {
            let before = all.len();
            all.retain(|name, _| name.name.split('/').next() != Some(uid));
            all.len() != before
        });
    }

    /// Tells of changes.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Mappings> {
        self.0.subscribe()
    }
}

/// What leads from one state to another: the groups of those that are new or different, none for those that are gone.
pub(super) fn difference(before: &Mappings, after: &Mappings) -> Mappings {
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Vec::new()));
    let new = after.iter().filter(|(name, groups)| before.get(*name) != Some(*groups));
    new.map(|(name, groups)| (name.clone(), groups.clone()))
        .chain(gone)
        .collect()
}

fn mappings(uid: &str, pod: &Pod, ips: &[IpAddr]) -> Mappings {
    let Some(spec) = pod.spec.as_ref().filter(|spec| spec.host_network != Some(true)) else {
        return Mappings::new();
    };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten());
    let named = ports.enumerate().map(|(index, port)| {
        let groups: Vec<Group> = ips.iter().filter_map(|ip| group(port, *ip)).collect();
        (ServiceName::new("", &format!("{uid}/{index}")), groups)
    });
    named.filter(|(_, groups)| !groups.is_empty()).collect()
}

/// Where a port of the node leads to one address of the pod.
fn group(port: &ContainerPort, ip: IpAddr) -> Option<Group> {
    let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
    let (outer, inner) = (number(port.host_port?)?, number(port.container_port)?);
    let protocol = Protocol::from_name(port.protocol.as_deref().unwrap_or("TCP"))?;
    let any: IpAddr = match ip {
        IpAddr::V4(_) => [0, 0, 0, 0].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    let host = match port.host_ip.as_deref() {
        None | Some("") => any,
        Some(text) => text.parse::<IpAddr>().ok()?,
    };
    // The unspecified address of either family is all of the node's.
    let host = if host.is_unspecified() { any } else { host };
    if host.is_ipv4() != ip.is_ipv4() {
        return None;
    }
    let expose = |scope, flags| Exposed {
        frontend: Frontend {
            address: SocketAddr::new(host, outer),
            protocol,
            scope,
        },
        flags,
        restricted: false,
    };
    let mut frontends = vec![expose(Scope::Inside, flag::NODE_PORT)];
    if !host.is_loopback() {
        frontends.push(expose(Scope::Outside, flag::NODE_PORT | flag::LOCAL));
    }
    let inside = Frontend::inside(SocketAddr::new(host, outer), protocol);
    Some(Group {
        frontends,
        ..Group::simple(inside, [Backend::new(SocketAddr::new(ip, inner))])
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn pod(uid: &str, ports: &Value) -> Pod {
        from_value(json!({"metadata": {"uid": uid}, "spec": {"containers": [{"name": "c", "ports": ports}]}})).unwrap()
    }

    fn texts(mappings: &Mappings) -> Vec<String> {
        let groups = mappings.values().flatten();
        let exposed = groups.flat_map(|group| {
            let to = group.backends[0].address();
            let frontends = group.frontends.iter();
            frontends.map(move |one| format!("{} {:?} {to}", one.frontend, one.frontend.scope))
        });
        exposed.collect()
    }

    #[test]
    fn a_port_is_open_on_its_address_or_on_all_of_the_pods_families() {
        let ips: Vec<IpAddr> = ["10.244.0.2", "fd00::2"].map(|ip| ip.parse().unwrap()).to_vec();
        let ports = json!([{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]);
        assert_eq!(
            texts(&mappings("u", &pod("u", &ports), &ips)),
            [
                "0.0.0.0:8080/TCP Inside 10.244.0.2:80",
                "0.0.0.0:8080/TCP Outside 10.244.0.2:80",
                "[::]:8080/TCP Inside [fd00::2]:80",
                "[::]:8080/TCP Outside [fd00::2]:80",
            ]
        );
        let ports = json!([{"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.7"}]);
        assert_eq!(
            texts(&mappings("u", &pod("u", &ports), &ips)),
            [
                "127.0.0.1:53/UDP Inside 10.244.0.2:53",
                "192.0.2.7:53/UDP Inside 10.244.0.2:53",
                "192.0.2.7:53/UDP Outside 10.244.0.2:53",
            ]
        );
    }

    #[test]
    fn ports_close_with_their_pod() {
        let (open, ip) = (HostPorts::default(), "10.244.0.2".parse().unwrap());
        let mut told = open.follow();
        open.open(&pod("none", &json!([{"containerPort": 80}])), &[ip]);
        assert!(!told.has_changed().unwrap(), "nothing to tell");
        for uid in ["a", "b"] {
            open.open(&pod(uid, &json!([{"containerPort": 80, "hostPort": 80}])), &[ip]);
        }
        open.close("a");
        assert_eq!(
            told.borrow_and_update()
                .keys()
                .map(|name| &*name.name)
                .collect::<Vec<_>>(),
            ["b/0"]
        );
        open.close("a");
        assert!(!told.has_changed().unwrap());
        let now = told.borrow().clone();
        assert_eq!(difference(&Mappings::new(), &now), now);
        assert_eq!(difference(&now, &now), Mappings::new());
        let closing = difference(&now, &Mappings::new());
        assert!(closing.len() == 1 && closing.values().all(Vec::is_empty));
    }
}
