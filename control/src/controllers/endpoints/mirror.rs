//! Slices for Endpoints that users write for services without a selector, so that readers of slices see them too
//! (Kubernetes: "EndpointSlice mirroring").
//!
//! A subset becomes one slice of each address family. Slices follow the Endpoints object: they are owned by it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::index::Index;
use super::{HEADLESS, MANAGED_BY, SERVICE_NAME, SERVICES, SLICES, TRIGGER};
use crate::cache::{Event, Object};
use crate::controllers::controller::{Context, Controller, Key, Outcome, Write};
use crate::controllers::metadata::controller_reference;
use crate::controllers::view::View;

const ENDPOINTS: &str = "endpoints";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Endpoints that are not to be mirrored: whoever wrote them writes slices as well.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints used as a lock.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of one subset and family that are mirrored.
const MAX_ADDRESSES: usize = 1000;

/// The endpoint slice mirroring controller.
pub(super) struct Mirror {
    pub(super) index: Arc<Index>,
}

impl Controller for Mirror {
    fn name(&self) -> &'static str {
        "endpoint-slice-mirroring-controller"
    }

    fn keys(&self, _: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        let object = &event.object;
        match &*object.resource {
            ENDPOINTS | SERVICES => add(Key::new(ENDPOINTS, object.namespace.clone(), object.name.clone())),
            SLICES if object.label(MANAGED_BY) == Some(MANAGER) => {
                if let Some(service) = object.label(SERVICE_NAME) {
                    add(Key::new(ENDPOINTS, object.namespace.clone(), service));
                }
            }
            _ => {}
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let view = context.view;
        let names = self.index.slices_of(&key.namespace, &key.name);
        let stored = names.iter().filter_map(|name| view.get(SLICES, &key.namespace, name));
        let stored: Vec<Arc<Object>> = stored
            .filter(|slice| slice.label(MANAGED_BY) == Some(MANAGER))
            .collect();
        let endpoints = view.get(ENDPOINTS, &key.namespace, &key.name);
        let service = view.get(SERVICES, &key.namespace, &key.name);
        let wanted = match (endpoints, service) {
            (Some(endpoints), Some(service)) => wanted(&endpoints, &service.value()),
            _ => Vec::new(),
        };
        write(wanted, stored, key, &mut outcome);
        outcome
    }
}

/// The slices that mirror an Endpoints object; none if it is not to be mirrored.
fn wanted(endpoints: &Object, service: &Value) -> Vec<Value> {
    let body = endpoints.value();
    let selected = service["spec"]["selector"]
        .as_object()
        .is_some_and(|selector| !selector.is_empty());
    let is_lock = body["metadata"]["annotations"][LEADER].is_string();
    let going = !body["metadata"]["deletionTimestamp"].is_null();
    if selected || is_lock || going || endpoints.label(SKIP) == Some("true") {
        return Vec::new();
    }
    let mut labels = body["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), (&*endpoints.name).into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service["spec"]["clusterIP"] == "None" {
        labels.insert(HEADLESS.into(), "".into());
    }
    let mut annotations = body["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.remove(TRIGGER);
    let mut metadata = json!({
        "generateName": format!("{}-", endpoints.name),
        "namespace": &*endpoints.namespace,
        "labels": labels,
        "ownerReferences": [controller_reference("v1", "Endpoints", &endpoints.name, endpoints.uid())],
    });
    if !annotations.is_empty() {
        metadata["annotations"] = Value::Object(annotations);
    }
    let slice = |((family, ports), endpoints): ((&str, String), Vec<Value>)| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
            "addressType": family, "endpoints": endpoints,
            "ports": serde_json::from_str::<Value>(&ports).unwrap_or_default(),
        })
    };
    groups(&body).into_iter().map(slice).collect()
}

/// Endpoints by family and ports.
fn groups(body: &Value) -> BTreeMap<(&'static str, String), Vec<Value>> {
    let mut groups: BTreeMap<(&'static str, String), Vec<Value>> = BTreeMap::new();
    for subset in body["subsets"].as_array().into_iter().flatten() {
        let ports = subset["ports"].as_array().into_iter().flatten().map(port);
        let ports = Value::Array(ports.collect()).to_string();
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for address in subset[field].as_array().into_iter().flatten() {
                let ip = address["ip"].as_str().unwrap_or_default();
                let family = match ip.parse() {
                    Ok(IpAddr::V4(_)) => "IPv4",
                    Ok(IpAddr::V6(_)) => "IPv6",
                    Err(_) => continue,
                };
                let group = groups.entry((family, ports.clone())).or_default();
                if group.len() < MAX_ADDRESSES {
                    group.push(endpoint(address, ip, ready));
                }
            }
        }
    }
    groups
}

fn port(port: &Value) -> Value {
    let mut copy = Map::new();
    copy.insert("name".into(), port["name"].as_str().unwrap_or_default().into());
    for name in ["port", "protocol", "appProtocol"] {
        if !port[name].is_null() {
            copy.insert(name.into(), port[name].clone());
        }
    }
    Value::Object(copy)
}

fn endpoint(address: &Value, ip: &str, ready: bool) -> Value {
    let mut endpoint = json!({"addresses": [ip], "conditions": {"ready": ready}});
    for name in ["hostname", "nodeName", "targetRef"] {
        if !address[name].is_null() {
            endpoint[name] = address[name].clone();
        }
    }
    endpoint
}

/// Each slice wanted takes a stored one of its family, preferably that with its ports.
fn write(wanted: Vec<Value>, mut stored: Vec<Arc<Object>>, key: &Key, outcome: &mut Outcome) {
    for slice in wanted {
        let family = |object: &Arc<Object>| object.value()["addressType"] == slice["addressType"];
        let same = |object: &Arc<Object>| family(object) && object.value()["ports"] == slice["ports"];
        let place = stored.iter().position(same).or_else(|| stored.iter().position(family));
        let Some(object) = place.map(|place| stored.swap_remove(place)) else {
            outcome.write(Write::Create {
                resource: SLICES.into(),
                namespace: key.namespace.clone(),
                object: slice,
            });
            continue;
        };
        let before = object.value();
        let mut value = before.clone();
        for name in ["endpoints", "ports"] {
            value[name] = slice[name].clone();
        }
        for name in ["labels", "annotations", "ownerReferences"] {
            match slice["metadata"].get(name) {
                Some(new) => value["metadata"][name] = new.clone(),
                None => {
                    value["metadata"]
                        .as_object_mut()
                        .and_then(|metadata| metadata.remove(name));
                }
            }
        }
        if value != before {
            outcome.update(&object, None, value);
        }
    }
    stored.iter().for_each(|slice| outcome.delete(slice, None));
}
