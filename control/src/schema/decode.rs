//! placeholder
use serde_json::Value;
/// Encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding { 
    /// application/json
    Json, 
    /// application/yaml
    Yaml, 
    /// application/vnd.kubernetes.protobuf
    Protobuf }
/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits { 
    /// Bytes
    pub bytes: usize, 
    /// Nesting
    pub depth: usize }
impl Default for Limits { fn default() -> Self { Limits{bytes: 3<<20, depth: 128} } }
/// A body.
#[derive(Debug, Default)]
pub struct Decoded { 
    /// value
    pub value: Value, 
    /// Paths of fields given twice
    pub duplicates: Vec<String> }
/// error
#[derive(Debug, thiserror::Error)]
pub enum DecodeError { 
    /// 413
    #[error("Request entity too large: limit is {0}")] TooLarge(usize), 
    /// 400
    #[error("{0}")] Malformed(String) }
/// decode
pub fn decode(_bytes: &[u8], _encoding: Encoding, _limits: Limits) -> Result<Decoded, DecodeError> { Err(DecodeError::Malformed("not yet".into())) }
