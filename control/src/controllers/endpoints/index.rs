//! Which services select which pods, and which slices belong to which service, without looking at all of them.
//!
//! Fed by every event of pods, services and slices; what it answers is where to look, never the truth: names in it may be
//! of objects that are gone or changed, but nothing that matches is missing. A service is filed under one pair of its
//! selector, a pod under every one of its labels.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::service::Service;
use super::{SERVICE_NAME, SERVICES, SLICES};
use crate::cache::{Event, EventKind, Object};

type Names = HashSet<Arc<str>>;
/// A label and its value as one text: `=` is in no label's name.
type Pair = Box<str>;

/// Shared by the controllers of endpoints; the first of them feeds it.
#[derive(Debug, Default)]
pub struct Index(Mutex<HashMap<Arc<str>, Space>>);

/// One namespace.
#[derive(Debug, Default)]
struct Space {
    pods: HashMap<Pair, Names>,
    services: HashMap<Pair, Names>,
    /// The whole selector of each service, and which of its pairs it is filed under.
    selectors: HashMap<Arc<str>, (Vec<Pair>, Pair)>,
    slices: HashMap<Box<str>, Names>,
    /// Services whose hints follow the processors of the zones.
    proportional: Names,
}

impl Index {
    /// Takes note of an event.
    pub fn observe(&self, event: &Event) {
        let object = &event.object;
        let mut spaces = self.0.lock();
        let space = spaces.entry(object.namespace.clone()).or_default();
        let current = (event.kind != EventKind::Deleted).then_some(&**object);
        match &*object.resource {
            "pods" => space.file_pod(&object.name, event.previous.as_deref(), current),
            SERVICES => space.file_service(&object.name, current),
            SLICES => space.file_slice(&object.name, event.previous.as_deref(), current),
            _ => return,
        }
        if space.is_empty() {
            spaces.remove(&object.namespace);
        }
    }

    /// The services that may select a pod with these labels.
    pub fn services_of(&self, pod: &Object) -> Vec<Arc<str>> {
        let spaces = self.0.lock();
        let Some(space) = spaces.get(&pod.namespace) else {
            return Vec::new();
        };
        let labels: HashSet<Pair> = pairs(pod).collect();
        let filed = labels.iter().filter_map(|pair| space.services.get(pair)).flatten();
        let selects = |name: &&Arc<str>| {
            let selector = space
                .selectors
                .get(*name)
                .map(|(all, _)| all.as_slice())
                .unwrap_or_default();
            selector.iter().all(|pair| labels.contains(pair))
        };
        filed.filter(selects).cloned().collect()
    }

    /// The pods that a service may select, in order of names.
    pub fn pods_of(&self, namespace: &str, service: &str) -> Vec<Arc<str>> {
        let spaces = self.0.lock();
        let Some(space) = spaces.get(namespace) else {
            return Vec::new();
        };
        let selector = space
            .selectors
            .get(service)
            .map(|(all, _)| all.as_slice())
            .unwrap_or_default();
        let groups = selector.iter().map(|pair| space.pods.get(pair));
        // Without a pod for one of the pairs there is none at all.
        let Some(groups) = groups.collect::<Option<Vec<&Names>>>() else {
            return Vec::new();
        };
        let smallest = groups.into_iter().min_by_key(|group| group.len());
        let mut names: Vec<Arc<str>> = smallest.into_iter().flatten().cloned().collect();
        names.sort();
        names
    }

    /// The slices that name a service, in order of names.
    pub fn slices_of(&self, namespace: &str, service: &str) -> Vec<Arc<str>> {
        let spaces = self.0.lock();
        let slices = spaces.get(namespace).and_then(|space| space.slices.get(service));
        let mut names: Vec<Arc<str>> = slices.into_iter().flatten().cloned().collect();
        names.sort();
        names
    }

    /// The services whose hints follow the processors of the zones, as (namespace, name).
    pub fn proportional(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let spaces = self.0.lock();
        let of = |(namespace, space): (&Arc<str>, &Space)| -> Vec<_> {
            let names = space.proportional.iter();
            names.map(|name| (namespace.clone(), name.clone())).collect()
        };
        spaces.iter().flat_map(of).collect()
    }
}

impl Space {
    fn file_pod(&mut self, name: &Arc<str>, previous: Option<&Object>, current: Option<&Object>) {
        let before: HashSet<Pair> = previous.into_iter().flat_map(pairs).collect();
        let now: HashSet<Pair> = current.into_iter().flat_map(pairs).collect();
        for pair in before.difference(&now) {
            take_out(&mut self.pods, pair, name);
        }
        for pair in now.difference(&before) {
            self.pods.entry(pair.clone()).or_default().insert(name.clone());
        }
    }

    fn file_service(&mut self, name: &Arc<str>, current: Option<&Object>) {
        let service = current.and_then(Service::new);
        match service.as_ref().filter(|service| service.is_proportional()) {
            Some(_) => self.proportional.insert(name.clone()),
            None => self.proportional.remove(name),
        };
        let selector = service.and_then(|service| service.spec.selector).unwrap_or_default();
        let selector: Vec<Pair> = selector.iter().map(|(key, value)| pair(key, value)).collect();
        if self.selectors.get(name).is_some_and(|(filed, _)| *filed == selector) {
            return;
        }
        if let Some((_, filed)) = self.selectors.remove(name) {
            take_out(&mut self.services, &filed, name);
        }
        let crowd = |pair: &&Pair| self.services.get(*pair).map_or(0, HashSet::len);
        if let Some(least) = selector.iter().min_by_key(crowd).cloned() {
            self.services.entry(least.clone()).or_default().insert(name.clone());
            self.selectors.insert(name.clone(), (selector, least));
        }
    }

    fn file_slice(&mut self, name: &Arc<str>, previous: Option<&Object>, current: Option<&Object>) {
        let service = |slice: Option<&Object>| slice.and_then(|slice| slice.label(SERVICE_NAME).map(Box::<str>::from));
        let (before, now) = (service(previous), service(current));
        if let Some(before) = before.filter(|before| Some(before) != now.as_ref()) {
            take_out(&mut self.slices, &before, name);
        }
        if let Some(now) = now {
            self.slices.entry(now).or_default().insert(name.clone());
        }
    }

    fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.selectors.is_empty() && self.slices.is_empty() && self.proportional.is_empty()
    }
}

fn take_out(groups: &mut HashMap<Box<str>, Names>, group: &str, name: &str) {
    if let Some(names) = groups.get_mut(group) {
        names.remove(name);
        if names.is_empty() {
            groups.remove(group);
        }
    }
}

fn pair(key: &str, value: &str) -> Pair {
    format!("{key}={value}").into()
}

fn pairs(object: &Object) -> impl Iterator<Item = Pair> {
    object.index.labels.iter().map(|(key, value)| pair(key, value))
}
