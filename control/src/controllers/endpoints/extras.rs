//! Annotations of endpoint slices: the weights that pods ask for, and when the change happened that a slice tells of.
//!
//! Weights are hull's own: the API has no field for them. The time is Kubernetes' way of measuring how long a change takes to
//! reach the proxies: the earliest of the changes in a slice.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::TRIGGER;
use super::service::{Backend, Service};

/// Annotation of a slice: a JSON object from addresses to weights, for those that ask for one.
pub(super) const WEIGHTS: &str = "hull.dev/weights";
/// Annotation of a pod: its share of the connections, beside 1 for others.
const WEIGHT: &str = "hull.dev/weight";
const LARGEST: u32 = 256;

/// What backends add to their slices.
#[derive(Default)]
pub(super) struct Extras {
    /// By address.
    weights: BTreeMap<String, u32>,
    /// When each pod became ready or ceased to be, by uid.
    times: HashMap<String, Timestamp>,
    /// When the service was made, if this is the first that is heard of it.
    made: Option<Timestamp>,
}

impl Extras {
    /// Of a service; `new` if it has no slices yet.
    pub(super) fn of(service: &Service, backends: &[Backend], new: bool) -> Self {
        let mut extras = Extras {
            made: service.metadata.creation_timestamp.filter(|_| new),
            ..Extras::default()
        };
        for backend in backends {
            let meta = &backend.pod.metadata;
            if let Some(time) = backend.pod.ready_changed() {
                extras.times.insert(meta.uid.clone(), time);
            }
            let asked = meta.annotations.get(WEIGHT).and_then(|text| text.parse::<u32>().ok());
            if let Some(weight) = asked.filter(|weight| (1..=LARGEST).contains(weight)) {
                let addresses = service
                    .families()
                    .into_iter()
                    .flat_map(|family| backend.addresses(&family));
                extras.weights.extend(addresses.map(|address| (address, weight)));
            }
        }
        extras
    }

    /// The weights among these endpoints, as JSON; `None`: all are equal.
    pub(super) fn weights(&self, endpoints: &[Value]) -> Option<String> {
        if self.weights.is_empty() {
            return None;
        }
        let addresses = endpoints
            .iter()
            .filter_map(|endpoint| endpoint["addresses"][0].as_str());
        let weighted: BTreeMap<&str, u32> = addresses
            .filter_map(|address| Some((address, *self.weights.get(address)?)))
            .collect();
        let text = serde_json::to_string(&weighted).unwrap_or_default();
        (!weighted.is_empty()).then_some(text)
    }

    /// Sets both annotations of a slice whose endpoints become `after`.
    pub(super) fn annotate(&self, annotations: &mut Map<String, Value>, before: &[Value], after: &[Value]) {
        let time = self.since(before, after).map(|time| time.to_string());
        for (name, value) in [(WEIGHTS, self.weights(after)), (TRIGGER, time)] {
            match value {
                Some(value) => annotations.insert(name.to_owned(), value.into()),
                None => annotations.remove(name),
            };
        }
    }

    /// The earliest change among the endpoints that are new or different.
    fn since(&self, before: &[Value], after: &[Value]) -> Option<Timestamp> {
        fn uid(endpoint: &Value) -> Option<&str> {
            endpoint["targetRef"]["uid"].as_str()
        }
        let known: HashMap<Option<&str>, &Value> = before.iter().map(|endpoint| (uid(endpoint), endpoint)).collect();
        let changed = after
            .iter()
            .filter(|endpoint| known.get(&uid(endpoint)) != Some(endpoint));
        let times = changed.filter_map(|endpoint| self.times.get(uid(endpoint)?).copied());
        times.chain(self.made).min()
    }
}
