//! The shape of a controller: events name keys, a key is reconciled into writes. Nothing here acts.
//!
//! `reconcile` is a function of what it sees, of the clock it is given and of its own memory; it never blocks, and one key
//! is never reconciled twice at the same time. Kubernetes: "Controllers", level-triggered: a key says where to look, not
//! what happened.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::view::View;
use crate::cache::{Event, Object};
use crate::registry::Propagation;

/// What to look at again: usually one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The resource, as in [`Object::resource`].
    pub resource: Arc<str>,
    /// Its namespace, or empty.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its parts.
    pub fn new(resource: impl Into<Arc<str>>, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of an object.
    pub fn of(object: &Object) -> Self {
        Self {
            resource: object.resource.clone(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
        }
    }
}

/// Both clocks. Ages that decide over life and death (leases, evictions) are measured on the monotonic one, so that a
/// jump of the wall clock changes nothing.
#[derive(Clone, Debug)]
pub struct Now {
    /// For what is written into objects.
    pub wall: Timestamp,
    /// Since an arbitrary start; never goes back.
    pub monotonic: Duration,
}

/// What `reconcile` is told besides the key.
pub struct Context<'a> {
    /// The objects.
    pub view: &'a dyn View,
    /// The time.
    pub now: Now,
    /// Why a write of this key's last reconcile was refused, if it was.
    pub failure: Option<&'a str>,
}

/// One change to be made through the registry. Objects are whole and raw: what the controller does not know is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Create `object`; its name may be left to `generateName`.
    Create {
        /// The resource.
        resource: Arc<str>,
        /// Namespace, or empty.
        namespace: Arc<str>,
        /// The object.
        object: Value,
    },
    /// Replace an object (or one subresource of it) at the revision its `metadata.resourceVersion` names.
    Update {
        /// The object's key.
        key: Key,
        /// E.g. `status`.
        subresource: Option<&'static str>,
        /// The whole object.
        object: Value,
    },
    /// Delete an object, if it still has this uid.
    Delete {
        /// The object's key.
        key: Key,
        /// The uid seen.
        uid: Arc<str>,
        /// `Some(0)` does not wait for the node.
        grace_period_seconds: Option<i64>,
        /// What happens to dependents.
        propagation: Option<Propagation>,
    },
}

/// An `Event` to be recorded about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// `involvedObject`.
    pub about: Value,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Notice {
    /// A `Normal` event.
    pub fn normal(object: &Object, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            about: reference(object),
            warning: false,
            reason,
            message: message.into(),
        }
    }

    /// A `Warning` event.
    pub fn warning(object: &Object, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            about: reference(object),
            warning: true,
            reason,
            message: message.into(),
        }
    }
}

/// An `ObjectReference` to an object.
pub fn reference(object: &Object) -> Value {
    let body = object.value();
    json!({
        "apiVersion": body["apiVersion"],
        "kind": body["kind"],
        "namespace": &*object.namespace,
        "name": &*object.name,
        "uid": &*object.index.uid,
        "resourceVersion": object.revision.to_string(),
    })
}

/// The events that tell how a write went. `{}` in the message stands for the name of the object written, or for the error.
#[derive(Clone, Debug, PartialEq)]
pub struct Announce {
    /// When it succeeded.
    pub success: Notice,
    /// When it was refused; the controller's next reconcile learns of it too.
    pub failure: Notice,
}

/// A write and what to say about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// The write.
    pub write: Write,
    /// Its events.
    pub announce: Option<Box<Announce>>,
}

/// What is to be done. The operations are independent of each other and run at the same time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The writes.
    pub operations: Vec<Operation>,
    /// Events not tied to a write.
    pub notices: Vec<Notice>,
    /// Look again after this time, even if nothing happens.
    pub requeue_after: Option<Duration>,
}

impl Outcome {
    /// Add a write without events.
    pub fn write(&mut self, write: Write) {
        self.operations.push(Operation { write, announce: None });
    }

    /// Add a replacement of an object.
    pub fn update(&mut self, object: &Object, subresource: Option<&'static str>, value: Value) {
        self.write(Write::Update {
            key: Key::of(object),
            subresource,
            object: value,
        });
    }

    /// Add a deletion of an object with the default grace period.
    pub fn delete(&mut self, object: &Object, propagation: Option<Propagation>) {
        self.write(delete(object, None, propagation));
    }

    /// Add a deletion that does not wait for the node.
    pub fn kill(&mut self, object: &Object) {
        self.write(delete(object, Some(0), None));
    }

    /// Look again no later than after `time`.
    pub fn requeue(&mut self, time: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(time, |earlier| earlier.min(time)));
    }
}

/// The deletion of an object as seen.
pub fn delete(object: &Object, grace_period_seconds: Option<i64>, propagation: Option<Propagation>) -> Write {
    Write::Delete {
        key: Key::of(object),
        uid: object.index.uid.as_ref().into(),
        grace_period_seconds,
        propagation,
    }
}

/// One control loop.
pub trait Controller: Send {
    /// For logs and as `source.component` of its events.
    fn name(&self) -> &'static str;

    /// Keys to look at once at the start, besides those of the objects there are.
    fn start(&self) -> Vec<Key> {
        Vec::new()
    }

    /// The keys that an event concerns. At the start every object arrives as added.
    fn keys(&self, view: &dyn View, event: &Event, add: &mut dyn FnMut(Key));

    /// What is to be done about a key.
    fn reconcile(&mut self, context: &Context<'_>, key: &Key) -> Outcome;
}
