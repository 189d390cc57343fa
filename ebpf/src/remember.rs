//! What a socket asked for, kept in its socket storage: it lives exactly as long as the socket and is never evicted.
//!
//! An entry is only believed while the address at hand is the backend it names, so a socket that was connected
//! elsewhere since shows the truth.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::SockAddrContext;
use hull_ebpf_types::{Endpoint, Frontend, Peers, Translation, UNCONNECTED_PEERS};

use crate::maps::{FLOWS, ORIGINS, PEERS};

const UDP: u8 = 17;

#[inline(always)]
pub fn connected(ctx: &SockAddrContext, frontend: &Frontend, service: u32, endpoint: &Endpoint) {
    let to = Translation {
        frontend: *frontend,
        endpoint: *endpoint,
    };
    // SAFETY: the context's socket is valid for the call; the value is checked before use.
    unsafe {
        let stored = ORIGINS.get_or_insert_ptr_mut(ctx, None);
        if !stored.is_null() {
            // Field by field: LLVM's code for copies of structs this long goes wrong.
            (*stored).to = to;
            (*stored).started = bpf_ktime_get_ns();
            (*stored).flow.sampled = 0;
            (*stored).flow.sent = 0;
            (*stored).flow.received = 0;
            (*stored).flow.in_diary = 0;
            (*stored).flow.retransmits = 0;
            (*stored).service = service;
        }
        if frontend.protocol == UDP {
            let _ = FLOWS.insert(&bpf_get_socket_cookie(ctx.as_ptr()), &to, 0);
        }
    }
}

#[inline(always)]
pub fn forget_connected(ctx: &SockAddrContext) {
    // SAFETY: as above.
    unsafe {
        let stored = ORIGINS.get_ptr_mut(ctx);
        if !stored.is_null() {
            if (*stored).to.frontend.protocol == UDP {
                let _ = FLOWS.remove(&bpf_get_socket_cookie(ctx.as_ptr()));
            }
            // No endpoint has this port, and no service this number.
            (*stored).to.endpoint.port = 0;
            (*stored).service = 0;
        }
    }
}

/// What the socket asked for, when it was sent to `shown`.
#[inline(always)]
pub fn origin_of_connected(ctx: &SockAddrContext, shown: &Endpoint, asked: &mut Endpoint) -> bool {
    // SAFETY: as above.
    let origin = unsafe {
        let stored = ORIGINS.get_ptr_mut(ctx);
        if stored.is_null() {
            return false;
        }
        (*stored).to
    };
    *asked = asked_for(&origin);
    origin.endpoint == *shown
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
