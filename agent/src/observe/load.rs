//! Loading, pinning, attaching the program that observes sockets, and the way back.
//!
//! Its own maps are pinned as `<bpf_dir>/observe/<name>_v<layout>`, its link as `<bpf_dir>/observe/link`; the maps it
//! shares with the proxy stay where the proxy has them. A new agent takes all of it over (BPF_LINK_UPDATE) and nothing
//! is counted from zero again.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::SockOps;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use hull_ebpf_types::observe::LAYOUT;

use super::{Error, ObserveConfig, btf};
use crate::bpf::sys;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/observe.bpf.o"));

/// BPF_CGROUP_SOCK_OPS of enum bpf_attach_type.
const ATTACH_TYPE: u32 = 3;
/// Maps of this program alone.
const OWN: [&str; 5] = ["observed", "blank", "diary", "pages", "health"];
/// Maps shared with the proxy's programs.
const SHARED: [&str; 3] = ["origins", "overflow", "load"];
/// Lines of the diary, all CPUs together; each has a fair share, but not less than the least.
const DIARY_LINES: u32 = 4_096;
const DIARY_LINES_LEAST: u32 = 128;

/// Loads the program and opens or makes its maps.
pub(super) fn load(config: &ObserveConfig, processors: u32) -> Result<Ebpf, Error> {
    let dir = directory(&config.bpf_dir);
    fs::create_dir_all(&dir).map_err(|source| Error::file("create directory", &dir, source))?;
    remove_other_layouts(&dir)?;
    if let Ok(ebpf) = load_with(config, processors, VerifierLogLevel::DISABLE) {
        return Ok(ebpf);
    }
    // Once more, only to learn what the verifier says: its log costs time and memory.
    load_with(config, processors, VerifierLogLevel::default())
}

fn load_with(config: &ObserveConfig, processors: u32, log: VerifierLogLevel) -> Result<Ebpf, Error> {
    // Without the offset, failures are told apart by what was sent again.
    let sk_err = btf::sk_err().unwrap_or_default();
    let lines = lines_of_each(processors);
    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .verifier_log_level(log)
        .override_global("SK_ERR", &sk_err, true)
        .override_global("LINES", &lines, true);
    for name in OWN {
        loader.map_pin_path(name, own_pin(&config.bpf_dir, name));
    }
    for name in SHARED {
        loader.map_pin_path(name, config.shared_pin(name));
    }
    loader
        .map_max_entries("observed", config.backends)
        .map_max_entries("diary", lines * processors);
    let mut ebpf = loader.load(OBJECT).map_err(|error| Error::Load(chain(&error)))?;
    let program = program(&mut ebpf)?;
    program.load().map_err(|error| Error::Load(chain(&error)))?;
    Ok(ebpf)
}

/// Lines of the diary that each CPU has.
pub(super) fn lines_of_each(processors: u32) -> u32 {
    (DIARY_LINES / processors.max(1)).max(DIARY_LINES_LEAST)
}

fn program(ebpf: &mut Ebpf) -> Result<&mut SockOps, Error> {
    let program = ebpf
        .program_mut("observe")
        .ok_or_else(|| Error::Load("the object has no program observe".to_owned()))?;
    program
        .try_into()
        .map_err(|_| Error::Load("observe is not a program for sockets".to_owned()))
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

/// Puts the program in force: an existing link gets it, a missing one is made.
pub(super) fn attach(config: &ObserveConfig, ebpf: &mut Ebpf) -> Result<(), Error> {
    let failed = |source| Error::Attach {
        cgroup: config.cgroup.clone(),
        source,
    };
    let cgroup = File::open(&config.cgroup).map_err(failed)?;
    let id = cgroup.metadata().map_err(failed)?.ino();
    let program = program(ebpf)?;
    let fd = program.fd().map_err(|error| failed(io::Error::other(error)))?.as_fd();
    let pin = link_pin(&config.bpf_dir);
    if take_over(&pin, fd, id).map_err(failed)? {
        return Ok(());
    }
    // What is pinned there, if anything, belongs to a cgroup that is gone or another one.
    match fs::remove_file(&pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(Error::file("remove", pin, source)),
        _ => {}
    }
    let link = sys::create_link(fd, &cgroup, ATTACH_TYPE).map_err(failed)?;
    sys::pin(&link, &pin).map_err(|source| Error::file("pin the link at", pin, source))
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

fn directory(bpf_dir: &Path) -> PathBuf {
    bpf_dir.join("observe")
}

fn link_pin(bpf_dir: &Path) -> PathBuf {
    directory(bpf_dir).join("link")
}

fn own_pin(bpf_dir: &Path, name: &str) -> PathBuf {
    directory(bpf_dir).join(format!("{name}_v{LAYOUT}"))
}

/// What another version measured cannot be read by this one.
fn remove_other_layouts(dir: &Path) -> Result<(), Error> {
    let ours = format!("_v{LAYOUT}");
    for path in entries(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name != "link" && !name.ends_with(&ours) {
            fs::remove_file(&path).map_err(|source| Error::file("remove", &path, source))?;
        }
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::file("read directory", dir, source);
    let entries = fs::read_dir(dir).map_err(failed)?;
    entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
        .collect()
}

/// Detaches the program and removes its pins. That there are none is fine.
///
/// # Errors
/// A pin cannot be removed.
pub fn unload(bpf_dir: &Path) -> Result<(), Error> {
    let dir = directory(bpf_dir);
    if !dir.exists() {
        return Ok(());
    }
    if let Ok(link) = sys::open_pinned(&link_pin(bpf_dir)) {
        // Fails on a link whose cgroup is gone: then it is detached already.
        let _ = sys::detach_link(&link);
    }
    for path in entries(&dir)? {
        fs::remove_file(&path).map_err(|source| Error::file("remove", &path, source))?;
    }
    fs::remove_dir(&dir).map_err(|source| Error::file("remove directory", &dir, source))
}
