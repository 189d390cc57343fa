//! The ranges that services have addresses in: the cluster's own, and those of ServiceCIDRs that were added.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::client::ListWatchEvent;
use crate::network::Cidr;

/// Where the API has them.
pub(super) const PATH: &str = "/apis/networking.k8s.io/v1/servicecidrs";

/// All of them.
pub(super) struct ServiceCidrs {
    own: Vec<Cidr>,
    /// By the object's name. One that is being deleted still has its services.
    added: BTreeMap<String, Vec<Cidr>>,
}

impl ServiceCidrs {
    pub(super) fn of_cluster(own: &[Cidr]) -> Self {
        Self {
            own: own.to_vec(),
            added: BTreeMap::new(),
        }
    }

    /// The cluster's own first, without duplicates.
    pub(super) fn all(&self) -> Vec<Cidr> {
        let mut all = self.own.clone();
        for range in self.added.values().flatten() {
            if !all.contains(range) {
                all.push(*range);
            }
        }
        all
    }

    /// Takes note of events. Whether the ranges are others now.
    pub(super) fn take(&mut self, events: Vec<ListWatchEvent>) -> bool {
        let before = self.all();
        for event in events {
            match event {
                ListWatchEvent::Listed(items) => self.added = items.iter().map(ranges).collect(),
                ListWatchEvent::Applied(item) => self.added.extend([ranges(&item)]),
                ListWatchEvent::Deleted(item) => drop(self.added.remove(&ranges(&item).0)),
            }
        }
        before != self.all()
    }
}

fn ranges(object: &Value) -> (String, Vec<Cidr>) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let texts = object["spec"]["cidrs"].as_array().into_iter().flatten();
    let ranges = texts.filter_map(|text| text.as_str()?.parse().ok());
    (name.to_owned(), ranges.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ranges_come_and_go_but_the_clusters_own_stay() {
        let object = |name: &str, range: &str| json!({"metadata": {"name": name}, "spec": {"cidrs": [range]}});
        let mut known = ServiceCidrs::of_cluster(&["10.96.0.0/16".parse().unwrap()]);
        let default = object("kubernetes", "10.96.0.0/16");
        assert!(!known.take(vec![ListWatchEvent::Listed(vec![default])]));
        assert!(known.take(vec![ListWatchEvent::Applied(object("more", "10.99.0.0/24"))]));
        assert_eq!(
            known.all(),
            ["10.96.0.0/16", "10.99.0.0/24"].map(|text| text.parse().unwrap())
        );
        assert!(known.take(vec![ListWatchEvent::Deleted(object("more", "10.99.0.0/24"))]));
        assert!(!known.take(vec![ListWatchEvent::Listed(vec![])]));
        assert_eq!(known.all().len(), 1);
    }
}
