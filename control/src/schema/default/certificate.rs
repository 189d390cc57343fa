//! What an update of a CertificateSigningRequest cannot change: what was asked for, and by whom.

use serde_json::Value;

/// Keeps the spec; a client may change labels and the like.
pub(in super::super) fn on_update(new: &mut Value, old: &Value) {
    if let Some(fields) = new.as_object_mut() {
        fields.insert("spec".to_owned(), old["spec"].clone());
    }
}
