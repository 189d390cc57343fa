//! Attaching programs to interfaces: tcx links since Linux 6.6, filters of the clsact qdisc before, and at pods.
//!
//! A tcx link is pinned by the interface's index and the program's name and ends with the interface. A filter stays by
//! itself and is found again by its priority and handle.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::ProgramError;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcError, TcHandle};
use aya::util::KernelVersion;

use super::Error;
use super::load::program;
use crate::bpf::sys;

/// Of an uplink, then of a pod's interface; ingress before egress.
pub(super) const UPLINK: [&str; 2] = ["from_world", "to_world"];
pub(super) const POD: [&str; 2] = ["from_pod", "to_pod"];
/// What pins are named with.
const ROLES: [&str; 4] = [UPLINK[0], UPLINK[1], POD[0], POD[1]];
/// In the object: of ingress and of egress. They find out themselves on what they are.
pub(super) const PROGRAMS: [&str; 2] = ["enters", "leaves"];

const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// Of our filters among others on an interface.
const PRIORITY: u16 = 0x4855;
const HANDLE: u16 = 1;

/// How programs are attached to uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Pinned links (Linux 6.6).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

impl Attach {
    /// The better one that this kernel has.
    #[must_use]
    pub fn probe() -> Attach {
        let modern = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0));
        if modern { Attach::Tcx } else { Attach::Clsact }
    }
}

/// The programs of an interface that has this one.
pub(super) fn both(program: &str) -> [&'static str; 2] {
    if UPLINK.contains(&program) { UPLINK } else { POD }
}

fn is_egress(name: &str) -> bool {
    name.starts_with("to_")
}

/// The object's program for a role.
fn in_object(name: &str) -> &'static str {
    PROGRAMS[usize::from(is_egress(name))]
}

/// Where the link of a program on an interface is pinned.
fn pin(dir: &Path, index: u32, name: &str) -> PathBuf {
    dir.join(format!("tcx_{index}_{name}"))
}

/// The interface and program that a pin's name says.
pub(super) fn parse_pin(name: &str) -> Option<(u32, &'static str)> {
    let (index, program) = name.strip_prefix("tcx_")?.split_once('_')?;
    let program = ROLES.into_iter().find(|known| *known == program)?;
    Some((index.parse().ok()?, program))
}

/// Puts both programs in force on an interface; what is there gets the new program without a gap.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    how: Attach,
    dir: &Path,
    index: u32,
    interface: &str,
    names: [&'static str; 2],
) -> Result<(), Error> {
    // Replies can be made right before flows are led away.
    for name in [names[1], names[0]] {
        let failed = |reason: String| Error::Attach {
            program: name,
            interface: interface.to_owned(),
            reason,
        };
        match how {
            Attach::Tcx => {
                link(ebpf, &pin(dir, index, name), index, name).map_err(|error| failed(error.to_string()))?
            }
            Attach::Clsact => filter(ebpf, interface, name).map_err(|error| failed(error.to_string()))?,
        }
    }
    Ok(())
}

fn link(ebpf: &mut Ebpf, pin: &Path, index: u32, name: &str) -> io::Result<()> {
    let program = program(ebpf, in_object(name)).map_err(io::Error::other)?;
    let program = program.fd().map_err(io::Error::other)?.as_fd();
    if let Some(link) = absent(sys::open_pinned(pin))? {
        if sys::interface_of_link(&link)? == index {
            return sys::update_link(&link, program);
        }
        // Of an interface that had this index before.
        fs::remove_file(pin)?;
    }
    let kind = if is_egress(name) {
        BPF_TCX_EGRESS
    } else {
        BPF_TCX_INGRESS
    };
    let link = sys::create_interface_link(program, index, kind)?;
    sys::pin(&link, pin)
}

fn filter(ebpf: &mut Ebpf, interface: &str, name: &str) -> Result<(), ProgramError> {
    match tc::qdisc_add_clsact(interface) {
        Err(TcError::AlreadyAttached) | Ok(()) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let program = program(ebpf, in_object(name)).map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    let kind = kind(name);
    let options = NlOptions {
        priority: PRIORITY,
        handle: TcHandle::new(0, HANDLE),
        classid: None,
    };
    let attached = match program.attach_with_options(interface, kind, TcAttachOptions::Netlink(options)) {
        Err(error) if is_present(&error) => program.attach_to_link(present(interface, kind)?)?,
        other => other?,
    };
    // A filter stays when nobody holds it; dropping the link would remove it.
    std::mem::forget(program.take_link(attached)?);
    Ok(())
}

fn kind(name: &str) -> TcAttachType {
    if is_egress(name) {
        TcAttachType::Egress
    } else {
        TcAttachType::Ingress
    }
}

fn is_present(error: &ProgramError) -> bool {
    matches!(error, ProgramError::TcError(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST))
}

fn present(interface: &str, kind: TcAttachType) -> Result<SchedClassifierLink, ProgramError> {
    let link = SchedClassifierLink::attached(interface, kind, PRIORITY, TcHandle::new(0, HANDLE), None)?;
    Ok(link)
}

/// Takes the programs off an interface; what is not there, or went with the interface, is fine.
pub(super) fn detach(dir: &Path, index: u32, interface: Option<&str>, names: [&'static str; 2]) -> Result<(), Error> {
    if let Some(interface) = interface {
        remove_filters(interface);
    }
    release_links(dir, index, names)
}

/// Removes an interface's links, if it has any.
pub(super) fn release_links(dir: &Path, index: u32, names: [&'static str; 2]) -> Result<(), Error> {
    names.iter().try_for_each(|name| release(&pin(dir, index, name)))
}

/// Removes the filters of clsact from an interface; there may be none.
pub(super) fn remove_filters(interface: &str) {
    for kind in [TcAttachType::Ingress, TcAttachType::Egress] {
        // The link removes its filter when it is dropped.
        drop(present(interface, kind));
    }
}

/// Detaches a pinned link and removes the pin.
pub(super) fn release(pin: &Path) -> Result<(), Error> {
    let Some(link) = absent(sys::open_pinned(pin)).map_err(|source| Error::file("open the link", pin, source))? else {
        return Ok(());
    };
    // Fails on a link whose interface is gone: then it is detached already.
    let _ = sys::detach_link(&link);
    absent(fs::remove_file(pin)).map_err(|source| Error::file("remove", pin, source))?;
    Ok(())
}

/// `None` for what does not exist.
fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
