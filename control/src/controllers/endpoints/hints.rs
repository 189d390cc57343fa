//! For whom an endpoint is meant: zones and nodes, by `trafficDistribution` (KEP-2433, KEP-3015) or by the annotation
//! `service.kubernetes.io/topology-mode: Auto`, which shares endpoints out by the processors of the zones.
//!
//! Only ready endpoints are meant for someone. Where sharing out would overload a zone by more than a fifth there are no
//! hints at all, and every endpoint is for everyone.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ZONE;
use super::service::Service;
use crate::cache::Object;
use crate::controllers::view::View;
use crate::schema::quantity::Quantity;

/// By how much a zone may get more than its share.
const OVERLOAD: f64 = 0.2;

/// How a service's endpoints get hints.
pub(super) enum Hints {
    /// Not at all.
    None,
    /// Each for its own zone.
    Zone,
    /// Each for its own node, and its zone where the node has none.
    Node,
    /// In proportion to the processors of the zones; without, it is not known of every node where it is.
    Proportional(Option<BTreeMap<String, f64>>),
}

impl Hints {
    /// What a service asks for.
    pub(super) fn of(service: &Service, view: &dyn View) -> Hints {
        match service.spec.traffic_distribution.as_str() {
            _ if service.is_proportional() => Hints::Proportional(processors(view)),
            "PreferClose" | "PreferSameZone" => Hints::Zone,
            "PreferSameNode" => Hints::Node,
            _ => Hints::None,
        }
    }

    /// Gives all endpoints of one address family their hints.
    pub(super) fn give(&self, endpoints: &mut [&mut Value]) {
        for endpoint in endpoints.iter_mut() {
            let (zone, node) = (endpoint["zone"].clone(), endpoint["nodeName"].clone());
            let ready = endpoint["conditions"]["ready"] == true;
            let mut hints = json!({});
            if !matches!(self, Hints::None | Hints::Proportional(_)) && ready && zone.is_string() {
                hints["forZones"] = json!([{"name": zone}]);
            }
            if matches!(self, Hints::Node) && ready && node.is_string() {
                hints["forNodes"] = json!([{"name": node}]);
            }
            if hints != json!({}) {
                endpoint["hints"] = hints;
            }
        }
        if let Hints::Proportional(Some(processors)) = self {
            share_out(processors, endpoints);
        }
    }
}

fn share_out(processors: &BTreeMap<String, f64>, endpoints: &mut [&mut Value]) {
    let mut ready: Vec<&mut &mut Value> = endpoints
        .iter_mut()
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .collect();
    let zones: Vec<String> = ready
        .iter()
        .filter_map(|endpoint| endpoint["zone"].as_str().map(str::to_owned))
        .collect();
    if zones.len() != ready.len() {
        return;
    }
    let Some(meant) = allocate(processors, &zones) else {
        return;
    };
    for (endpoint, zone) in ready.iter_mut().zip(meant) {
        endpoint["hints"] = json!({"forZones": [{"name": zone}]});
    }
}

/// For which zone each endpoint is meant, given the zones that they are in; `None` when there is no fair way.
fn allocate(processors: &BTreeMap<String, f64>, zones: &[String]) -> Option<Vec<String>> {
    let total: f64 = processors.values().sum();
    if processors.len() < 2 || processors.len() > zones.len() || total <= 0.0 {
        return None;
    }
    let desired = |zone: &str| processors.get(zone).copied().unwrap_or(0.0) / total * zones.len() as f64;
    let least = |zone: &str| (desired(zone) / (1.0 + OVERLOAD)).ceil() as usize;
    let minimum: usize = processors.keys().map(|zone| least(zone)).sum();
    if minimum > zones.len() {
        return None;
    }
    let mut meant: Vec<String> = zones.to_vec();
    let count = |meant: &[String], zone: &str| meant.iter().filter(|other| *other == zone).count();
    for zone in processors.keys() {
        while count(&meant, zone) < least(zone) {
            // From whoever has most above its share, and can spare one.
            let spare = |giver: &&String| {
                let has = count(&meant, giver);
                *giver != zone && has > least(giver)
            };
            let surplus = |giver: &String| count(&meant, giver) as f64 - desired(giver);
            let giver = meant
                .iter()
                .filter(spare)
                .max_by(|a, b| surplus(a).total_cmp(&surplus(b)))?
                .clone();
            let last = meant.iter().rposition(|other| *other == giver)?;
            meant[last].clone_from(zone);
        }
    }
    Some(meant)
}

/// The processors of each zone's ready nodes; `None` when one does not say where it is or what it has.
fn processors(view: &dyn View) -> Option<BTreeMap<String, f64>> {
    let mut zones = BTreeMap::new();
    for node in view.list("nodes", None) {
        match weight(Some(&node)) {
            Weight::Ready(zone, cpu) => *zones.entry(zone?).or_insert(0.0) += cpu? as f64,
            Weight::Other => {}
        }
    }
    Some(zones)
}

/// What a node counts for in its zone.
#[derive(Debug, PartialEq)]
pub(super) enum Weight {
    /// It runs users' pods: its zone and its allocatable processors in thousandths, as far as it tells.
    Ready(Option<String>, Option<i64>),
    /// It does not, or is no node.
    Other,
}

/// What a node counts for.
pub(super) fn weight(node: Option<&Object>) -> Weight {
    let Some(node) = node else { return Weight::Other };
    let body = node.value();
    let conditions = body["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions
        .into_iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    if !ready || node.label("node-role.kubernetes.io/control-plane").is_some() {
        return Weight::Other;
    }
    let cpu = body["status"]["allocatable"]["cpu"].as_str();
    let cpu = cpu.and_then(|text| text.parse::<Quantity>().ok());
    Weight::Ready(node.label(ZONE).map(str::to_owned), cpu.map(|cpu| cpu.millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(processors: &[(&str, f64)], zones: &[&str]) -> Option<Vec<String>> {
        let processors = processors
            .iter()
            .map(|(zone, cpu)| ((*zone).to_owned(), *cpu))
            .collect();
        let zones: Vec<String> = zones.iter().map(|zone| (*zone).to_owned()).collect();
        allocate(&processors, &zones)
    }

    #[test]
    fn endpoints_are_shared_out_by_processors() {
        let even = [("a", 4.0), ("b", 4.0)];
        assert_eq!(meant(&even, &["a", "b"]).unwrap(), ["a", "b"]);
        assert_eq!(
            meant(&even, &["a", "a", "a", "b"]).unwrap(),
            ["a", "a", "b", "b"],
            "b is short of one"
        );
        assert_eq!(
            meant(&[("a", 1.0), ("b", 5.0)], &["a", "a", "b", "b", "b", "b"]).unwrap(),
            ["a", "b", "b", "b", "b", "b"]
        );
    }

    #[test]
    fn without_a_fair_way_there_are_no_hints() {
        assert_eq!(meant(&[("a", 4.0)], &["a", "a"]), None, "one zone");
        assert_eq!(
            meant(&[("a", 4.0), ("b", 4.0)], &["a"]),
            None,
            "fewer endpoints than zones"
        );
        assert_eq!(
            meant(&[("a", 1.0), ("b", 1.0), ("c", 1.0)], &["a", "b", "c", "c"]),
            None,
            "a zone would be overloaded"
        );
    }
}
