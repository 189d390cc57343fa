//! Defaults of Endpoints and EndpointSlices.

use serde_json::Value;

use super::{fill, fill_text, items};

/// Defaults of Endpoints.
pub(in super::super) fn endpoints(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    for subset in items(fields, "subsets") {
        for port in items(subset, "ports") {
            fill_text(port, "protocol", "TCP");
        }
    }
}

/// Defaults of an EndpointSlice.
pub(in super::super) fn endpoint_slice(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    for port in items(fields, "ports") {
        fill(port, "name", "");
        fill_text(port, "protocol", "TCP");
    }
}
