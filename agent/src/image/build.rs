//! Makes small images without a container engine: for the demo, for tests, and for shipping a static binary.
//!
//! The result is an OCI layout in a tar archive, byte for byte the same for the same input.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::digest::Digest;
use super::error::{Context, Error};
use super::manifest::{Descriptor, Index, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Platform};
use super::reference::Reference;

/// A file to put into the image.
#[derive(Debug, Clone)]
pub struct ImageFile {
    /// Absolute path in the image; directories above it are made.
    pub path: String,
    /// What it holds.
    pub content: Content,
    /// Permissions.
    pub mode: u32,
}

/// What a file holds.
#[derive(Debug, Clone)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A copy of a file of this machine.
    Host(PathBuf),
    /// A symbolic link to this target.
    Symlink(String),
    /// Nothing: it is a directory.
    Directory,
}

/// What the image runs by default.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, which a pod may replace.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `uid[:gid]` or names.
    pub user: Option<String>,
    /// Where it starts.
    pub working_dir: Option<String>,
}

/// Writes an image that holds one program of this machine and runs it by default.
pub fn of_binary(output: &Path, name: &str, binary: &Path, path: &str) -> Result<Digest, Error> {
    let file = ImageFile {
        path: path.to_owned(),
        content: Content::Host(binary.to_owned()),
        mode: 0o755,
    };
    let config = ImageConfig {
        entrypoint: vec![path.to_owned()],
        env: vec!["PATH=/bin".to_owned()],
        ..ImageConfig::default()
    };
    single_binary(&[file], &config, name, output)
}

/// Writes an image of these files, under this name, as an OCI layout archive. Returns the manifest's digest.
pub fn single_binary(files: &[ImageFile], config: &ImageConfig, name: &str, output: &Path) -> Result<Digest, Error> {
    let name: Reference = name.parse()?;
    let layer = layer(files)?;
    let config = serde_json::to_vec(&configuration(config, &Digest::of(&layer))).map_err(encode)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.into(),
        config: Descriptor::new(OCI_CONFIG, Digest::of(&config), config.len() as u64),
        layers: vec![Descriptor::new(OCI_LAYER, Digest::of(&layer), layer.len() as u64)],
    };
    let manifest = serde_json::to_vec(&manifest).map_err(encode)?;
    let digest = Digest::of(&manifest);
    let mut descriptor = Descriptor::new(OCI_MANIFEST, digest.clone(), manifest.len() as u64);
    descriptor.platform = Some(Platform {
        os: "linux".into(),
        architecture: "amd64".into(),
    });
    descriptor.annotations = BTreeMap::from([
        ("io.containerd.image.name".into(), name.to_string()),
        ("org.opencontainers.image.ref.name".into(), name.version().to_owned()),
    ]);
    let index = serde_json::to_vec(&Index {
        schema_version: 2,
        manifests: vec![descriptor],
    })
    .map_err(encode)?;
    write_layout(output, &index, &[&layer, &config, &manifest]).context(|| format!("writing {}", output.display()))?;
    Ok(digest)
}

fn encode(error: serde_json::Error) -> Error {
    Error::malformed("the image's description", error)
}

fn configuration(config: &ImageConfig, layer: &Digest) -> serde_json::Value {
    let mut run = serde_json::Map::new();
    let lists = [
        ("Entrypoint", &config.entrypoint),
        ("Cmd", &config.cmd),
        ("Env", &config.env),
    ];
    for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        run.insert(key.into(), json!(list));
    }
    for (key, text) in [("User", &config.user), ("WorkingDir", &config.working_dir)] {
        if let Some(text) = text {
            run.insert(key.into(), json!(text));
        }
    }
    json!({
        "architecture": "amd64", "os": "linux", "config": run,
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    })
}

fn layer(files: &[ImageFile]) -> Result<Vec<u8>, Error> {
    let mut archive = Builder::new(Vec::new());
    let mut made = BTreeSet::new();
    for file in files {
        let path = file.path.trim_start_matches('/');
        append(&mut archive, file, path, &mut made).context(|| format!("packing /{path}"))?;
    }
    archive.into_inner().context(|| "packing the layer".into())
}

fn append(archive: &mut Builder<Vec<u8>>, file: &ImageFile, path: &str, made: &mut BTreeSet<String>) -> io::Result<()> {
    for (slash, _) in path.match_indices('/') {
        if made.insert(path[..slash].to_owned()) {
            append_one(archive, &path[..slash], EntryType::Directory, 0o755, &[])?;
        }
    }
    match &file.content {
        Content::Bytes(bytes) => append_one(archive, path, EntryType::Regular, file.mode, bytes),
        Content::Host(host) => append_one(archive, path, EntryType::Regular, file.mode, &fs::read(host)?),
        Content::Directory => match made.insert(path.to_owned()) {
            true => append_one(archive, path, EntryType::Directory, file.mode, &[]),
            false => Ok(()),
        },
        Content::Symlink(target) => {
            let mut header = header(EntryType::Symlink, 0o777, 0);
            archive.append_link(&mut header, path, target)
        }
    }
}

fn append_one(archive: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, mode: u32, bytes: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(kind, mode, bytes.len() as u64), path, bytes)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn write_layout(output: &Path, index: &[u8], blobs: &[&Vec<u8>]) -> io::Result<()> {
    let mut archive = Builder::new(io::BufWriter::new(File::create(output)?));
    let mut add = |path: &str, bytes: &[u8]| {
        archive.append_data(&mut header(EntryType::Regular, 0o644, bytes.len() as u64), path, bytes)
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", index)?;
    for blob in blobs {
        add(&format!("blobs/sha256/{}", Digest::of(blob).hex()), blob)?;
    }
    archive.into_inner()?.flush()
}
