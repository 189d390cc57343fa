//! The calls of bpf(2) that aya has no public way to: links that are pinned, found again, and given a new program.

use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    first_fd: u32,
    second_fd: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// The beginning of struct bpf_link_info, for a cgroup link.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    cgroup_id: u64,
    attach_type: u32,
    padding2: u32,
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a prefix of union bpf_attr of the given size; what it points to lives as long as the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// The cookie of the calling thread's network namespace (SO_NETNS_COOKIE, Linux 5.14).
pub(super) fn network_namespace() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: both pointers are to values that live as long as the call, and the length is that of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Opens a pinned object.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(
        BPF_OBJ_GET,
        &ObjectAttr {
            path: path.as_ptr() as u64,
            ..ObjectAttr::default()
        },
    )
    .map(owned)
}

/// Pins an object.
pub(crate) fn pin(object: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjectAttr {
        path: path.as_ptr() as u64,
        fd: number(object.as_fd()),
        flags: 0,
    };
    bpf(BPF_OBJ_PIN, &attr).map(drop)
}

/// Attaches a program to a cgroup, beside those of others.
pub(crate) fn create_link(program: BorrowedFd<'_>, cgroup: &impl AsFd, attach_type: u32) -> io::Result<OwnedFd> {
    let attr = LinkAttr {
        first_fd: number(program),
        second_fd: number(cgroup.as_fd()),
        attach_type,
        flags: 0,
    };
    bpf(BPF_LINK_CREATE, &attr).map(owned)
}

/// Gives a link another program, in one step.
pub(crate) fn update_link(link: &impl AsFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkAttr {
        first_fd: number(link.as_fd()),
        second_fd: number(program),
        ..LinkAttr::default()
    };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// Detaches a link, whoever else holds it.
pub(crate) fn detach_link(link: &impl AsFd) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &number(link.as_fd())).map(drop)
}

/// The cgroup a link is attached to: its inode number; zero when the cgroup is gone.
pub(crate) fn cgroup_of_link(link: &impl AsFd) -> io::Result<u64> {
    let mut info = LinkInfo::default();
    let attr = InfoAttr {
        fd: number(link.as_fd()),
        length: size_of::<LinkInfo>() as u32,
        info: &raw mut info as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    Ok(info.cgroup_id)
}

/// Attaches a program to an interface (tcx), after those of others.
pub(crate) fn create_interface_link(program: BorrowedFd<'_>, interface: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let attr = LinkAttr {
        first_fd: number(program),
        second_fd: interface,
        attach_type,
        flags: 0,
    };
    bpf(BPF_LINK_CREATE, &attr).map(owned)
}

/// The index of the interface a tcx link is attached to; zero when the interface is gone.
pub(crate) fn interface_of_link(link: &impl AsFd) -> io::Result<u32> {
    // In struct bpf_link_info the index stands where a cgroup's number begins.
    let [a, b, c, d, ..] = cgroup_of_link(link)?.to_ne_bytes();
    Ok(u32::from_ne_bytes([a, b, c, d]))
}
