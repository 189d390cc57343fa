//! The device program in the kernel: loaded, attached to a group, replaced. bpf(2).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::devices::Instruction;
use crate::error::{Error, Result};
use crate::syscall;

// linux/bpf.h
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_DETACH: i32 = 9;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_PROG_QUERY: i32 = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
/// More programs than this cannot be attached to one group.
const MAX_PROGRAMS: usize = 64;

/// Load the program and attach it to the group; it lives as long as the group.
pub(crate) fn attach(group: BorrowedFd, program: &[Instruction]) -> Result<()> {
    let fd = load_program(program)?;
    attach_loaded(group, fd.as_fd())
}

/// Put the program in the place of those that are attached; `None` only removes them.
pub(crate) fn replace(group: BorrowedFd, program: Option<&[Instruction]>) -> Result<()> {
    let before = attached(group)?;
    // The new one first: in between both must allow an access, so nothing gets through that neither allows.
    if let Some(program) = program {
        attach(group, program)?;
    }
    before.iter().try_for_each(|old| detach(group, old.as_fd()))
}

/// Device programs of the group itself.
fn attached(group: BorrowedFd) -> Result<Vec<OwnedFd>> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut query = Vec::with_capacity(32);
    query.extend(group.as_raw_fd().to_ne_bytes());
    query.extend(BPF_CGROUP_DEVICE.to_ne_bytes());
    query.extend([0; 8]);
    query.extend((ids.as_mut_ptr() as u64).to_ne_bytes());
    query.extend((ids.len() as u32).to_ne_bytes());
    query.extend([0; 4]);
    let what = "list the device programs of the container's cgroup";
    // SAFETY: the first 32 bytes of bpf_attr for PROG_QUERY; the array has as many places as it says.
    unsafe { syscall::bpf(BPF_PROG_QUERY, &mut query) }.map_err(|e| Error::os(what, e))?;
    let count = query[24..28].try_into().map_or(0, u32::from_ne_bytes) as usize;
    let open = |id: &u32| {
        let mut attr = id.to_ne_bytes().to_vec();
        attr.extend([0; 8]);
        // SAFETY: the first 12 bytes of bpf_attr for PROG_GET_FD_BY_ID.
        let fd = unsafe { syscall::bpf(BPF_PROG_GET_FD_BY_ID, &mut attr) }.map_err(|e| Error::os(what, e))?;
        // SAFETY: the kernel gave us a new descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    ids.iter().take(count).map(open).collect()
}

fn detach(group: BorrowedFd, program: BorrowedFd) -> Result<()> {
    let mut attr = Vec::with_capacity(16);
    attr.extend(group.as_raw_fd().to_ne_bytes());
    attr.extend(program.as_raw_fd().to_ne_bytes());
    attr.extend(BPF_CGROUP_DEVICE.to_ne_bytes());
    attr.extend([0; 4]);
    // SAFETY: the first 16 bytes of bpf_attr for PROG_DETACH; both descriptors are open.
    unsafe { syscall::bpf(BPF_PROG_DETACH, &mut attr) }
        .map(drop)
        .map_err(|e| Error::os("detach the old device program from the container's cgroup", e))
}

fn load_program(program: &[Instruction]) -> Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut load = Vec::with_capacity(48);
    load.extend(BPF_PROG_TYPE_CGROUP_DEVICE.to_ne_bytes());
    load.extend((program.len() as u32).to_ne_bytes());
    load.extend((program.as_ptr() as u64).to_ne_bytes());
    load.extend((license.as_ptr() as u64).to_ne_bytes());
    load.extend([0; 24]);
    // SAFETY: the first 48 bytes of bpf_attr for PROG_LOAD; program and license live through the call.
    let fd = unsafe { syscall::bpf(BPF_PROG_LOAD, &mut load) }.map_err(|e| Error::os("load the device program", e))?;
    // SAFETY: PROG_LOAD returns a descriptor that we own.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach_loaded(group: BorrowedFd, program: BorrowedFd) -> Result<()> {
    let mut attach = Vec::with_capacity(16);
    attach.extend(group.as_raw_fd().to_ne_bytes());
    attach.extend(program.as_raw_fd().to_ne_bytes());
    attach.extend(BPF_CGROUP_DEVICE.to_ne_bytes());
    attach.extend(BPF_F_ALLOW_MULTI.to_ne_bytes());
    // SAFETY: the first 16 bytes of bpf_attr for PROG_ATTACH; both descriptors are open.
    unsafe { syscall::bpf(BPF_PROG_ATTACH, &mut attach) }
        .map_err(|e| Error::os("attach the device program to the container's cgroup", e))?;
    Ok(())
}
