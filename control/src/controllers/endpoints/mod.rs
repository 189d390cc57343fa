//! Endpoint slices, and Endpoints for older readers. Kubernetes: "EndpointSlices".
//!
//! A service's endpoints are spread over slices of at most 100 with equal ports. An endpoint stays in its slice, so that
//! a change of one pod rewrites one slice.

mod legacy;
mod service;
mod slices;
#[cfg(test)]
mod tests;

use super::controller::{Context, Controller, Key, Outcome};
use crate::cache::Event;

pub use legacy::Endpoints;
use service::{Service, services_of};

const SERVICES: &str = "services";
const SLICES: &str = "discovery.k8s.io/endpointslices";
/// Names the service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Marks endpoints of headless services.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The endpoint slice controller.
pub struct EndpointSlices;

impl Controller for EndpointSlices {
    fn name(&self) -> &'static str {
        "endpoint-slice-controller"
    }

    fn keys(&self, view: &dyn super::view::View, event: &Event, add: &mut dyn FnMut(Key)) {
        match &*event.object.resource {
            SERVICES => add(Key::of(&event.object)),
            "pods" => services_of(view, &event.object, event.previous.as_deref(), add),
            SLICES if event.object.label(MANAGED_BY) == Some(MANAGER) => {
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
        let stored = context.view.list(SLICES, Some(&key.namespace));
        let ours = |o: &&std::sync::Arc<crate::cache::Object>| {
            o.label(SERVICE_NAME) == Some(&*key.name) && o.label(MANAGED_BY) == Some(MANAGER)
        };
        let stored = stored.iter().filter(ours).cloned().collect::<Vec<_>>();
        if service.metadata.deletion_timestamp.is_some() || service.spec.selector.is_none() {
            return outcome;
        }
        if !service.has_endpoints() {
            stored.iter().for_each(|slice| outcome.delete(slice, None));
            return outcome;
        }
        let backends = service.backends(context.view, &key.namespace);
        slices::reconcile(&service, &key.namespace, &backends, &stored, &mut outcome);
        outcome
    }
}
