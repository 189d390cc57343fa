//! Follows the cluster's nodes: the others become routes to their pods, what is said of this one is told to its reporter.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use serde_json::Value;
use tokio::sync::watch;

use crate::client::ListWatchEvent;
use crate::network::{Cidr, NodeRoute};
use crate::pod::api::Api;

/// What the API server has of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// It was listed at all: before that, nothing here means anything.
    pub listed: bool,
    /// Its uid; `None`: there is no such node.
    pub uid: Option<String>,
    /// It is said to be ready.
    pub ready: bool,
    /// Its pod ranges.
    pub ranges: Vec<Cidr>,
    /// Its label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
}

/// The receivers of what is learnt.
pub struct Followed {
    /// The other nodes; changed for the first time when they are known.
    pub others: watch::Receiver<Vec<NodeRoute>>,
    /// This one.
    pub own: watch::Receiver<Own>,
}

/// Follows the nodes for ever, in a task that is returned.
pub fn follow(api: &Arc<dyn Api>, name: &str) -> (Followed, tokio::task::AbortHandle) {
    let mut events = api.follow("/api/v1/nodes".to_owned(), String::new());
    let (others, others_receiver) = watch::channel(Vec::new());
    let (own, own_receiver) = watch::channel(Own::default());
    let mut known = Known::of(name);
    let task = tokio::spawn(async move {
        let mut told = false;
        while let Some(event) = events.recv().await {
            known.take(event);
            while let Ok(event) = events.try_recv() {
                known.take(event);
            }
            own.send_if_modified(|old| replace(old, &known.own));
            if known.own.listed {
                let routes: Vec<NodeRoute> = known.others.values().cloned().collect();
                // Now it is known, even if there are none.
                let first = !std::mem::replace(&mut told, true);
                others.send_if_modified(|old| replace(old, &routes) || first);
            }
        }
    });
    let followed = Followed {
        others: others_receiver,
        own: own_receiver,
    };
    (followed, task.abort_handle())
}

fn replace<T: Clone + PartialEq>(old: &mut T, new: &T) -> bool {
    let differs = old != new;
    if differs {
        old.clone_from(new);
    }
    differs
}

/// The nodes as last heard.
struct Known {
    name: String,
    own: Own,
    others: BTreeMap<String, NodeRoute>,
}

impl Known {
    fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            own: Own::default(),
            others: BTreeMap::new(),
        }
    }

    fn take(&mut self, event: ListWatchEvent) {
        match event {
            ListWatchEvent::Listed(items) => {
                self.others.clear();
                self.own = Own {
                    listed: true,
                    ..Own::default()
                };
                items.into_iter().for_each(|item| self.put(item));
            }
            ListWatchEvent::Applied(item) => self.put(item),
            ListWatchEvent::Deleted(item) => {
                let name = item["metadata"]["name"].as_str().unwrap_or_default();
                if name == self.name {
                    self.own.uid = None;
                }
                self.others.remove(name);
            }
        }
    }

    fn put(&mut self, item: Value) {
        let node: Node = match serde_json::from_value(item) {
            Ok(node) => node,
            Err(error) => {
                tracing::error!(%error, "a node of the API server cannot be decoded and is ignored");
                return;
            }
        };
        let route = NodeRoute::of(&node);
        if route.name != self.name {
            self.others.insert(route.name.clone(), route);
            return;
        }
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
        let labels = node.metadata.labels.as_ref();
        self.own = Own {
            listed: true,
            zone: labels.and_then(|labels| labels.get("topology.kubernetes.io/zone").cloned()),
            uid: node.metadata.uid,
            ready: ready.is_some_and(|condition| condition.status == "True"),
            ranges: route.pod_cidrs,
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn this_node_and_the_others_are_told_apart() {
        let node = |name: &str, ready: &str, range: &str| {
            json!({"metadata": {"name": name, "uid": name}, "spec": {"podCIDRs": [range]},
                "status": {"conditions": [{"type": "Ready", "status": ready}],
                           "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
        };
        let mut known = Known::of("a");
        let list = vec![node("a", "Unknown", "10.0.1.0/24"), node("b", "True", "10.0.2.0/24")];
        known.take(ListWatchEvent::Listed(list));
        assert!(known.own.listed && !known.own.ready && known.own.uid.as_deref() == Some("a"));
        assert_eq!(known.others.keys().collect::<Vec<_>>(), ["b"]);
        known.take(ListWatchEvent::Applied(node("a", "True", "10.0.1.0/24")));
        assert!(known.own.ready && known.own.ranges == ["10.0.1.0/24".parse().unwrap()]);
        known.take(ListWatchEvent::Deleted(node("b", "True", "")));
        known.take(ListWatchEvent::Deleted(node("a", "True", "")));
        assert!(known.others.is_empty() && known.own.uid.is_none() && known.own.listed);
    }
}
