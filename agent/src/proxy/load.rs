//! Loading, pinning, attaching, and the way back.
//!
//! Maps are pinned as `<name>_v<layout>`, links as `link_<program>`. The links carry no version: they are what an
//! upgrade hands from one set of programs to the next (BPF_LINK_UPDATE), without a moment in which none is attached.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::{CgroupSock, CgroupSockAddr, Program, ProgramFd};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};

use hull_ebpf_types as bpf;

use super::maps::{NAMES, OUTER, RETIRED};
use super::{Error, ProxyConfig, bpffs, tables, verify};
use crate::bpf::{ensure_outer, sys};
use crate::network::Cidr;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/hull.bpf.o"));

/// The programs and their attach types (enum bpf_attach_type). What shows and forgets origins is attached before what
/// makes them.
const PROGRAMS: [(&str, u32); 11] = [
    ("sock_release", 34),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("connect4", 10),
    ("connect6", 11),
    ("post_bind4", 12),
    ("post_bind6", 13),
];

/// Loads the programs and opens or makes their maps.
pub(super) fn load(config: &ProxyConfig) -> Result<Ebpf, Error> {
    for (name, shape, places) in OUTER {
        let pin = map_pin(config, name);
        ensure_outer(&pin, name, shape, places).map_err(|source| Error::file("pin a map at", pin, source))?;
    }
    // Before Linux 5.18 these programs cannot choose the error that a refused client sees.
    for can_set_error in [1, 0] {
        if let Ok(ebpf) = load_with(config, can_set_error, VerifierLogLevel::DISABLE) {
            return Ok(ebpf);
        }
    }
    // Once more, only to learn what the verifier says: its log costs time and memory.
    load_with(config, 1, VerifierLogLevel::default())
}

fn load_with(config: &ProxyConfig, can_set_error: u32, log: VerifierLogLevel) -> Result<Ebpf, Error> {
    let host = sys::network_namespace().map_err(|source| Error::Load(format!("SO_NETNS_COOKIE: {source}")))?;
    let ranges = cluster_ranges(&config.service_cidrs);
    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .verifier_log_level(log)
        .override_global("CAN_SET_ERROR", &can_set_error, true)
        .override_global("HOST_NAMESPACE", &host, true)
        .override_global("CLUSTER_RANGES", &ranges, true);
    for name in NAMES {
        loader.map_pin_path(name, map_pin(config, name));
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| Error::Load(chain(&error)))?;
    verify::load_all(&mut ebpf).map_err(|(name, error)| Error::Load(format!("{name}: {}", chain(&error))))?;
    Ok(ebpf)
}

/// For each range its base and its mask; a range that is not there matches nothing.
fn cluster_ranges(ranges: &[Cidr]) -> [[u32; 8]; bpf::RANGES] {
    let mut words = [[u32::MAX; 8]; bpf::RANGES];
    for (words, range) in words.iter_mut().zip(ranges) {
        let prefix = u32::from(range.prefix()) + if range.is_ipv4() { 96 } else { 0 };
        let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0).to_be_bytes();
        let base = tables::words(range.base());
        let (base_words, mask_words) = words.split_at_mut(4);
        base_words.copy_from_slice(&base);
        for (word, four) in mask_words.iter_mut().zip(mask.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*four);
        }
    }
    words
}

/// The loader reads all of the kernel's own type information, tens of megabytes once parsed, though nothing here needs
/// it (aya 0.14 has no way around that): what malloc keeps of it would stay with the agent for good.
pub(super) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a function without preconditions; malloc(3) is safe to call from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, Error> {
    ebpf.program_mut(name)
        .ok_or_else(|| Error::Load(format!("the object has no program {name}")))
}

fn descriptor(program: &Program) -> io::Result<&ProgramFd> {
    let descriptor = match program {
        Program::CgroupSockAddr(program) => CgroupSockAddr::fd(program),
        Program::CgroupSock(program) => CgroupSock::fd(program),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    descriptor.map_err(io::Error::other)
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

/// Puts the programs in force: existing links get the new program, missing ones are made.
pub(super) fn attach(config: &ProxyConfig, ebpf: &mut Ebpf) -> Result<(), Error> {
    let cgroup = File::open(&config.cgroup).map_err(|source| Error::file("open", &config.cgroup, source))?;
    let metadata = cgroup
        .metadata()
        .map_err(|source| Error::file("stat", &config.cgroup, source))?;
    for (name, attach_type) in PROGRAMS {
        let failed = |source| Error::Attach {
            program: name,
            cgroup: config.cgroup.clone(),
            source,
        };
        let program = program(ebpf, name)?;
        let fd = descriptor(program).map_err(failed)?.as_fd();
        let pin = config.bpf_dir.join(format!("link_{name}"));
        if !take_over(&pin, fd, metadata.ino()).map_err(failed)? {
            create_link(&pin, fd, &cgroup, attach_type).map_err(failed)?;
        }
    }
    Ok(())
}

/// Gives a pinned link the new program; false when there is none for this cgroup.
fn take_over(pin: &Path, program: BorrowedFd<'_>, cgroup_id: u64) -> io::Result<bool> {
    let link = match sys::open_pinned(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if sys::cgroup_of_link(&link)? != cgroup_id {
        return Ok(false);
    }
    match sys::update_link(&link, program) {
        // The cgroup was removed, and with it the attachment; a link never comes back.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        result => result.map(|()| true),
    }
}

/// The new link is in place before a pin of another one is replaced.
fn create_link(pin: &Path, program: BorrowedFd<'_>, cgroup: &File, attach_type: u32) -> io::Result<()> {
    let link = sys::create_link(program, cgroup, attach_type)?;
    if !pin.exists() {
        return sys::pin(&link, pin);
    }
    let aside = pin.with_extension("new");
    let _ = fs::remove_file(&aside);
    sys::pin(&link, &aside)?;
    fs::rename(&aside, pin)
}

fn map_pin(config: &ProxyConfig, name: &str) -> PathBuf {
    config.bpf_dir.join(format!("{name}_v{}", config.layout))
}

/// The pins of maps with another layout than `layout`.
pub(super) fn other_layouts(dir: &Path, layout: u32) -> Result<Vec<PathBuf>, Error> {
    Ok(pins(dir)?
        .into_iter()
        .filter(|(_, pin)| matches!(pin, Pin::Map(other) if *other != layout))
        .map(|p| p.0)
        .collect())
}

/// Removes pins; what they named goes with its last user.
pub(super) fn remove(pins: &[PathBuf]) -> Result<(), Error> {
    pins.iter()
        .try_for_each(|pin| fs::remove_file(pin).map_err(|source| Error::file("remove", pin, source)))
}

enum Pin {
    Link,
    Map(u32),
}

fn pins(dir: &Path) -> Result<Vec<(PathBuf, Pin)>, Error> {
    let failed = |source| Error::file("read directory", dir, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(pin) = entry.file_name().to_str().and_then(classify) {
            found.push((entry.path(), pin));
        }
    }
    Ok(found)
}

fn classify(name: &str) -> Option<Pin> {
    if name.starts_with("link_") {
        return Some(Pin::Link);
    }
    let (map, layout) = name.rsplit_once("_v")?;
    (NAMES.contains(&map) || RETIRED.contains(&map)).then_some(Pin::Map(layout.parse().ok()?))
}

/// Detaches every program and removes every pin in `bpf_dir`; nothing of the proxy remains in the kernel once no
/// process uses it. A directory that does not exist is fine.
pub fn unload(bpf_dir: &Path) -> Result<(), Error> {
    if !bpf_dir.exists() {
        return Ok(());
    }
    let (links, maps): (Vec<_>, Vec<_>) = pins(bpf_dir)?
        .into_iter()
        .partition(|(_, pin)| matches!(pin, Pin::Link));
    for (path, _) in &links {
        let link = sys::open_pinned(path).map_err(|source| Error::file("open the link", path, source))?;
        // Fails on a link whose cgroup is gone: then it is detached already.
        let _ = sys::detach_link(&link);
    }
    remove(&links.into_iter().chain(maps).map(|(path, _)| path).collect::<Vec<_>>())?;
    bpffs::release(bpf_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_words() {
        let ranges = cluster_ranges(&["10.96.0.0/16".parse().unwrap()]);
        let address = tables::words("10.96.7.7".parse().unwrap());
        let inside = |address: [u32; 4]| (0..4).all(|i| address[i] & ranges[0][i + 4] == ranges[0][i]);
        assert!(inside(address));
        assert!(!inside(tables::words("10.97.7.7".parse().unwrap())));
        assert!(
            !inside(tables::words("::10.96.7.7".parse().unwrap())),
            "only the mapped form"
        );
        assert_eq!(ranges[1], [u32::MAX; 8], "no address is all ones");
    }

    #[test]
    fn pins_are_told_from_strangers() {
        assert!(matches!(classify("link_connect4"), Some(Pin::Link)));
        assert!(matches!(classify("services_v12"), Some(Pin::Map(12))));
        for name in ["services", "services_vx", "other_v1", "v1", ""] {
            assert!(classify(name).is_none(), "{name}");
        }
    }
}
