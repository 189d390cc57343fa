//! What a socket asked for, so that getpeername(2) and recvmsg(2) show it.
//!
//! A connected socket's origin has the place in `origins` that its cookie leads to, until the socket is closed: nothing
//! is evicted. A socket whose place is taken has it in its own storage, which costs a connect several times as much.
//! An entry is only believed while the address at hand is the backend it names, so a socket that was connected
//! elsewhere since shows the truth. User space, which tells datagram sockets that their backend is gone, cannot look into
//! sockets' storage: what it must know of those is in `strays`, too.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use hull_ebpf_types::{Endpoint, Frontend, Origin, Peers, Translation, UNCONNECTED_PEERS, algorithm, state};

use crate::maps::{OVERFLOW, PEERS, STRAYS, UNTOLD};
use crate::origin;

/// IPPROTO_UDP
const UDP: u32 = 17;

/// `chosen` is the algorithm by which the endpoint was.
#[inline(always)]
pub fn connected(ctx: &SockAddrContext, frontend: &Frontend, service: u32, chosen: u32, endpoint: &Endpoint) {
    let weighed = matches!(chosen, algorithm::LEAST_CONNECTIONS | algorithm::POWER_OF_TWO);
    let state = if weighed { state::WEIGHED } else { 0 };
    // SAFETY: a helper with the context that the kernel passed.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let Some(place) = origin::place(cookie) else { return };
    // SAFETY: a valid element, of which nobody but its owner writes the rest.
    unsafe {
        if read_volatile(&raw const (*place).cookie) == cookie || origin::take(place, cookie) {
            write(place, cookie, frontend, service, state, endpoint);
        } else {
            overflow(ctx, frontend, service, state, endpoint);
        }
    }
}

/// Word by word: LLVM's code for copies of structs this long goes wrong.
///
/// # Safety
/// The origin must be the socket's own.
#[inline(always)]
unsafe fn write(origin: *mut Origin, cookie: u64, frontend: &Frontend, service: u32, state: u32, endpoint: &Endpoint) {
    // SAFETY: by the caller; a helper without preconditions.
    unsafe {
        (*origin).to.frontend = *frontend;
        (*origin).to.endpoint = *endpoint;
        (*origin).service = service;
        (*origin).state = state;
        (*origin).started = bpf_ktime_get_ns();
        write_volatile(&raw mut (*origin).cookie, cookie);
    }
}

#[inline(never)]
fn overflow(ctx: &SockAddrContext, frontend: &Frontend, service: u32, state: u32, endpoint: &Endpoint) {
    // SAFETY: the context's socket is valid for the call; the value is checked before use.
    unsafe {
        let stored = OVERFLOW.get_or_insert_ptr_mut(ctx, None);
        if !stored.is_null() {
            write(stored, 0, frontend, service, state, endpoint);
        }
    }
    if u32::from(frontend.protocol) == UDP {
        let origin = Translation {
            frontend: *frontend,
            endpoint: *endpoint,
        };
        // SAFETY: a helper with the context that the kernel passed.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        // A full map costs the socket only the message that its backend is gone; the operator learns how many it cost.
        if STRAYS.insert(&cookie, &origin, 0).is_err()
            && let Some(untold) = UNTOLD.get_ptr_mut(0)
        {
            // SAFETY: an element of this CPU.
            unsafe { *untold += 1 };
        }
    }
}

/// The socket's entry, or null.
#[inline(always)]
fn own(ctx: &SockAddrContext) -> *mut Origin {
    // SAFETY: helpers with the context that the kernel passed, whose socket is valid for the call.
    unsafe {
        match origin::of(bpf_get_socket_cookie(ctx.as_ptr())) {
            Some(place) => place,
            None => OVERFLOW.get_ptr_mut(ctx),
        }
    }
}

#[inline(always)]
pub fn forget_connected(ctx: &SockAddrContext) {
    let origin = own(ctx);
    if !origin.is_null() {
        // SAFETY: the socket's own value; a helper with the context that the kernel passed.
        unsafe {
            // No endpoint has this port, and no service this number.
            (*origin).to.endpoint.port = 0;
            (*origin).service = 0;
            // That of an overflow has no cookie.
            if (*origin).cookie == 0 {
                let _ = STRAYS.remove(&bpf_get_socket_cookie(ctx.as_ptr()));
            }
        }
    }
}

/// The socket is being closed. What is still observed goes when the connection does.
#[inline(always)]
pub fn closed(ctx: &SockContext) {
    // SAFETY: a helper with the context that the kernel passed; the origin is the socket's own.
    unsafe {
        let cookie = bpf_get_socket_cookie(ctx.as_ptr());
        if let Some(origin) = origin::of(cookie) {
            origin::leave(origin, state::CLOSED);
        }
        if (*ctx.sock).protocol == UDP {
            let _ = STRAYS.remove(&cookie);
        }
    }
}

/// What the socket asked for, when it was sent to `shown`.
#[inline(always)]
pub fn origin_of_connected(ctx: &SockAddrContext, shown: &Endpoint, asked: &mut Endpoint) -> bool {
    let origin = own(ctx);
    if origin.is_null() {
        return false;
    }
    // SAFETY: the socket's own value.
    let to = unsafe { (*origin).to };
    *asked = asked_for(&to);
    to.endpoint == *shown
}

#[inline(always)]
pub fn unconnected(ctx: &SockAddrContext, frontend: &Frontend, endpoint: &Endpoint) {
    let origin = Translation {
        frontend: *frontend,
        endpoint: *endpoint,
    };
    // SAFETY: as above; every index is below the length.
    unsafe {
        let peers = PEERS.get_or_insert_ptr_mut(ctx, None);
        if peers.is_null() {
            return;
        }
        let mut place = (*peers).next as usize % UNCONNECTED_PEERS;
        let mut index = 0;
        while index < UNCONNECTED_PEERS {
            if (*peers).entries[index].frontend == *frontend {
                if (*peers).entries[index].endpoint == *endpoint {
                    return;
                }
                place = index;
            }
            index += 1;
        }
        (*peers).entries[place % UNCONNECTED_PEERS] = origin;
        (*peers).next = (place as u32).wrapping_add(1);
    }
}

/// Where this socket's datagrams to `frontend` went before.
#[inline(always)]
pub fn earlier(ctx: &SockAddrContext, frontend: &Frontend, endpoint: &mut Endpoint) {
    // SAFETY: as above; every index is below the length.
    unsafe {
        let peers: *const Peers = PEERS.get_ptr_mut(ctx);
        if peers.is_null() {
            return;
        }
        let mut index = 0;
        while index < UNCONNECTED_PEERS {
            if (*peers).entries[index].frontend == *frontend {
                *endpoint = (*peers).entries[index].endpoint;
                return;
            }
            index += 1;
        }
    }
}

/// The socket addresses the backend itself: its replies must no longer look like the service's.
#[inline(always)]
pub fn forget_unconnected(ctx: &SockAddrContext, frontend: &Frontend) {
    // SAFETY: as above.
    unsafe {
        let peers = PEERS.get_ptr_mut(ctx);
        if peers.is_null() {
            return;
        }
        let mut index = 0;
        while index < UNCONNECTED_PEERS {
            let endpoint = (*peers).entries[index].endpoint;
            if endpoint.port == frontend.port && endpoint.address == frontend.address {
                (*peers).entries[index].frontend.port = 0;
                (*peers).entries[index].endpoint.port = 0;
            }
            index += 1;
        }
    }
}

/// What the socket asked for, when one of its datagrams was sent to `shown`.
#[inline(always)]
pub fn origin_of_unconnected(ctx: &SockAddrContext, shown: &Endpoint, asked: &mut Endpoint) -> bool {
    // SAFETY: as above; every index is below the length.
    unsafe {
        let peers: *const Peers = PEERS.get_ptr_mut(ctx);
        if peers.is_null() {
            return false;
        }
        let mut index = 0;
        while index < UNCONNECTED_PEERS {
            if (*peers).entries[index].endpoint == *shown {
                *asked = asked_for(&(*peers).entries[index]);
                return true;
            }
            index += 1;
        }
    }
    false
}

#[inline(always)]
fn asked_for(origin: &Translation) -> Endpoint {
    Endpoint {
        address: origin.frontend.address,
        port: origin.frontend.port,
        zero: 0,
    }
}
