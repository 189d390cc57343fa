//! A store without a disk, for tests of what stands on a store, and for simulations.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::heads::Heads;
use super::{BoxFuture, KeyValue, Publish, Revision, Store, StoreError, Write};

/// A key space in memory with the semantics of every [`Store`], except that nothing survives.
#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    heads: Heads,
    values: BTreeMap<Arc<str>, (Bytes, Revision, Revision)>,
    publish: Option<Publish>,
}

impl Store for Memory {
    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            let mut state = self.state.lock();
            let mut pending = state.heads.pending();
            let revision = pending.add(writes)?;
            let changes = pending.into_changes();
            state.heads.accept(&changes);
            for change in &changes {
                match &change.value {
                    Some(value) => {
                        let value = (value.clone(), change.revision, change.created);
                        state.values.insert(change.key.clone(), value);
                    }
                    None => _ = state.values.remove(&change.key),
                }
            }
            if let Some(publish) = &state.publish {
                publish(&changes);
            }
            Ok(revision)
        })
    }

    fn load(&self) -> BoxFuture<'_, Result<(Vec<KeyValue>, Revision), StoreError>> {
        Box::pin(async move {
            let state = self.state.lock();
            let values = state.values.iter().map(|(key, (value, revision, created))| KeyValue {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
                created: *created,
            });
            Ok((values.collect(), state.heads.revision))
        })
    }

    fn subscribe(&self, publish: Publish) {
        self.state.lock().publish = Some(publish);
    }

    fn revision(&self) -> Revision {
        self.state.lock().heads.revision
    }

    fn compact(&self, _through: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
}
