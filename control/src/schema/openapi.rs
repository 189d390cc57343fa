//! placeholder
use bytes::Bytes;
/// The document at `/openapi/v3`: JSON.
pub fn index() -> Bytes { Bytes::new() }
/// The document at `/openapi/v3/<path>`, e.g. `api/v1`, `apis/apps/v1`; `None`: no such group-version.
pub fn document(_path: &str) -> Option<Bytes> { None }
/// The `hash` query parameter of that document, as in the index.
pub fn hash(_path: &str) -> Option<String> { None }
