//! Objects as the cache holds them, and their encoding in the store.
//!
//! A stored value is a little-endian `u32`, then the object's JSON without `metadata.resourceVersion`; the number is the
//! offset in the JSON just behind the `{` of `metadata`. There the revision, known only when the write is committed, is
//! spliced in: the body is encoded once, by the writer's task, and never decoded again to be served.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Index, Revision};

/// Bytes of the offset before the JSON.
const OFFSET: usize = 4;

/// One object at one revision. Cheap to share; the body is encoded once for every list and watch.
#[derive(Debug)]
pub struct Object {
    /// Resource: `plural` for the core group, else `group/plural`.
    pub resource: Arc<str>,
    /// Namespace; empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Revision of the last write (`metadata.resourceVersion`).
    pub revision: Revision,
    /// Revision of the creation.
    pub created: Revision,
    /// Extracted fields.
    pub index: Index,
    /// The JSON body, `metadata.resourceVersion` included.
    pub body: Bytes,
}

impl Object {
    /// An object as if it had been committed at `revision`: for tests of what reads objects.
    pub fn new(
        (resource, namespace, name): (&str, &str, &str),
        revision: Revision,
        created: Revision,
        index: Index,
        value: &Value,
    ) -> Self {
        let name = (resource.into(), namespace.into(), name.into());
        Self::build(name, revision, created, index, &encode_parts(value, Vec::new()))
    }

    /// From a stored value; `None` if it is not one.
    pub(super) fn decode(
        (resource, namespace, name): (Arc<str>, Arc<str>, Arc<str>),
        revision: Revision,
        created: Revision,
        index: Index,
        stored: &[u8],
    ) -> Option<Self> {
        let (json, splice) = stored_parts(stored)?;
        let body = spliced(&json[..splice], &json[splice..], revision);
        Some(Self {
            resource,
            namespace,
            name,
            revision,
            created,
            index,
            body,
        })
    }

    /// The same state under another revision: what watchers are told when the object is deleted or leaves their selector.
    pub(super) fn at(&self, revision: Revision) -> Self {
        let name = (self.resource.clone(), self.namespace.clone(), self.name.clone());
        Self::build(
            name,
            revision,
            self.created,
            self.index.clone(),
            &encode_parts(&self.value(), Vec::new()),
        )
    }

    fn build(
        (resource, namespace, name): (Arc<str>, Arc<str>, Arc<str>),
        revision: Revision,
        created: Revision,
        index: Index,
        (json, splice): &(Vec<u8>, usize),
    ) -> Self {
        let body = spliced(&json[..*splice], &json[*splice..], revision);
        Self {
            resource,
            namespace,
            name,
            revision,
            created,
            index,
            body,
        }
    }

    /// The decoded body.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body decoded into a type.
    ///
    /// # Errors
    /// What serde says when the body does not fit the type.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }

    /// An indexed field, e.g. `spec.nodeName`.
    pub fn field(&self, path: &str) -> Option<&str> {
        self.index.field(path)
    }

    /// A label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.index.label(key)
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        &self.index.uid
    }
}

impl Index {
    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.labels[at].1)
    }

    /// A selectable field's value.
    pub fn field(&self, path: &str) -> Option<&str> {
        self.fields.iter().find(|(p, _)| *p == path).map(|(_, value)| &**value)
    }
}

const RESOURCE_VERSION: &[u8] = b"\"resourceVersion\":\"";

/// An object's value in the store.
pub(super) fn encode(object: &Value) -> Bytes {
    let (mut out, splice) = encode_parts(object, vec![0; OFFSET]);
    // No body reaches 4 GiB: requests are limited to a few MiB.
    let offset = u32::try_from(splice).unwrap_or(u32::MAX);
    out[..OFFSET].copy_from_slice(&offset.to_le_bytes());
    out.into()
}

/// The JSON within a stored value, as a `Value`, without `metadata.resourceVersion`.
pub(super) fn decode_value(stored: &[u8]) -> Option<Value> {
    serde_json::from_slice(stored_parts(stored)?.0).ok()
}

fn stored_parts(stored: &[u8]) -> Option<(&[u8], usize)> {
    let (offset, json) = stored.split_first_chunk::<OFFSET>()?;
    let splice = usize::try_from(u32::from_le_bytes(*offset)).ok()?;
    (splice > 0 && json.get(splice - 1) == Some(&b'{') && splice < json.len()).then_some((json, splice))
}

/// Append the JSON of `object` to `out`, always with a `metadata`, never with a resourceVersion.
fn encode_parts(object: &Value, mut out: Vec<u8>) -> (Vec<u8>, usize) {
    let start = out.len();
    let mut splice = 0;
    out.push(b'{');
    let empty = Value::Object(serde_json::Map::new());
    let fields = object.as_object().into_iter().flatten();
    let missing = object.get("metadata").is_none_or(|m| !m.is_object());
    let fields = fields
        .map(|(key, value)| (key.as_str(), value))
        .filter(|(key, _)| !(missing && *key == "metadata"))
        .chain(missing.then_some(("metadata", &empty)));
    for (at, (key, value)) in fields.enumerate() {
        member(&mut out, at == 0, key);
        match value.as_object() {
            Some(metadata) if key == "metadata" => {
                out.push(b'{');
                splice = out.len() - start;
                let members = metadata.iter().filter(|(key, _)| *key != "resourceVersion");
                for (at, (key, value)) in members.enumerate() {
                    member(&mut out, at == 0, key);
                    json(&mut out, value);
                }
                out.push(b'}');
            }
            _ => json(&mut out, value),
        }
    }
    out.push(b'}');
    (out, splice)
}

fn member(out: &mut Vec<u8>, first: bool, key: &str) {
    if !first {
        out.push(b',');
    }
    json(out, key);
    out.push(b':');
}

fn json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Writing a JSON value or string to memory has no way to fail.
    let _ = serde_json::to_writer(out, value);
}

fn spliced(before: &[u8], after: &[u8], revision: Revision) -> Bytes {
    let mut body = Vec::with_capacity(before.len() + after.len() + RESOURCE_VERSION.len() + 22);
    body.extend_from_slice(before);
    body.extend_from_slice(RESOURCE_VERSION);
    body.extend_from_slice(revision.to_string().as_bytes());
    body.push(b'"');
    if after.first() != Some(&b'}') {
        body.push(b',');
    }
    body.extend_from_slice(after);
    body.into_boxed_slice().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn through_the_store(value: &Value, revision: Revision) -> Object {
        let name = || ("pods".into(), "d".into(), "n".into());
        Object::decode(name(), revision, 1, Index::default(), &encode(value)).unwrap()
    }

    #[test]
    fn the_revision_is_spliced_in_and_replaced() {
        for value in [
            json!({"kind": "Pod", "metadata": {"name": "n", "resourceVersion": "999"}, "spec": {"a": ["\"metadata\":{"]}}),
            json!({"metadata": {}}),
            json!({"metadata": {"resourceVersion": "1"}}),
            json!({"a": {"metadata": {"name": "inner"}}, "metadata": {"zz": 1}}),
            json!({}),
            json!({"metadata": null, "x": 1}),
        ] {
            let object = through_the_store(&value, 42);
            let mut expected = value.clone();
            if !expected["metadata"].is_object() {
                expected["metadata"] = json!({});
            }
            expected["metadata"]["resourceVersion"] = "42".into();
            assert_eq!(object.value(), expected);
            let later = object.at(1_000_000);
            expected["metadata"]["resourceVersion"] = "1000000".into();
            assert_eq!(later.value(), expected);
            assert_eq!(later.at(42).value(), object.value());
        }
    }

    #[test]
    fn what_is_no_stored_value_is_refused() {
        for stored in [&b""[..], b"\0\0\0", b"\0\0\0\0{}", b"\x09\0\0\0{}", b"\x02\0\0\0{}"] {
            let name = ("pods".into(), "d".into(), "n".into());
            assert!(
                Object::decode(name, 1, 1, Index::default(), stored).is_none(),
                "{stored:?}"
            );
        }
    }
}
