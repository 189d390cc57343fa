//! Follows services and endpoint slices and brings what depends on them up to date: the proxy's maps, the DNS zone,
//! the service variables of new containers.
//!
//! Nothing is written before both collections were listed in full: what is missing from the tables is removed from
//! the kernel, and traffic must survive a restart of the agent. Events that are there already are taken together.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::client::ListWatchEvent;
use crate::dns::{Handle, Zone, ZoneConfig};
use crate::pod::api::Api;
use crate::pod::host::Services;
use crate::proxy::{self, NodeView, Proxy};

/// Keeps this node's view of the services.
pub struct ServiceSync {
    /// The API.
    pub api: Arc<dyn Api>,
    /// For the environment of containers.
    pub services: Services,
    /// The kernel's half.
    pub proxy: Proxy,
    /// The DNS server.
    pub dns: Handle,
    /// What the proxy's tables depend on besides.
    pub view: NodeView,
    /// What the zone depends on besides.
    pub zone: ZoneConfig,
}

impl ServiceSync {
    /// Runs for ever.
    pub async fn run(self) {
        let ServiceSync {
            api,
            services,
            mut proxy,
            dns,
            view,
            zone,
        } = self;
        let mut service_events = api.follow("/api/v1/services".to_owned(), String::new());
        let mut slice_events = api.follow("/apis/discovery.k8s.io/v1/endpointslices".to_owned(), String::new());
        let mut known: Known<Service> = Known::default();
        let mut slices: Known<EndpointSlice> = Known::default();
        loop {
            tokio::select! {
                event = service_events.recv() => match event {
                    Some(event) => known.take(event),
                    None => return,
                },
                event = slice_events.recv() => match event {
                    Some(event) => slices.take(event),
                    None => return,
                },
            }
            known.take_all(&mut service_events);
            slices.take_all(&mut slice_events);
            if known.listed {
                services.store(Arc::new(known.objects.values().cloned().collect()));
            }
            if !(known.listed && slices.listed) {
                continue;
            }
            let all = || known.objects.values().map(|service| &**service);
            let ends = || slices.objects.values().map(|slice| &**slice);
            dns.update(Zone::compute(&zone, all(), ends()));
            let tables = proxy::compute(all(), ends(), &view);
            let applied = tokio::task::spawn_blocking(move || {
                let report = proxy.apply(&tables);
                (proxy, report)
            });
            let Ok((returned, report)) = applied.await else {
                tracing::error!("the service proxy broke; services stay as they are until the agent is restarted");
                return;
            };
            proxy = returned;
            match report {
                Ok(report) => {
                    for rejected in &report.rejected {
                        tracing::error!(?rejected, "a service does not fit into the proxy's maps");
                    }
                }
                Err(error) => tracing::error!(%error, "the service proxy's maps were not updated"),
            }
        }
    }
}

/// The objects of a collection by namespace and name.
struct Known<T> {
    objects: HashMap<(String, String), Arc<T>>,
    listed: bool,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Known {
            objects: HashMap::new(),
            listed: false,
        }
    }
}

impl<T: DeserializeOwned> Known<T> {
    fn take(&mut self, event: ListWatchEvent) {
        match event {
            ListWatchEvent::Listed(items) => {
                self.objects.clear();
                self.listed = true;
                items.into_iter().for_each(|item| self.put(item));
            }
            ListWatchEvent::Applied(item) => self.put(item),
            ListWatchEvent::Deleted(item) => drop(self.objects.remove(&key(&item))),
        }
    }

    fn take_all(&mut self, events: &mut mpsc::Receiver<ListWatchEvent>) {
        while let Ok(event) = events.try_recv() {
            self.take(event);
        }
    }

    fn put(&mut self, item: Value) {
        let key = key(&item);
        match serde_json::from_value(item) {
            Ok(object) => drop(self.objects.insert(key, Arc::new(object))),
            Err(error) => tracing::error!(?key, %error, "an object of the API server cannot be decoded and is ignored"),
        }
    }
}

fn key(item: &Value) -> (String, String) {
    let text = |name: &str| item["metadata"][name].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_new_list_replaces_what_was_known() {
        let service = |name: &str| json!({"metadata": {"namespace": "ns", "name": name}});
        let mut known: Known<Service> = Known::default();
        known.take(ListWatchEvent::Applied(service("early")));
        assert!(!known.listed);
        known.take(ListWatchEvent::Listed(vec![service("a"), service("b")]));
        known.take(ListWatchEvent::Deleted(service("a")));
        known.take(ListWatchEvent::Applied(
            json!({"metadata": {"namespace": "ns", "name": "bad"}, "spec": 7}),
        ));
        let names: Vec<&str> = known.objects.keys().map(|(_, name)| name.as_str()).collect();
        assert!(known.listed && names == ["b"]);
    }
}
