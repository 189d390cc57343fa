//! placeholder
use serde_json::Value;
/// The `fieldValidation` parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode { 
    /// Ignore
    Ignore, 
    /// Warn: the default
    #[default] Warn, 
    /// Strict
    Strict }
/// A warning's text (for the `Warning` header).
pub type Warning = String;
/// HTTP 400 with this text
#[derive(Debug, thiserror::Error)]
pub enum CheckError { 
    /// A value has the wrong type: always an error
    #[error("json: cannot unmarshal {0}")] WrongType(String),
    /// strict mode
    #[error("strict decoding error: {}", .0.join(", "))] Strict(Vec<String>) }
/// check
pub fn check_fields(_type_name: &str, _value: &mut Value, _duplicates: &[String], _mode: Mode) -> Result<Vec<Warning>, CheckError> { Ok(vec![]) }
