//! An IPAddress for each cluster IP (KEP-1880). The registry decides who has an address; this shows it, and repairs what
//! others change: an address without its service goes, one that was deleted comes back.
//!
//! A change of a service that leaves its addresses alone costs nothing.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::controller::{Context, Controller, Key, Outcome, Write};
use super::view::View;
use crate::cache::{Event, EventKind, Object};

/// The resource.
pub const ADDRESSES: &str = "networking.k8s.io/ipaddresses";
/// Says who made an IPAddress.
pub const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// Those that follow services; others are their makers' affair.
pub const MANAGER: &str = "ipallocator.k8s.io";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const SERVICES: &str = "services";
/// A service waits this long for the object of an earlier holder of its address to go.
const RETRY: std::time::Duration = std::time::Duration::from_millis(20);

/// The controller.
pub struct ServiceAddresses;

impl Controller for ServiceAddresses {
    fn name(&self) -> &'static str {
        "service-address-controller"
    }

    fn keys(&self, _: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        let object = &event.object;
        match &*object.resource {
            SERVICES => {
                let gone = event.kind == EventKind::Deleted;
                let now = if gone { Vec::new() } else { addresses(object) };
                let last = if gone { Some(object) } else { event.previous.as_ref() };
                let before = last.map(|service| addresses(service)).unwrap_or_default();
                if now.iter().any(|ip| !before.contains(ip)) {
                    add(Key::of(object));
                }
                for ip in before.iter().filter(|ip| !now.contains(ip)) {
                    add(Key::new(ADDRESSES, "", ip.to_string()));
                }
            }
            ADDRESSES if event.kind == EventKind::Deleted => {
                let (namespace, name) = parent(object);
                add(Key::new(SERVICES, namespace, name));
            }
            ADDRESSES => add(Key::of(object)),
            _ => {}
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let view = context.view;
        if &*key.resource == ADDRESSES {
            let object = view.get(ADDRESSES, "", &key.name);
            if let Some(object) = object.filter(|object| is_abandoned(view, object)) {
                outcome.delete(&object, None);
            }
            return outcome;
        }
        let Some(service) = view.get(SERVICES, &key.namespace, &key.name) else {
            return outcome;
        };
        for ip in addresses(&service) {
            match view.get(ADDRESSES, "", &ip.to_string()) {
                None => outcome.write(creation(ip, &service)),
                Some(other) if is_abandoned(view, &other) => {
                    outcome.delete(&other, None);
                    outcome.requeue(RETRY);
                }
                Some(_) => {}
            }
        }
        outcome
    }
}

fn creation(ip: IpAddr, service: &Object) -> Write {
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    Write::Create {
        resource: ADDRESSES.into(),
        namespace: "".into(),
        object: json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {"name": ip.to_string(), "labels": {FAMILY: family, MANAGED_BY: MANAGER}},
            "spec": {"parentRef": {"resource": SERVICES, "namespace": &*service.namespace, "name": &*service.name}},
        }),
    }
}

/// Whether it is one of ours, of a service that does not have the address (any more).
fn is_abandoned(view: &dyn View, object: &Object) -> bool {
    if object.label(MANAGED_BY) != Some(MANAGER) {
        return false;
    }
    let (namespace, name) = parent(object);
    let holder = view.get(SERVICES, &namespace, &name);
    !holder.is_some_and(|service| addresses(&service).iter().any(|ip| ip.to_string() == *object.name))
}

fn parent(address: &Object) -> (String, String) {
    let value = address.value();
    let part = |name: &str| {
        let text = value["spec"]["parentRef"][name].as_str();
        text.unwrap_or_default().to_owned()
    };
    (part("namespace"), part("name"))
}

fn addresses(service: &Object) -> Vec<IpAddr> {
    let value = service.value();
    let all = value["spec"]["clusterIPs"].as_array().into_iter().flatten();
    all.filter_map(Value::as_str).filter_map(|ip| ip.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::memory::World;

    fn service(name: &str, ips: &[&str]) -> Value {
        json!({"metadata": {"name": name}, "spec": {"clusterIPs": ips}})
    }

    fn shown(world: &World) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = world.memory.values(ADDRESSES);
        let of = |object: &Value| {
            (
                text(&object["metadata"]["name"]),
                text(&object["spec"]["parentRef"]["name"]),
            )
        };
        all.iter().map(of).collect()
    }

    #[test]
    fn addresses_follow_services_and_come_back() {
        let mut world = World::new(vec![Box::new(ServiceAddresses)]);
        world.memory.put(SERVICES, "d", service("a", &["10.96.0.7", "fd00::7"]));
        world.memory.put(SERVICES, "d", service("headless", &["None"]));
        world.settle();
        let both = [("10.96.0.7", "a"), ("fd00::7", "a")].map(|(ip, name)| (ip.to_owned(), name.to_owned()));
        assert_eq!(shown(&world), both);
        assert_eq!(world.memory.values(ADDRESSES)[1]["metadata"]["labels"][FAMILY], "IPv6");
        world.memory.remove(ADDRESSES, "", "10.96.0.7");
        world.settle();
        assert_eq!(shown(&world), both, "it came back");
        world
            .memory
            .patch(SERVICES, "d", "a", &json!({"spec": {"clusterIPs": ["10.96.0.7"]}}));
        world.settle();
        assert_eq!(shown(&world), both[..1]);
        world.memory.remove(SERVICES, "d", "a");
        world.memory.put(SERVICES, "d", service("b", &["10.96.0.7"]));
        world.settle();
        world.advance(RETRY * 2);
        assert_eq!(shown(&world), [("10.96.0.7".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn what_others_made_is_theirs() {
        let mut world = World::new(vec![Box::new(ServiceAddresses)]);
        let mine = json!({"metadata": {"name": "10.96.0.9"}, "spec": {"parentRef": {"resource": "x", "name": "y"}}});
        world.memory.put(ADDRESSES, "", mine);
        world.settle();
        assert_eq!(world.memory.values(ADDRESSES).len(), 1);
        let orphan = json!({"metadata": {"name": "10.96.0.8", "labels": {MANAGED_BY: MANAGER}},
            "spec": {"parentRef": {"resource": "services", "namespace": "d", "name": "gone"}}});
        world.memory.put(ADDRESSES, "", orphan);
        world.settle();
        assert_eq!(world.memory.values(ADDRESSES).len(), 1);
    }
}
