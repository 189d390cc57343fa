//! A row of the resource table, and how to find one.
//!
//! Everything the API server does with a kind is driven by its [`Resource`] row: routes, discovery, decoding, defaults,
//! validation, what a write resets or keeps, field selectors. Adding a kind is adding a row (`rows.rs`) and, if its
//! type is not there yet, naming it in `xtask/src/schema.rs`.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::error::FieldError;
use super::rows::ROWS;
use super::strategy::Strategy;

/// What a name of this kind may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 characters.
    Subdomain,
    /// RFC 1123 label, at most 63 characters.
    Label,
    /// RFC 1035 label (begins with a letter), at most 63 characters.
    Label1035,
    /// Anything usable as one segment of a URL path (RBAC).
    PathSegment,
}

/// A subresource, e.g. `status`, `scale`, `log`.
#[derive(Debug)]
pub struct Subresource {
    /// Last path segment.
    pub name: &'static str,
    /// Group of the body's kind.
    pub group: &'static str,
    /// Version of the body's kind.
    pub version: &'static str,
    /// The body's kind, e.g. `Scale`, `Eviction`; the resource's own kind for `status`.
    pub kind: &'static str,
    /// Verbs served.
    pub verbs: &'static [&'static str],
}

impl Subresource {
    /// The OpenAPI name of the body's type.
    pub fn type_name(&self) -> &'static str {
        super::type_for(self.group, self.version, self.kind).unwrap_or_default()
    }
}

/// One row of the table: a resource of a group-version.
#[derive(Debug)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version, e.g. `v1`.
    pub version: &'static str,
    /// Kind, e.g. `Deployment`.
    pub kind: &'static str,
    /// Name in paths, e.g. `deployments`.
    pub plural: &'static str,
    /// Singular name, e.g. `deployment`.
    pub singular: &'static str,
    /// Short names for kubectl, e.g. `deploy`.
    pub short_names: &'static [&'static str],
    /// Categories, e.g. `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs served on the resource itself.
    pub verbs: &'static [&'static str],
    /// Subresources.
    pub subresources: &'static [Subresource],
    /// OpenAPI name of the type, e.g. `io.k8s.api.apps.v1.Deployment`.
    pub type_name: &'static str,
    /// Fields that field selectors may use beside `metadata.name` and `metadata.namespace`.
    pub selectable_fields: &'static [&'static str],
    /// Storage key, e.g. `apps/deployments`. Two rows with one key are two views of one storage (the two `events`).
    pub key: &'static str,
    /// Whether objects are stored; `false` for reviews and other virtual resources that only answer.
    pub storage: bool,
    /// What names may be.
    pub name_rule: NameRule,
    /// Fills in defaults. Idempotent.
    pub default: fn(&mut Value),
    /// Semantic validation, metadata included. `old` is the stored object on update.
    pub validate: fn(&Value, old: Option<&Value>) -> Vec<FieldError>,
    /// What a create or update resets, keeps and counts.
    pub strategy: Strategy,
    /// Converts a request body of this version to the stored form, and back; `None` where they are the same.
    pub conversion: Option<Conversion>,
}

/// How one version's body becomes the stored body and back (used by `events.k8s.io/v1`, stored as core `v1`).
#[derive(Clone, Copy, Debug)]
pub struct Conversion {
    /// This version → stored.
    pub to_storage: fn(&mut Value),
    /// Stored → this version.
    pub from_storage: fn(&mut Value),
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The kind of a list, e.g. `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource>
    where
        Self: 'static,
    {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    /// Whether the verb is served on the resource itself.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Whether a field selector may use `path`.
    pub fn is_selectable(&self, path: &str) -> bool {
        matches!(path, "metadata.name")
            || (self.namespaced && path == "metadata.namespace")
            || self.selectable_fields.contains(&path)
    }
}

/// All rows.
pub fn resources() -> &'static [Resource] {
    ROWS
}

/// The row that owns a storage key, e.g. `apps/deployments`.
pub fn by_key(key: &str) -> Option<&'static Resource> {
    static INDEX: LazyLock<HashMap<&'static str, &'static Resource>> =
        LazyLock::new(|| ROWS.iter().rev().map(|row| (row.key, row)).collect());
    INDEX.get(key).copied()
}

/// The row for a path's group, version and plural.
pub fn by_gvr(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    ROWS.iter()
        .find(|row| row.plural == plural && row.group == group && row.version == version)
}

/// The row for a body's group, version and kind.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    ROWS.iter()
        .find(|row| row.kind == kind && row.group == group && row.version == version)
}
