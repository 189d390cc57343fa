//! The slices wanted against the slices there are, with as few writes as possible.
//!
//! Follows the order of staging/src/k8s.io/endpointslice: keep what is right where it is, fill what has room, create the
//! rest, delete what is empty. A service without any endpoint keeps one empty slice.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::extras::{Extras, WEIGHTS};
use super::hints::Hints;
use super::service::{Backend, EndpointPort, Service};
use super::{HEADLESS, MANAGED_BY, MANAGER, SERVICE_NAME, SLICES};
use crate::cache::Object;
use crate::controllers::controller::{Outcome, Write};
use crate::controllers::metadata::controller_reference;

/// Endpoints per slice (`--max-endpoints-per-slice`).
const MAX_ENDPOINTS: usize = 100;

/// What distinguishes the slices of a service.
type Group = (String, Vec<EndpointPort>);

/// Emit the writes that lead from the stored slices to those wanted.
pub fn reconcile(
    service: &Service,
    namespace: &str,
    backends: &[Backend],
    hints: &Hints,
    stored: &[Arc<Object>],
    outcome: &mut Outcome,
) {
    let mut wanted: BTreeMap<Group, BTreeMap<String, Value>> = BTreeMap::new();
    for family in service.families() {
        for backend in backends {
            let addresses = backend.addresses(&family);
            if !addresses.is_empty() {
                let group = (family.clone(), backend.ports.clone());
                let endpoint = endpoint(backend, addresses);
                wanted
                    .entry(group)
                    .or_default()
                    .insert(backend.pod.metadata.uid.clone(), endpoint);
            }
        }
        let mut of_family: Vec<&mut Value> = wanted
            .iter_mut()
            .filter(|((other, _), _)| *other == family)
            .flat_map(|(_, endpoints)| endpoints.values_mut())
            .collect();
        hints.give(&mut of_family);
        if !wanted.keys().any(|(f, _)| *f == family) {
            wanted.entry((family, Vec::new())).or_default();
        }
    }
    let group_of = Shared {
        service,
        namespace,
        labels: labels(service),
        extras: Extras::of(service, backends, stored.is_empty()),
    };
    let mut free: Vec<&Arc<Object>> = stored.iter().collect();
    for ((family, ports), endpoints) in wanted {
        let ports = Value::Array(ports.iter().map(EndpointPort::value).collect());
        let same = |slice: &Value| slice["addressType"] == *family && same_ports(&slice["ports"], &ports);
        let (mine, rest) = free.into_iter().partition(|o| same(&o.value()));
        free = rest;
        group_of.reconcile(&family, &ports, endpoints, mine, outcome);
    }
    free.into_iter().for_each(|slice| outcome.delete(slice, None));
}

fn same_ports(stored: &Value, wanted: &Value) -> bool {
    let sorted = |ports: &Value| {
        let mut ports = ports
            .as_array()
            .into_iter()
            .flatten()
            .map(Value::to_string)
            .collect::<Vec<_>>();
        ports.sort();
        ports
    };
    sorted(stored) == sorted(wanted)
}

/// What all slices of a service have in common.
struct Shared<'a> {
    service: &'a Service,
    namespace: &'a str,
    labels: Map<String, Value>,
    extras: Extras,
}

impl Shared<'_> {
    fn reconcile(
        &self,
        family: &str,
        ports: &Value,
        mut wanted: BTreeMap<String, Value>,
        stored: Vec<&Arc<Object>>,
        outcome: &mut Outcome,
    ) {
        let mut kept = stored.into_iter().map(|o| keep(o, &mut wanted)).collect::<Vec<_>>();
        let mut rest = wanted.into_values().collect::<Vec<_>>();
        // What is new goes where a write is due anyway, then into the fullest slices that have room.
        kept.sort_by_key(|slice| (!slice.changed, std::cmp::Reverse(slice.endpoints.len())));
        for slice in &mut kept {
            let room = MAX_ENDPOINTS.saturating_sub(slice.endpoints.len()).min(rest.len());
            slice.endpoints.extend(rest.drain(..room));
        }
        let needs_placeholder = rest.is_empty() && kept.iter().all(|slice| slice.endpoints.is_empty());
        let mut placeholder = needs_placeholder;
        for slice in &kept {
            if slice.endpoints.is_empty() && !std::mem::take(&mut placeholder) {
                outcome.delete(slice.object, None);
            } else {
                self.update(slice, outcome);
            }
        }
        let mut create = |endpoints: &[Value]| {
            let object = self.slice(family, ports, endpoints);
            outcome.write(Write::Create {
                resource: SLICES.into(),
                namespace: self.namespace.into(),
                object,
            });
        };
        rest.chunks(MAX_ENDPOINTS).for_each(&mut create);
        if placeholder {
            create(&[]);
        }
    }

    fn update(&self, slice: &Kept<'_>, outcome: &mut Outcome) {
        let meta = &slice.stored["metadata"];
        let before = slice.stored["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
        let weights = self.extras.weights(&slice.endpoints);
        let same_weights = meta["annotations"][WEIGHTS].as_str() == weights.as_deref();
        if before == slice.endpoints && meta["labels"].as_object() == Some(&self.labels) && same_weights {
            return;
        }
        let mut annotations = meta["annotations"].as_object().cloned().unwrap_or_default();
        self.extras.annotate(&mut annotations, before, &slice.endpoints);
        let mut value = slice.stored.clone();
        value["endpoints"] = slice.endpoints.as_slice().into();
        value["metadata"]["labels"] = Value::Object(self.labels.clone());
        match (annotations.is_empty(), value["metadata"].as_object_mut()) {
            (true, Some(metadata)) => drop(metadata.remove("annotations")),
            (false, Some(metadata)) => drop(metadata.insert("annotations".to_owned(), annotations.into())),
            (_, None) => {}
        }
        outcome.update(slice.object, None, value);
    }

    fn slice(&self, family: &str, ports: &Value, endpoints: &[Value]) -> Value {
        let meta = &self.service.metadata;
        let mut metadata = json!({
            "generateName": format!("{}-", meta.name),
            "namespace": self.namespace,
            "labels": self.labels,
            "ownerReferences": [controller_reference("v1", "Service", &meta.name, &meta.uid)],
        });
        let mut annotations = Map::new();
        self.extras.annotate(&mut annotations, &[], endpoints);
        if !annotations.is_empty() {
            metadata["annotations"] = annotations.into();
        }
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
            "addressType": family, "endpoints": endpoints, "ports": ports,
        })
    }
}

/// A stored slice with its endpoints brought up to date.
struct Kept<'a> {
    object: &'a Arc<Object>,
    stored: Value,
    endpoints: Vec<Value>,
    changed: bool,
}

/// What the slice holds is taken out of `wanted`.
fn keep<'a>(object: &'a Arc<Object>, wanted: &mut BTreeMap<String, Value>) -> Kept<'a> {
    let stored = object.value();
    let before = stored["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
    let endpoints: Vec<Value> = before
        .iter()
        .filter_map(|e| wanted.remove(e["targetRef"]["uid"].as_str()?))
        .collect();
    let changed = before != endpoints;
    Kept {
        object,
        stored,
        endpoints,
        changed,
    }
}

fn labels(service: &Service) -> Map<String, Value> {
    let copied = service
        .metadata
        .labels
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str().into()));
    let mut labels = copied.collect::<Map<_, _>>();
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.as_str().into());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.into());
    if service.is_headless() {
        labels.insert(HEADLESS.to_owned(), "".into());
    }
    labels
}

fn endpoint(backend: &Backend, addresses: Vec<String>) -> Value {
    let mut endpoint = json!({
        "addresses": addresses,
        "conditions": {
            "ready": backend.ready,
            "serving": backend.serving,
            "terminating": backend.terminating,
        },
        "targetRef": backend.target(),
    });
    if !backend.pod.spec.node_name.is_empty() {
        endpoint["nodeName"] = backend.pod.spec.node_name.as_str().into();
    }
    if let Some(zone) = &backend.zone {
        endpoint["zone"] = zone.as_str().into();
    }
    if let Some(hostname) = &backend.hostname {
        endpoint["hostname"] = hostname.as_str().into();
    }
    endpoint
}
