//! The types of config.json: oci-spec's, re-exported, and how a bundle's file is read.
//! OCI runtime-spec 1.2, config.md.

use std::path::Path;

pub use oci_spec::runtime::*;

use crate::error::{Error, Result};

/// Name of the configuration file inside a bundle.
pub const CONFIG: &str = "config.json";

/// Read `<bundle>/config.json`.
pub fn load(bundle: &Path) -> Result<Spec> {
    let path = bundle.join(CONFIG);
    let bytes = std::fs::read(&path).map_err(|e| Error::os(format!("open {}", path.display()), e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::invalid(format!("{}: {e}", path.display())))
}
