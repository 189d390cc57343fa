//! Import of images from files: OCI layouts (directory or archive) and docker archives (`docker save`).
//!
//! Documents of an OCI layout are checked against their digests; layers always are, against the diff ids of the
//! configuration, while they are unpacked.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::digest::Digest;
use super::error::Error;
use super::index::Entry;
use super::manifest::{Descriptor, Document, Index, Manifest, parse_config, resolve_index};
use super::reference::Reference;
use super::source::Source;
use super::store::{Image, ImageStore};

/// Annotations that name an image, the more precise first.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An image in docker's manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    /// Imports every image of a directory or archive that is for this machine. `name` replaces the names found inside.
    pub fn import(&self, path: &Path, name: Option<&str>) -> Result<Vec<Image>, Error> {
        self.import_from(&Source::open(path, &self.new_tmp())?, name)
    }

    /// Imports from an archive that comes as a stream.
    pub fn import_reader(&self, reader: impl Read, name: Option<&str>) -> Result<Vec<Image>, Error> {
        self.import_from(&Source::spool(reader, Path::new("the stream"), &self.new_tmp())?, name)
    }

    fn import_from(&self, source: &Source, name: Option<&str>) -> Result<Vec<Image>, Error> {
        let name: Option<Reference> = name.map(str::parse).transpose()?;
        let _use = self.begin_use()?;
        let images = if let Some(index) = source.document("index.json")? {
            self.import_layout(source, &index, name.as_ref())?
        } else if let Some(manifest) = source.document("manifest.json")? {
            self.import_docker(source, &manifest, name.as_ref())?
        } else {
            let reason = "it has neither index.json nor manifest.json".to_owned();
            return Err(Error::Archive {
                path: source.path().to_owned(),
                reason,
            });
        };
        if images.is_empty() {
            let reason = "it contains no image".to_owned();
            return Err(Error::Archive {
                path: source.path().to_owned(),
                reason,
            });
        }
        Ok(images)
    }

    fn import_layout(&self, source: &Source, index: &[u8], name: Option<&Reference>) -> Result<Vec<Image>, Error> {
        let Document::Index(index) = Document::parse("index.json", index)? else {
            return Err(Error::malformed("index.json", "it lists no manifests"));
        };
        // An error only if nothing is for us: an index may serve several machines.
        index.choose()?;
        let descriptors: Vec<Descriptor> = index.for_this_platform().cloned().collect();
        descriptors
            .into_iter()
            .map(|descriptor| self.import_manifest(source, descriptor, name))
            .collect()
    }

    fn import_manifest(&self, source: &Source, top: Descriptor, name: Option<&Reference>) -> Result<Image, Error> {
        let names = match name {
            Some(name) => vec![name.clone()],
            None => name_of(&top).into_iter().collect(),
        };
        let index = Index {
            schema_version: 2,
            manifests: vec![top.clone()],
        };
        let (descriptor, bytes, manifest) = resolve_index(index, |descriptor| read_document(source, descriptor))?;
        let config = read_document(source, &manifest.config)?;
        let (_, diff_ids) = parse_config(&config, manifest.layers.len())?;
        for (diff_id, layer) in diff_ids.iter().zip(&manifest.layers) {
            let path = blob_path(&layer.digest);
            self.import_layer(source, diff_id, &path, Some(layer.size))?;
        }
        self.write_blob("the image's configuration", &config, &manifest.config.digest)?;
        self.write_blob("the image's manifest", &bytes, &descriptor.digest)?;
        let digests = names.iter().map(|name| name.with_digest(top.digest.clone())).collect();
        self.commit(entry(&manifest, descriptor.digest, names, digests, diff_ids))
    }

    fn import_layer(&self, source: &Source, diff_id: &Digest, path: &str, expected: Option<u64>) -> Result<u64, Error> {
        let missing = || Error::Archive {
            path: source.path().to_owned(),
            reason: format!("{path} is missing"),
        };
        let (reader, size) = source.file(path)?.ok_or_else(missing)?;
        if let Some(expected) = expected.filter(|&expected| expected != size) {
            return Err(Error::Size {
                what: path.to_owned(),
                expected,
                found: size,
            });
        }
        self.add_layer(diff_id, reader)?;
        Ok(size)
    }

    fn import_docker(&self, source: &Source, manifest: &[u8], name: Option<&Reference>) -> Result<Vec<Image>, Error> {
        let images: Vec<DockerImage> =
            serde_json::from_slice(manifest).map_err(|error| Error::malformed("manifest.json", error))?;
        images
            .into_iter()
            .map(|image| self.import_docker_image(source, image, name))
            .collect()
    }

    fn import_docker_image(
        &self,
        source: &Source,
        image: DockerImage,
        name: Option<&Reference>,
    ) -> Result<Image, Error> {
        let missing = || Error::Archive {
            path: source.path().to_owned(),
            reason: format!("{} is missing", image.config),
        };
        let config = source.document(&image.config)?.ok_or_else(missing)?;
        let (_, layers) = parse_config(&config, image.layers.len())?;
        let mut size = 0;
        for (diff_id, path) in layers.iter().zip(&image.layers) {
            size += self.import_layer(source, diff_id, path, None)?;
        }
        let names = match name {
            Some(name) => vec![name.clone()],
            None => image
                .repo_tags
                .iter()
                .flatten()
                .map(|tag| tag.parse())
                .collect::<Result<_, _>>()?,
        };
        let id = Digest::of(&config);
        self.write_blob("the image's configuration", &config, &id)?;
        self.commit(Entry {
            id,
            manifest: None,
            names,
            digests: Vec::new(),
            layers,
            size,
        })
    }
}

/// The index entry of an image with a manifest.
pub(super) fn entry(
    manifest: &Manifest,
    digest: Digest,
    names: Vec<Reference>,
    digests: Vec<Reference>,
    layers: Vec<Digest>,
) -> Entry {
    Entry {
        id: manifest.config.digest.clone(),
        manifest: Some(digest),
        names,
        digests,
        layers,
        size: manifest.layers.iter().map(|layer| layer.size).sum(),
    }
}

/// A plain word, as in `latest`, is a tag of something unknown and no name.
fn name_of(descriptor: &Descriptor) -> Option<Reference> {
    let named = NAME_ANNOTATIONS
        .iter()
        .filter_map(|key| descriptor.annotations.get(*key));
    named
        .filter(|name| name.contains([':', '/']))
        .find_map(|name| name.parse().ok())
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn read_document(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    let path = blob_path(&descriptor.digest);
    let missing = || Error::Archive {
        path: source.path().to_owned(),
        reason: format!("{path} is missing"),
    };
    let bytes = source.document(&path)?.ok_or_else(missing)?;
    super::store::check_size(&path, descriptor.size, bytes.len() as u64)?;
    super::store::check_digest(&path, &descriptor.digest, &Digest::of(&bytes))?;
    Ok(bytes)
}
