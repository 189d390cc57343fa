//! Who asks, and whether they may: authentication, RBAC, the node authorizer, service-account tokens.
//!
//! Everything is decided from the cache, in memory. What nobody allows is denied. Kubernetes' "Authenticating",
//! "Using RBAC Authorization", "Using Node Authorization" and "Managing Service Accounts" are the specification.

mod authenticator;
mod authorizer;
mod bootstrap;
pub mod bootstrap_token;
mod node;
mod rbac;
pub mod tokens;

use std::collections::BTreeMap;

pub use self::authenticator::{Authenticator, Unauthenticated, certificate_user};
pub use self::authorizer::Authorizer;
pub use self::bootstrap::{NODE_SETTINGS, bootstrap};

/// The group whose members may do everything.
pub const MASTERS: &str = "system:masters";

/// The user of requests without any credentials, where those are answered at all.
pub const ANONYMOUS: &str = "system:anonymous";

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Unique id; empty for users known by certificate.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Further facts, e.g. the pod a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a> {
    /// Verb: `get`, `list`, `watch`, `create`, …; for paths that are no resources the method in lower case.
    pub verb: &'a str,
    /// API group, empty for the core.
    pub group: &'a str,
    /// Resource (plural).
    pub resource: &'a str,
    /// Subresource, or empty.
    pub subresource: &'a str,
    /// Namespace, or empty.
    pub namespace: &'a str,
    /// Name, or empty; for a list or watch the name its field selector asks for.
    pub name: &'a str,
    /// Path of a request that is for no resource.
    pub non_resource_path: Option<&'a str>,
    /// The field selector of a list or watch, when the API server tells: a node may then list only its own pods.
    pub field_selector: Option<&'a str>,
}

/// The answer, with the reason (for audit, and for the error's text).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow(String),
    /// No.
    Deny(String),
}
