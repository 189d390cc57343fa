//! placeholder: see the module's owner (S). Signatures only, written by A so that registry, api and controllers compile.
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cache::Cache;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Extra.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a> {
    /// Verb.
    pub verb: &'a str,
    /// Group.
    pub group: &'a str,
    /// Resource.
    pub resource: &'a str,
    /// Subresource.
    pub subresource: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// Path of a non-resource request.
    pub non_resource_path: Option<&'a str>,
}

/// Authorizes.
pub struct Authorizer {}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow(String),
    /// No.
    Deny(String),
}

impl Authorizer {
    /// New.
    pub fn new(_cache: Arc<Cache>) -> Self {
        Self {}
    }
    /// Authorize.
    pub fn authorize(&self, _user: &User, _attributes: &Attributes<'_>) -> Decision {
        Decision::Allow(String::new())
    }
}

/// Authenticates.
pub struct Authenticator {}

/// Bad credentials.
#[derive(Debug, thiserror::Error)]
#[error("unauthenticated")]
pub struct Unauthenticated;

impl Authenticator {
    /// New.
    pub fn new(_cache: Arc<Cache>, _tokens: Arc<tokens::Tokens>) -> Self {
        Self {}
    }
    /// Authenticate.
    pub fn authenticate(&self, _cert: Option<&[u8]>, _bearer: Option<&str>) -> Result<User, Unauthenticated> {
        Ok(User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() })
    }
}

/// Service account tokens.
pub mod tokens {
    /// Issues and verifies.
    pub struct Tokens {}
    impl Tokens {
        /// Load.
        pub fn load(_key: &std::path::Path) -> Result<Self, String> {
            Ok(Self {})
        }
    }
}

/// Default roles and bindings.
pub fn bootstrap() -> Vec<serde_json::Value> {
    Vec::new()
}
