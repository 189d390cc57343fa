//! The edge while its programs are loaded: the kernel checks them for a tenth of a second, and the node is ready before.
//! Invariant: what is decided meanwhile is not lost, but applied as soon as there is an edge.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Edge, Error};
use crate::network::Cidr;

/// Where the edge appears.
#[derive(Default)]
pub struct Slot {
    edge: OnceLock<Option<Arc<Edge>>>,
    known: Notify,
    /// Source ranges that were set before there was an edge.
    sources: Mutex<Option<BTreeMap<u32, Vec<Cidr>>>>,
}

impl Slot {
    /// The result of loading: `None` if this node has to do without.
    pub fn fill(&self, edge: Option<Arc<Edge>>) -> Result<(), Error> {
        let mut sources = self.sources.lock();
        let applied = match (&edge, sources.take()) {
            (Some(edge), Some(sets)) => edge.set_sources(&sets),
            _ => Ok(()),
        };
        let _ = self.edge.set(edge);
        self.known.notify_one();
        applied
    }

    /// The edge, if it is there by now.
    pub fn get(&self) -> Option<&Arc<Edge>> {
        self.edge.get()?.as_ref()
    }

    /// Resolves once, for one task, when it is known whether there is an edge.
    pub async fn known(&self) {
        self.known.notified().await;
    }

    /// The edge, once it is known whether there is one. Blocks.
    pub fn wait(&self) -> Option<&Arc<Edge>> {
        self.edge.wait().as_ref()
    }

    /// [`Edge::set_sources`], now or when there is an edge.
    pub fn set_sources(&self, sets: &BTreeMap<u32, Vec<Cidr>>) -> Result<(), Error> {
        let mut sources = self.sources.lock();
        match self.edge.get() {
            Some(Some(edge)) => edge.set_sources(sets),
            Some(None) => Ok(()),
            None => {
                *sources = Some(sets.clone());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_an_edge_waits_for_nothing() {
        let slot = Slot::default();
        assert!(slot.get().is_none());
        slot.set_sources(&BTreeMap::from([(1, Vec::new())])).unwrap();
        slot.fill(None).unwrap();
        assert!(slot.wait().is_none() && slot.get().is_none());
        slot.set_sources(&BTreeMap::new()).unwrap();
    }
}
