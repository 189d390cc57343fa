//! `linux.netDevices`: devices of the caller's network namespace move into the container's, get their name there, keep
//! their global addresses, and come up. Spoken to the kernel in plain rtnetlink(7): six messages need no library.
//! A physical device goes back to the host by itself when the container's namespace ends.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{Error, Result};
use crate::fault::Shown;
use crate::plan::net_devices::NetDevice;
use crate::syscall::{self, Sys};

// linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u32 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;
/// Lengths of nlmsghdr, ifaddrmsg, rtattr.
const HEADER: usize = 16;
const ADDRESS: usize = 8;
const ATTRIBUTE: usize = 4;

/// Move `devices` into the network namespace of the process `pid`, a child that has it already.
pub(super) fn move_in(pid: i32, devices: &[NetDevice]) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let own = namespace("self")?;
    let theirs = namespace(&pid.to_string())?;
    let mut moved = Vec::with_capacity(devices.len());
    for device in devices {
        let addresses = move_one(device, theirs.as_fd()).map_err(|e| {
            Error::os(
                format!("linux.netDevices: move {} into the container", Shown(&device.host)),
                e,
            )
        })?;
        moved.push((device, addresses));
    }
    syscall::setns(theirs.as_fd(), libc::CLONE_NEWNET)
        .map_err(|e| Error::os("enter the container's network namespace", e))?;
    let result = moved.iter().try_for_each(|(device, addresses)| {
        bring_up(device, addresses).map_err(|e| {
            Error::os(
                format!("linux.netDevices: set up {} in the container", Shown(&device.name)),
                e,
            )
        })
    });
    syscall::setns(own.as_fd(), libc::CLONE_NEWNET).map_err(|e| Error::os("return to the own network namespace", e))?;
    result
}

fn namespace(pid: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/net");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::os(format!("open {path}"), e))
}

/// The addresses that are to be given back to it.
fn move_one(device: &NetDevice, to: BorrowedFd) -> Sys<Vec<Vec<u8>>> {
    let index = index_of(&device.host)?;
    let socket = open()?;
    let addresses = global_addresses(socket.as_fd(), index)?;
    let mut request = link(index, 0);
    attribute(&mut request, IFLA_NET_NS_FD, &to.as_raw_fd().to_ne_bytes());
    attribute(&mut request, IFLA_IFNAME, device.name.to_bytes_with_nul());
    ask(socket.as_fd(), &mut request)?;
    Ok(addresses)
}

fn bring_up(device: &NetDevice, addresses: &[Vec<u8>]) -> Sys<()> {
    let index = index_of(&device.name)?;
    let socket = open()?;
    for address in addresses {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut request = header(RTM_NEWADDR, flags as u16);
        request.extend_from_slice(address);
        request[HEADER + 4..HEADER + ADDRESS].copy_from_slice(&index.to_ne_bytes());
        ask(socket.as_fd(), &mut request)?;
    }
    ask(socket.as_fd(), &mut link(index, libc::IFF_UP as u32))
}

fn index_of(name: &CStr) -> Sys<u32> {
    // SAFETY: the name is NUL-terminated.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(Errno::NODEV),
        index => Ok(index),
    }
}

fn open() -> Sys<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // NETLINK_ROUTE
    )
}

/// nlmsghdr with the length still open.
fn header(kind: u16, flags: u16) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(kind.to_ne_bytes());
    message.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 8]);
    message
}

/// A change of the link `index`, which raises `flags`.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut message = header(RTM_NEWLINK, 0);
    message.extend([0; 4]);
    for field in [index, flags, flags] {
        message.extend(field.to_ne_bytes());
    }
    message
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn send(socket: BorrowedFd, message: &mut [u8]) -> Sys<()> {
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    rustix::net::send(socket, message, SendFlags::empty()).map(drop)
}

/// Send a request and wait until the kernel has done it.
fn ask(socket: BorrowedFd, message: &mut [u8]) -> Sys<()> {
    message[6] |= libc::NLM_F_ACK as u8;
    send(socket, message)?;
    answers(socket, |_, _| ())
}

/// Hear answers until the last one; each is (type, payload).
fn answers(socket: BorrowedFd, mut each: impl FnMut(u16, &[u8])) -> Sys<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, payload, next)) = split(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    let code = payload
                        .first_chunk()
                        .map_or(-libc::EIO, |code| i32::from_ne_bytes(*code));
                    return match code {
                        0 => Ok(()),
                        code => Err(Errno::from_raw_os_error(-code)),
                    };
                }
                _ => each(kind, payload),
            }
            rest = next;
        }
    }
}

/// The first message: (type, payload, what follows).
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(HEADER..length)?;
    Some((
        kind,
        payload,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

/// Permanent addresses of global scope: what RTM_NEWADDR takes, but for the index.
fn global_addresses(socket: BorrowedFd, index: u32) -> Sys<Vec<Vec<u8>>> {
    let mut request = header(RTM_GETADDR, libc::NLM_F_DUMP as u16);
    request.extend([0; ADDRESS]);
    send(socket, &mut request)?;
    let mut found = Vec::new();
    answers(socket, |kind, payload| {
        if kind == RTM_NEWADDR {
            found.extend(kept(payload, index));
        }
    })?;
    Ok(found)
}

/// An address of the device `index` as it is to be given back: without its label, which names the device, and its age.
fn kept(payload: &[u8], index: u32) -> Option<Vec<u8>> {
    let (address, mut attributes) = payload.split_first_chunk::<ADDRESS>()?;
    let (flags, scope) = (u32::from(address[2]), address[3]);
    if address[4..] != index.to_ne_bytes() || scope != RT_SCOPE_UNIVERSE {
        return None;
    }
    let mut all_flags = flags;
    let mut kept = address.to_vec();
    while let Some(length) = attributes
        .first_chunk()
        .map(|length| u16::from_ne_bytes(*length) as usize)
    {
        let whole = attributes.get(..length)?;
        let kind = u16::from_ne_bytes(whole.get(2..4)?.try_into().ok()?);
        let value = whole.get(ATTRIBUTE..)?;
        if kind == IFA_FLAGS {
            all_flags = u32::from_ne_bytes(*value.first_chunk()?);
        }
        if kind != IFA_LABEL && kind != IFA_CACHEINFO {
            attribute(&mut kept, kind, value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    (all_flags & IFA_F_PERMANENT != 0).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(index: u32, scope: u8, flags: u8) -> Vec<u8> {
        let mut payload = vec![2, 24, flags, scope];
        payload.extend(index.to_ne_bytes());
        attribute(&mut payload, 1, &[10, 0, 0, 1]);
        attribute(&mut payload, IFA_LABEL, b"eth7\0");
        payload
    }

    #[test]
    fn only_permanent_global_addresses_of_the_device_are_kept() {
        let kept_one = kept(&address(7, 0, 0x80), 7).unwrap();
        assert_eq!(kept_one.len(), ADDRESS + 8, "the label is dropped");
        assert!(kept(&address(8, 0, 0x80), 7).is_none());
        assert!(kept(&address(7, 253, 0x80), 7).is_none());
        assert!(kept(&address(7, 0, 0), 7).is_none());
        assert!(kept(&[1, 2], 7).is_none());
    }

    #[test]
    fn messages_are_split_at_their_aligned_length() {
        let mut bytes = header(RTM_NEWADDR, 0);
        bytes.extend([9; 5]);
        bytes[..4].copy_from_slice(&21u32.to_ne_bytes());
        bytes.extend([0; 3]);
        bytes.push(1);
        let (kind, payload, rest) = split(&bytes).unwrap();
        assert_eq!((kind, payload, rest), (RTM_NEWADDR, &[9; 5][..], &[1][..]));
        assert!(split(&[0; 3]).is_none());
        assert!(split(&[255; 32]).is_none());
    }
}
