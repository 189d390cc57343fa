//! `Endpoints` (core/v1): one object per service, for readers that do not know slices.
//!
//! Addresses with equal ports form a subset; at most 1,000 are listed, as in Kubernetes. Terminating pods are left out.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::service::{Backend, EndpointPort, Service, services_of};
use super::{HEADLESS, SERVICES};
use crate::cache::{Event, Object};
use crate::controllers::controller::{Context, Controller, Key, Outcome, Write};
use crate::controllers::view::View;

const ENDPOINTS: &str = "endpoints";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses per object.
const MAX_ADDRESSES: usize = 1000;

/// The endpoints controller.
pub struct Endpoints;

impl Controller for Endpoints {
    fn name(&self) -> &'static str {
        "endpoint-controller"
    }

    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        match &*event.object.resource {
            SERVICES => add(Key::of(&event.object)),
            "pods" => services_of(view, &event.object, event.previous.as_deref(), add),
            ENDPOINTS => add(Key::new(
                SERVICES,
                event.object.namespace.clone(),
                event.object.name.clone(),
            )),
            _ => {}
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let stored = context.view.get(ENDPOINTS, &key.namespace, &key.name);
        let service = context.view.get(SERVICES, &key.namespace, &key.name);
        let Some(service) = service.as_deref().and_then(Service::new) else {
            if let Some(stored) = stored.filter(|s| s.label(MANAGED_BY) == Some(MANAGER)) {
                outcome.delete(&stored, None);
            }
            return outcome;
        };
        if service.has_endpoints() && service.metadata.deletion_timestamp.is_none() {
            write(
                &service,
                &service.backends(context.view, &key.namespace),
                key,
                stored,
                &mut outcome,
            );
        }
        outcome
    }
}

fn write(service: &Service, backends: &[Backend], key: &Key, stored: Option<Arc<Object>>, outcome: &mut Outcome) {
    let (subsets, truncated) = subsets(backends);
    let mut labels = json!(service.metadata.labels);
    labels[MANAGED_BY] = MANAGER.into();
    if service.is_headless() {
        labels[HEADLESS] = "".into();
    }
    let new = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": &*key.name, "namespace": &*key.namespace}});
    let before = stored.as_ref().map(|s| s.value());
    let mut value = before.clone().unwrap_or(new);
    value["metadata"]["labels"] = labels;
    if truncated {
        value["metadata"]["annotations"][OVER_CAPACITY] = "truncated".into();
    } else if let Some(annotations) = value["metadata"]["annotations"].as_object_mut() {
        annotations.remove(OVER_CAPACITY);
    }
    let object = value.as_object_mut();
    if subsets.is_empty() {
        object.and_then(|o| o.remove("subsets"));
    } else {
        object.map(|o| o.insert("subsets".to_owned(), subsets.into()));
    }
    if value["metadata"]["annotations"].is_null() {
        value["metadata"].as_object_mut().and_then(|m| m.remove("annotations"));
    }
    match stored {
        None => outcome.write(Write::Create {
            resource: ENDPOINTS.into(),
            namespace: key.namespace.clone(),
            object: value,
        }),
        Some(stored) if before.as_ref() != Some(&value) => outcome.update(&stored, None, value),
        Some(_) => {}
    }
}

fn subsets(backends: &[Backend]) -> (Vec<Value>, bool) {
    let mut groups: BTreeMap<Vec<EndpointPort>, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    let mut listed = backends
        .iter()
        .filter(|b| !b.terminating || b.ready)
        .collect::<Vec<_>>();
    let truncated = listed.len() > MAX_ADDRESSES;
    listed.sort_by_key(|b| !b.ready);
    for backend in listed.into_iter().take(MAX_ADDRESSES) {
        let mut ports = backend.ports.clone();
        ports.sort();
        let (ready, not_ready) = groups.entry(ports).or_default();
        if backend.ready {
            ready.push(address(backend))
        } else {
            not_ready.push(address(backend))
        }
    }
    let subset = |(ports, (mut ready, mut not_ready)): (Vec<EndpointPort>, (Vec<Value>, Vec<Value>))| {
        let mut subset = json!({});
        for (field, list) in [("addresses", &mut ready), ("notReadyAddresses", &mut not_ready)] {
            list.sort_by(|a, b| a["ip"].as_str().cmp(&b["ip"].as_str()));
            if !list.is_empty() {
                subset[field] = std::mem::take(list).into();
            }
        }
        if !ports.is_empty() {
            subset["ports"] = ports.iter().map(named).collect();
        }
        subset
    };
    (groups.into_iter().map(subset).collect(), truncated)
}

fn named(port: &EndpointPort) -> Value {
    let mut value = port.value();
    if port.name.is_empty() {
        value.as_object_mut().and_then(|p| p.remove("name"));
    }
    value
}

fn address(backend: &Backend) -> Value {
    let mut address = json!({"ip": backend.pod.status.pod_ip, "targetRef": backend.target()});
    if !backend.pod.spec.node_name.is_empty() {
        address["nodeName"] = backend.pod.spec.node_name.as_str().into();
    }
    if let Some(hostname) = &backend.hostname {
        address["hostname"] = hostname.as_str().into();
    }
    address
}
