//! Tells UDP sockets that their backend is gone.
//!
//! A connected UDP socket never asks again where to send: without this, a resolver would talk to a dead pod forever.
//! Only sockets are destroyed (ECONNABORTED) whose remembered origin names the service **and** whose current peer is
//! the vanished backend; the kernel tells both (sock_diag(7), INET_DIAG_REQ_SK_BPF_STORAGES).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;

use hull_ebpf_types as bpf;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Error;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
/// A connected UDP socket is in the state that TCP calls established.
const ESTABLISHED: u32 = 1 << 1;
const HEADER: usize = 16;
/// The socket's identity within struct inet_diag_msg and struct inet_diag_req_v2: ports, addresses, device, cookie.
const ID: usize = 48;
const DIAG_MSG: usize = 72;

/// What clients must leave: service and backend.
pub(super) type Gone = BTreeSet<bpf::Origin>;

/// Destroys the UDP sockets that are connected to a vanished backend, in the host's and in all pods' namespaces.
/// Returns how many.
pub(super) fn destroy(gone: &Gone, netns_dir: &Path, origins: BorrowedFd<'_>) -> Result<usize, Error> {
    let mut destroyed = in_this_namespace(gone, origins)
        .map_err(|source| Error::Sockets { action: "look for UDP sockets on the host".to_owned(), source })?;
    for path in namespaces(netns_dir) {
        let result = in_namespace(&path, gone, origins);
        destroyed += result.map_err(|source| Error::Sockets {
            action: format!("look for UDP sockets in the network namespace {}", path.display()),
            source,
        })?;
    }
    Ok(destroyed)
}

fn namespaces(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().join("net")).filter(|path| path.exists()).collect()
}

fn in_namespace(path: &Path, gone: &Gone, origins: BorrowedFd<'_>) -> io::Result<usize> {
    let namespace = File::open(path)?;
    thread::scope(|scope| {
        let worker = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            in_this_namespace(gone, origins)
        };
        let handle = thread::Builder::new().name("sock-destroy".to_owned()).spawn_scoped(scope, worker)?;
        handle.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

fn in_this_namespace(gone: &Gone, origins: BorrowedFd<'_>) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut destroyed = 0;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        for id in dump(&socket, family, gone, origins)? {
            if destroy_one(&socket, family, &id)? {
                destroyed += 1;
            }
        }
    }
    Ok(destroyed)
}

fn dump(socket: &Socket, family: u8, gone: &Gone, origins: BorrowedFd<'_>) -> io::Result<Vec<[u8; ID]>> {
    let fd = attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &origins.as_raw_fd().to_ne_bytes());
    let storages = attribute(INET_DIAG_REQ_SK_BPF_STORAGES, &fd);
    let body = [request(family, &[0; ID]), storages].concat();
    socket.send(&message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, &body), 0)?;
    let mut found = Vec::new();
    loop {
        let (buffer, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&buffer) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return acknowledged(body).map(|()| found),
                _ => found.extend(matching(family, body, gone)),
            }
        }
    }
}

fn destroy_one(socket: &Socket, family: u8, id: &[u8; ID]) -> io::Result<bool> {
    socket.send(&message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &request(family, id)), 0)?;
    let (buffer, _) = socket.recv_from_full()?;
    for (kind, body) in messages(&buffer) {
        if kind == NLMSG_ERROR {
            return match acknowledged(body) {
                // It was closed or connected elsewhere in the meantime.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
                result => result.map(|()| true),
            };
        }
    }
    Ok(false)
}

/// struct inet_diag_req_v2.
fn request(family: u8, id: &[u8; ID]) -> Vec<u8> {
    let mut bytes = vec![family, libc::IPPROTO_UDP as u8, 0, 0];
    bytes.extend(ESTABLISHED.to_ne_bytes());
    bytes.extend(id);
    bytes
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = (HEADER + body.len()) as u32;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The socket's identity, when it is one to destroy.
fn matching(family: u8, body: &[u8], gone: &Gone) -> Option<[u8; ID]> {
    let id: [u8; ID] = body.get(4..4 + ID)?.try_into().ok()?;
    let peer = peer(family, &id)?;
    let storages = attributes(body.get(DIAG_MSG..)?).find(|(kind, _)| *kind == INET_DIAG_SK_BPF_STORAGES)?.1;
    let storage = attributes(storages).find(|(kind, _)| *kind == SK_DIAG_BPF_STORAGE)?.1;
    let value = attributes(storage).find(|(kind, _)| *kind == SK_DIAG_BPF_STORAGE_MAP_VALUE)?.1;
    let origin = origin(value)?;
    (origin.endpoint == peer && gone.contains(&origin)).then_some(id)
}

fn peer(family: u8, id: &[u8; ID]) -> Option<bpf::Endpoint> {
    let port = u16::from_ne_bytes(id.get(2..4)?.try_into().ok()?);
    let words: Vec<u32> =
        id.get(20..36)?.chunks_exact(4).filter_map(|word| Some(u32::from_ne_bytes(word.try_into().ok()?))).collect();
    let words: [u32; 4] = words.try_into().ok()?;
    let address = if family == libc::AF_INET as u8 { [0, 0, 0xffff_u32.to_be(), words[0]] } else { words };
    Some(bpf::Endpoint { address, port, zero: 0 })
}

fn origin(value: &[u8]) -> Option<bpf::Origin> {
    if value.len() < size_of::<bpf::Origin>() {
        return None;
    }
    // SAFETY: long enough, and Origin is plain integers: any bytes are a value.
    Some(unsafe { value.as_ptr().cast::<bpf::Origin>().read_unaligned() })
}

fn acknowledged(body: &[u8]) -> io::Result<()> {
    let code = body.first_chunk().map(|code| i32::from_ne_bytes(*code)).unwrap_or(-libc::EBADMSG);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

fn messages(buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    records(buffer, HEADER, |header| {
        Some((u32::from_ne_bytes(header.get(..4)?.try_into().ok()?) as usize, header.get(4..6)?))
    })
}

fn attributes(buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// The upper bits say how the value is encoded.
    const KIND: u16 = 0x3fff;
    records(buffer, 4, |header| {
        Some((usize::from(u16::from_ne_bytes(header.get(..2)?.try_into().ok()?)), header.get(2..4)?))
    })
    .map(|(kind, value)| (kind & KIND, value))
}

/// Splits a sequence of length-prefixed, 4-byte-aligned records; `describe` finds length and kind in a header.
fn records<'a>(
    mut buffer: &'a [u8],
    header: usize,
    describe: impl Fn(&'a [u8]) -> Option<(usize, &'a [u8])>,
) -> impl Iterator<Item = (u16, &'a [u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = describe(buffer.get(..header)?)?;
        let kind = u16::from_ne_bytes(kind.try_into().ok()?);
        let body = buffer.get(header..length)?;
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_and_messages_are_split_at_their_lengths() {
        let nested = [attribute(1, b"abc"), attribute(0x8002, b"defg")].concat();
        let found: Vec<_> = attributes(&nested).collect();
        assert_eq!(found, [(1, b"abc".as_slice()), (2, b"defg".as_slice())]);
        let two = [message(20, 0, &nested), message(NLMSG_DONE, 0, &[0; 4])].concat();
        assert_eq!(messages(&two).map(|(kind, body)| (kind, body.len())).collect::<Vec<_>>(), [(20, 16), (3, 4)]);
        let mut lying = message(20, 0, &nested);
        lying[0] = 200;
        assert_eq!(messages(&lying).count(), 0, "a record longer than the buffer ends the sequence");
    }
}
