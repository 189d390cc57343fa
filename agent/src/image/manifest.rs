//! The documents of an image: manifest, index and configuration (OCI image-spec; docker's equals it but for media types).
//!
//! Only the fields that hull needs are decoded; every size and digest in them is checked against what arrives.

use std::collections::BTreeMap;

use oci_spec::image::{Arch, ImageConfiguration, Os};
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::Error;

/// Longest manifest, index or configuration.
pub(crate) const DOCUMENT_MAX: u64 = 4 << 20;
/// Most layers of an image: overlayfs takes 500 lower directories.
pub(crate) const LAYERS_MAX: usize = 500;
const INDEX_DEPTH_MAX: usize = 4;

/// What a registry may answer with, for the Accept header.
pub(crate) const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A pointer to content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub os: String,
    pub architecture: String,
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// An index, or docker's manifest list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub schema_version: u32,
    pub manifests: Vec<Descriptor>,
}

/// Either kind of document that a tag may name.
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// Told apart by what they hold: the media type is optional.
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Probe {
            manifests: Option<serde::de::IgnoredAny>,
        }
        let malformed = |error| Error::malformed(what, error);
        let probe: Probe = serde_json::from_slice(bytes).map_err(malformed)?;
        if probe.manifests.is_some() {
            return serde_json::from_slice(bytes).map(Self::Index).map_err(malformed);
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(malformed)?;
        if manifest.layers.len() > LAYERS_MAX {
            let reason = format!(
                "{} layers are more than overlayfs can stack ({LAYERS_MAX})",
                manifest.layers.len()
            );
            return Err(Error::malformed(what, reason));
        }
        Ok(Self::Manifest(manifest))
    }
}

impl Index {
    /// The entries for this machine: those of linux/amd64, and those that name no platform.
    pub(crate) fn for_this_platform(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests
            .iter()
            .filter(|descriptor| descriptor.platform.as_ref().is_none_or(Platform::is_ours))
    }

    pub(crate) fn platforms(&self) -> String {
        let names = self
            .manifests
            .iter()
            .filter_map(|descriptor| descriptor.platform.as_ref());
        names
            .map(|p| format!("{}/{}", p.os, p.architecture))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

impl Platform {
    pub(crate) const WANTED: &'static str = "linux/amd64";

    fn is_ours(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }
}

/// Follows indexes to the manifest for this machine. `fetch` gives a document by descriptor, verified.
pub(crate) fn resolve_index(
    mut index: Index,
    mut fetch: impl FnMut(&Descriptor) -> Result<Vec<u8>, Error>,
) -> Result<(Descriptor, Vec<u8>, Manifest), Error> {
    for _ in 0..INDEX_DEPTH_MAX {
        let chosen = index.choose()?.clone();
        let bytes = fetch(&chosen)?;
        match Document::parse(&format!("manifest {}", chosen.digest), &bytes)? {
            Document::Manifest(manifest) => return Ok((chosen, bytes, manifest)),
            Document::Index(inner) => index = inner,
        }
    }
    Err(Error::malformed(
        "the image index",
        format!("nested deeper than {INDEX_DEPTH_MAX}"),
    ))
}

impl Index {
    /// The entry for this machine.
    pub(crate) fn choose(&self) -> Result<&Descriptor, Error> {
        let missing = || Error::Platform {
            found: self.platforms(),
            wanted: Platform::WANTED,
        };
        self.for_this_platform().next().ok_or_else(missing)
    }
}

/// Decodes a configuration and checks that it fits this machine and the manifest.
pub(crate) fn parse_config(bytes: &[u8], layers: usize) -> Result<(ImageConfiguration, Vec<Digest>), Error> {
    let what = "the image configuration";
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(|error| Error::malformed(what, error))?;
    if (config.os(), config.architecture()) != (&Os::Linux, &Arch::Amd64) {
        let found = format!("{}/{}", config.os(), config.architecture());
        return Err(Error::Platform {
            found,
            wanted: Platform::WANTED,
        });
    }
    let layer_ids: Vec<Digest> = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|id| id.parse())
        .collect::<Result<_, _>>()?;
    if layer_ids.len() != layers {
        let reason = format!("it names {} layers and the manifest {layers}", layer_ids.len());
        return Err(Error::malformed(what, reason));
    }
    Ok((config, layer_ids))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(os: &str, architecture: &str, tag: &str) -> serde_json::Value {
        json!({"digest": Digest::of(tag.as_bytes()), "size": 1, "platform": {"os": os, "architecture": architecture}})
    }

    #[test]
    fn the_index_entry_for_this_machine_is_chosen() {
        let index = json!({"schemaVersion": 2, "manifests": [descriptor("linux", "arm64", "a"), descriptor("linux", "amd64", "b")]});
        let Document::Index(index) = Document::parse("x", index.to_string().as_bytes()).unwrap() else {
            panic!()
        };
        assert_eq!(index.choose().unwrap().digest, Digest::of(b"b"));
        let foreign = json!({"schemaVersion": 2, "manifests": [descriptor("windows", "amd64", "a")]});
        let Document::Index(foreign) = Document::parse("x", foreign.to_string().as_bytes()).unwrap() else {
            panic!()
        };
        assert!(foreign.choose().unwrap_err().to_string().contains("windows/amd64"));
    }

    #[test]
    fn an_index_that_contains_itself_ends() {
        let index = json!({"schemaVersion": 2, "manifests": [descriptor("linux", "amd64", "self")]}).to_string();
        let Document::Index(first) = Document::parse("x", index.as_bytes()).unwrap() else {
            panic!()
        };
        let mut fetched = 0;
        let result = resolve_index(first, |_| {
            fetched += 1;
            Ok(index.clone().into_bytes())
        });
        assert!(result.is_err());
        assert_eq!(fetched, INDEX_DEPTH_MAX);
    }

    #[test]
    fn a_configuration_must_fit_machine_and_manifest() {
        let config = |os: &str, ids: serde_json::Value| {
            json!({"os": os, "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": ids}}).to_string()
        };
        assert!(parse_config(config("linux", json!([Digest::of(b"")])).as_bytes(), 1).is_ok());
        assert!(matches!(
            parse_config(config("linux", json!([])).as_bytes(), 1),
            Err(Error::Malformed { .. })
        ));
        assert!(matches!(
            parse_config(config("windows", json!([])).as_bytes(), 0),
            Err(Error::Platform { .. })
        ));
        assert!(parse_config(config("linux", json!(["../x"])).as_bytes(), 1).is_err());
    }

    #[test]
    fn too_many_layers_are_refused() {
        let layer = json!({"digest": Digest::of(b""), "size": 0});
        let manifest = json!({"schemaVersion": 2, "config": layer, "layers": vec![layer.clone(); LAYERS_MAX + 1]});
        assert!(Document::parse("x", manifest.to_string().as_bytes()).is_err());
    }
}
