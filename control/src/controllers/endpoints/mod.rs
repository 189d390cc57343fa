//! Endpoint slices, Endpoints for older readers, and slices for Endpoints that users write. Kubernetes: "EndpointSlices".
//!
//! A service's endpoints are spread over slices of at most 100 with equal ports and one address family. An endpoint stays in
//! its slice, so that a change of one pod rewrites one slice; and a change of one pod looks at its services alone.

mod extras;
mod hints;
mod index;
mod legacy;
mod mirror;
mod service;
mod slices;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::controller::{Context, Controller, Key, Outcome};
use super::view::View;
use crate::cache::{Event, Object};

use index::Index;
use service::Service;

const SERVICES: &str = "services";
const SLICES: &str = "discovery.k8s.io/endpointslices";
/// Names the service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Marks endpoints of headless services.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Says when a pod or service changed, of which a slice tells.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Where a node is.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The controllers of endpoints, in the order in which they must see events.
pub fn controllers() -> Vec<Box<dyn Controller>> {
    let index = Arc::new(Index::default());
    vec![
        Box::new(EndpointSlices { index: index.clone() }),
        Box::new(legacy::Endpoints { index: index.clone() }),
        Box::new(mirror::Mirror { index }),
    ]
}

/// The endpoint slice controller.
struct EndpointSlices {
    index: Arc<Index>,
}

impl Controller for EndpointSlices {
    fn name(&self) -> &'static str {
        "endpoint-slice-controller"
    }

    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        self.index.observe(event);
        match &*event.object.resource {
            SERVICES => add(Key::of(&event.object)),
            "pods" => services_of(&self.index, event, add),
            "nodes" => self.after_node(view, event, add),
            SLICES if is_ours(&event.object) => {
                if let Some(service) = event.object.label(SERVICE_NAME) {
                    add(Key::new(SERVICES, event.object.namespace.clone(), service));
                }
            }
            _ => {}
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(object) = context.view.get(SERVICES, &key.namespace, &key.name) else {
            return outcome;
        };
        let Some(service) = Service::new(&object) else {
            return outcome;
        };
        if service.metadata.deletion_timestamp.is_some() || service.spec.selector.is_none() {
            return outcome;
        }
        let (stored, orphans) = self.stored(context.view, key, &service);
        orphans.iter().for_each(|slice| outcome.delete(slice, None));
        if !service.has_endpoints() {
            stored.iter().for_each(|slice| outcome.delete(slice, None));
            return outcome;
        }
        let backends = service.backends(context.view, &self.index, &key.namespace);
        let hints = hints::Hints::of(&service, context.view);
        slices::reconcile(&service, &key.namespace, &backends, &hints, &stored, &mut outcome);
        outcome
    }
}

impl EndpointSlices {
    /// A node says where its pods are; those that are there already learn of it when it changes its mind.
    fn after_node(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        let previous = event.previous.as_deref();
        if previous.and_then(|node| node.label(ZONE)) != event.object.label(ZONE) {
            for pod in view.pods_on_node(&event.object.name) {
                for service in self.index.services_of(&pod) {
                    add(Key::new(SERVICES, pod.namespace.clone(), service));
                }
            }
        }
        let proportional = self.index.proportional();
        if !proportional.is_empty() && hints::weight(previous) != hints::weight(Some(&event.object)) {
            for (namespace, name) in proportional {
                add(Key::new(SERVICES, namespace, name));
            }
        }
    }

    /// The slices of a service, and those of an earlier one of its name.
    fn stored(&self, view: &dyn View, key: &Key, service: &Service) -> (Vec<Arc<Object>>, Vec<Arc<Object>>) {
        let names = self.index.slices_of(&key.namespace, &key.name);
        let stored = names.iter().filter_map(|name| view.get(SLICES, &key.namespace, name));
        let ours = stored.filter(|slice| is_ours(slice) && slice.label(SERVICE_NAME) == Some(&*key.name));
        ours.partition(|slice| slice.index.owners.iter().any(|owner| **owner == *service.metadata.uid))
    }
}

fn is_ours(slice: &Object) -> bool {
    slice.label(MANAGED_BY) == Some(MANAGER)
}

/// The services that select a pod in either of its states.
fn services_of(index: &Index, event: &Event, add: &mut dyn FnMut(Key)) {
    for pod in [Some(&event.object), event.previous.as_ref()].into_iter().flatten() {
        for service in index.services_of(pod) {
            add(Key::new(SERVICES, pod.namespace.clone(), service));
        }
    }
}
