//! placeholder
use serde_json::Value;
pub(super) fn to_core(_: &mut Value) {}
pub(super) fn from_core(_: &mut Value) {}
