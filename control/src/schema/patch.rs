//! placeholder
use serde_json::Value;
/// A patch, by content type.
#[derive(Clone, Debug)]
pub enum Patch { 
    /// application/json-patch+json
    Json(Value), 
    /// application/merge-patch+json
    Merge(Value), 
    /// application/strategic-merge-patch+json
    Strategic(Value) }
/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum PatchError { 
    /// 400
    #[error("{0}")] Malformed(String), 
    /// 422 the patch does not fit the object
    #[error("{0}")] Unprocessable(String), 
    /// 413
    #[error("{0}")] TooLarge(String) }
/// Applies `patch` to `base`, an object of the type.
pub fn apply(_type_name: &str, _base: &Value, _patch: &Patch) -> Result<Value, PatchError> { Ok(Value::Null) }
