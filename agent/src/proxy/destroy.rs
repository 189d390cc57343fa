//! Tells UDP sockets that their backend is gone.
//!
//! A connected UDP socket never asks again where to send: without this, a resolver would talk to a dead pod forever.
//! Only sockets are destroyed (ECONNABORTED, sock_diag(7)) whose entry in the maps `origins` and `strays` names the service **and**
//! whose current peer is the vanished backend. (The kernel could show socket storage itself, but for TCP only.)

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use aya::maps::{Array, HashMap, MapData};
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
/// A connected UDP socket is in the state that TCP calls established.
const ESTABLISHED: u32 = 1 << 1;
const HEADER: usize = 16;
/// The socket's identity within struct inet_diag_msg and struct inet_diag_req_v2: ports, addresses, device, cookie.
const ID: usize = 48;

/// What clients must leave: service and backend.
pub(super) type Gone = BTreeSet<bpf::Translation>;
/// What connected sockets asked for and where they were sent, by their cookies.
pub(super) struct Origins {
    /// Most sockets have a place here.
    pub places: Array<MapData, bpf::Origin>,
    /// The datagram sockets that have none.
    pub strays: HashMap<MapData, u64, bpf::Translation>,
}

impl Origins {
    fn of(&self, cookie: u64) -> Option<bpf::Translation> {
        let place = u32::try_from(cookie % u64::from(bpf::ORIGINS)).ok()?;
        match self.places.get(&place, 0) {
            Ok(origin) if origin.cookie == cookie => Some(origin.to),
            _ => self.strays.get(&cookie, 0).ok(),
        }
    }
}

/// Destroys the UDP sockets that are connected to a vanished backend, in the host's and in all pods' namespaces.
/// Returns how many.
pub(super) fn destroy(gone: &Gone, netns_dir: &Path, origins: &Origins) -> Result<usize, Error> {
    let mut destroyed = in_this_namespace(gone, origins).map_err(|source| Error::Sockets {
        action: "look for UDP sockets on the host".to_owned(),
        source,
    })?;
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
    entries
        .map(|entry| entry.path().join("net"))
        .filter(|path| path.exists())
        .collect()
}

fn in_namespace(path: &Path, gone: &Gone, origins: &Origins) -> io::Result<usize> {
    let namespace = File::open(path)?;
    thread::scope(|scope| {
        let worker = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            in_this_namespace(gone, origins)
        };
        let handle = thread::Builder::new()
            .name("sock-destroy".to_owned())
            .spawn_scoped(scope, worker)?;
        handle
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

fn in_this_namespace(gone: &Gone, origins: &Origins) -> io::Result<usize> {
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

fn dump(socket: &Socket, family: u8, gone: &Gone, origins: &Origins) -> io::Result<Vec<[u8; ID]>> {
    socket.send(
        &message(
            SOCK_DIAG_BY_FAMILY,
            NLM_F_REQUEST | NLM_F_DUMP,
            &request(family, &[0; ID]),
        ),
        0,
    )?;
    let mut found = Vec::new();
    loop {
        let (buffer, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&buffer) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return acknowledged(body).map(|()| found),
                _ => found.extend(matching(family, body, gone, origins)),
            }
        }
    }
}

fn destroy_one(socket: &Socket, family: u8, id: &[u8; ID]) -> io::Result<bool> {
    socket.send(
        &message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &request(family, id)),
        0,
    )?;
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

/// The socket's identity (of struct inet_diag_msg), when it is one to destroy.
fn matching(family: u8, body: &[u8], gone: &Gone, origins: &Origins) -> Option<[u8; ID]> {
    let id: [u8; ID] = body.get(4..4 + ID)?.try_into().ok()?;
    let peer = peer(family, &id)?;
    let cookie = u64::from_ne_bytes(id.get(40..48)?.try_into().ok()?);
    let origin = origins.of(cookie)?;
    (origin.endpoint == peer && gone.contains(&origin)).then_some(id)
}

fn peer(family: u8, id: &[u8; ID]) -> Option<bpf::Endpoint> {
    let port = u16::from_ne_bytes(id.get(2..4)?.try_into().ok()?);
    let words: Vec<u32> = id
        .get(20..36)?
        .chunks_exact(4)
        .filter_map(|word| Some(u32::from_ne_bytes(word.try_into().ok()?)))
        .collect();
    let words: [u32; 4] = words.try_into().ok()?;
    let address = if family == libc::AF_INET as u8 {
        [0, 0, 0xffff_u32.to_be(), words[0]]
    } else {
        words
    };
    Some(bpf::Endpoint { address, port, zero: 0 })
}

fn acknowledged(body: &[u8]) -> io::Result<()> {
    let code = body
        .first_chunk()
        .map(|code| i32::from_ne_bytes(*code))
        .unwrap_or(-libc::EBADMSG);
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}

/// The netlink messages of a buffer: their types and bodies. One that is longer than the buffer ends the sequence.
fn messages(mut buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(buffer.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(buffer.get(4..6)?.try_into().ok()?);
        let body = buffer.get(HEADER..length)?;
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_at_their_lengths() {
        let two = [message(20, 0, b"abcdef"), vec![0; 2], message(NLMSG_DONE, 0, &[0; 4])].concat();
        let found: Vec<_> = messages(&two).collect();
        assert_eq!(found, [(20, b"abcdef".as_slice()), (3, [0; 4].as_slice())]);
        let mut lying = message(20, 0, b"abcd");
        lying[0] = 200;
        assert_eq!(messages(&lying).count(), 0);
        lying[0] = 3;
        assert_eq!(messages(&lying).count(), 0);
    }

    #[test]
    fn peers_of_both_families_are_compared_in_one_form() {
        let mut id = [0; ID];
        id[2..4].copy_from_slice(&53u16.to_be_bytes());
        id[20..24].copy_from_slice(&[10, 0, 0, 7]);
        let v4 = peer(libc::AF_INET as u8, &id).unwrap();
        id[20..36].copy_from_slice(&std::net::Ipv4Addr::new(10, 0, 0, 7).to_ipv6_mapped().octets());
        assert_eq!(peer(libc::AF_INET6 as u8, &id).unwrap(), v4);
        assert_eq!(
            super::super::tables::endpoint_from_bpf(&v4),
            "10.0.0.7:53".parse().unwrap()
        );
    }
}
