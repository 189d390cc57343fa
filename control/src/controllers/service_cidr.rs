//! ServiceCIDRs: those that can be used are said to be ready, and none goes while services have addresses that nothing else
//! covers (KEP-1880).

use std::net::IpAddr;

use serde_json::{Value, json};

use super::controller::{Context, Controller, Key, Outcome};
use super::metadata::{metadata, remove_finalizer};
use super::service_address::{ADDRESSES, MANAGED_BY, MANAGER};
use super::view::View;
use crate::cache::{Event, EventKind, Object};
use crate::registry::time_text;

/// The resource.
pub const RANGES: &str = "networking.k8s.io/servicecidrs";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

/// The controller.
pub struct ServiceRangesInUse;

impl Controller for ServiceRangesInUse {
    fn name(&self) -> &'static str {
        "service-cidr-controller"
    }

    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        match &*event.object.resource {
            // Another range may cover, or cover no longer, what a range that waits is needed for.
            RANGES => view
                .list(RANGES, None)
                .iter()
                .chain([&event.object])
                .for_each(|one| add(Key::of(one))),
            ADDRESSES if event.kind == EventKind::Deleted => {
                view.list(RANGES, None).iter().for_each(|one| add(Key::of(one)));
            }
            _ => {}
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(object) = context.view.get(RANGES, "", &key.name) else {
            return outcome;
        };
        let meta = metadata(&object);
        let mut value = object.value();
        let now = time_text(context.now.wall);
        if meta.deletion_timestamp.is_none() {
            if !meta.has_finalizer(FINALIZER) {
                match value["metadata"]["finalizers"].as_array_mut() {
                    Some(list) => list.push(FINALIZER.into()),
                    None => value["metadata"]["finalizers"] = json!([FINALIZER]),
                }
                outcome.update(&object, None, value);
            } else if set_ready(&mut value, ("True", "", "Kubernetes Service CIDR is ready"), &now) {
                outcome.update(&object, Some("status"), value);
            }
        } else if meta.has_finalizer(FINALIZER) {
            if is_needed(context.view, &object) {
                let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
                if set_ready(&mut value, ("False", "Terminating", message), &now) {
                    outcome.update(&object, Some("status"), value);
                }
            } else {
                remove_finalizer(&mut value, FINALIZER);
                outcome.update(&object, None, value);
            }
        }
        outcome
    }
}

/// Sets the condition Ready and leaves others alone. Whether that changes anything.
fn set_ready(object: &mut Value, (state, reason, message): (&str, &str, &str), now: &str) -> bool {
    let condition = json!({"type": "Ready", "status": state, "reason": reason, "message": message,
        "lastTransitionTime": now});
    if object["status"].is_null() {
        object["status"] = json!({});
    }
    let Some(list) = object["status"]["conditions"].as_array_mut() else {
        object["status"]["conditions"] = json!([condition]);
        return true;
    };
    match list.iter_mut().find(|one| one["type"] == "Ready") {
        Some(one) if one["status"] == state => return false,
        Some(one) => *one = condition,
        None => list.push(condition),
    }
    true
}

/// Whether a service has an address in it that is in no other range that stays.
fn is_needed(view: &dyn View, object: &Object) -> bool {
    let others: Vec<Range> = view
        .list(RANGES, None)
        .iter()
        .filter(|other| other.name != object.name && metadata(other).deletion_timestamp.is_none())
        .flat_map(|other| ranges(other))
        .collect();
    let mine = ranges(object);
    let addresses = view.list(ADDRESSES, None);
    let held = addresses.iter().filter(|one| one.label(MANAGED_BY) == Some(MANAGER));
    let mut held = held.filter_map(|one| one.name.parse::<IpAddr>().ok());
    let within = |ranges: &[Range], ip| ranges.iter().any(|range| range.contains(ip));
    held.any(|ip| within(&mine, ip) && !within(&others, ip))
}

/// A network.
#[derive(Clone, Copy)]
struct Range {
    base: IpAddr,
    prefix: u8,
}

impl Range {
    fn contains(self, ip: IpAddr) -> bool {
        let shift = |bits: u32| bits.saturating_sub(self.prefix.into());
        match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => {
                (base.to_bits() ^ ip.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) => {
                (base.to_bits() ^ ip.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

fn ranges(object: &Object) -> Vec<Range> {
    let value = object.value();
    let texts = value["spec"]["cidrs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let parse = |text: &str| {
        let (base, prefix) = text.split_once('/')?;
        Some(Range {
            base: base.parse().ok()?,
            prefix: prefix.parse().ok()?,
        })
    };
    texts.filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::memory::World;
    use crate::controllers::service_address::ServiceAddresses;

    fn range(name: &str, cidr: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}})
    }

    fn ready(world: &World, name: &str) -> Option<Value> {
        let object = world.memory.get(RANGES, "", name)?.value();
        Some(object["status"]["conditions"][0]["status"].clone())
    }

    #[test]
    fn a_range_stays_while_a_service_needs_it() {
        let mut world = World::new(vec![Box::new(ServiceRangesInUse), Box::new(ServiceAddresses)]);
        world.memory.put(RANGES, "", range("a", "10.1.0.0/24"));
        let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIPs": ["10.1.0.7"]}});
        world.memory.put("services", "d", service);
        world.settle();
        assert_eq!(ready(&world, "a"), Some(json!("True")));
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        world.memory.patch(RANGES, "", "a", &going);
        world.settle();
        assert_eq!(ready(&world, "a"), Some(json!("False")));
        world.memory.put(RANGES, "", range("wider", "10.1.0.0/16"));
        world.settle();
        let finalizers = |world: &World| world.memory.get(RANGES, "", "a").map(|one| metadata(&one).finalizers);
        assert!(
            finalizers(&world).is_none_or(|list| list.is_empty()),
            "another range covers the address"
        );
    }
}
