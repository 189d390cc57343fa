//! The cluster's services and their endpoint slices as this node keeps them, and which of them have changed.
//!
//! Slices are kept in a short form that serves the proxy and DNS.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::ListWatchEvent;
use crate::dns::{self, ServiceRecords};
use crate::proxy::edge::health::{self, Check};
use crate::proxy::{self, Group, NodeView, ServiceName, Slice};

/// Everything known, by service.
#[derive(Default)]
pub(super) struct Catalogue {
    entries: HashMap<ServiceName, Entry>,
    /// Where a slice is: its service may be another one than last time.
    owners: HashMap<(Arc<str>, Arc<str>), ServiceName>,
    changed: HashSet<ServiceName>,
    pub(super) services_listed: bool,
    pub(super) slices_listed: bool,
    /// The services themselves have changed, not only their endpoints.
    pub(super) services_changed: bool,
}

#[derive(Default)]
struct Entry {
    service: Option<Arc<Service>>,
    slices: BTreeMap<Arc<str>, Slice>,
}

impl Catalogue {
    /// Takes note of an event of the collection of services.
    pub(super) fn take_service(&mut self, event: ListWatchEvent) {
        self.services_changed = true;
        match event {
            ListWatchEvent::Listed(items) => {
                self.services_listed = true;
                let mut missing: HashSet<ServiceName> = self.entries.keys().cloned().collect();
                for item in items {
                    let name = service_name(&item);
                    missing.remove(&name);
                    self.put_service(name, item);
                }
                missing.into_iter().for_each(|name| self.remove_service(name));
            }
            ListWatchEvent::Applied(item) => self.put_service(service_name(&item), item),
            ListWatchEvent::Deleted(item) => self.remove_service(service_name(&item)),
        }
    }

    /// Takes note of an event of the collection of endpoint slices.
    pub(super) fn take_slice(&mut self, event: ListWatchEvent, node: &str) {
        match event {
            ListWatchEvent::Listed(items) => {
                self.slices_listed = true;
                let mut missing: HashSet<(Arc<str>, Arc<str>)> = self.owners.keys().cloned().collect();
                for item in items {
                    missing.remove(&key(&item));
                    self.put_slice(item, node);
                }
                missing.into_iter().for_each(|slice| self.remove_slice(&slice));
            }
            ListWatchEvent::Applied(item) => self.put_slice(item, node),
            ListWatchEvent::Deleted(item) => self.remove_slice(&key(&item)),
        }
    }

    /// Both collections were listed in full.
    pub(super) fn is_complete(&self) -> bool {
        self.services_listed && self.slices_listed
    }

    /// All services.
    pub(super) fn services(&self) -> Vec<Arc<Service>> {
        self.entries
            .values()
            .filter_map(|entry| entry.service.clone())
            .collect()
    }

    /// One service.
    pub(super) fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.entries.get(name)?.service.as_deref()
    }

    /// Makes every service count as changed: something that all depend on has.
    pub(super) fn touch_all(&mut self) {
        self.changed.extend(self.entries.keys().cloned());
    }

    /// Makes the services count as changed that ask for direct return: whether they get it is known now.
    pub(super) fn touch_direct(&mut self) {
        let asks =
            |(_, entry): &(&ServiceName, &Entry)| entry.service.as_deref().is_some_and(proxy::asks_direct_return);
        let names = self.entries.iter().filter(asks).map(|(name, _)| name.clone());
        self.changed.extend(names);
    }

    /// The services that have changed since the last call.
    pub(super) fn take_changed(&mut self) -> HashSet<ServiceName> {
        std::mem::take(&mut self.changed)
    }

    /// Where clients of a service are sent; nowhere when it is gone.
    pub(super) fn groups(&self, name: &ServiceName, node: &NodeView) -> Vec<Group> {
        let Some(entry) = self.entries.get(name) else {
            return Vec::new();
        };
        let Some(service) = &entry.service else {
            return Vec::new();
        };
        proxy::compute(service, entry.slices.values(), node)
    }

    /// What the health-check node port of a service says, if it has one.
    pub(super) fn health(&self, name: &ServiceName) -> Option<(u16, Check)> {
        let entry = self.entries.get(name)?;
        health::check(entry.service.as_ref()?, entry.slices.values())
    }

    /// What the names of a service lead to.
    pub(super) fn records(&self, name: &ServiceName) -> dns::Change {
        let records = self.entries.get(name).and_then(|entry| {
            let service = entry.service.as_ref()?;
            ServiceRecords::new(service, entry.slices.values())
        });
        (name.namespace.to_string(), name.name.to_string(), records)
    }

    fn put_service(&mut self, name: ServiceName, item: Value) {
        if let Some(service) = decode(&name, item) {
            self.entries.entry(name.clone()).or_default().service = Some(Arc::new(service));
            self.changed.insert(name);
        }
    }

    fn remove_service(&mut self, name: ServiceName) {
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.service = None;
            if entry.slices.is_empty() {
                self.entries.remove(&name);
            }
            self.changed.insert(name);
        }
    }

    fn put_slice(&mut self, item: Value, node: &str) {
        let key = key(&item);
        let Some(slice) = decode::<EndpointSlice>(&key, item) else {
            return;
        };
        let service = proxy::service_of(&slice).map(|(namespace, name)| ServiceName::new(namespace, name));
        if self.owners.get(&key) != service.as_ref() {
            self.remove_slice(&key);
        }
        let (Some(service), Some(short)) = (service, Slice::new(&slice, node)) else {
            self.remove_slice(&key);
            return;
        };
        let entry = self.entries.entry(service.clone()).or_default();
        entry.slices.insert(Arc::clone(&key.1), short);
        self.owners.insert(key, service.clone());
        self.changed.insert(service);
    }

    fn remove_slice(&mut self, slice: &(Arc<str>, Arc<str>)) {
        let Some(service) = self.owners.remove(slice) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&service) {
            entry.slices.remove(&slice.1);
            if entry.slices.is_empty() && entry.service.is_none() {
                self.entries.remove(&service);
            }
        }
        self.changed.insert(service);
    }
}

fn decode<T: DeserializeOwned>(key: &impl std::fmt::Debug, item: Value) -> Option<T> {
    serde_json::from_value(item)
        .inspect_err(|error| {
            tracing::error!(?key, %error, "an object of the API server cannot be decoded and is ignored");
        })
        .ok()
}

fn key(item: &Value) -> (Arc<str>, Arc<str>) {
    let text = |name: &str| item["metadata"][name].as_str().unwrap_or_default().into();
    (text("namespace"), text("name"))
}

fn service_name(item: &Value) -> ServiceName {
    let (namespace, name) = key(item);
    ServiceName { namespace, name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str) -> Value {
        json!({"metadata": {"namespace": "ns", "name": name}, "spec": {"clusterIP": "10.96.0.5",
            "clusterIPs": ["10.96.0.5"], "ports": [{"port": 80}]}})
    }

    fn slice(name: &str, service: &str) -> Value {
        json!({"metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": [{"addresses": ["10.244.0.1"]}]})
    }

    fn names(changed: HashSet<ServiceName>) -> Vec<String> {
        let mut names: Vec<String> = changed.iter().map(|name| name.name.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_list_replaces_what_was_known() {
        let mut known = Catalogue::default();
        known.take_service(ListWatchEvent::Applied(service("early")));
        assert!(!known.services_listed);
        known.take_service(ListWatchEvent::Listed(vec![service("a"), service("b")]));
        assert_eq!(names(known.take_changed()), ["a", "b", "early"]);
        known.take_service(ListWatchEvent::Deleted(service("a")));
        known.take_service(ListWatchEvent::Applied(
            json!({"metadata": {"namespace": "ns", "name": "bad"}, "spec": 7}),
        ));
        assert_eq!(
            names(known.take_changed()),
            ["a"],
            "what cannot be decoded changes nothing"
        );
        assert!(known.services_listed && known.services().len() == 1);
    }

    #[test]
    fn who_asks_for_direct_return_is_looked_at_again() {
        let mut catalogue = Catalogue::default();
        let mut asking = service("asks");
        asking["metadata"]["annotations"] = json!({proxy::FORWARDING: "direct-return"});
        catalogue.take_service(ListWatchEvent::Listed(vec![service("plain"), asking]));
        catalogue.take_changed();
        catalogue.touch_direct();
        assert_eq!(names(catalogue.take_changed()), ["asks"]);
    }

    #[test]
    fn a_slice_changes_its_service_and_the_one_it_leaves() {
        let node = NodeView {
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            ..NodeView::default()
        };
        let mut known = Catalogue::default();
        known.take_service(ListWatchEvent::Listed(vec![service("a"), service("b")]));
        known.take_slice(ListWatchEvent::Listed(vec![slice("s", "a")]), "n1");
        known.take_changed();
        let backends = |known: &Catalogue, name: &str| -> usize {
            let groups = known.groups(&ServiceName::new("ns", name), &node);
            groups.iter().map(|group| group.backends.len()).sum()
        };
        assert_eq!((backends(&known, "a"), backends(&known, "b")), (1, 0));
        known.take_slice(ListWatchEvent::Applied(slice("s", "b")), "n1");
        assert_eq!(names(known.take_changed()), ["a", "b"]);
        assert_eq!((backends(&known, "a"), backends(&known, "b")), (0, 1));
        known.take_slice(ListWatchEvent::Listed(vec![]), "n1");
        assert_eq!(names(known.take_changed()), ["b"]);
        assert_eq!(backends(&known, "b"), 0);
    }
}
