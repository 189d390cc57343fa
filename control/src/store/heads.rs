//! Which revision every key is at, and what a batch of transactions would make of it: the compare of compare-and-swap.
//!
//! Invariant: `Heads` describes what is durable. A batch is validated against a [`Pending`] view on top of it, so that a
//! transaction sees those before it in the same batch, and is forgotten as a whole if the batch does not reach the disk.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Change, Expect, Revision, StoreError, Write};

/// A live key's revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) revision: Revision,
    pub(super) created: Revision,
}

/// All live keys.
#[derive(Debug, Default)]
pub(super) struct Heads {
    pub(super) revision: Revision,
    keys: HashMap<Arc<str>, Head>,
}

impl Heads {
    pub(super) fn at(revision: Revision) -> Self {
        Self {
            revision,
            keys: HashMap::new(),
        }
    }

    pub(super) fn insert(&mut self, key: Arc<str>, head: Head) {
        self.keys.insert(key, head);
    }

    #[cfg(test)]
    pub(super) fn live(&self) -> std::collections::BTreeMap<String, (Revision, Revision)> {
        self.keys
            .iter()
            .map(|(key, head)| (key.to_string(), (head.revision, head.created)))
            .collect()
    }

    /// Start a batch on top of this state.
    pub(super) fn pending(&self) -> Pending<'_> {
        Pending {
            heads: self,
            revision: self.revision,
            keys: HashMap::new(),
            changes: Vec::new(),
        }
    }

    /// Take in a batch that is durable.
    pub(super) fn accept(&mut self, changes: &[Change]) {
        for change in changes {
            self.revision = change.revision;
            match change.value {
                Some(_) => {
                    let head = Head {
                        revision: change.revision,
                        created: change.created,
                    };
                    self.keys.insert(change.key.clone(), head);
                }
                None => _ = self.keys.remove(&change.key),
            }
        }
    }
}

/// The state a batch would lead to.
pub(super) struct Pending<'a> {
    heads: &'a Heads,
    revision: Revision,
    keys: HashMap<Arc<str>, Option<Head>>,
    changes: Vec<Change>,
}

impl Pending<'_> {
    fn head(&self, key: &str) -> Option<Head> {
        match self.keys.get(key) {
            Some(head) => *head,
            None => self.heads.keys.get(key).copied(),
        }
    }

    /// Add one transaction, or nothing of it. A transaction without writes has no revision of its own.
    pub(super) fn add(&mut self, writes: Vec<Write>) -> Result<Revision, StoreError> {
        for write in &writes {
            let current = self.head(&write.key).map(|head| head.revision);
            let holds = match write.expect {
                Expect::Absent => current.is_none(),
                Expect::At(revision) => current == Some(revision),
                Expect::Any => true,
            };
            if !holds || (write.value.is_none() && current.is_none()) {
                return Err(StoreError::Conflict {
                    key: write.key.clone(),
                    expected: write.expect,
                    current,
                });
            }
        }
        if writes.is_empty() {
            return Ok(self.revision);
        }
        self.revision += 1;
        let revision = self.revision;
        for Write { key, value, .. } in writes {
            let head = self.head(&key);
            // One allocation per live key, shared by every change of it.
            let key = self
                .heads
                .keys
                .get_key_value(&key)
                .map_or(key, |(known, _)| known.clone());
            let created = head.map_or(revision, |head| head.created);
            self.keys
                .insert(key.clone(), value.is_some().then_some(Head { revision, created }));
            self.changes.push(Change {
                revision,
                key,
                value,
                created,
            });
        }
        Ok(revision)
    }

    /// The changes of the whole batch, in revision order.
    pub(super) fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}
