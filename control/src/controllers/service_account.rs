//! What every namespace has: the service account `default` and the config map `kube-root-ca.crt`.
//!
//! Kubernetes: "Managing Service Accounts". Both come back when they are deleted; the certificate is repaired.

use std::sync::Arc;

use serde_json::json;

use super::controller::{Context, Controller, Key, Outcome, Write};
use super::view::View;
use crate::cache::Event;

const NAMESPACES: &str = "namespaces";
const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

/// The controller.
pub struct ServiceAccounts {
    /// The cluster's CA certificate, PEM.
    pub root_ca: Arc<str>,
}

impl Controller for ServiceAccounts {
    fn name(&self) -> &'static str {
        "serviceaccount-controller"
    }

    fn keys(&self, _view: &dyn View, event: &Event, add: &mut dyn FnMut(Key)) {
        let object = &event.object;
        match (&*object.resource, &*object.name) {
            (NAMESPACES, _) => add(Key::of(object)),
            ("serviceaccounts", "default") | ("configmaps", ROOT_CA) => {
                add(Key::new(NAMESPACES, "", object.namespace.clone()));
            }
            _ => {}
        }
    }

    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(namespace) = context.view.get(NAMESPACES, "", &key.name) else {
            return outcome;
        };
        if super::metadata::metadata(&namespace).deletion_timestamp.is_some() {
            return outcome;
        }
        let mut create = |resource: &str, object| {
            outcome.write(Write::Create {
                resource: resource.into(),
                namespace: key.name.clone(),
                object,
            });
        };
        if context.view.get("serviceaccounts", &key.name, "default").is_none() {
            let meta = json!({"name": "default", "namespace": &*key.name});
            create(
                "serviceaccounts",
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
            );
        }
        let data = json!({"ca.crt": &*self.root_ca});
        match context.view.get("configmaps", &key.name, ROOT_CA) {
            None => {
                let annotations = json!({"kubernetes.io/description": DESCRIPTION});
                let meta = json!({"name": ROOT_CA, "namespace": &*key.name, "annotations": annotations});
                create(
                    "configmaps",
                    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}),
                );
            }
            Some(stored) => {
                let mut value = stored.value();
                if value["data"] != data {
                    value["data"] = data;
                    outcome.update(&stored, None, value);
                }
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::memory::World;

    #[test]
    fn both_come_and_come_back() {
        let mut world = World::new(vec![Box::new(ServiceAccounts { root_ca: "PEM".into() })]);
        world.memory.put(NAMESPACES, "", json!({"metadata": {"name": "d"}}));
        world.settle();
        let certificate = |world: &World| world.memory.get("configmaps", "d", ROOT_CA).unwrap().value();
        assert_eq!(certificate(&world)["data"]["ca.crt"], "PEM");
        world
            .memory
            .patch("configmaps", "d", ROOT_CA, &json!({"data": {"ca.crt": "forged"}}));
        world.memory.remove("serviceaccounts", "d", "default");
        world.settle();
        assert_eq!(certificate(&world)["data"]["ca.crt"], "PEM");
        assert!(world.memory.get("serviceaccounts", "d", "default").is_some());
    }
}
