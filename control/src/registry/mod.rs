//! What a verb means: create, update, patch, delete, bind and evict of any resource, for HTTP and controllers alike.
//!
//! The registry is the only writer of the cache. It knows nothing of HTTP and nothing of who may do what (api authorizes
//! before it calls), except that RBAC objects may not grant more than their writer has. Every write is compare-and-swap.

mod admission;
mod create;
mod delete;
mod environment;
mod eviction;
mod metadata;
mod options;
mod patch;
mod pods;
mod scale;
mod service;
mod status;
mod token;
mod update;

use std::sync::Arc;

use serde_json::Value;

use crate::auth::{Authorizer, tokens::Tokens};
use crate::cache::{Cache, Change, Expect, Index, Object};
use crate::schema::{self, Resource};
use crate::store::StoreError;

pub use crate::schema::Patch;
pub use environment::{Environment, time_text};
pub(crate) use metadata::stamp_kind;
pub use options::{CreateOptions, DeleteOptions, Propagation, Warnings, WriteOptions};
pub use pods::Binding;
pub use scale::{scale_of, selector_text};
pub use service::{ServiceAllocator, ServiceRange, ServiceRanges};
pub use status::{Cause, Details, Status, qualified};

/// How often a write without a resourceVersion of its own is tried again when another write came between.
const MAX_RETRIES: usize = 32;

/// What became of a delete.
#[derive(Debug)]
pub enum Deleted {
    /// It is gone; this was its last state.
    Gone(Arc<Object>),
    /// It has a `deletionTimestamp` now and goes when its finalizers or its grace period allow.
    Terminating(Arc<Object>),
}

impl Deleted {
    /// The object in its last known state.
    pub fn object(&self) -> &Arc<Object> {
        match self {
            Self::Gone(object) | Self::Terminating(object) => object,
        }
    }
}

/// The verbs.
pub struct Registry {
    cache: Arc<Cache>,
    authorizer: Arc<Authorizer>,
    tokens: Arc<Tokens>,
    services: ServiceAllocator,
    environment: Environment,
}

impl Registry {
    /// A registry that writes to `cache` and gives services addresses of `service_ranges`.
    pub fn new(
        cache: Arc<Cache>,
        authorizer: Arc<Authorizer>,
        tokens: Arc<Tokens>,
        service_ranges: ServiceRanges,
        environment: Environment,
    ) -> Self {
        Self {
            cache,
            authorizer,
            tokens,
            services: ServiceAllocator::new(service_ranges),
            environment,
        }
    }

    /// Where to read.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Who may do what.
    pub fn authorizer(&self) -> &Arc<Authorizer> {
        &self.authorizer
    }

    /// Issuer of service-account tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Clock and randomness.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The object, or a 404.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        self.cache
            .get(resource.key, namespace, name)
            .ok_or_else(|| Status::not_found(resource, name))
    }

    /// Commits one put (`Some`) or delete (`None`).
    async fn commit(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        object: Option<Value>,
        expect: Expect,
    ) -> Result<Arc<Object>, StoreError> {
        let change = Change {
            resource: resource.key.into(),
            namespace: namespace.into(),
            name: name.into(),
            object,
            expect,
        };
        let mut states = self.cache.commit(vec![change]).await?;
        states.pop().ok_or(StoreError::Closed)
    }
}

/// The row whose version is the stored one (`events.k8s.io/v1` events are stored as core events).
fn storage_row(resource: &'static Resource) -> &'static Resource {
    if resource.conversion.is_some() {
        schema::by_key(resource.key).unwrap_or(resource)
    } else {
        resource
    }
}

/// An object that was not written: the answer to a dry run.
fn unsaved(resource: &'static Resource, value: &Value, current: Option<&Object>) -> Arc<Object> {
    let name = (
        resource.key,
        metadata::text(value, "/metadata/namespace"),
        metadata::text(value, "/metadata/name"),
    );
    let (revision, created) = current.map_or((0, 0), |object| (object.revision, object.created));
    Arc::new(Object::new(name, revision, created, Index::default(), value))
}
