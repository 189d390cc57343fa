//! The calls of bpf(2) that aya has no public way to: links that are pinned, found again, and given a new program; maps
//! made to measure and copied.

use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// BPF_OBJ_NAME_LEN, the final zero included.
const NAME: usize = 16;
/// Elements copied with one call; more if a bucket of the map holds more.
const BATCH: u32 = 4096;

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

#[repr(C)]
struct MapAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; NAME],
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
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
pub(crate) fn network_namespace() -> io::Result<u64> {
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

/// A map of a type of enum bpf_map_type, by sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub flags: u32,
}

/// Makes a map. Of its name the first 15 bytes are shown.
pub(crate) fn create_map(name: &str, shape: Shape, entries: u32) -> io::Result<OwnedFd> {
    create(name, shape, entries, 0)
}

/// Makes a map of so many places for maps of the shape of this one.
pub(crate) fn create_outer_map(name: &str, inner: &impl AsFd, places: u32) -> io::Result<OwnedFd> {
    const ARRAY_OF_MAPS: u32 = 12;
    let shape = Shape {
        kind: ARRAY_OF_MAPS,
        key_size: size_of::<u32>() as u32,
        value_size: size_of::<u32>() as u32,
        flags: 0,
    };
    create(name, shape, places, number(inner.as_fd()))
}

fn create(name: &str, shape: Shape, entries: u32, inner: u32) -> io::Result<OwnedFd> {
    let mut shown = [0; NAME];
    for (to, from) in shown[..NAME - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let attr = MapAttr {
        kind: shape.kind,
        key_size: shape.key_size,
        value_size: shape.value_size,
        entries,
        flags: shape.flags,
        inner,
        numa_node: 0,
        name: shown,
    };
    bpf(BPF_MAP_CREATE, &attr).map(owned)
}

/// Copies every element of a hash map into another one of the same shape, but for the number of elements.
pub(crate) fn copy_elements(from: BorrowedFd<'_>, to: BorrowedFd<'_>, shape: Shape) -> io::Result<()> {
    let bytes = |size: u32, room: u32| vec![0_u8; size as usize * room as usize];
    let mut room = BATCH;
    let (mut keys, mut values) = (bytes(shape.key_size, room), bytes(shape.value_size, room));
    let mut position = None;
    loop {
        let mut next = 0_u32;
        let mut attr = BatchAttr {
            in_batch: position
                .as_ref()
                .map_or(0, |position: &u32| &raw const *position as u64),
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room,
            map: number(from),
            ..BatchAttr::default()
        };
        let read = batch(BPF_MAP_LOOKUP_BATCH, &mut attr);
        let last = match read.as_ref().map_err(io::Error::raw_os_error) {
            Ok(()) => false,
            Err(Some(libc::ENOENT)) => true,
            Err(Some(libc::ENOSPC)) => {
                room = room.saturating_mul(2);
                (keys, values) = (bytes(shape.key_size, room), bytes(shape.value_size, room));
                continue;
            }
            Err(_) => return read,
        };
        if attr.count > 0 {
            let mut attr = BatchAttr {
                in_batch: 0,
                out_batch: 0,
                map: number(to),
                ..attr
            };
            batch(BPF_MAP_UPDATE_BATCH, &mut attr)?;
        }
        if last {
            return Ok(());
        }
        position = Some(next);
    }
}

/// The kernel writes the number of elements it has handled into the attributes.
fn batch(command: libc::c_long, attr: &mut BatchAttr) -> io::Result<()> {
    // SAFETY: `attr` is a prefix of union bpf_attr of the given size; the buffers that it points to live as long as the call,
    // and have room for as many elements as it says.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<BatchAttr>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
