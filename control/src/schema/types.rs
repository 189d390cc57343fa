//! placeholder
/// The OpenAPI name of a kind's type.
pub fn type_for(_group: &str, _version: &str, _kind: &str) -> Option<&'static str> { None }
