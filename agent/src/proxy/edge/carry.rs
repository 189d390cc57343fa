//! Flows taken along from the maps of another layout, so that connections outlive an upgrade that brings one.
//!
//! What is known of flows and clients is copied as it is, when keys and values have the same size in both layouts: a layout
//! in which they mean something else must give them another size. Other flows begin anew.

use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};
use hull_ebpf_types::Affinity;
use hull_ebpf_types::edge::{Track, Tuple, Visitor};

use super::load::other_layouts;
use super::{EdgeConfig, Error};

/// BPF_NOEXIST of linux/bpf.h: what the new programs know already is newer.
const ONLY_NEW: u64 = 1;

/// Copies what the maps of other layouts have and those of this one lack. Repeating it is fine.
pub(super) fn carry_over(config: &EdgeConfig) -> Result<(), Error> {
    let pins = other_layouts(&config.bpf_dir, config.layout)?;
    copy::<Tuple, Track>(config, &pins, "edge_streams");
    copy::<Tuple, Track>(config, &pins, "edge_datagrams");
    copy::<Visitor, Affinity>(config, &pins, "edge_affinity");
    Ok(())
}

fn copy<K: Pod, V: Pod>(config: &EdgeConfig, pins: &[PathBuf], name: &str) {
    let of_map = |pin: &&PathBuf| {
        let file = pin.file_name().and_then(|file| file.to_str());
        file.is_some_and(|file| file.strip_prefix(name).is_some_and(|rest| rest.starts_with("_v")))
    };
    let to = config.bpf_dir.join(format!("{name}_v{}", config.layout));
    for from in pins.iter().filter(of_map) {
        match copy_map::<K, V>(from, &to) {
            Ok(flows) => tracing::info!(flows, map = name, "flows of another version of hull go on"),
            Err(error) => {
                tracing::warn!(from = %from.display(), %error, "flows of another version of hull are not known any more");
            }
        }
    }
}

fn copy_map<K: Pod, V: Pod>(from: &Path, to: &Path) -> Result<usize, MapError> {
    let (from, mut to) = (open::<K, V>(from)?, open::<K, V>(to)?);
    let mut copied = 0;
    for entry in from.iter() {
        // One that goes meanwhile has ended, and the kernel makes room for as many as the new map holds.
        let Ok((key, value)) = entry else { continue };
        copied += usize::from(to.insert(key, value, ONLY_NEW).is_ok());
    }
    Ok(copied)
}

fn open<K: Pod, V: Pod>(pin: &Path) -> Result<HashMap<MapData, K, V>, MapError> {
    HashMap::try_from(Map::LruHashMap(MapData::from_pin(pin)?))
}
