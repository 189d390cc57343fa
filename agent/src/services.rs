//! Follows services and endpoint slices and brings what depends on them up to date: the proxy's maps, the DNS zone,
//! the service variables of new containers.
//!
//! Nothing is written before both collections were listed in full: what is missing from the first tables is removed
//! from the kernel, and traffic must survive a restart of the agent. From then on a change costs what changed. Events
//! that are there already are taken together.

mod addresses;
mod catalogue;
pub mod host_ports;
mod ranges;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use tokio::sync::{mpsc, watch};

use crate::client::ListWatchEvent;
use crate::dns::Handle;
use crate::events::{About, Event, Kind, Recorder};
use crate::network::Cidr;
use crate::nodes::Own;
use crate::pod::api::Api;
use crate::pod::host::Services;
use crate::proxy::edge;
use crate::proxy::edge::health::HealthServers;
use crate::proxy::{self, Group, NodeView, Proxy, Rejected, Report, ServiceName};
use addresses::Changes;
use catalogue::Catalogue;
use host_ports::Mappings;
use ranges::ServiceCidrs;

/// Under what name the groups of the cluster's DNS addresses are kept: no service has an empty namespace.
const DNS: &str = "dns";

/// Keeps this node's view of the services.
pub struct ServiceSync {
    /// The API.
    pub api: Arc<dyn Api>,
    /// For the environment of containers.
    pub services: Services,
    /// The kernel's half.
    pub proxy: Proxy,
    /// The half that works on packets, where there is one.
    pub edge: Arc<edge::Slot>,
    /// The DNS server.
    pub dns: Handle,
    /// What the proxy's tables depend on besides.
    pub view: NodeView,
    /// Ranges of the node's addresses on which node ports are served; empty is all of them.
    pub node_port_addresses: Vec<Cidr>,
    /// What the API server has of this node: its zone.
    pub own: watch::Receiver<Own>,
    /// Ports of the node that lead to pods.
    pub host_ports: watch::Receiver<Mappings>,
    /// Where operators are told of services that cannot be served.
    pub events: Recorder,
    /// What became of it, for metrics.
    pub status: Arc<proxy::Status>,
}

impl ServiceSync {
    /// Runs for ever.
    pub async fn run(self) {
        let mut services = self.api.follow("/api/v1/services".to_owned(), String::new());
        let slices = "/apis/discovery.k8s.io/v1/endpointslices".to_owned();
        let mut slices = self.api.follow(slices, String::new());
        let mut ranges = self.api.follow(ranges::PATH.to_owned(), String::new());
        let (mut own, mut host_ports) = (self.own.clone(), self.host_ports.clone());
        let edge = Arc::clone(&self.edge);
        let changes = match Changes::listen() {
            Ok(changes) => changes,
            Err(error) => {
                tracing::error!(%error, "this machine's addresses cannot be followed: services are not kept up to date");
                return;
            }
        };
        let mut state = State {
            catalogue: Catalogue::default(),
            ranges: ServiceCidrs::of_cluster(&self.view.service_cidrs),
            mappings: Mappings::new(),
            told: HashSet::new(),
            synced: false,
            health: HealthServers::default(),
            sync: self,
        };
        loop {
            let mut events = Events::default();
            tokio::select! {
                event = services.recv() => match event {
                    Some(event) => events.services.push(event),
                    None => return,
                },
                event = slices.recv() => match event {
                    Some(event) => events.slices.push(event),
                    None => return,
                },
                event = ranges.recv() => match event {
                    Some(event) => events.ranges.push(event),
                    None => return,
                },
                Ok(()) = own.changed() => {}
                Ok(()) = host_ports.changed() => {}
                () = edge.known() => events.edge_known = true,
                result = changes.next() => if let Err(error) = result {
                    tracing::error!(%error, "this machine's addresses were not followed");
                    return;
                },
            }
            take_all(&mut services, &mut events.services);
            take_all(&mut slices, &mut events.slices);
            take_all(&mut ranges, &mut events.ranges);
            events.mappings = host_ports.borrow_and_update().clone();
            events.zone = own.borrow_and_update().zone.clone();
            let done = tokio::task::spawn_blocking(move || {
                state.take(events);
                state
            });
            state = match done.await {
                Ok(state) => state,
                Err(_) => {
                    tracing::error!("the service proxy broke; services stay as they are until the agent is restarted");
                    return;
                }
            };
        }
    }
}

fn take_all(events: &mut mpsc::Receiver<ListWatchEvent>, into: &mut Vec<ListWatchEvent>) {
    while let Ok(event) = events.try_recv() {
        into.push(event);
    }
}

/// What has come since the last round.
#[derive(Default)]
struct Events {
    services: Vec<ListWatchEvent>,
    slices: Vec<ListWatchEvent>,
    ranges: Vec<ListWatchEvent>,
    zone: Option<String>,
    mappings: Mappings,
    /// The packet programs are loaded, or will never be.
    edge_known: bool,
}

struct State {
    sync: ServiceSync,
    catalogue: Catalogue,
    ranges: ServiceCidrs,
    /// Those of [`host_ports`] that the proxy has.
    mappings: Mappings,
    /// What operators were told of services, so that they are told once.
    told: HashSet<(ServiceName, String)>,
    synced: bool,
    health: HealthServers,
}

impl State {
    fn take(&mut self, events: Events) {
        for event in events.services {
            self.catalogue.take_service(event);
        }
        for event in events.slices {
            self.catalogue.take_slice(event, &self.sync.view.name);
        }
        self.look_at_addresses();
        if self.ranges.take(events.ranges) {
            self.sync.view.service_cidrs = self.ranges.all();
            self.catalogue.touch_all();
        }
        if events.zone != self.sync.view.zone {
            self.sync.view.zone = events.zone;
            self.catalogue.touch_all();
        }
        if self.catalogue.services_listed && std::mem::take(&mut self.catalogue.services_changed) {
            self.sync.services.store(Arc::new(self.catalogue.services()));
        }
        if events.edge_known {
            self.catalogue.touch_direct();
        }
        if self.catalogue.is_complete() {
            self.bring_up_to_date(events.mappings);
        }
    }

    /// Node ports are served on the node's addresses, and external addresses among them are the cluster's.
    fn look_at_addresses(&mut self) {
        let sync = &mut self.sync;
        let found = addresses::list().map(Vec::from_iter);
        let found = match found {
            Ok(found) if found == sync.view.addresses => return,
            Ok(found) => found,
            Err(error) => return tracing::error!(%error, "this machine's addresses cannot be listed"),
        };
        let ranges = &sync.node_port_addresses;
        let served = found
            .iter()
            .copied()
            .filter(|address| addresses::serves(*address, ranges));
        if let Err(error) = sync.proxy.set_addresses(&served.collect::<Vec<_>>()) {
            return tracing::error!(%error, "node ports are not served on all addresses");
        }
        sync.view.addresses = found;
        self.catalogue.touch_all();
    }

    fn bring_up_to_date(&mut self, mappings: Mappings) {
        let began = std::time::Instant::now();
        let changed = self.catalogue.take_changed();
        let view = &self.sync.view;
        let groups = changed
            .iter()
            .map(|name| (name.clone(), self.catalogue.groups(name, view)));
        let mut groups: BTreeMap<ServiceName, Vec<Group>> = groups.collect();
        groups.extend(host_ports::difference(&self.mappings, &mappings));
        self.mappings = mappings;
        let result = if self.synced {
            let changes = groups.iter().map(|(name, groups)| (name, groups.as_slice()));
            self.sync.proxy.update(changes)
        } else {
            groups.insert(ServiceName::new("", DNS), proxy::dns(view));
            self.sync.proxy.apply(&groups)
        };
        match result {
            Ok(report) => self.report(&changed, &report),
            Err(error) => {
                self.sync.status.failed();
                tracing::error!(%error, "the service proxy's maps were not updated");
            }
        }
        self.sync.status.updated(&self.sync.proxy.usage(), began.elapsed());
        for name in &changed {
            self.health.update(name, self.catalogue.health(name));
        }
        let records = changed.iter().map(|name| self.catalogue.records(name)).collect();
        if self.synced {
            self.sync.dns.apply(records);
        } else {
            self.sync.dns.replace(records);
        }
        self.synced = true;
    }

    fn report(&mut self, changed: &HashSet<ServiceName>, report: &Report) {
        let sources = self.sync.proxy.source_ranges();
        if report.sources_changed
            && let Err(error) = self.sync.edge.set_sources(sources)
        {
            tracing::error!(%error, "the source ranges of services were not updated");
        }
        self.told.retain(|(name, _)| !changed.contains(name));
        for Rejected {
            service,
            frontend,
            reason,
        } in &report.rejected
        {
            let message = format!("{frontend} is not served on this node: {reason}");
            self.tell(service, "ServiceNotServed", message);
        }
        let indirect = self.sync.edge.get().and_then(|edge| edge.no_direct_return());
        for name in changed {
            let asks = self.catalogue.service(name).is_some_and(proxy::asks_direct_return);
            if let (true, Some(why)) = (asks, indirect) {
                let message = format!("backends on other nodes answer through this node: {why}");
                self.tell(name, "DirectReturnImpossible", message);
            }
            let wrong = self
                .catalogue
                .service(name)
                .and_then(|service| proxy::algorithm(service).err());
            if let Some(wrong) = wrong {
                let message = format!(
                    "annotation {}: {wrong:?} is none of random, maglev, least-connections, power-of-two; random it is",
                    proxy::BALANCE
                );
                self.tell(name, "UnknownBalance", message);
            }
        }
    }

    /// Once for each change of the service, however often it is tried.
    fn tell(&mut self, service: &ServiceName, reason: &str, message: String) {
        if !self.told.insert((service.clone(), message.clone())) {
            return;
        }
        tracing::error!(%service, message, "service proxy");
        let uid = |service: &Service| service.metadata.uid.clone();
        let about = About {
            kind: "Service",
            namespace: service.namespace.to_string(),
            name: service.name.to_string(),
            uid: self.catalogue.service(service).and_then(uid).unwrap_or_default(),
            field_path: String::new(),
        };
        self.sync.events.record(Event {
            kind: Kind::Warning,
            reason: reason.to_owned(),
            message,
            about,
        });
    }
}
