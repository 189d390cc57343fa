//! The types of config.json: oci-spec's, re-exported, and how a bundle's file is read.
//! OCI runtime-spec 1.3, config.md.

mod lenient;

use std::path::{Path, PathBuf};

pub use oci_spec::runtime::*;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Error, Result};

/// Name of the configuration file inside a bundle.
pub const CONFIG: &str = "config.json";

/// Read `<bundle>/config.json`.
pub fn load(bundle: &Path) -> Result<Spec> {
    Config::read(&bundle.join(CONFIG))?.parse()
}

/// Read the `process` of an `exec` from a file: process.json, as engines write it.
pub fn load_process(path: &Path) -> Result<Process> {
    let text = std::fs::read(path).map_err(|e| Error::os(format!("open {}", path.display()), e))?;
    lenient::parse(&path.display().to_string(), &text, |document| Some(document))
}

/// As [`load`] and [`load_process`], of a text: for the properties that hold for any.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_texts(text: &[u8]) -> (Result<Spec>, Result<Process>) {
    let path = PathBuf::from(CONFIG);
    let text = text.to_vec();
    let process = lenient::parse(CONFIG, &text, |document| Some(document));
    (Config { path, text }.parse(), process)
}

/// The text of a config.json.
pub(crate) struct Config {
    path: PathBuf,
    text: Vec<u8>,
}

impl Config {
    /// Read it.
    pub fn read(path: &Path) -> Result<Config> {
        let text = std::fs::read(path).map_err(|e| Error::os(format!("open {}", path.display()), e))?;
        let path = path.to_path_buf();
        Ok(Config { path, text })
    }

    /// Parse all of it.
    pub fn parse(&self) -> Result<Spec> {
        self.parse_text(&self.text)
    }

    fn parse_text(&self, text: &[u8]) -> Result<Spec> {
        lenient::parse(&self.path.display().to_string(), text, |document| {
            document.get_mut("process")
        })
    }

    /// The text of `linux.seccomp`: by far the longest part, and the same in every container of an engine. Not of a
    /// profile that says more than what to filter (a listener for notifications), which must be looked at each time.
    pub fn seccomp(&self) -> Option<&str> {
        #[derive(Deserialize)]
        struct Outer<'a> {
            #[serde(borrow)]
            linux: Option<Inner<'a>>,
        }
        #[derive(Deserialize)]
        struct Inner<'a> {
            #[serde(borrow)]
            seccomp: Option<&'a RawValue>,
        }
        let outer: Outer = serde_json::from_slice(&self.text).ok()?;
        let text = outer.linux?.seccomp?.get();
        (!text.contains("listener") && !text.contains("NOTIFY") && !text.contains('\\')).then_some(text)
    }

    /// Parse it without `seccomp`, a part of it.
    pub fn parse_without(&self, seccomp: &str) -> Result<Spec> {
        let start = (seccomp.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        let (Some(before), Some(after)) = (self.text.get(..start), self.text.get(start + seccomp.len()..)) else {
            return self.parse();
        };
        self.parse_text(&[before, b"null", after].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_cut_out_of_the_configuration() {
        let bundle = tempfile::tempdir().unwrap();
        let text =
            r#"{"ociVersion":"1.2.0","linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"},"maskedPaths":["/a"]}}"#;
        std::fs::write(bundle.path().join(CONFIG), text).unwrap();
        let config = Config::read(&bundle.path().join(CONFIG)).unwrap();
        let seccomp = config.seccomp().unwrap();
        assert_eq!(seccomp, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#);
        let spec = config.parse_without(seccomp).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_none());
        assert_eq!(linux.masked_paths().as_ref().unwrap(), &["/a"]);
        assert!(config.parse().unwrap().linux().as_ref().unwrap().seccomp().is_some());
    }

    #[test]
    fn a_profile_with_a_listener_is_always_read() {
        let bundle = tempfile::tempdir().unwrap();
        let text = r#"{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/s"}}}"#;
        std::fs::write(bundle.path().join(CONFIG), text).unwrap();
        assert!(Config::read(&bundle.path().join(CONFIG)).unwrap().seccomp().is_none());
    }
}
