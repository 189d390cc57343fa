//! Loading and pinning, and the way back.
//!
//! The edge's maps are pinned as `edge_…_v<layout>`, its links as `tcx_<interface>_<program>`; those of the socket
//! programs are opened, never made. Links carry no version: an upgrade gives them the new programs in one step.

use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};

use super::attach;
use super::maps::NAMES;
use super::{EdgeConfig, Error};
use crate::proxy::verify;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/edge.bpf.o"));

/// Maps of the socket programs that are looked up here.
const SHARED: [&str; 6] = ["services", "slots", "tables", "members", "addresses", "load"];

/// Loads the programs and opens or makes their maps.
pub(super) fn load(config: &EdgeConfig) -> Result<Ebpf, Error> {
    match load_with(config, VerifierLogLevel::DISABLE) {
        Ok(ebpf) => Ok(ebpf),
        // Once more, only to learn what the verifier says: its log costs time and memory.
        Err(_) => load_with(config, VerifierLogLevel::default()),
    }
}

fn load_with(config: &EdgeConfig, log: VerifierLogLevel) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    loader.btf(None).verifier_log_level(log);
    for name in SHARED {
        let pin = config.bpf_dir.join(format!("{name}_v{}", hull_ebpf_types::LAYOUT));
        if !pin.exists() {
            return Err(Error::Load(format!(
                "{} is not there: the service proxy has to be loaded first",
                pin.display()
            )));
        }
        loader.map_pin_path(name, pin);
    }
    for name in NAMES {
        loader.map_pin_path(name, config.bpf_dir.join(format!("{name}_v{}", config.layout)));
    }
    let limits = config.limits;
    for (name, entries) in [
        ("edge_streams", limits.streams),
        ("edge_datagrams", limits.datagrams),
        ("edge_local", limits.addresses),
        ("edge_uplinks", limits.interfaces),
        ("edge_ranges", limits.ranges),
        ("edge_sources", limits.ranges),
        ("edge_fragments", limits.fragments),
        ("edge_affinity", limits.clients),
    ] {
        loader.map_max_entries(name, entries);
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| Error::Load(chain(&error)))?;
    verify::load_all(&mut ebpf).map_err(|(name, error)| Error::Load(format!("{name}: {}", chain(&error))))?;
    Ok(ebpf)
}

pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Error> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| Error::Load(format!("the object has no program {name}")))?;
    program
        .try_into()
        .map_err(|_| Error::Load(format!("{name} is not a classifier")))
}

/// An error with all its causes; of the verifier's log the end, where the reason stands.
fn chain(error: &dyn std::error::Error) -> String {
    const END: usize = 600;
    let causes = std::iter::successors(Some(error), |error| error.source());
    let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    match text.char_indices().rev().nth(END) {
        Some((start, _)) => format!("[...]{}", &text[start..]),
        None => text,
    }
}

/// The pins of the edge's maps with another layout than `layout`.
pub(super) fn other_layouts(dir: &Path, layout: u32) -> Result<Vec<PathBuf>, Error> {
    let pins = pins(dir)?.into_iter();
    let others = pins.filter(|(_, other)| other.is_some_and(|other| other != layout));
    Ok(others.map(|(path, _)| path).collect())
}

/// Removes pins; what they named goes with its last user.
pub(super) fn remove(pins: &[PathBuf]) -> Result<(), Error> {
    pins.iter()
        .try_for_each(|pin| fs::remove_file(pin).map_err(|source| Error::file("remove", pin, source)))
}

/// Every pin of the edge; of maps with their layout.
pub(super) fn pins(dir: &Path) -> Result<Vec<(PathBuf, Option<u32>)>, Error> {
    let failed = |source| Error::file("read directory", dir, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(layout) = entry.file_name().to_str().and_then(classify) {
            found.push((entry.path(), layout));
        }
    }
    Ok(found)
}

/// The outer option is whether the pin is the edge's.
fn classify(name: &str) -> Option<Option<u32>> {
    if attach::parse_pin(name).is_some() {
        return Some(None);
    }
    let (map, layout) = name.rsplit_once("_v")?;
    NAMES.contains(&map).then_some(Some(layout.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_told_from_strangers() {
        assert_eq!(classify("edge_streams_v3"), Some(Some(3)));
        assert_eq!(classify("tcx_12_from_pod"), Some(None));
        for name in [
            "edge_streams",
            "services_v1",
            "link_connect4",
            "tcx_x_from_pod",
            "tcx_1_other",
            "",
        ] {
            assert_eq!(classify(name), None, "{name}");
        }
    }
}
