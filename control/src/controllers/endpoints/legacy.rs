//! `Endpoints` (core/v1): one object per service, for readers that do not know slices.
//!
//! Addresses with equal ports form a subset; at most 1,000 are listed, as in Kubernetes. Terminating pods are left out.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::index::Index;
use super::service::{Backend, EndpointPort, Service};
use super::{HEADLESS, SERVICES, services_of};
use crate::cache::{Event, EventKind, Object};
use crate::controllers::controller::{Context, Controller, Key, Outcome, Write};
use crate::controllers::view::View;

const ENDPOINTS: &str = "endpoints";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses per object.
const MAX_ADDRESSES: usize = 1000;

/// The resource of keys that say that a service is gone.
const GONE: &str = "services/gone";

/// The endpoints controller.
pub(super) struct Endpoints {
    pub(super) index: Arc<Index>,
}

impl Controller for Endpoints {
    fn name(&self) -> &'static str {
        "endpoint-controller"
    }

    fn keys(&self, _: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        let object = &event.object;
        match &*object.resource {
            SERVICES if event.kind == EventKind::Deleted => {
                add(Key::new(GONE, object.namespace.clone(), object.name.clone()));
            }
            SERVICES => add(Key::of(object)),
            "pods" => services_of(&self.index, event, add),
            ENDPOINTS => add(Key::new(SERVICES, object.namespace.clone(), object.name.clone())),
            _ => {}
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let stored = context.view.get(ENDPOINTS, &key.namespace, &key.name);
        let service = context.view.get(SERVICES, &key.namespace, &key.name);
        let Some(service) = service.as_deref().and_then(Service::new) else {
            // With a service go its endpoints, whoever wrote them; without one, users may write theirs first.
            let goes = |stored: &Arc<Object>| &*key.resource == GONE || stored.label(MANAGED_BY) == Some(MANAGER);
            if let Some(stored) = stored.filter(goes) {
                outcome.delete(&stored, None);
            }
            return outcome;
        };
        if service.has_endpoints() && service.metadata.deletion_timestamp.is_none() {
            write(
                &service,
                &service.backends(context.view, &self.index, &key.namespace),
                key,
                stored,
                &mut outcome,
            );
        }
        outcome
    }
}

fn write(service: &Service, backends: &[Backend], key: &Key, stored: Option<Arc<Object>>, outcome: &mut Outcome) {
    let family = service.families().swap_remove(0);
    let (subsets, truncated) = subsets(backends, &family);
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

/// The subsets of the addresses of one family, and whether there are too many for one object.
fn subsets(backends: &[Backend], family: &str) -> (Vec<Value>, bool) {
    let mut groups: BTreeMap<Vec<EndpointPort>, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
    let mut listed = backends
        .iter()
        .filter(|b| !b.terminating || b.ready)
        .filter_map(|b| Some((b, b.addresses(family).pop()?)))
        .collect::<Vec<_>>();
    let truncated = listed.len() > MAX_ADDRESSES;
    listed.sort_by_key(|(b, _)| !b.ready);
    for (backend, ip) in listed.into_iter().take(MAX_ADDRESSES) {
        let mut ports = backend.ports.clone();
        ports.sort();
        let (ready, not_ready) = groups.entry(ports).or_default();
        if backend.ready {
            ready.push(address(backend, &ip))
        } else {
            not_ready.push(address(backend, &ip))
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

fn address(backend: &Backend, ip: &str) -> Value {
    let mut address = json!({"ip": ip, "targetRef": backend.target()});
    if !backend.pod.spec.node_name.is_empty() {
        address["nodeName"] = backend.pod.spec.node_name.as_str().into();
    }
    if let Some(hostname) = &backend.hostname {
        address["hostname"] = hostname.as_str().into();
    }
    address
}
